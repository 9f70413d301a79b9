// 第 3 节：每个头在看什么，一行一层，一格一个头。

function drawHeads() {
  const { names, habits } = data.attention;
  const shares = tensor(data.attention.shares);
  const cells = names.map((row, layer) => row.map((name, head) => headButton(layer, head, name)));
  const grid = find("heads");
  grid.style.setProperty("--columns", data.config.num_heads);
  grid.append(...cells.flatMap((row, layer) => [element("span", { class: "row-name" }, layerName(layer)), ...row]));
  addMoveKeys(grid, (down, right) => {
    moveHead(down, right);
    cells[state.layer][state.head].focus();
  });
  whenChanged(["layer", "head"], () => {
    chooseOne(cells.flat(), cells[state.layer][state.head]);
    const parts = habits.map((habit, index) => `${habit} ${percent(shares.at(state.layer, state.head, index))}`);
    find("head-readout").textContent =
      `${headName(state.layer, state.head)}，平均的权重：${parts.join("，")}。一个 token 可以同时算几种。`;
  });
}

function headButton(layer, head, name) {
  const { habits, layers, shares } = data.attention;
  const isShown = layers.includes(layer);
  const share = name === "分散" ? 0 : tensor(shares).at(layer, head, habits.indexOf(name));
  const title = `${headName(layer, head)}：${name}${isShown ? "" : "（没有放进这个文件）"}`;
  return element(
    "button",
    {
      type: "button",
      class: "head",
      disabled: !isShown,
      "--w": share.toFixed(3),
      "aria-label": title,
      title,
      onclick: () => select({ layer, head }),
    },
    name === "分散" ? "·" : name[0],
  );
}

// 上下走到相邻的、放进了这个文件的层。
function moveHead(down, right) {
  const { layers } = data.attention;
  const layer = layers[clamp(attentionSlot(state.layer) + down, 0, layers.length - 1)];
  select({ layer, head: clamp(state.head + right, 0, data.config.num_heads - 1) });
}
