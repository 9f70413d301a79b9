// 第 8 节：损失。

function drawLoss() {
  const { ids: text, num_context: start } = data.loss;
  const count = text.length - start;
  if (count === 0) {
    find("loss-detail").replaceChildren(element("p", { class: "readout" }, "开头只有一个 token，没有答案可以对照。换长一些的开头，或用 --continuation 给出接下去的文字。"));
    return;
  }
  const right = tensor(data.loss.right).values;
  const logSums = tensor(data.loss.log_sums).values;
  const losses = Array.from(right, (score, index) => logSums[index] - score);
  const mean = losses.reduce((a, b) => a + b, 0) / count;
  const words = text.map((id, position) => {
    if (position < start) return element("span", { class: "word given" }, data.loss.labels[position]);
    const loss = losses[position - start];
    return element(
      "button",
      { type: "button", class: "word", "--w": Math.min(1, loss / 10).toFixed(3), title: number(loss), onpointerenter: () => detail(position), onpointerleave: () => detail(state.lossAt), onclick: () => select({ lossAt: position }) },
      data.loss.labels[position],
    );
  });
  find("loss-text").append(...words);
  addArrowKeys(find("loss-text"), (step) => select({ lossAt: clamp(state.lossAt + step, start, text.length - 1) }));

  function detail(position) {
    const index = position - start;
    const [z, total, loss] = [right[index], logSums[index], losses[index]];
    const best = tensor(data.loss.best_probabilities).values[index];
    const line = (name, text_) => element("div", { class: "step" }, element("span", { class: "step-name" }, name), element("span", { class: "step-text" }, text_));
    find("loss-detail").replaceChildren(
      element("h3", {}, `「${data.loss.labels[position - 1]}」之后是「${data.loss.labels[position]}」`),
      element(
        "div",
        { class: "steps" },
        line("它的分数", `z = ${number(z, 3)}，排第 ${integer(data.loss.ranks[index])}`),
        line("全部分数", `log Σ exp(分数) = ${number(total, 3)}`),
        line("概率", `p = exp(${number(z, 3)} − ${number(total, 3)}) = ${percent(Math.exp(-loss))}`),
        line("损失", `−log p = ${number(total, 3)} − ${number(z, 3)} = ${number(loss, 3)} nat`),
        line("模型最想说", `${quote(data.loss.best[index])}，${percent(best)}`),
      ),
      element("p", { class: "readout" }, summary()),
    );
  }
  function summary() {
    const characters = data.loss.num_characters;
    const perCharacter = characters ? `，折合每个字 ${number((mean * count) / characters)}` : "";
    return `${count} 个 token 的平均：${number(mean * count)} ÷ ${count} = ${number(mean, 3)} nat/token${perCharacter}；困惑度 exp(${number(mean)}) = ${number(Math.exp(mean), 1)}。闭着眼猜是 log ${integer(data.tokenizer_size)} = ${number(Math.log(data.tokenizer_size))}。`;
  }
  whenChanged(["lossAt"], () => {
    words.forEach((word, position) => {
      word.classList.toggle("selected", position === state.lossAt);
      if (position >= start) word.tabIndex = position === state.lossAt ? 0 : -1;
    });
    detail(state.lossAt);
  });
}
