// 第 3 节：选中的一对 token，从查询和键到权重，一步一行；下面是同一个查询的整行。

function drawPair() {
  whenChanged(["position", "key", "layer", "head"], () => {
    const { position: query, key, layer, head } = state;
    const row = attentionRow(layer, head, query);
    find("pair-title").textContent = `一步一步：${quote(ids[query])}看${quote(ids[key])}`;
    find("pair").replaceChildren(...scoreSteps(row, query, key), ...valueSteps(row.weights, key));
    find("row-table").replaceChildren(rowHead(), rowBody(row, query, key));
    reveal(find("row-table").querySelector(".selected"));
  });
}

const headVectors = (name, position) =>
  tensor(data.attention[name][attentionSlot(state.layer)]).row(state.head, position);

function scoreSteps({ scores, visible, weights }, query, key) {
  const [q, k] = [headVectors("queries", query), headVectors("keys", key)];
  const products = q.map((value, dim) => value * k[dim]);
  const product = number(scores[key] * Math.sqrt(data.config.head_dim), 3);
  const score = number(scores[key], 3);
  const isVisible = key <= query;
  return [
    strip("查询 q", q, largest(q, k)),
    strip("键 k", k, largest(q, k)),
    strip("逐维相乘", products, largest(products)),
    step("相加", `q · k = ${product}`),
    step("缩放", `÷ √head_dim = ${product} ÷ √${data.config.head_dim} = ${score}`),
    step(
      "遮住将来",
      `键在第 ${ordinal(key)} 个，${isVisible ? `不晚于第 ${ordinal(query)} 个，看得见：仍是 ${score}` : `晚于第 ${ordinal(query)} 个：换成 −∞`}`,
    ),
    step(
      "softmax",
      isVisible
        ? `exp(${score} − ${subtrahend(number(Math.max(...visible), 3))}) ÷ 整行之和 = ${number(weights[key], 4)}`
        : "exp(−∞) = 0",
    ),
  ];
}

function valueSteps(weights, key) {
  const value = headVectors("values", key);
  const context = new Float32Array(value.length);
  weights.forEach((weight, position) =>
    headVectors("values", position).forEach((part, dim) => (context[dim] += weight * part)),
  );
  return [
    strip("值 v", value, largest(value), `× ${number(weights[key], 4)}`),
    strip("Σ 权重 × 值", context, largest(context), "这个头的结果"),
  ];
}

function rowHead() {
  const names = ["键", "q · k", "÷ √d", "遮住之后", "exp(s − 最大)", "权重"];
  return element(
    "thead",
    {},
    element(
      "tr",
      {},
      names.map((name) => element("th", { scope: "col" }, name)),
    ),
  );
}

function rowBody({ scores, visible, weights }, query, key) {
  const most = Math.max(...visible);
  const root = Math.sqrt(data.config.head_dim);
  const rows = ids.map((id, other) => {
    const kind = other === key ? "selected" : other > query ? "masked" : "";
    const numbers = [
      number(scores[other] * root),
      number(scores[other]),
      number(visible[other]),
      number(Math.exp(visible[other] - most), 3),
    ];
    return element(
      "tr",
      { class: kind, onclick: () => select({ key: other }) },
      element("th", { scope: "row" }, label(id)),
      numbers.map((text) => element("td", {}, text)),
      element("td", { class: "heat", "--w": weights[other].toFixed(3) }, number(weights[other], 3)),
    );
  });
  return element("tbody", {}, rows);
}
