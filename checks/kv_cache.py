"""检查 model/kv_cache.py：参照是 torch.cat。"""

from dataclasses import dataclass

import torch

from checks.building import Tensors, random_inputs, tiny_config
from checks.comparison import Check, Suspect, fact_check
from model.kv_cache import KVCache

USES = ()
PIECES = (4, 1, 3)
LAYERS = 2


@dataclass(frozen=True)
class Concatenate:
    """各段的键和值依次相连；每一步都可以改错。"""

    keeps_past: bool = True
    overwrites: bool = False  # 新的总写在开头
    shift: int = 0  # 错开几位，空出来的是 0
    swaps: bool = False
    same: bool = False  # 值也存成了键
    stores: tuple[str, ...] = ("keys", "values")
    shares_layers: bool = False  # 各层写在同一处
    whole: bool = False  # 连没有用到的位置也返回
    cuts_new: bool = False  # 返回的不含新的

    def __call__(self, inputs: Tensors) -> Tensors:
        tables = {part: torch.zeros(LAYERS, 3, 2, 16, 8) for part in ("keys", "values")}
        outputs, length = {}, 0
        for index, size in enumerate(PIECES):
            for layer in range(LAYERS):
                for part, table in tables.items():
                    source = "keys" if self.same else part
                    new = inputs[source].select(0, layer).narrow(2, length, size)
                    place = layer * (not self.shares_layers)
                    begin = 0 if self.overwrites else length + self.shift
                    table = table.clone()
                    if part in self.stores:
                        table[place, :, :, begin : begin + size] = new
                    tables[part] = table
                begin, end = self._range(length, size)
                for part, other in (("keys", "values"), ("values", "keys")):
                    table = tables[other if self.swaps else part]
                    outputs[f"第 {index + 1} 段，第 {layer} 层，{part}"] = table[place, :, :, begin:end]
            length += size
        return outputs

    def _range(self, length: int, size: int) -> tuple[int, int]:
        if self.whole:
            return 0, 16
        return (0 if self.keeps_past else length), (length if self.cuts_new else length + size)


SUSPECTS = [
    Suspect("只返回了新的，没有前面的", {"keeps_past": False}),
    Suspect("KV 缓存错位：新的总写在开头，没有接在 length 之后", {"overwrites": True}),
    Suspect("KV 缓存错位：多错了一位", {"shift": 1}),
    Suspect("返回的键和值次序反了", {"swaps": True}),
    Suspect("值存成了键", {"same": True}),
    Suspect("键没有存进缓存", {"stores": ("values",)}),
    Suspect("值没有存进缓存", {"stores": ("keys",)}),
    Suspect("各层写在同一处：没有用 layer", {"shares_layers": True}),
    Suspect("返回了整张表，应只到 end", {"whole": True}),
    Suspect("返回的不含新的：只到 length，应到 end", {"cuts_new": True}),
]


def _append(inputs: Tensors) -> Tensors:
    cache, outputs = KVCache(tiny_config(num_kv_heads=2), batch_size=3), {}
    pieces = zip(inputs["keys"].split(PIECES, dim=3), inputs["values"].split(PIECES, dim=3), strict=True)
    for index, (keys, values) in enumerate(pieces):
        for layer in range(LAYERS):
            found = cache.append(layer, keys[layer], values[layer])
            for part, tensor in zip(("keys", "values"), found, strict=True):
                outputs[f"第 {index + 1} 段，第 {layer} 层，{part}"] = tensor.clone()
        cache.length += keys.shape[3]
    return outputs


def _inputs() -> Tensors:
    shape = (LAYERS, 3, 2, sum(PIECES), 8)
    return {name: tensor.detach() for name, tensor in random_inputs(keys=shape, values=shape).items()}


def _facts() -> dict[str, float]:
    cache = KVCache(tiny_config(num_kv_heads=2), batch_size=3, dtype=torch.bfloat16)
    return {
        "刚建好的 length": cache.length,
        "字节数": cache.keys.nbytes + cache.values.nbytes,
        "键的精度照所给的": cache.keys.dtype == torch.bfloat16,
    }


BYTES = 2 * LAYERS * 3 * 2 * 16 * 8 * 2  # 键和值、层、batch、头、位置、head_dim、每个数 2 字节
CHECKS = [
    Check("KVCache.append", _inputs, _append, lambda **changes: Concatenate(**changes), SUSPECTS),
    fact_check(
        "大小",
        _facts,
        {"刚建好的 length": 0, "字节数": BYTES, "键的精度照所给的": 1},
        [
            Suspect("精度没有照所给的：dtype 没有用上", {"字节数": 2 * BYTES, "键的精度照所给的": 0}),
            Suspect("键的精度没有照所给的：dtype 没有用上", {"字节数": 3 * BYTES // 2, "键的精度照所给的": 0}),
            Suspect("值的精度没有照所给的：dtype 没有用上", {"字节数": 3 * BYTES // 2}),
            Suspect("头数用了 num_heads，应为 num_kv_heads", {"字节数": 2 * BYTES}),
            Suspect("length 应从 0 开始", {"刚建好的 length": 1}),
        ],
        tolerance=0.0,
    ),
]
