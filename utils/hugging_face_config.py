"""GPT-2 的 config.json 与我们的配置互相转换；不必载入 torch。"""

import json
from pathlib import Path

from utils.archive import NOT_A_MODEL
from utils.errors import UserError
from utils.weights_file import CONFIG_NAME, DOWNLOAD_AGAIN, read_json

ONLY_GPT2 = "只能读取 GPT-2 的权重。"
GENERATION_CONFIG_NAME = "generation_config.json"
PREFIX = "transformer."
MASKS = (".attn.bias", ".attn.masked_bias")  # 因果掩码，不是权重
HEAD_DIM = 64  # 发布的四种大小都是
DROP_RATE = 0.1
NORM_EPS = 1e-5
ACTIVATIONS = {"gelu": "gelu_new", "gelu_exact": "gelu", "relu2": "relu2"}  # {我们的名字: 它的名字}
TEMPLATE_FIELD = "prompt_template"  # transformers 不认识，原样保留
GPT2_CHOICES = {
    "position": "learned",
    "norm": "layer_norm",
    "qk_norm": False,
    "out_proj": True,
}  # 这些字段 GPT-2 没有别的选择
SIZE_FIELDS = {  # {它的名字: 我们的名字}
    "vocab_size": "vocab_size",
    "n_positions": "context_length",
    "n_embd": "emb_dim",
    "n_layer": "num_layers",
    "n_inner": "hidden_dim",
}
# config.json 里会改变计算的字段，和我们算得出的取值；没写的就是第一个
KNOWN_SETTINGS = {
    "model_type": ("gpt2",),
    "activation_function": tuple(ACTIVATIONS.values()),
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "add_cross_attention": (False,),
    "dropout": (0, None),  # GPT-2 没有这一项，它的三处见 DROP_RATES
}
DROP_RATES = ("resid_pdrop", "embd_pdrop", "attn_pdrop")  # 我们三处同一个


def check_exportable(path: Path, config: dict) -> None:
    """path 的配置用了 GPT-2 没有的东西就抛出 UserError，逐个指出。"""
    choices = {**GPT2_CHOICES, "num_kv_heads": config["num_heads"]}
    problems = [
        f"{field}={json.dumps(config[field])}（GPT-2 只有 {json.dumps(choice)}）"
        for field, choice in choices.items()
        if config[field] != choice
    ]
    if config["activation"] not in ACTIVATIONS:
        problems.append(f"activation={config['activation']}（GPT-2 只有 {' | '.join(ACTIVATIONS)}）")
    if problems:
        reason = f"不是 GPT-2 的结构，transformers 的 GPT-2 算不出：{'、'.join(problems)}"
        raise UserError(path, reason, "用 GPT-2 的配置（如 configs/gpt2_config_124M.json）训练的才能导出。")


def to_settings(config: dict, end_of_text_id: int, template: str | None = None) -> dict:
    """我们的配置 -> config.json。没有偏置的模型导出时补上 0，另外记下它本来没有，读回来才一样。

    template 是指令模型的提示语模板，也记在里面。
    """
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "vocab_size": config["vocab_size"],
        "n_positions": config["context_length"],
        "n_embd": config["emb_dim"],
        "n_head": config["num_heads"],
        "n_layer": config["num_layers"],
        "n_inner": config["hidden_dim"],
        "activation_function": ACTIVATIONS[config["activation"]],
        **dict.fromkeys(DROP_RATES, config["drop_rate"]),
        "layer_norm_epsilon": config["norm_eps"],
        "tie_word_embeddings": config["tie_weights"],
        "bos_token_id": end_of_text_id,
        "eos_token_id": end_of_text_id,
        **{field: False for field in ("qkv_bias", "bias") if not config[field]},
        **({TEMPLATE_FIELD: template} if template else {}),
    }


def to_generation_settings(config: dict, end_of_text_id: int) -> dict:
    """generation_config.json：遇到文本结束符就停，不生成词表补齐的部分。"""
    padding = list(range(end_of_text_id + 1, config["vocab_size"]))
    ids = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), end_of_text_id)
    return {**ids, **({"suppress_tokens": padding} if padding else {})}


def read_settings(path: Path) -> dict:
    """权重旁边的 config.json；没有就是空的，写着我们算不出的东西就抛出 UserError。"""
    if not path.exists():
        return {}
    settings = read_json(path, "配置文件")
    for field, known in KNOWN_SETTINGS.items():
        value = settings.get(field, known[0])
        if value not in known:
            reason = f"{field} 是 {json.dumps(value, ensure_ascii=False)}，只认识 {' | '.join(map(json.dumps, known))}"
            raise UserError(path, reason, ONLY_GPT2)
    template = settings.get(TEMPLATE_FIELD)
    if not isinstance(template, str | None):
        reason = f"{TEMPLATE_FIELD} 应是文字，收到 {json.dumps(template, ensure_ascii=False)}"
        raise UserError(path, reason, "改成文字，或删去这一项。")
    return settings


def with_plain_names(weights: dict) -> dict:
    """{名字: 张量或形状}，名字去掉前缀，不要因果掩码。"""
    return {str(name).removeprefix(PREFIX): value for name, value in weights.items() if not str(name).endswith(MASKS)}


def recognize_config(path: Path, shapes: dict[str, tuple[int, ...]], settings: dict) -> dict:
    """由 {名字: 形状}（见 with_plain_names）认出模型配置；不是 GPT-2 就抛出 UserError。

    头数看不出，settings（见 read_settings）里没有就按每头 64 维。
    """
    try:
        (vocab_size, emb_dim), (context_length, _) = shapes["wte.weight"], shapes["wpe.weight"]
        _, hidden_dim = shapes["h.0.mlp.c_fc.weight"]
    except (KeyError, ValueError):
        raise UserError(path, f"{NOT_A_MODEL}（不是 GPT-2 的结构）", ONLY_GPT2) from None
    sizes = {
        "vocab_size": vocab_size,
        "context_length": context_length,
        "emb_dim": emb_dim,
        "num_layers": len({name.split(".")[1] for name in shapes if name.startswith("h.")}),
        "hidden_dim": hidden_dim,
    }
    _check_shapes(path, shapes, _expected_shapes(**sizes))
    _check_settings(path, sizes, settings)
    activation = {theirs: ours for ours, theirs in ACTIVATIONS.items()}
    return {
        **sizes,
        "num_heads": settings.get("n_head") or emb_dim // HEAD_DIM,
        "drop_rate": settings.get(DROP_RATES[0], DROP_RATE),
        "qkv_bias": True,
        "norm_eps": settings.get("layer_norm_epsilon", NORM_EPS),
        "activation": activation[settings.get("activation_function", ACTIVATIONS["gelu"])],
    }


def _check_settings(path: Path, sizes: dict[str, int], settings: dict) -> None:
    """旁边的 config.json 与权重 path 的大小不符，或自己不成立，就抛出 UserError。"""
    for field, ours in SIZE_FIELDS.items():
        value = settings.get(field)
        if value is not None and value != sizes[ours]:  # n_inner 可以是 null，意思是四倍
            reason = f"与旁边的 {CONFIG_NAME} 不符：{field} 权重为 {sizes[ours]}，它写的是 {value}"
            raise UserError(path, reason, "两个文件要来自同一个模型。")
    emb_dim, num_heads = sizes["emb_dim"], settings.get("n_head")
    if num_heads is None and emb_dim % HEAD_DIM:
        reason = f"emb_dim={emb_dim} 不是 {HEAD_DIM} 的倍数，看不出有几个头"
        raise UserError(path, reason, f"把它的 {CONFIG_NAME} 放在同一个文件夹。")
    config_path = path.with_name(CONFIG_NAME)
    if num_heads is not None and (type(num_heads) is not int or num_heads < 1 or emb_dim % num_heads):
        raise UserError(config_path, f"n_head 应能整除 n_embd={emb_dim}，收到 {num_heads}", DOWNLOAD_AGAIN)
    _check_rates(config_path, settings)


def _check_rates(config_path: Path, settings: dict) -> None:
    epsilon = settings.get("layer_norm_epsilon", NORM_EPS)
    if type(epsilon) not in (int, float) or not 0 < epsilon < 1:
        raise UserError(config_path, f"layer_norm_epsilon 应在 (0, 1) 内，收到 {epsilon}", "改成 1e-5，或删去这一项。")
    drop_rates = {field: settings.get(field, DROP_RATE) for field in DROP_RATES}
    for field, drop_rate in drop_rates.items():
        if type(drop_rate) not in (int, float) or not 0 <= drop_rate < 1:
            raise UserError(config_path, f"{field} 应在 [0, 1) 内，收到 {drop_rate}", "改成 0.1，或删去这一项。")
    if len(set(drop_rates.values())) > 1:
        reason = "、".join(f"{field} 是 {drop_rate}" for field, drop_rate in drop_rates.items())
        raise UserError(config_path, f"{reason}，这里只能有一个 dropout", "改成一样；只影响训练，不影响续写。")


def _expected_shapes(
    vocab_size: int, context_length: int, emb_dim: int, num_layers: int, hidden_dim: int
) -> dict[str, tuple[int, ...]]:
    linears = {
        "attn.c_attn": (emb_dim, 3 * emb_dim),
        "attn.c_proj": (emb_dim, emb_dim),
        "mlp.c_fc": (emb_dim, hidden_dim),
        "mlp.c_proj": (hidden_dim, emb_dim),
    }
    shapes = {"wte.weight": (vocab_size, emb_dim), "wpe.weight": (context_length, emb_dim)}
    norms = ["ln_f"]
    for layer in range(num_layers):
        norms += [f"h.{layer}.ln_1", f"h.{layer}.ln_2"]
        for name, shape in linears.items():
            shapes |= {f"h.{layer}.{name}.weight": shape, f"h.{layer}.{name}.bias": shape[1:]}
    return shapes | {f"{norm}.{kind}": (emb_dim,) for norm in norms for kind in ("weight", "bias")}


def _check_shapes(path: Path, actual: dict[str, tuple[int, ...]], expected: dict[str, tuple[int, ...]]) -> None:
    if "lm_head.weight" in actual:  # 与 wte 共用时可以没有
        expected = {**expected, "lm_head.weight": expected["wte.weight"]}
    for name in sorted(expected.keys() | actual.keys()):
        theirs, ours = (f"是 {shapes[name]}" if name in shapes else "没有" for shapes in (actual, expected))
        if theirs != ours:
            raise UserError(path, f"{NOT_A_MODEL}（{name} 在文件里{theirs}，GPT-2 应{ours}）", ONLY_GPT2)
