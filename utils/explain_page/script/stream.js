// 第 4 节：残差流与归一化。site 是第几次归一化：每块两次，最后还有一次。

function drawStream() {
  const table = find("stream-table");
  const titles = ["这一步", "加上的向量有多长", "之后残差流有多长"].map((name) =>
    element("th", { scope: "col" }, name),
  );
  whenChanged(["position", "site"], () => {
    table.replaceChildren(
      element("thead", {}, element("tr", {}, titles)),
      element("tbody", {}, streamRows(state.position)),
    );
  });
  addMoveKeys(table, (down) => {
    select({ site: clamp(state.site + down, 0, 2 * data.config.num_layers) });
    table.querySelector(".selected").focus();
  });
}

function streamRows(position) {
  const column = (packed) => Array.from({ length: packed.shape[0] }, (_, site) => tensor(packed).at(site, position));
  const [lengths, additions] = [column(data.stream.norms), column(data.stream.added)];
  const most = largest(lengths, additions);
  return lengths.map((length, site) => {
    const isAttention = site % 2 === 1;
    const name = site === 0 ? "嵌入" : `${layerName(Math.floor((site - 1) / 2))}的${isAttention ? "注意力" : "前馈"}`;
    const added = additions[site - 1];
    const isChosen = site === state.site;
    return element(
      "tr",
      { class: isChosen ? "selected" : "", tabindex: isChosen ? "0" : "-1", onclick: () => select({ site }) },
      element("th", { scope: "row" }, name),
      site === 0
        ? element("td")
        : lengthCell(added / most, `+ ${number(added)}`, isAttention ? "attention" : "feed-forward"),
      lengthCell(length / most, number(length), "length"),
    );
  });
}

function lengthCell(share, text, kind) {
  return element(
    "td",
    {},
    element("span", { class: `fill ${kind}`, "--share": share.toFixed(4) }),
    element("span", { class: "cell-text" }, text),
  );
}

function drawNorm() {
  const [vectors, means, stds] = ["vectors", "means", "stds"].map((name) => tensor(data.stream[name]));
  find("norm-note").textContent =
    data.config.norm === "layer_norm"
      ? "LayerNorm 减去均值、除以标准差，再乘上学到的 γ、加上 β。点上表的一行，看那里的归一化。"
      : "RMSNorm 不减均值，只除以均方根，再乘上学到的 γ。点上表的一行，看那里的归一化。";
  whenChanged(["position", "site"], () => {
    const { site, position } = state;
    const place =
      site === 2 * data.config.num_layers
        ? "输出层之前的 final_norm"
        : `${layerName(Math.floor(site / 2))}${site % 2 ? "前馈之前的 norm2" : "注意力之前的 norm1"}`;
    find("norm-title").textContent = `归一化：${place}`;
    const rows = [0, 1].map((side) => vectors.row(site, side, position));
    const note = (side) =>
      `均值 ${number(means.at(site, side, position))}，标准差 ${number(stds.at(site, side, position))}`;
    find("norm-strips").replaceChildren(
      ...["之前", "之后"].map((name, side) => strip(name, rows[side], largest(...rows), note(side))),
    );
  });
}
