// 第 8 节：损失。

function drawLoss() {
  const { ids: text, num_context: start, labels } = data.loss;
  if (text.length === start) {
    find("loss-detail").textContent =
      "开头只有一个 token，没有答案可以对照。换长一些的开头，或用 --continuation 给出接下去的文字。";
    return;
  }
  const words = labels.map((name, position) =>
    position < start ? element("span", { class: "word given" }, name) : lossWord(name, position),
  );
  find("loss-text").append(...words);
  addArrowKeys(find("loss-text"), (move) => select({ lossAt: clamp(state.lossAt + move, start, text.length - 1) }));
  whenChanged(["lossAt"], () => {
    chooseOne(words.slice(start), words[state.lossAt]);
    reveal(words[state.lossAt], find("loss-text"));
    explainLoss(state.lossAt);
  });
}

// 损失 = log Σ exp(分数) − 正确答案的分数。
function lossAt(position) {
  const index = position - data.loss.num_context;
  return tensor(data.loss.log_sums).at(index) - tensor(data.loss.right).at(index);
}

function lossWord(name, position) {
  const loss = lossAt(position);
  return element(
    "button",
    {
      type: "button",
      class: "word",
      "--w": Math.min(1, loss / 10).toFixed(3),
      title: number(loss),
      onpointerenter: () => explainLoss(position),
      onpointerleave: () => explainLoss(state.lossAt),
      onclick: () => select({ lossAt: position }),
    },
    name,
  );
}

function explainLoss(position) {
  const { labels, ranks, best, best_probabilities: tops, num_context: start } = data.loss;
  const index = position - start;
  const z = number(tensor(data.loss.right).at(index), 3);
  const total = number(tensor(data.loss.log_sums).at(index), 3);
  const loss = lossAt(position);
  const steps = [
    step("它的分数", `z = ${z}，排第 ${integer(ranks[index])}`),
    step("全部分数", `log Σ exp(分数) = ${total}`),
    step("概率", `p = exp(${z} − ${subtrahend(total)}) = ${exactPercent(Math.exp(-loss))}`),
    step("损失", `−log p = ${total} − ${subtrahend(z)} = ${number(loss, 3)} nat`),
    step("模型最想说", `${quote(best[index])}，${percent(tensor(tops).at(index))}`),
  ];
  find("loss-detail").replaceChildren(
    element("h3", {}, `「${labels[position - 1]}」之后是「${labels[position]}」`),
    element("div", { class: "steps" }, steps),
    element("p", { class: "readout" }, averageLoss()),
  );
}

function averageLoss() {
  const { ids: text, num_context: start, num_characters: characters } = data.loss;
  const count = text.length - start;
  const total = Array.from({ length: count }, (_, index) => lossAt(start + index)).reduce((a, b) => a + b, 0);
  const mean = total / count;
  const perCharacter = characters ? `，折合每个字 ${number(total / characters)}` : "";
  return (
    `${count} 个 token 的平均：${number(total)} ÷ ${count} = ${number(mean, 3)} nat/token${perCharacter}；` +
    `困惑度 exp(${number(mean)}) = ${about(Math.exp(mean))}。在词表里闭着眼猜是 log ${integer(data.tokenizer_size)} = ${number(Math.log(data.tokenizer_size))}。`
  );
}
