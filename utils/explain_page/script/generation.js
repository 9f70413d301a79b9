// 第 7 节：生成与缓存，一步一步看。

function drawGeneration() {
  const { steps } = data.generation;
  const prompt = ids.map((id) => element("span", { class: "word given" }, label(id)));
  const words = steps.map((step, index) =>
    element("button", { type: "button", class: "word", role: "option", "--w": step.probability.toFixed(3), title: percent(step.probability), onclick: () => select({ step: index }) }, label(step.id)),
  );
  find("written").append(...prompt, ...words);
  const go = (move) => select({ step: clamp(state.step + move, 0, steps.length - 1) });
  addArrowKeys(find("written"), go);
  find("previous-step").addEventListener("click", () => go(-1));
  find("next-step").addEventListener("click", () => go(1));
  whenChanged(["step"], () => {
    words.forEach((word, index) => {
      word.setAttribute("aria-selected", index === state.step);
      word.tabIndex = index === state.step ? 0 : -1;
      word.classList.toggle("later", index > state.step);
    });
    const step = steps[state.step];
    find("step-name").textContent = `第 ${state.step + 1} 步，共 ${steps.length} 步`;
    find("previous-step").disabled = state.step === 0;
    find("next-step").disabled = state.step === steps.length - 1;
    const shown = step.ids.slice(0, 6);
    const rows = shown.map((id, rank) => bar(label(id), step.probabilities[rank], percent(step.probabilities[rank]), { chosen: id === step.id }));
    if (!shown.includes(step.id)) rows.push(bar(label(step.id), step.probability, percent(step.probability), { chosen: true }));
    find("step-candidates").replaceChildren(...rows);
    drawCache(step);
  });
}

// 一行一层，一格一个 token 的键和值；最后一格是这一步新存进去的。
function drawCache(step) {
  const { context_length: context, num_layers: layers, num_kv_heads: heads, head_dim: dim } = data.config;
  const { bytes_per_token: perToken } = data.generation;
  const isFull = step.num_tokens > context;
  const used = Math.min(step.num_tokens, context);
  const columns = Math.min(context, Math.max(...data.generation.steps.map(({ num_tokens }) => num_tokens)) + 4);
  const grid = find("cache");
  grid.style.setProperty("--columns", columns);
  const isNew = (column) => column === used - 1 && step !== data.generation.steps[0];
  grid.replaceChildren(
    ...Array.from({ length: layers }, (_, layer) => [
      element("span", { class: "head-layer" }, `${layer} 层`),
      ...Array.from({ length: columns }, (_, column) => element("i", { class: isFull || column >= used ? "" : isNew(column) ? "new" : "used" })),
    ]).flat(),
  );
  grid.setAttribute("aria-label", `缓存里有 ${isFull ? 0 : used} 个 token`);
  const each = `2（键、值）× ${layers} 层 × ${heads} 头 × ${dim} 维 × ${perToken / (2 * layers * heads * dim)} 字节`;
  find("cache-readout").textContent = isFull
    ? `已经有 ${step.num_tokens} 个 token，超过上下文长度 ${context}：只看最后 ${context} 个，每个的位置都变了，缓存用不上，整段重算。`
    : `读过 ${used} 个 token，缓存里有它们的键和值：${used} × ${each} = ${integer(used * perToken)} 字节。` +
      `上下文装满时是 ${fileSize(context * perToken)}。没有缓存，这一步要把 ${used} 个 token 从头再算一遍；有了缓存，${step === data.generation.steps[0] ? "以后每步" : "这一步"}只算 1 个。`;
}
