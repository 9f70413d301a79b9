// 抽样：与 utils/generation.py 同名的函数逐一对应，都用双精度；测试比较两边的结果。

function penalizeRepetition(logits, seen, penalty) {
  const adjusted = Float64Array.from(logits);
  for (const id of new Set(seen)) adjusted[id] = logits[id] > 0 ? logits[id] / penalty : logits[id] * penalty;
  return adjusted.map(finite);
}

// 与 torch 的 nan_to_num 相同。
function finite(value) {
  if (Number.isNaN(value)) return 0;
  return clamp(value, -Number.MAX_VALUE, Number.MAX_VALUE);
}

function keepTopK(logits, k) {
  const threshold = Float64Array.from(logits).sort()[Math.max(0, logits.length - k)];
  return logits.map((logit) => (logit < threshold ? -Infinity : logit));
}

function keepTopP(logits, p) {
  const order = Array.from(logits.keys()).sort((a, b) => logits[b] - logits[a]);
  const probabilities = softmax(logits);
  const kept = new Float64Array(logits.length).fill(-Infinity);
  let total = 0;
  for (const id of order) {
    total += probabilities[id];
    if (total - probabilities[id] >= p) break; // 排在自己前面的概率之和
    kept[id] = logits[id];
  }
  return kept;
}

function adjustLogits(logits, seen, sampling) {
  let adjusted = Float64Array.from(logits);
  if (sampling.repetition_penalty !== 1) adjusted = penalizeRepetition(adjusted, seen, sampling.repetition_penalty);
  if (sampling.temperature === 0) return adjusted;
  const most = adjusted.reduce((a, b) => Math.max(a, b), -Infinity);
  adjusted = adjusted.map((logit) => (logit - most) / sampling.temperature);
  if (sampling.top_k !== null) adjusted = keepTopK(adjusted, sampling.top_k);
  if (sampling.top_p !== null) adjusted = keepTopP(adjusted, sampling.top_p);
  return adjusted;
}

function tokenProbabilities(logits, seen, sampling) {
  const adjusted = adjustLogits(logits, seen, sampling);
  if (sampling.temperature > 0) return softmax(adjusted);
  const best = adjusted.reduce((top, logit, id) => (logit > adjusted[top] ? id : top), 0);
  return Array.from(adjusted, (_, id) => (id === best ? 1 : 0));
}
