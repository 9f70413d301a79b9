// 数：取出张量，写成文字，softmax。

const data = JSON.parse(document.getElementById("data").textContent);

// 与 utils/explain_page/pack.py 相反：row(i, j) 是最后一维的一行，at(i, j, k) 是一个数。
function unpack(packed) {
  const bytes = Uint8Array.from(atob(packed.float32 ?? packed.float16), (character) => character.charCodeAt(0));
  const values =
    packed.float32 === undefined
      ? Float32Array.from(new Uint16Array(bytes.buffer), fromHalf)
      : new Float32Array(bytes.buffer);
  const { shape } = packed;
  const offset = (indices) => indices.reduce((sum, index, axis) => sum * shape[axis] + index, 0);
  return {
    shape,
    values,
    at: (...indices) => values[offset(indices)],
    row: (...indices) => {
      const start = offset(indices) * shape.at(-1);
      return values.subarray(start, start + shape.at(-1));
    },
  };
}

// float16 的 16 位：1 位符号，5 位指数，10 位小数。
function fromHalf(bits) {
  const sign = bits & 0x8000 ? -1 : 1;
  const [exponent, fraction] = [(bits >> 10) & 31, bits & 1023];
  return sign * (exponent === 0 ? fraction * 2 ** -24 : (1 + fraction / 1024) * 2 ** (exponent - 15));
}

// 张量用到才取出，取出过就留着。
const unpacked = new Map();
function tensor(packed) {
  if (!unpacked.has(packed)) unpacked.set(packed, unpack(packed));
  return unpacked.get(packed);
}

function softmax(scores) {
  const most = scores.reduce((a, b) => Math.max(a, b), -Infinity);
  const powers = Array.from(scores, (score) => Math.exp(score - most));
  const total = powers.reduce((a, b) => a + b, 0);
  return powers.map((power) => power / total);
}

// 权重的深浅：取平方根，百分之几的也看得见。
const depth = (weight) => Math.sqrt(weight);

function entropy(probabilities) {
  return probabilities.reduce((sum, p) => (p > 0 ? sum - p * Math.log(p) : sum), 0);
}

const label = (id) => data.labels[id] ?? `#${id}`;
const quote = (id) => `「${label(id)}」`;
function number(value, digits = 2) {
  if (!Number.isFinite(value)) return value < 0 ? "−∞" : "∞";
  const text = value.toFixed(digits);
  return Number(text) === 0 ? text.replace("-", "") : text.replace("-", "−");
}
// 接在减号后面的数：负的加括号。
const subtrahend = (text) => (text.startsWith("−") ? `(${text})` : text);
// 小的概率也写出前两位。
const exactPercent = (p) => (p === 0 || p >= 0.001 ? percent(p) : `${(100 * p).toPrecision(2)}%`);
const percent = (p) => (p === 0 ? "0" : p < 0.001 ? "<0.1" : (100 * p).toFixed(1)) + "%";
const about = (value) => (value < 1000 ? number(value, 1) : integer(Math.round(value)));
const integer = (value) => value.toLocaleString("en-US");
const fileSize = (bytes) => (bytes < 1e6 ? `${(bytes / 1e3).toFixed(1)} KB` : `${(bytes / 1e6).toFixed(1)} MB`);

// 给人看的层、头、token 都从 1 数起；代码和权重的名字（trf_blocks.0）从 0 数起。
const ordinal = (index) => index + 1;
const layerName = (layer) => `第 ${ordinal(layer)} 层`;
const headName = (layer, head) => `${layerName(layer)}第 ${ordinal(head)} 头`;
