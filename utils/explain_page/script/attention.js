// 第 3 节：注意力。

const attentionSlot = (layer) => data.attention.layers.indexOf(layer);
const scoresOf = (layer) => tensor(data.attention.scores[attentionSlot(layer)]);

// 一行分数遮住将来，再 softmax；权重与 model/attention.py 的 attention_map 相同。
function attentionRow(layer, head, query) {
  const scores = scoresOf(layer).row(head, query);
  const visible = Array.from(scores, (score, key) => (key <= query ? score : -Infinity));
  return { scores, visible, weights: softmax(visible) };
}

function drawHeads() {
  const shares = tensor(data.attention.shares);
  const { names, habits, layers } = data.attention;
  const cells = [];
  names.forEach((row, layer) =>
    row.forEach((name, head) => {
      const share = name === "分散" ? 0 : shares.at(layer, head, habits.indexOf(name));
      const shown = layers.includes(layer);
      cells.push(
        element(
          "button",
          {
            type: "button",
            class: "head",
            disabled: !shown,
            "--w": share.toFixed(3),
            "aria-label": `第 ${layer} 层第 ${head} 头，${name}`,
            title: `第 ${layer} 层第 ${head} 头：${name}${shown ? "" : "（没有放进这个文件）"}`,
            onclick: () => select({ layer, head }),
          },
          name === "分散" ? "·" : name[0],
        ),
      );
    }),
  );
  const numHeads = data.config.num_heads;
  const rows = names.map((_, layer) => [element("span", { class: "head-layer" }, `${layer} 层`), cells.slice(layer * numHeads, (layer + 1) * numHeads)]);
  const grid = find("heads");
  grid.style.setProperty("--columns", numHeads);
  grid.append(...rows.flat(2));
  grid.addEventListener("keydown", (event) => moveHead(event, cells));
  whenChanged(["layer", "head"], () => {
    cells.forEach((cell, index) => {
      const chosen = index === state.layer * numHeads + state.head;
      cell.classList.toggle("selected", chosen);
      cell.tabIndex = chosen ? 0 : -1;
    });
    const parts = habits.map((habit, index) => `${habit} ${percent(shares.at(state.layer, state.head, index))}`);
    find("head-readout").textContent = `第 ${state.layer} 层第 ${state.head} 头，平均的权重：${parts.join("，")}。一个 token 可以同时算几种。`;
  });
}

function moveHead(event, cells) {
  const move = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
  if (!move) return;
  event.preventDefault();
  const { layers } = data.attention;
  const layer = layers[clamp(attentionSlot(state.layer) + move[0], 0, layers.length - 1)];
  const head = clamp(state.head + move[1], 0, data.config.num_heads - 1);
  select({ layer, head });
  cells[layer * data.config.num_heads + head].focus();
}

// 两行文字：选中的（或指着的）token 看哪里，谁看它。
function drawLooks() {
  const build = (id, name) => {
    const tokens = ids.map((token, position) =>
      element(
        "button",
        {
          type: "button",
          class: "word",
          tabindex: "-1",
          onpointerenter: () => shade(position),
          onpointerleave: () => shade(state.position),
          onclick: () => selectPosition(position),
        },
        label(token),
      ),
    );
    find(id).setAttribute("aria-label", name);
    find(id).append(...tokens);
    return tokens;
  };
  const ahead = build("looks-at", "它看哪里");
  const behind = build("looked-by", "谁看它");
  function shade(position) {
    const row = attentionRow(state.layer, state.head, position).weights;
    ids.forEach((_, other) => {
      const back = other < position ? 0 : attentionRow(state.layer, state.head, other).weights[position];
      for (const [word, weight] of [[ahead[other], row[other]], [behind[other], back]]) {
        word.style.setProperty("--w", weight.toFixed(3));
        word.title = percent(weight);
        word.classList.toggle("selected", other === position);
      }
    });
    ahead.forEach((word, other) => word.classList.toggle("masked", other > position));
    behind.forEach((word, other) => word.classList.toggle("masked", other < position));
  }
  whenChanged(["position", "layer", "head"], () => shade(state.position));
}

// 注意力图：一格一个权重，遮住的将来画斜线。
function drawMap() {
  const canvas = find("map");
  const size = ids.length;
  let cell = 0;
  let margin = 0;

  function paint(hover = { query: state.position, key: state.key }) {
    const style = getComputedStyle(canvas);
    const colour = (name, alpha = 1) => `rgb(${style.getPropertyValue(name)} / ${alpha})`;
    margin = size <= 32 ? 34 : 0;
    const width = Math.min(460, canvas.parentElement.clientWidth, margin + 64 * size);
    cell = (width - margin) / size;
    const ratio = window.devicePixelRatio || 1;
    canvas.width = canvas.height = Math.round(width * ratio);
    canvas.style.width = canvas.style.height = `${width}px`;
    const context = canvas.getContext("2d");
    context.scale(ratio, ratio);
    const gap = cell > 6 ? 1 : 0;
    const place = (query, key) => [margin + key * cell, margin + query * cell, cell - gap, cell - gap];
    for (let query = 0; query < size; query += 1) {
      const { weights } = attentionRow(state.layer, state.head, query);
      for (let key = 0; key <= query; key += 1) {
        context.fillStyle = colour("--empty");
        context.fillRect(...place(query, key));
        context.fillStyle = colour("--heat", weights[key]);
        context.fillRect(...place(query, key));
      }
    }
    paintMask(context, colour("--hatch"), margin, width);
    context.lineWidth = 2;
    context.strokeStyle = colour("--ink-rgb");
    context.strokeRect(...place(hover.query, hover.key));
    if (margin) paintLabels(context, colour, hover);
    const { visible, weights } = attentionRow(state.layer, state.head, hover.query);
    const seen = Number.isFinite(visible[hover.key]) ? `权重 ${percent(weights[hover.key])}` : "在将来，看不见";
    find("map-readout").textContent = `${quote(ids[hover.query])}（${hover.query}）看${quote(ids[hover.key])}（${hover.key}）：${seen}`;
  }

  function paintMask(context, colour, start, end) {
    context.save();
    context.beginPath();
    for (let query = 0; query < size; query += 1) context.rect(start + (query + 1) * cell, start + query * cell, end, cell);
    context.clip();
    context.strokeStyle = colour;
    context.lineWidth = 1;
    context.beginPath();
    for (let x = start; x < 2 * end; x += 7) {
      context.moveTo(x, start);
      context.lineTo(x - end, start + end);
    }
    context.stroke();
    context.restore();
  }

  function paintLabels(context, colour, hover) {
    context.textBaseline = "middle";
    ids.forEach((id, position) => {
      const text = [...label(id).replace("⟨", "")].slice(0, 2).join("");
      const middle = margin + (position + 0.5) * cell;
      context.font = `${Math.min(13, Math.max(8, cell * 0.7))}px ${getComputedStyle(canvas).fontFamily}`;
      context.fillStyle = position === hover.query ? colour("--accent-rgb") : colour("--ink-soft-rgb");
      context.textAlign = "right";
      context.fillText(text, margin - 6, middle);
      context.fillStyle = position === hover.key ? colour("--accent-rgb") : colour("--ink-soft-rgb");
      context.textAlign = "center";
      context.fillText(text, middle, margin - 12, cell + 2);
    });
  }

  const cellAt = (event) => ({
    query: clamp(Math.floor((event.offsetY - margin) / cell), 0, last),
    key: clamp(Math.floor((event.offsetX - margin) / cell), 0, last),
  });
  canvas.addEventListener("pointermove", (event) => paint(cellAt(event)));
  canvas.addEventListener("pointerleave", () => paint());
  canvas.addEventListener("click", (event) => {
    const { query, key } = cellAt(event);
    select({ position: query, key });
  });
  canvas.addEventListener("keydown", (event) => {
    const move = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
    if (!move) return;
    event.preventDefault();
    select({ position: clamp(state.position + move[0], 0, last), key: clamp(state.key + move[1], 0, last) });
  });
  window.addEventListener("resize", () => paint());
  document.addEventListener("themechange", () => paint());
  whenChanged(["position", "key", "layer", "head"], () => {
    find("map-title").textContent = `第 ${state.layer} 层第 ${state.head} 头的注意力图`;
    canvas.setAttribute("aria-label", `第 ${state.layer} 层第 ${state.head} 头的注意力图，${size} 行 ${size} 列，方向键移动`);
    paint();
  });
}

// 选中的一对：从查询和键到权重，一步一行。
function drawPair() {
  whenChanged(["position", "key", "layer", "head"], () => {
    const { position: query, key, layer, head } = state;
    const slot = attentionSlot(layer);
    const q = tensor(data.attention.queries[slot]).row(head, query);
    const k = tensor(data.attention.keys[slot]).row(head, key);
    const values = tensor(data.attention.values[slot]);
    const products = q.map((value, dim) => value * k[dim]);
    const { scores, visible, weights } = attentionRow(layer, head, query);
    const root = Math.sqrt(data.config.head_dim);
    const most = Math.max(...visible);
    const context = Array.from({ length: data.config.head_dim }, (_, dim) => weights.reduce((sum, weight, other) => sum + weight * values.at(head, other, dim), 0));
    const isVisible = key <= query;
    find("pair-title").textContent = `一步一步：${quote(ids[query])}看${quote(ids[key])}`;
    const step = (name, text) => element("div", { class: "step" }, element("span", { class: "step-name" }, name), element("span", { class: "step-text" }, text));
    find("pair").replaceChildren(
      strip("查询 q", q, largest(q, k)),
      strip("键 k", k, largest(q, k)),
      strip("逐维相乘", products, largest(products)),
      step("相加", `q · k = ${number(scores[key] * root, 3)}`),
      step("缩放", `÷ √head_dim = ${number(scores[key] * root, 3)} ÷ √${data.config.head_dim} = ${number(scores[key], 3)}`),
      step("遮住将来", isVisible ? `键在第 ${key} 个，不晚于第 ${query} 个，看得见：仍是 ${number(scores[key], 3)}` : `键在第 ${key} 个，晚于第 ${query} 个：换成 −∞`),
      step("softmax", isVisible ? `exp(${number(scores[key], 3)} − ${number(most, 3)}) ÷ 整行之和 = ${number(weights[key], 4)}` : "exp(−∞) = 0"),
      strip("值 v", values.row(head, key), largest(values.row(head, key)), `× ${number(weights[key], 4)}`),
      strip("Σ 权重 × 值", context, largest(context), "这个头的结果"),
    );
    const titles = element("tr", {}, ["键", "q · k", "÷ √d", "遮住之后", "exp(s − 最大)", "权重"].map((name) => element("th", { scope: "col" }, name)));
    find("row-table").replaceChildren(
      element("thead", {}, titles),
      element("tbody", {}, ids.map((id, other) =>
        element(
          "tr",
          { class: other === key ? "selected" : other > query ? "masked" : "" , onclick: () => select({ key: other }) },
          element("th", { scope: "row" }, label(id)),
          element("td", {}, number(scores[other] * root)),
          element("td", {}, number(scores[other])),
          element("td", {}, number(visible[other])),
          element("td", {}, number(Math.exp(visible[other] - most), 3)),
          element("td", { class: "heat", "--w": weights[other].toFixed(3) }, number(weights[other], 3)),
        ),
      )),
    );
    reveal(find("row-table").querySelector(".selected"));
  });
}
