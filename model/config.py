"""模型配置：有哪些超参数、各自的取值范围，以及它们决定的参数量和运算量。"""

import difflib
import json
import sys
from dataclasses import MISSING, asdict, dataclass, fields

POSITIONS = ("learned", "rope")
NORMS = ("layer_norm", "rms_norm")
ACTIVATIONS = ("gelu", "gelu_exact", "swiglu", "relu2")

SIZES = ("vocab_size", "context_length", "emb_dim", "num_heads", "num_layers", "num_kv_heads", "hidden_dim")  # 正整数
MAX_SIZE = 2**31 - 1  # 比任何真实的模型都大得多，又不会让后面的算术溢出


class ConfigError(ValueError):
    """配置不成立；消息里写明是哪个字段、应为什么、收到了什么。"""


def _as_json(value: object) -> str:
    """照配置文件里的写法显示收到的值。"""
    return json.dumps(value, ensure_ascii=False, default=repr)


@dataclass(frozen=True)
class ModelConfig:
    """GPT-2 的超参数。前七个必须给出；其余的默认值就是 GPT-2。

    出错时抛出 ConfigError。
    """

    vocab_size: int  # 词表大小
    context_length: int  # 上下文长度：一次最多看多少个 token
    emb_dim: int  # 每个 token 的向量维度
    num_heads: int  # 注意力头数，须整除 emb_dim
    num_layers: int  # Transformer 块数
    drop_rate: float  # dropout 的丢弃概率，[0, 1)
    qkv_bias: bool  # 查询、键、值的投影是否带偏置

    num_kv_heads: int | None = None  # 键和值的头数，须整除 num_heads；None 表示与 num_heads 相同
    position: str = "learned"  # 位置信息：learned | rope
    norm: str = "layer_norm"  # 归一化：layer_norm | rms_norm
    activation: str = "gelu"  # 前馈层的激活：gelu | gelu_exact | swiglu | relu2
    hidden_dim: int | None = None  # 前馈层的中间维度；None 表示 4 × emb_dim
    qk_norm: bool = False  # 点积之前是否归一化查询和键
    tie_weights: bool = True  # 输出层是否与 token 嵌入共用一个矩阵
    bias: bool = True  # 除 qkv 以外的线性层和 LayerNorm 是否带偏置
    rope_base: float = 10000.0  # RoPE 的波长底数
    norm_eps: float = 1e-5  # 归一化的分母里防止除以 0 的 ε
    out_proj: bool = True  # 各头的输出接起来之后是否再过一个线性层

    def __post_init__(self):
        self._check_types()
        self._check_relations()
        # 冻结的 dataclass 只能这样补上由别的字段推出的默认值
        if self.num_kv_heads is None:
            object.__setattr__(self, "num_kv_heads", self.num_heads)
        if self.hidden_dim is None:
            object.__setattr__(self, "hidden_dim", 4 * self.emb_dim)

    def _check_types(self):
        for name in SIZES:
            value = getattr(self, name)
            optional = value is None and name in ("num_kv_heads", "hidden_dim")
            if not optional and (type(value) is not int or value < 1):
                raise ConfigError(f"{name} 应为正整数，收到 {_as_json(value)}")
            if not optional and value > MAX_SIZE:
                raise ConfigError(f"{name} 最大为 {MAX_SIZE}，收到 {value}")
        for name in ("qkv_bias", "qk_norm", "tie_weights", "bias", "out_proj"):
            if type(getattr(self, name)) is not bool:
                raise ConfigError(f"{name} 应为 true 或 false，收到 {_as_json(getattr(self, name))}")
        for name in ("drop_rate", "rope_base", "norm_eps"):
            value = getattr(self, name)
            # 很大的整数不能变成浮点数，所以比较大小而不用 isfinite
            if type(value) not in (int, float) or not abs(value) <= sys.float_info.max:
                raise ConfigError(f"{name} 应为有限的数，收到 {_as_json(value)}")
        for name, choices in (("position", POSITIONS), ("norm", NORMS), ("activation", ACTIVATIONS)):
            if getattr(self, name) not in choices:
                raise ConfigError(f"{name} 应为 {' | '.join(choices)} 之一，收到 {_as_json(getattr(self, name))}")

    def _check_relations(self):
        if self.emb_dim % self.num_heads:
            raise ConfigError(f"emb_dim={self.emb_dim} 不能被 num_heads={self.num_heads} 整除")
        if self.num_kv_heads and self.num_heads % self.num_kv_heads:
            raise ConfigError(f"num_heads={self.num_heads} 不能被 num_kv_heads={self.num_kv_heads} 整除")
        if not 0 <= self.drop_rate < 1:
            raise ConfigError(f"drop_rate 应在 [0, 1) 内，收到 {self.drop_rate}")
        if self.position == "rope" and self.head_dim % 2:
            raise ConfigError(f"position=rope 要求 emb_dim / num_heads 为偶数，收到 {self.head_dim}")
        if self.rope_base <= 1:
            raise ConfigError(f"rope_base 应大于 1，收到 {self.rope_base}")
        if not 0 < self.norm_eps < 1:
            raise ConfigError(f"norm_eps 应在 (0, 1) 内，收到 {self.norm_eps}")

    @property
    def head_dim(self) -> int:
        """每个注意力头的维度。"""
        return self.emb_dim // self.num_heads

    @classmethod
    def from_dict(cls, values: dict) -> "ModelConfig":
        """由 JSON 读出的字典建立配置；缺少、多余、写错的字段都抛出 ConfigError。"""
        names = [field.name for field in fields(cls)]
        for key in values:
            if key not in names:
                close = difflib.get_close_matches(key, names, n=1, cutoff=0.5)
                raise ConfigError(f"未知字段 {key}" + (f"，是否想写 {close[0]}？" if close else ""))
        required = [field.name for field in fields(cls) if field.default is MISSING]
        missing = [name for name in required if name not in values]
        if missing:
            raise ConfigError(f"缺少字段 {'、'.join(missing)}")
        return cls(**values)

    @property
    def num_parameters(self) -> int:
        """参数总数。"""
        return sum(count_parameters(self).values())

    def to_dict(self) -> dict:
        return asdict(self)


def count_parameters(cfg: ModelConfig) -> dict[str, int]:
    """{部件: 参数个数}，只用算术得出，不必建立模型；总数是各项之和。"""
    kv_dim = cfg.num_kv_heads * cfg.head_dim
    bias = int(cfg.bias)
    norm = cfg.emb_dim * (2 if cfg.norm == "layer_norm" and cfg.bias else 1)
    projections = cfg.emb_dim * (cfg.emb_dim + 2 * kv_dim) + int(cfg.qkv_bias) * (cfg.emb_dim + 2 * kv_dim)
    output = int(cfg.out_proj) * (cfg.emb_dim * cfg.emb_dim + bias * cfg.emb_dim)
    num_up = 2 if cfg.activation == "swiglu" else 1  # SwiGLU 有两个升维矩阵
    feed_forward = (num_up + 1) * cfg.emb_dim * cfg.hidden_dim + bias * (num_up * cfg.hidden_dim + cfg.emb_dim)
    return {
        "token 嵌入": cfg.vocab_size * cfg.emb_dim,
        "位置嵌入": cfg.context_length * cfg.emb_dim if cfg.position == "learned" else 0,
        "注意力": cfg.num_layers * (projections + output),
        "前馈": cfg.num_layers * feed_forward,
        "归一化": (2 * cfg.num_layers + 1) * norm,
        "输出层": 0 if cfg.tie_weights else cfg.vocab_size * cfg.emb_dim,
    }


def count_training_flops(cfg: ModelConfig) -> int:
    """训练一个 token 的浮点运算次数：6·N + 12·层数·emb_dim·seq (Chowdhery et al. 2022, 附录 B)。

    N 是参加矩阵乘法的参数（不算位置嵌入；输出层与 token 嵌入共用时算一次）：前向各乘、加一次，反向是它的两倍。
    后一项是注意力。
    """
    counts = count_parameters(cfg)
    unused = counts["位置嵌入"] + (0 if cfg.tie_weights else counts["token 嵌入"])
    return 6 * (cfg.num_parameters - unused) + 12 * cfg.num_layers * cfg.emb_dim * cfg.context_length
