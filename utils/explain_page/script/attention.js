// 第 3 节：注意力。一行权重怎样来，和“它看哪里、谁看它”。

const attentionSlot = (layer) => data.attention.layers.indexOf(layer);

// 一行分数遮住将来，再 softmax；权重与 model/attention.py 的 attention_map 相同。
function attentionRow(layer, head, query) {
  const scores = tensor(data.attention.scores[attentionSlot(layer)]).row(head, query);
  const visible = Array.from(scores, (score, key) => (key <= query ? score : -Infinity));
  return { scores, visible, weights: softmax(visible) };
}

// 两行文字：选中的（或指着的）token 看哪里，谁看它。
function drawLooks() {
  const [ahead, behind] = ["looks-at", "looked-by"].map((id) => {
    const words = ids.map((token, position) =>
      element(
        "button",
        {
          type: "button",
          class: "word",
          tabindex: "-1", // 键盘用顶上的 token 条
          onpointerenter: () => shade(position),
          onpointerleave: () => shade(state.position),
          onclick: () => selectPosition(position),
        },
        label(token),
      ),
    );
    find(id).append(...words);
    return words;
  });
  function shade(position) {
    const weightOf = (query, key) => (key > query ? 0 : attentionRow(state.layer, state.head, query).weights[key]);
    ids.forEach((_, other) => {
      colourWord(ahead[other], weightOf(position, other), other === position, other > position);
      colourWord(behind[other], weightOf(other, position), other === position, other < position);
    });
  }
  whenChanged(["position", "layer", "head"], () => shade(state.position));
}

function colourWord(word, weight, isChosen, isMasked) {
  word.style.setProperty("--w", depth(weight).toFixed(3));
  word.title = percent(weight);
  word.classList.toggle("selected", isChosen);
  word.classList.toggle("masked", isMasked);
}
