// 顶上的 token 条，和第 1 节。

function drawTokenBar() {
  const bar = find("token-bar");
  const buttons = ids.map((id, position) =>
    element(
      "button",
      {
        type: "button",
        role: "option",
        title: `第 ${ordinal(position)} 个，编号 ${id}`,
        onclick: () => selectPosition(position),
      },
      label(id),
    ),
  );
  bar.append(...buttons);
  addArrowKeys(bar, (move) => selectPosition(state.position + move));
  whenChanged(["position"], () => {
    const chosen = buttons[state.position];
    chooseOne(buttons, chosen);
    bar.scrollTo({ left: chosen.offsetLeft - (bar.clientWidth - chosen.offsetWidth) / 2 });
  });
}

function drawTokenCards() {
  const cards = data.tokens.map((token, position) =>
    element(
      "div",
      { class: "token-card", onclick: () => selectPosition(position) },
      element("span", { class: "token-label" }, token.label),
      element("span", { class: "token-id" }, String(token.id)),
      element("span", { class: "token-bytes" }, token.bytes),
      token.part_of === undefined ? [] : element("span", { class: "token-part" }, `属于「${token.part_of}」`),
    ),
  );
  find("token-cards").append(...cards);
  const numBytes = data.tokens.reduce((sum, token) => sum + token.bytes.split(" ").length, 0);
  const { characters } = data;
  find("token-summary").textContent =
    `${characters} 字，${numBytes} 个字节，${ids.length} 个 token；平均每个 token ${number(characters / ids.length)} 字。词表有 ${integer(data.tokenizer_size)} 个 token。`;
  whenChanged(["position"], () =>
    cards.forEach((card, position) => card.classList.toggle("selected", position === state.position)),
  );
}
