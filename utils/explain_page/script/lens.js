// 第 5 节：逐层的答案。

function drawLens() {
  const numRows = data.lens.ids.length;
  const cells = data.lens.ids.map((row, layer) =>
    row.map((guesses, position) => lensCell(layer, position, guesses[0])),
  );
  const table = find("lens-table");
  const titles = element(
    "tr",
    {},
    element("th", {}, "读到"),
    ids.map((id) => element("th", { scope: "col" }, label(id))),
  );
  const rows = cells.map((row, layer) => element("tr", {}, element("th", { scope: "row" }, lensRowName(layer)), row));
  table.append(element("thead", {}, titles), element("tbody", {}, rows));
  addMoveKeys(table, (down, right) => {
    select({ lensLayer: clamp(state.lensLayer + down, 0, numRows - 1) });
    selectPosition(state.position + right);
    cells[state.lensLayer][state.position].focus();
  });
  for (const input of document.querySelectorAll('input[name="lens-colour"]'))
    input.addEventListener("change", () => colourLens(cells));
  colourLens(cells);
  whenChanged(["position", "lensLayer"], () => {
    const chosen = cells[state.lensLayer][state.position];
    chooseOne(cells.flat(), chosen);
    reveal(chosen);
    explainGuess(state.lensLayer, state.position);
  });
}

function lensRowName(layer) {
  if (layer === 0) return "嵌入";
  return layer === data.config.num_layers ? `${layerName(layer - 1)}＝回答` : layerName(layer - 1);
}

function lensCell(layer, position, guess) {
  const choose = () => {
    select({ lensLayer: layer });
    selectPosition(position);
  };
  return element(
    "td",
    {
      class: guess === ids[position + 1] ? "right" : "",
      onclick: choose,
      onpointerenter: () => explainGuess(layer, position),
      onpointerleave: () => explainGuess(state.lensLayer, state.position),
    },
    label(guess),
  );
}

function colourLens(cells) {
  const kind = document.querySelector('input[name="lens-colour"]:checked').value;
  const shade = {
    probability: (layer, position) => tensor(data.lens.probabilities).at(layer, position, 0),
    certainty: (layer, position) => 1 - tensor(data.lens.entropies).at(layer, position) / Math.log(data.tokenizer_size),
  }[kind];
  cells.forEach((row, layer) =>
    row.forEach((cell, position) => cell.style.setProperty("--w", clamp(shade(layer, position), 0, 1).toFixed(3))),
  );
}

function explainGuess(layer, position) {
  const probabilities = tensor(data.lens.probabilities).row(layer, position);
  const h = tensor(data.lens.entropies).at(layer, position);
  find("lens-detail-title").textContent = `读到${quote(ids[position])}，${lensRowName(layer)}：猜下一个是`;
  find("lens-detail").replaceChildren(
    ...data.lens.ids[layer][position].map((id, rank) =>
      bar(label(id), probabilities[rank], percent(probabilities[rank])),
    ),
  );
  find("lens-readout").textContent =
    `熵 ${number(h)} nat，相当于在 ${about(Math.exp(h))} 个一样可能的 token 里猜；完全不知道是 ${number(Math.log(data.tokenizer_size))} nat。`;
}
