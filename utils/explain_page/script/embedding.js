// 第 2 节：嵌入与位置。

function drawEmbedding() {
  const parts = tensor(data.embedding.parts);
  const norms = tensor(data.embedding.norms);
  const similarities = tensor(data.embedding.similarities);
  const isLearned = data.config.position === "learned";
  find("position-note").textContent = isLearned
    ? "嵌入里没有先后，所以再加上这个位置自己的向量。"
    : "这个模型用 RoPE：位置不加在这里，而是在注意力里转动查询和键，所以此处只有嵌入。";
  const names = isLearned ? ["token 嵌入", "位置向量", "两者之和"] : ["token 嵌入"];
  find("noise-note").textContent =
    `细线是碰巧：${integer(data.tokenizer_size)} 个同样维数的随机向量，最近的一个平均也有 ${number(data.embedding.noise, 3)}。` +
    "不比细线长多少的，看不出相似。";
  whenChanged(["position"], () => {
    const rows = names.map((_, index) => parts.row(index, state.position));
    const scale = largest(...rows);
    find("embedding-strips").replaceChildren(
      element(
        "p",
        { class: "caption" },
        `${quote(ids[state.position])}，第 ${ordinal(state.position)} 个，${data.config.emb_dim} 维里的前 ${rows[0].length} 维`,
      ),
      ...names.map((name, index) => strip(name, rows[index], scale, `长 ${number(norms.at(index, state.position))}`)),
    );
    const neighbours = data.embedding.neighbours[state.position];
    find("neighbours").replaceChildren(
      ...neighbours.map((id, index) => {
        const cosine = similarities.at(state.position, index);
        return bar(label(id), Math.max(0, cosine), number(cosine, 3), { outline: data.embedding.noise });
      }),
    );
  });
}
