// 第 7 节：生成与缓存，一步一步看。

function drawGeneration() {
  const { steps } = data.generation;
  const prompt = ids.map((id) => element("span", { class: "word given" }, label(id)));
  const words = steps.map((step, index) =>
    element(
      "button",
      {
        type: "button",
        class: "word",
        role: "option",
        "--w": step.probability.toFixed(3),
        title: percent(step.probability),
        onclick: () => select({ step: index }),
      },
      label(step.id),
    ),
  );
  find("written").append(...prompt, ...words);
  const go = (move) => select({ step: clamp(state.step + move, 0, steps.length - 1) });
  addArrowKeys(find("written"), go);
  find("previous-step").addEventListener("click", () => go(-1));
  find("next-step").addEventListener("click", () => go(1));
  whenChanged(["step"], () => {
    chooseOne(words, words[state.step]);
    reveal(words[state.step], find("written"));
    words.forEach((word, index) => word.classList.toggle("later", index > state.step));
    const step = steps[state.step];
    find("step-name").textContent = `第 ${state.step + 1} 步，共 ${steps.length} 步`;
    find("previous-step").disabled = state.step === 0;
    find("next-step").disabled = state.step === steps.length - 1;
    drawStepCandidates(step);
    drawCache(step);
  });
}

function drawStepCandidates(step) {
  const shown = step.ids.slice(0, 6);
  const rows = shown.map((id, rank) =>
    bar(label(id), step.probabilities[rank], percent(step.probabilities[rank]), { chosen: id === step.id }),
  );
  if (!shown.includes(step.id))
    rows.push(bar(label(step.id), step.probability, percent(step.probability), { chosen: true }));
  find("step-candidates").replaceChildren(...rows);
}

// 一行一层，一格一个 token 的键和值；红的是这一步新存进去的。
function drawCache(step) {
  const { steps } = data.generation;
  const { context_length: context, num_layers: layers } = data.config;
  const used = step.num_tokens > context ? 0 : step.num_tokens;
  const columns = Math.min(context, steps.at(-1).num_tokens + 4);
  const kind = (column) => (column >= used ? "" : column === used - 1 && step !== steps[0] ? "new" : "used");
  const rows = Array.from({ length: layers }, (_, layer) => [
    element("span", { class: "row-name" }, layerName(layer)),
    ...Array.from({ length: columns }, (_, column) => element("i", { class: kind(column) })),
  ]);
  const grid = find("cache");
  grid.style.setProperty("--columns", columns);
  grid.setAttribute("aria-label", `缓存里有 ${used} 个 token`);
  grid.replaceChildren(...rows.flat());
  find("cache-readout").textContent = used
    ? describeCache(used, step === steps[0])
    : describeFullContext(step.num_tokens);
}

function describeCache(used, isFirst) {
  const { context_length: context, num_layers: layers, num_kv_heads: heads, head_dim: dim } = data.config;
  const { bytes_per_token: perToken } = data.generation;
  const each = `2（键、值）× ${layers} 层 × ${heads} 头 × ${dim} 维 × ${perToken / (2 * layers * heads * dim)} 字节`;
  return (
    `读过 ${used} 个 token，缓存里有它们的键和值：${used} × ${each} = ${integer(used * perToken)} 字节。` +
    `上下文装满时是 ${fileSize(context * perToken)}。没有缓存，这一步要把 ${used} 个 token 从头再算一遍；有了缓存，${isFirst ? "以后每步" : "这一步"}只算 1 个。`
  );
}

function describeFullContext(count) {
  const { context_length: context } = data.config;
  return `已经有 ${count} 个 token，超过上下文长度 ${context}：只看最后 ${context} 个，每个的位置都变了，缓存用不上，整段重算。`;
}
