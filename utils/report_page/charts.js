"use strict";
// 画图：一张图是一个 SVG，宽度随页面；坐标轴的刻度取整齐的数。

const HEIGHT = 220, MARGIN = { left: 52, right: 12, top: 10, bottom: 26 };

function svgElement(name, attributes, parent) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  parent?.append(element);
  return element;
}

// 从小到大约 count 个整齐的刻度，间隔是 steps 之一乘 10 的幂
function niceTicks(low, high, count, steps = [1, 2, 5, 10]) {
  if (!(high > low)) return [low];
  const rough = (high - low) / count, power = 10 ** Math.floor(Math.log10(rough));
  const step = steps.map((item) => item * power).find((item) => item >= rough * 0.999);
  const ticks = [];
  for (let index = Math.ceil(low / step - 1e-9); index * step <= high + step * 1e-9; index++) ticks.push(index * step);
  return ticks;
}

const SECONDS = [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 21600, 43200, 86400];

function timeTicks(low, high, count) {
  const step = SECONDS.find((item) => item >= (high - low) / count);
  if (!step || high - low < 4) return niceTicks(low, high, count);
  const ticks = [];
  for (let value = Math.ceil(low / step) * step; value <= high; value += step) ticks.push(value);
  return ticks;
}

// 对数刻度：每个 10 的幂，不足三个就加上 2 和 5 倍
function logTicks(low, high) {
  const of = (factors) => {
    const ticks = [];
    for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power++)
      for (const factor of factors) ticks.push(factor * 10 ** power);
    return ticks.filter((tick) => tick >= low * 0.999 && tick <= high * 1.001);
  };
  return [[1], [1, 3], [1, 2, 5]].map(of).find((ticks) => ticks.length >= 3) ?? niceTicks(low, high, 4);
}

function formatNumber(value) {
  const size = Math.abs(value);
  if (value === 0) return "0";
  if (size >= 1e8) return `${+(value / 1e8).toPrecision(4)} 亿`;
  if (size >= 1e5) return `${+(value / 1e4).toPrecision(4)} 万`;
  if (size >= 1000) return Math.round(value).toLocaleString("en-US");
  return size < 1e-3 ? value.toExponential(2).replace(/\.?0+e/, "e") : String(+value.toPrecision(4));
}

function formatTime(seconds) {
  if (seconds < 60) return `${+seconds.toFixed(1)} 秒`;
  const minutes = Math.floor(seconds / 60), rest = Math.round(seconds % 60);
  if (minutes < 60) return rest ? `${minutes} 分 ${rest} 秒` : `${minutes} 分`;
  return minutes % 60 ? `${Math.floor(minutes / 60)} 时 ${minutes % 60} 分` : `${Math.floor(minutes / 60)} 时`;
}

const formatPercent = (value) => `${+(100 * value).toFixed(1)}%`;
const formatAxis = (axis, value) => (axis === "时间" ? formatTime(value) : formatNumber(value));
const formatValue = (form, value) => (form === "percent" ? formatPercent(value) : formatNumber(value));

const PARTS = { 每一步: "var(--faint)", 训练: "var(--train)", 验证: "var(--validate)" };

function lineColor(names, index) {
  if (names[index] in PARTS) return PARTS[names[index]];
  if (names.length === 1) return "var(--only)";
  return `hsl(${205 + (190 * index) / (names.length - 1)} 55% var(--tone))`; // 从输入到输出，由冷到暖
}

// 一张图的各条线：先画逐步的，再画各次评估的
const namesOf = (chart) => [...Object.keys(chart.steps), ...Object.keys(chart.lines)];

// 第几次评估时，叫 name 的线是多少；逐步的线看走到了哪一步，还没有走则没有
function valueAt(chart, name, chosen) {
  return (name in chart.steps ? chart.steps[name][DATA.at[chosen]] : chart.lines[name][chosen]) ?? null;
}

// 纵轴的范围；只有一个值时上下留一点
function valueRange(chart) {
  const values = [chart.steps, chart.lines].flatMap(Object.values).flat().filter((value) => value !== null && (chart.form !== "log" || value > 0));
  if (!values.length) return null;
  let low = values.reduce((a, b) => Math.min(a, b)), high = values.reduce((a, b) => Math.max(a, b));
  if (chart.form === "log") return low === high ? [low / 2, high * 2] : [low / 1.1, high * 1.1];
  const room = high === low ? Math.abs(high) * 0.1 || 1 : (high - low) * 0.06;
  return [low >= 0 ? Math.max(0, low - room) : low - room, chart.form === "percent" ? Math.min(1.02, high + room) : high + room];
}

// 在 svg 里画好 chart，横坐标照 axis；返回的 move(第几次评估) 移动竖线，nearest(横坐标) 找最近的一次
function drawChart(svg, chart, axis) {
  svg.replaceChildren();
  const positions = DATA.axes[axis];
  const width = svg.clientWidth, range = valueRange(chart);
  svg.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
  if (!range) {
    svgElement("text", { x: width / 2, y: HEIGHT / 2, "text-anchor": "middle" }, svg).textContent = "还没有数据";
    return { move() {}, nearest: () => positions.length - 1 };
  }
  const [low, high] = range, first = positions[0], last = Math.max(positions.at(-1), DATA.steps[axis].at(-1) ?? 0);
  const scale = chart.form === "log" ? Math.log : (value) => value;
  const x = (value) => MARGIN.left + (last > first ? (value - first) / (last - first) : 0.5) * (width - MARGIN.left - MARGIN.right);
  const y = (value) => HEIGHT - MARGIN.bottom - ((scale(value) - scale(low)) / (scale(high) - scale(low))) * (HEIGHT - MARGIN.top - MARGIN.bottom);
  const bottom = HEIGHT - MARGIN.bottom;
  for (const tick of chart.form === "log" ? logTicks(low, high) : niceTicks(low, high, 4, [1, 2, 2.5, 5, 10])) {
    svgElement("line", { x1: MARGIN.left, x2: width - MARGIN.right, y1: y(tick), y2: y(tick), class: "grid" }, svg);
    svgElement("text", { x: MARGIN.left - 7, y: y(tick) + 4, "text-anchor": "end" }, svg).textContent = formatValue(chart.form, tick);
  }
  svgElement("line", { x1: MARGIN.left, x2: width - MARGIN.right, y1: bottom, y2: bottom, class: "base" }, svg);
  const ticks = (axis === "时间" ? timeTicks : niceTicks)(first, last, Math.max(3, Math.floor(width / 110)));
  for (const tick of ticks.filter((tick) => x(tick) < width - 60)) // 右边留给横轴的名字
    svgElement("text", { x: x(tick), y: HEIGHT - 8, "text-anchor": "middle" }, svg).textContent = formatAxis(axis, tick);
  svgElement("text", { x: width - 4, y: HEIGHT - 8, "text-anchor": "end" }, svg).textContent = axis;
  const names = namesOf(chart);
  names.forEach((name, index) => {
    const [values, at] = name in chart.steps ? [chart.steps[name], DATA.steps[axis]] : [chart.lines[name], positions];
    drawLine(svg, chart, values, at, { x, y, color: lineColor(names, index) });
  });
  const cursor = svgElement("line", { y1: MARGIN.top, y2: bottom, class: "cursor" }, svg);
  const dots = names.map((name, index) => svgElement("circle", { r: 3.2, style: `fill: ${lineColor(names, index)}` }, svg));
  return {
    move(chosen) {
      const at = x(positions[chosen]);
      cursor.setAttribute("x1", at);
      cursor.setAttribute("x2", at);
      dots.forEach((dot, index) => {
        const value = valueAt(chart, names[index], chosen), isShown = value !== null && (chart.form !== "log" || value > 0);
        dot.setAttribute("visibility", isShown ? "visible" : "hidden");
        if (isShown) { dot.setAttribute("cx", at); dot.setAttribute("cy", y(value)); }
      });
    },
    nearest(clientX) {
      const at = clientX - svg.getBoundingClientRect().left;
      return positions.reduce((near, value, index) => (Math.abs(x(value) - at) < Math.abs(x(positions[near]) - at) ? index : near), 0);
    },
  };
}

// 一条线；缺的值处断开，孤零零的一个点画成圆点
function drawLine(svg, chart, values, positions, { x, y, color }) {
  let path = "", isOpen = false, count = 0;
  values.forEach((value, index) => {
    const isGood = value !== null && (chart.form !== "log" || value > 0);
    if (isGood) { path += `${isOpen ? "L" : "M"}${x(positions[index]).toFixed(1)} ${y(value).toFixed(1)}`; count++; }
    isOpen = isGood;
  });
  svgElement("path", { d: path, style: `stroke: ${color}` }, svg);
  if (count <= 40)
    values.forEach((value, index) => {
      if (value !== null && (chart.form !== "log" || value > 0))
        svgElement("circle", { cx: x(positions[index]), cy: y(value), r: 1.9, style: `fill: ${color}` }, svg);
    });
}
