// 第 4 节：残差流与归一化。site 是第几次归一化：每块两次，最后还有一次。

function drawStream() {
  const norms = tensor(data.stream.norms);
  const added = tensor(data.stream.added);
  const { num_layers: numLayers } = data.config;
  const longest = (values) => values.reduce((most, value) => Math.max(most, value), 1e-9);
  const cell = (share, text, kind) => element("td", {}, element("span", { class: `fill ${kind}`, "--share": share.toFixed(4) }), element("span", { class: "cell-text" }, text));
  whenChanged(["position", "site"], () => {
    const { position } = state;
    const lengths = Array.from({ length: 2 * numLayers + 1 }, (_, site) => norms.at(site, position));
    const additions = Array.from({ length: 2 * numLayers }, (_, index) => added.at(index, position));
    const most = longest([...lengths, ...additions]);
    const rows = lengths.map((length, site) => {
      const isAttention = site % 2 === 1;
      const name = site === 0 ? "嵌入" : `${Math.floor((site - 1) / 2)} 层${isAttention ? "注意力" : "前馈"}`;
      const plus = site === 0 ? element("td") : cell(additions[site - 1] / most, `+ ${number(additions[site - 1])}`, isAttention ? "attention" : "feed-forward");
      return element(
        "tr",
        { class: site === state.site ? "selected" : "", tabindex: site === state.site ? "0" : "-1", onclick: () => select({ site }) },
        element("th", { scope: "row" }, name),
        plus,
        cell(length / most, number(length), "length"),
      );
    });
    const titles = ["这一步", "加上的向量有多长", "之后残差流有多长"].map((name) => element("th", { scope: "col" }, name));
    find("stream-table").replaceChildren(element("thead", {}, element("tr", {}, titles)), element("tbody", {}, rows));
  });
  find("stream-table").addEventListener("keydown", (event) => {
    const move = { ArrowUp: -1, ArrowDown: 1 }[event.key];
    if (!move) return;
    event.preventDefault();
    select({ site: clamp(state.site + move, 0, 2 * numLayers) });
    find("stream-table").querySelector('[tabindex="0"]').focus();
  });
}

function drawNorm() {
  const vectors = tensor(data.stream.vectors);
  const means = tensor(data.stream.means);
  const stds = tensor(data.stream.stds);
  const { num_layers: numLayers, norm } = data.config;
  find("norm-note").textContent =
    norm === "layer_norm"
      ? "LayerNorm 减去均值、除以标准差，再乘上学到的 γ、加上 β。点上表的一行，看那里的归一化。"
      : "RMSNorm 不减均值，只除以均方根，再乘上学到的 γ。点上表的一行，看那里的归一化。";
  whenChanged(["position", "site"], () => {
    const { site, position } = state;
    const place = site === 2 * numLayers ? "输出层之前的 final_norm" : `第 ${Math.floor(site / 2)} 层${site % 2 ? "前馈之前的 norm2" : "注意力之前的 norm1"}`;
    find("norm-title").textContent = `归一化：${place}`;
    const rows = [0, 1].map((side) => vectors.row(site, side, position));
    const note = (side) => `均值 ${number(means.at(site, side, position))}，标准差 ${number(stds.at(site, side, position))}`;
    find("norm-strips").replaceChildren(
      ...["之前", "之后"].map((name, side) => strip(name, rows[side], largest(...rows), note(side))),
    );
  });
}
