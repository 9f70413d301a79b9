// 第 3 节：注意力图。一格一个权重，行是查询，列是键，遮住的将来画斜线。

const MAP_WIDTH = 460;
const LABEL_MARGIN = 34; // token 不多时，边上写得下它们的样子
const MOST_LABELS = 32;

function drawMap() {
  const canvas = find("map");
  let grid = null;
  const paint = (query = state.position, key = state.key) => {
    grid = measureMap(canvas);
    paintMap(canvas, grid, query, key);
    describeCell(query, key);
  };
  const cellAt = (event) =>
    ["offsetY", "offsetX"].map((axis) => clamp(Math.floor((event[axis] - grid.margin) / grid.cell), 0, last));
  canvas.addEventListener("pointermove", (event) => paint(...cellAt(event)));
  canvas.addEventListener("pointerleave", () => paint());
  canvas.addEventListener("click", (event) => {
    const [position, key] = cellAt(event);
    select({ position, key });
  });
  addMoveKeys(canvas, (down, right) =>
    select({ position: clamp(state.position + down, 0, last), key: clamp(state.key + right, 0, last) }),
  );
  window.addEventListener("resize", () => paint());
  document.addEventListener("themechange", () => paint());
  whenChanged(["position", "key", "layer", "head"], () => {
    const name = `${headName(state.layer, state.head)}的注意力图`;
    find("map-title").textContent = name;
    canvas.setAttribute("aria-label", `${name}，${ids.length} 行 ${ids.length} 列，方向键移动`);
    paint();
  });
}

function describeCell(query, key) {
  const { visible, weights } = attentionRow(state.layer, state.head, query);
  const seen = Number.isFinite(visible[key]) ? `权重 ${percent(weights[key])}` : "在将来，看不见";
  find("map-readout").textContent = `${quote(ids[query])}（第 ${ordinal(query)} 个）看${quote(ids[key])}（第 ${ordinal(key)} 个）：${seen}`;
}

// 一格多大；屏幕一个点可能是几个像素，画布按像素画。
function measureMap(canvas) {
  const margin = ids.length <= MOST_LABELS ? LABEL_MARGIN : 0;
  const width = Math.min(MAP_WIDTH, canvas.parentElement.clientWidth, margin + 64 * ids.length);
  const ratio = window.devicePixelRatio || 1;
  canvas.width = canvas.height = Math.round(width * ratio);
  canvas.style.width = canvas.style.height = `${width}px`;
  canvas.getContext("2d").scale(ratio, ratio);
  return { margin, width, cell: (width - margin) / ids.length };
}

function paintMap(canvas, grid, query, key) {
  const style = getComputedStyle(canvas);
  const colour = (name, alpha = 1) => `rgb(${style.getPropertyValue(name)} / ${alpha})`;
  const context = canvas.getContext("2d");
  paintWeights(context, grid, colour);
  paintFuture(context, grid, colour("--hatch"));
  context.lineWidth = 2;
  context.strokeStyle = colour("--ink-rgb");
  context.strokeRect(...cellBox(grid, query, key));
  if (grid.margin)
    paintLabels(
      context,
      grid,
      (chosen) => colour(chosen ? "--accent-rgb" : "--ink-soft-rgb"),
      style.fontFamily,
      query,
      key,
    );
}

function cellBox({ margin, cell }, query, key) {
  const gap = cell > 6 ? 1 : 0;
  return [margin + key * cell, margin + query * cell, cell - gap, cell - gap];
}

function paintWeights(context, grid, colour) {
  ids.forEach((_, query) => {
    const { weights } = attentionRow(state.layer, state.head, query);
    for (let key = 0; key <= query; key += 1) {
      const box = cellBox(grid, query, key);
      context.fillStyle = colour("--empty");
      context.fillRect(...box);
      context.fillStyle = colour("--heat", depth(weights[key]));
      context.fillRect(...box);
    }
  });
}

function paintFuture(context, { margin, width, cell }, colour) {
  context.save();
  context.beginPath();
  ids.forEach((_, query) => context.rect(margin + (query + 1) * cell, margin + query * cell, width, cell));
  context.clip();
  context.beginPath();
  for (let x = margin; x < 2 * width; x += 7) {
    context.moveTo(x, margin);
    context.lineTo(x - width, margin + width);
  }
  context.strokeStyle = colour;
  context.stroke();
  context.restore();
}

function paintLabels(context, { margin, cell }, colour, family, query, key) {
  context.font = `${clamp(cell * 0.7, 8, 13)}px ${family}`;
  context.textBaseline = "middle";
  ids.forEach((id, position) => {
    const text = [...label(id).replace("⟨", "")].slice(0, 2).join("");
    const middle = margin + (position + 0.5) * cell;
    context.fillStyle = colour(position === query);
    context.textAlign = "right";
    context.fillText(text, margin - 6, middle);
    context.fillStyle = colour(position === key);
    context.textAlign = "center";
    context.fillText(text, middle, margin - 12, cell + 2);
  });
}
