// 页面元素。文字只经 textContent 放进去，开头里写着什么标签都只是文字。

const find = (id) => document.getElementById(id);

function element(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name.startsWith("--")) node.style.setProperty(name, value);
    else if (value !== false && value !== undefined) node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat());
  return node;
}

// 一串数画成一排色块：正的暖色，负的冷色，越深绝对值越大。
function strip(name, values, scale, note = "") {
  const cells = Array.from(values, (value) =>
    element("i", {
      class: value < 0 ? "negative" : "positive",
      "--w": Math.min(1, Math.abs(value) / scale).toFixed(3),
    }),
  );
  const first = Array.from(values.slice(0, 4), (value) => number(value)).join(", ");
  return element(
    "div",
    { class: "strip-row" },
    element("span", { class: "strip-name" }, name),
    element("div", { class: "strip", role: "img", "aria-label": `${name}：${first}, …`, title: `${first}, …` }, cells),
    note ? element("span", { class: "strip-note" }, note) : [],
  );
}

const largest = (...rows) =>
  Math.max(1e-9, ...rows.map((row) => row.reduce((most, value) => Math.max(most, Math.abs(value)), 0)));

// 一行：名字、长条、右边的数。options.outline 是另一个比例的细线，options.chosen 表示抽中。
function bar(name, share, text, options = {}) {
  return element(
    "div",
    { class: options.chosen ? "bar-row chosen" : "bar-row" },
    element("span", { class: "bar-name", title: name }, name),
    element(
      "span",
      { class: "track" },
      element("span", { class: "fill", "--share": Math.min(1, share).toFixed(4) }),
      options.outline === undefined
        ? []
        : element("span", { class: "outline", "--share": Math.min(1, options.outline).toFixed(4) }),
    ),
    element("span", { class: "bar-text" }, text),
  );
}

// 一步计算：名字和算式。
function step(name, text) {
  return element(
    "div",
    { class: "step" },
    element("span", { class: "step-name" }, name),
    element("span", { class: "step-text" }, text),
  );
}

// 一排里选中的一个：只有它进得了 Tab 的次序，其余用方向键。
function chooseOne(nodes, chosen) {
  for (const node of nodes) {
    node.classList.toggle("selected", node === chosen);
    node.tabIndex = node === chosen ? 0 : -1;
    if (node.role === "option") node.setAttribute("aria-selected", node === chosen);
  }
}

// 左右键、Home、End：move(走几步)，再把焦点移到新选中的。
function addArrowKeys(container, move) {
  container.addEventListener("keydown", (event) => {
    const distance = { ArrowLeft: -1, ArrowRight: 1, Home: -Infinity, End: Infinity }[event.key];
    if (distance === undefined) return;
    event.preventDefault();
    move(distance);
    container.querySelector('[tabindex="0"]')?.focus();
  });
}

// 四个方向键：move(向下几格, 向右几格)。
function addMoveKeys(container, move) {
  container.addEventListener("keydown", (event) => {
    const direction = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
    if (direction === undefined) return;
    event.preventDefault();
    move(...direction);
  });
}

// 在可以滚动的框里露出 node，页面本身不动。
function reveal(node, box = node.closest(".scroll")) {
  const [outer, inner] = [box.getBoundingClientRect(), node.getBoundingClientRect()];
  box.scrollTop += inner.top - outer.top - (outer.height - inner.height) / 2;
  box.scrollLeft += inner.left - outer.left - (outer.width - inner.width) / 2;
}

const clamp = (value, low, high) => Math.max(low, Math.min(high, value));

function fillSources() {
  for (const details of document.querySelectorAll("details.source")) {
    const [path, name] = details.dataset.source.split(" ");
    details.append(
      element("summary", {}, element("code", {}, path), " ", element("code", { class: "function" }, name)),
      element("pre", {}, element("code", {}, data.sources[details.dataset.source])),
    );
  }
}

function fillLegends() {
  for (const legend of document.querySelectorAll('[data-legend="signed"]')) {
    const swatch = (kind, w) => element("i", { class: `swatch ${kind}`, "--w": w });
    legend.append(
      "负 ",
      swatch("negative", 1),
      swatch("negative", 0.5),
      swatch("positive", 0),
      swatch("positive", 0.5),
      swatch("positive", 1),
      " 正",
    );
  }
}
