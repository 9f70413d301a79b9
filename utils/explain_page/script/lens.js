// 第 5 节：逐层的答案。

function drawLens() {
  const probabilities = tensor(data.lens.probabilities);
  const entropies = tensor(data.lens.entropies);
  const highest = Math.log(data.tokenizer_size);
  const numRows = data.lens.ids.length;
  const name = (row) => (row === 0 ? "嵌入" : row === numRows - 1 ? `${row - 1} 层＝回答` : `${row - 1} 层`);
  const cells = data.lens.ids.map((row, layer) =>
    row.map((guesses, position) =>
      element(
        "td",
        {
          class: guesses[0] === ids[position + 1] ? "right" : "",
          tabindex: "-1",
          onclick: () => { select({ lensLayer: layer }); selectPosition(position); },
          onpointerenter: () => detail(layer, position),
          onpointerleave: () => detail(state.lensLayer, state.position),
        },
        label(guesses[0]),
      ),
    ),
  );
  const table = find("lens-table");
  table.append(
    element("thead", {}, element("tr", {}, element("th", {}, "读到"), ids.map((id) => element("th", { scope: "col" }, label(id))))),
    element("tbody", {}, cells.map((row, layer) => element("tr", {}, element("th", { scope: "row" }, name(layer)), row))),
  );
  function colour() {
    const kind = document.querySelector('input[name="lens-colour"]:checked').value;
    cells.forEach((row, layer) => row.forEach((cell, position) => {
      const w = kind === "probability" ? probabilities.at(layer, position, 0) : 1 - entropies.at(layer, position) / highest;
      cell.style.setProperty("--w", clamp(w, 0, 1).toFixed(3));
    }));
  }
  function detail(layer, position) {
    find("lens-detail-title").textContent = `读到${quote(ids[position])}，${name(layer)}：猜下一个是`;
    find("lens-detail").replaceChildren(
      ...data.lens.ids[layer][position].map((id, rank) => bar(label(id), probabilities.at(layer, position, rank), percent(probabilities.at(layer, position, rank)))),
    );
    const h = entropies.at(layer, position);
    find("lens-readout").textContent = `熵 ${number(h)} nat，相当于在 ${number(Math.exp(h), 1)} 个一样可能的 token 里猜；完全不知道是 ${number(highest)} nat。`;
  }
  document.querySelectorAll('input[name="lens-colour"]').forEach((input) => input.addEventListener("change", colour));
  table.addEventListener("keydown", (event) => {
    const move = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
    if (!move) return;
    event.preventDefault();
    select({ lensLayer: clamp(state.lensLayer + move[0], 0, numRows - 1) });
    selectPosition(state.position + move[1]);
    cells[state.lensLayer][state.position].focus();
  });
  colour();
  whenChanged(["position", "lensLayer"], () => {
    cells.flat().forEach((cell) => { cell.classList.remove("selected"); cell.tabIndex = -1; });
    const chosen = cells[state.lensLayer][state.position];
    chosen.classList.add("selected");
    chosen.tabIndex = 0;
    reveal(chosen);
    detail(state.lensLayer, state.position);
  });
}
