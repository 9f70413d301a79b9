// 选中了什么：第几个 token（查询）、看着哪个键、哪层哪头。谁关心变化谁来登记。

const ids = data.tokens.map((token) => token.id);
const last = ids.length - 1;
const [clearestLayer, clearestHead] = clearestPlace();
const state = {
  position: last,
  key: Math.max(0, last - 1),
  layer: clearestLayer,
  head: clearestHead,
  site: 0,
  lensLayer: data.config.num_layers,
  step: 0,
  lossAt: data.loss.num_context,
};
const listeners = [];

// 先看习惯最明显的那个头。
function clearestPlace() {
  const { layers, names, habits, shares } = data.attention;
  const share = (layer, head) =>
    names[layer][head] === "分散" ? 0 : tensor(shares).at(layer, head, habits.indexOf(names[layer][head]));
  const places = layers.flatMap((layer) => names[layer].map((_, head) => [layer, head]));
  return places.reduce((best, place) => (share(...place) > share(...best) ? place : best));
}

// names 里任何一项变了就重画；登记时先画一次。
function whenChanged(names, draw) {
  listeners.push({ names, draw });
  draw();
}

function select(changes) {
  const changed = Object.keys(changes).filter((name) => state[name] !== changes[name]);
  Object.assign(state, changes);
  for (const { names, draw } of listeners) if (names.some((name) => changed.includes(name))) draw();
}

// 换查询的 token 时，键不能落在它的将来。
function selectPosition(position) {
  const at = clamp(position, 0, last);
  select({ position: at, key: Math.min(state.key, at) });
}
