// 第 6 节：下一个 token。拖动滑块，用全部分数重算。

const NUM_CANDIDATES = 15;

// 滑块的刻度是 0 到 100；top-k 跨度大，刻度取对数。空着的 top-k、top-p 表示不限。
const CONTROLS = [
  { name: "temperature", label: "温度", least: 0, most: 2, digits: 2 },
  { name: "top_k", label: "top-k", least: 1, most: data.tokenizer_size, isLog: true, digits: 0, unlimited: true },
  { name: "top_p", label: "top-p", least: 0.01, most: 1, digits: 2, unlimited: true },
  { name: "repetition_penalty", label: "重复惩罚", least: 0.5, most: 2, digits: 2 },
];

function toTick({ least, most, isLog }, value) {
  const share = isLog ? Math.log(value / least) / Math.log(most / least) : (value - least) / (most - least);
  return clamp(100 * share, 0, 100);
}

function fromTick({ least, most, isLog, digits }, tick) {
  const value = isLog ? least * (most / least) ** (tick / 100) : least + ((most - least) * tick) / 100;
  return Number(value.toFixed(digits));
}

function drawNext() {
  const logits = tensor(data.next.logits).values;
  const original = softmax(logits);
  const sampling = { ...data.next.sampling };
  let counts = null;
  let probabilities = [];

  const inputs = CONTROLS.map((control) => {
    const range = element("input", { type: "range", min: 0, max: 100, step: control.isLog ? 0.5 : 1, "aria-label": control.label });
    const box = element("input", { type: "number", step: "any", placeholder: "不限", "aria-label": `${control.label}的值`, id: `input-${control.name}` });
    range.addEventListener("input", () => set(control, fromTick(control, Number(range.value))));
    box.addEventListener("change", () => set(control, box.value === "" ? null : Number(box.value)));
    find("sliders").append(element("div", { class: "slider" }, element("label", { for: `input-${control.name}` }, control.label), range, box));
    return { control, range, box };
  });

  // 取值的范围与命令行的检查相同；不合要求的当作没有改。
  function set(control, value) {
    const isUnlimited = control.unlimited && (value === null || value >= control.most);
    const least = control.name === "temperature" ? 0 : Number.MIN_VALUE;
    if (isUnlimited) sampling[control.name] = null;
    else if (value !== null && Number.isFinite(value) && value >= least) sampling[control.name] = control.name === "top_k" ? Math.max(1, Math.round(value)) : value;
    counts = null;
    update();
  }

  function update() {
    for (const { control, range, box } of inputs) {
      const value = sampling[control.name];
      range.value = toTick(control, value ?? control.most);
      box.value = value ?? "";
    }
    probabilities = tokenProbabilities(logits, ids, sampling);
    drawCandidates();
    const kept = probabilities.filter((p) => p > 0).length;
    const share = probabilities.reduce((sum, p, id) => (p > 0 ? sum + original[id] : sum), 0);
    find("next-readout").textContent = `还能抽到 ${integer(kept)} 个 token，它们原来一共占 ${percent(share)}；现在的熵 ${number(entropy(probabilities))} nat，原来 ${number(entropy(original))}。`;
    find("flags").textContent = commandLine(sampling);
  }

  function drawCandidates() {
    const order = Array.from(probabilities.keys()).sort((a, b) => probabilities[b] - probabilities[a] || logits[b] - logits[a]);
    find("candidates").replaceChildren(
      ...order.slice(0, NUM_CANDIDATES).map((id) => {
        const drawn = counts ? `，抽中 ${counts.get(id) ?? 0} 次` : "";
        return bar(label(id), probabilities[id], `${percent(probabilities[id])}，分数 ${number(logits[id])}${drawn}`, { outline: original[id] });
      }),
    );
  }

  find("draw").addEventListener("click", () => {
    counts = new Map();
    for (let time = 0; time < 100; time += 1) {
      const id = drawOne(probabilities);
      counts.set(id, (counts.get(id) ?? 0) + 1);
    }
    drawCandidates();
  });
  find("reset").addEventListener("click", () => {
    Object.assign(sampling, data.next.sampling);
    counts = null;
    update();
  });
  update();
}

function drawOne(probabilities) {
  let rest = Math.random();
  return probabilities.findIndex((p) => (rest -= p) < 0 && p > 0);
}

function commandLine(sampling) {
  const flags = Object.entries(sampling).filter(([name, value]) => value !== null && !(name === "repetition_penalty" && value === 1));
  return `python generate.py --model_path ${data.model_path} ${flags.map(([name, value]) => `--${name} ${value}`).join(" ")}`;
}
