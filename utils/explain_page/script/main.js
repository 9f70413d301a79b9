// 开头的说明、主题、目录，然后一节一节画出来。

function drawHeader() {
  const { config } = data;
  find("prompt").textContent = data.prompt.length > 60 ? `${[...data.prompt].slice(0, 60).join("")}…` : data.prompt;
  const shared = config.num_kv_heads === config.num_heads ? "" : `（键和值 ${config.num_kv_heads} 个）`;
  find("prompt").classList.toggle("long", data.prompt.length > 20);
  find("facts").textContent =
    `${data.model_path}：${integer(data.num_parameters)} 个参数，${config.num_layers} 层，每层 ${config.num_heads} 个头${shared}，` +
    `向量 ${config.emb_dim} 维，上下文 ${config.context_length} 个 token。`;
  const steps = [
    ["文字", `${data.characters} 字`],
    ["token", shapes.ids],
    ["嵌入", shapes.stream],
    [`块 × ${config.num_layers}`, shapes.stream],
    ["归一化", shapes.stream],
    ["分数", shapes.logits],
    ["概率", shapes.last],
  ];
  find("path").append(
    ...steps.map(([name, shape]) =>
      element("span", { class: "stage" }, element("b", {}, name), element("small", {}, shape)),
    ),
  );
  find("notes").append(...data.notes.map((note) => element("p", { class: "note" }, note)));
  find("footer").textContent =
    "页面里的数来自这个模型的一次真正的前向计算（float32），没有另写一个模型；向量只画前几维，长度、均值和标准差按全部维度计算。";
}

const shape = (...sizes) => `(${sizes.join(", ")})`;
const shapes = {
  ids: shape(1, ids.length),
  stream: shape(1, ids.length, data.config.emb_dim),
  weights: shape(1, data.config.num_heads, ids.length, ids.length),
  logits: shape(1, ids.length, data.config.vocab_size),
  last: shape(1, data.config.vocab_size),
  loss: shape(data.loss.ids.length - data.loss.num_context, data.config.vocab_size),
  answers: shape(data.loss.ids.length - data.loss.num_context),
};

function fillShapes() {
  for (const node of document.querySelectorAll("[data-shape]")) node.textContent = shapes[node.dataset.shape];
}

// 主题跟随系统；按钮在两种之间切换，只在这一次打开时有效。
function watchTheme() {
  const system = window.matchMedia("(prefers-color-scheme: dark)");
  let chosen = null;
  function apply() {
    const theme = chosen ?? (system.matches ? "dark" : "light");
    document.documentElement.dataset.theme = theme;
    find("theme").textContent = theme === "dark" ? "浅色" : "深色";
    document.dispatchEvent(new Event("themechange"));
  }
  find("theme").addEventListener("click", () => {
    chosen = document.documentElement.dataset.theme === "dark" ? "light" : "dark";
    apply();
  });
  system.addEventListener("change", apply);
  apply();
}

// 目录里标出正在看的一节。
function watchSections() {
  const links = new Map([...document.querySelectorAll(".contents a")].map((link) => [link.hash.slice(1), link]));
  const observer = new IntersectionObserver(
    (entries) => {
      for (const entry of entries) {
        if (!entry.isIntersecting) continue;
        links.forEach((link) => link.removeAttribute("aria-current"));
        links.get(entry.target.id).setAttribute("aria-current", "true");
      }
    },
    { rootMargin: "-20% 0px -70% 0px" },
  );
  document.querySelectorAll("main section").forEach((section) => observer.observe(section));
}

watchTheme();
fillShapes();
fillSources();
fillLegends();
drawHeader();
drawTokenBar();
drawTokenCards();
drawEmbedding();
drawHeads();
drawLooks();
drawMap();
drawPair();
drawStream();
drawNorm();
drawLens();
drawNext();
drawGeneration();
drawLoss();
watchSections();
