// 把数据变成页面上的图：选横轴，移动时各张图一起读数。

const DATA = JSON.parse(document.getElementById("data").textContent);
let axis = "token", chosen = DATA.axes.token.length - 1;

function htmlElement(name, properties, parent) {
  const element = Object.assign(document.createElement(name), properties);
  parent?.append(element);
  return element;
}

const views = DATA.charts.map((chart) => {
  const box = htmlElement("figure", { className: "chart" }, document.getElementById("charts"));
  box.style.margin = 0;
  const title = htmlElement("h3", { textContent: chart.title }, box);
  if (chart.unit) htmlElement("small", { textContent: chart.unit }, title);
  const legend = htmlElement("ul", { className: "legend" }, box);
  const svg = svgElement("svg", { tabindex: 0, role: "img", "aria-label": `${chart.title}的曲线` }, box);
  const view = { chart, legend, svg, drawing: null };
  const follow = (event) => choose(view.drawing.nearest(event.clientX));
  svg.addEventListener("pointermove", follow);
  svg.addEventListener("pointerdown", follow);
  svg.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (step) { event.preventDefault(); choose(chosen + step); }
  });
  return view;
});

function choose(index) {
  chosen = Math.max(0, Math.min(DATA.axes.token.length - 1, index));
  for (const view of views) {
    view.drawing.move(chosen);
    showLegend(view);
  }
}

// 图例兼读数：每条线的名字和选中那次评估的值
function showLegend({ chart, legend, svg }) {
  legend.replaceChildren();
  const names = namesOf(chart);
  const where = `第 ${formatNumber(DATA.axes["步"][chosen])} 步`;
  htmlElement("li", { className: "where", textContent: chosen === DATA.best ? `${where}，验证最低` : where }, legend);
  const parts = names.map((name, index) => {
    const value = valueAt(chart, name, chosen), text = value === null ? "—" : formatValue(chart.form, value);
    const item = htmlElement("li", { textContent: name }, legend);
    item.style.setProperty("--color", lineColor(names, index));
    htmlElement("b", { textContent: text }, item);
    return `${name} ${text}`;
  });
  svg.setAttribute("aria-label", `${chart.title}：${where}，${parts.join("，")}`);
}

function draw() {
  for (const view of views) view.drawing = drawChart(view.svg, view.chart, axis);
  choose(chosen);
}

const buttons = Object.keys(DATA.axes).map((name) => {
  const button = htmlElement("button", { type: "button", textContent: name }, document.getElementById("axes"));
  button.addEventListener("click", () => { axis = name; showAxis(); draw(); });
  return button;
});
const showAxis = () => buttons.forEach((button) => button.setAttribute("aria-pressed", button.textContent === axis));

showAxis();
draw();
new ResizeObserver(draw).observe(document.getElementById("charts"));
