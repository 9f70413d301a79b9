// 第 6 节：下一个 token。拖动滑块，用全部分数重算。

const NUM_CANDIDATES = 15;

// 空着的 top-k、top-p 表示不限。
const CONTROLS = [
  { name: "temperature", label: "温度", least: 0, most: 2, digits: 2 },
  { name: "top_k", label: "top-k", least: 1, most: data.tokenizer_size, isLog: true, digits: 0, isOptional: true },
  { name: "top_p", label: "top-p", least: 0, most: 1, digits: 2, isOptional: true },
  { name: "repetition_penalty", label: "重复惩罚", least: 0.5, most: 2, digits: 2 },
];

// 滑块的刻度是 0 到 100；top-k 跨度大，刻度取对数。
function toTick({ least, most, isLog }, value) {
  const share = isLog ? Math.log(value / least) / Math.log(most / least) : (value - least) / (most - least);
  return clamp(100 * share, 0, 100);
}

function fromTick({ least, most, isLog, digits }, tick) {
  const value = isLog ? least * (most / least) ** (tick / 100) : least + ((most - least) * tick) / 100;
  return Number(value.toFixed(digits));
}

// 取值的范围与命令行的检查相同；不合要求的返回 undefined。
function checkSetting({ name, most, isOptional }, value) {
  if (isOptional && (value === null || value >= most)) return null;
  const isValid = value !== null && Number.isFinite(value) && (name === "temperature" ? value >= 0 : value > 0);
  if (!isValid) return undefined;
  return name === "top_k" ? Math.max(1, Math.round(value)) : value;
}

function drawNext() {
  const logits = tensor(data.next.logits).values;
  const original = softmax(logits);
  const sampling = { ...data.next.sampling };
  let probabilities = [];
  const controls = CONTROLS.map((control) =>
    addControl(control, (value) => {
      const checked = checkSetting(control, value);
      if (checked !== undefined) sampling[control.name] = checked;
      update();
    }),
  );

  function update() {
    controls.forEach((show) => show(sampling));
    probabilities = tokenProbabilities(logits, ids, sampling);
    drawCandidates(logits, probabilities, original);
    const kept = probabilities.filter((p) => p > 0).length;
    const share = probabilities.reduce((sum, p, id) => (p > 0 ? sum + original[id] : sum), 0);
    find("next-readout").textContent =
      `还能抽到 ${integer(kept)} 个 token，它们原来一共占 ${percent(share)}；现在的熵 ${number(entropy(probabilities))} nat，原来 ${number(entropy(original))}。`;
    find("flags").textContent = commandLine(sampling);
  }

  find("draw").addEventListener("click", () =>
    drawCandidates(logits, probabilities, original, drawMany(probabilities, 100)),
  );
  find("reset").addEventListener("click", () => {
    Object.assign(sampling, data.next.sampling);
    update();
  });
  update();
}

// 一个滑块和它的数字框；返回的函数照 sampling 摆好两者。
function addControl(control, set) {
  const id = `input-${control.name}`;
  const range = element("input", {
    type: "range",
    min: 0,
    max: 100,
    step: control.isLog ? 0.5 : 1,
    "aria-label": control.label,
  });
  const box = element("input", { type: "number", step: "any", placeholder: "不限", id });
  range.addEventListener("input", () => set(fromTick(control, Number(range.value))));
  box.addEventListener("change", () => set(box.value === "" ? null : Number(box.value)));
  find("sliders").append(element("div", { class: "slider" }, element("label", { for: id }, control.label), range, box));
  return (sampling) => {
    const value = sampling[control.name];
    range.value = toTick(control, value ?? control.most);
    box.value = value ?? "";
  };
}

function drawCandidates(logits, probabilities, original, counts) {
  const order = Array.from(probabilities.keys()).sort(
    (a, b) => probabilities[b] - probabilities[a] || logits[b] - logits[a],
  );
  const rows = order.slice(0, NUM_CANDIDATES).map((id) => {
    const drawn = counts ? `，抽中 ${counts.get(id) ?? 0} 次` : "";
    return bar(label(id), probabilities[id], `${percent(probabilities[id])}，分数 ${number(logits[id])}${drawn}`, {
      outline: original[id],
    });
  });
  find("candidates").replaceChildren(...rows);
}

// -> {编号: 抽中几次}
function drawMany(probabilities, times) {
  const counts = new Map();
  for (let time = 0; time < times; time += 1) {
    let rest = Math.random();
    let drawn = probabilities.findIndex((p) => (rest -= p) < 0);
    if (drawn < 0) drawn = probabilities.findLastIndex((p) => p > 0); // 舍入使总和略小于 1
    counts.set(drawn, (counts.get(drawn) ?? 0) + 1);
  }
  return counts;
}

function commandLine(sampling) {
  const flags = Object.entries(sampling).filter(
    ([name, value]) => value !== null && !(name === "repetition_penalty" && value === 1),
  );
  return `${data.command} ${flags.map(([name, value]) => `--${name} ${value}`).join(" ")}`;
}
