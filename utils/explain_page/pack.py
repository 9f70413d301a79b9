"""张量和 token 怎样写进网页的 JSON。"""

import base64

import numpy as np
from torch import Tensor

from utils.text_utils import Tokenizer

HALF_MAX = 65504.0  # float16 里最大的数
SPACES = {" ": "␣", "\n": "↵", "\t": "⇥", "\u3000": "␣"}


def pack(tensor: Tensor) -> dict:
    """形状和小端 float32 的 base64：比写成十进制小，又一位不差。"""
    return {"shape": list(tensor.shape), "float32": _encode(tensor.float().numpy(), "<f4")}


def pack_half(tensor: Tensor) -> dict:
    """同 pack，但是 float16，约三位有效数字：只用来上色的大张量，省一半。"""
    return {"shape": list(tensor.shape), "float16": _encode(tensor.float().clamp(-HALF_MAX, HALF_MAX).numpy(), "<f2")}


def _encode(array: np.ndarray, dtype: str) -> str:
    return base64.b64encode(array.astype(dtype).tobytes()).decode("ascii")


def show_bytes(token: bytes) -> str:
    """E5 AD 99"""
    return token.hex(" ").upper()


def token_text(tokenizer: Tokenizer, token_id: int) -> str:
    """一个 token 的文字；只有半个字的是空的。"""
    try:
        return tokenizer.token_bytes(token_id).decode("utf-8")
    except UnicodeDecodeError:
        return ""


def token_label(tokenizer: Tokenizer, token_id: int) -> str:
    """给人看的样子；半个字写出它的字节。"""
    if token_id == tokenizer.end_of_text_id:
        return "⟨结束⟩"
    return show_text(token_text(tokenizer, token_id)) or f"⟨{show_bytes(tokenizer.token_bytes(token_id))}⟩"


def show_text(text: str) -> str:
    """空白和控制字符用记号代替，看得见，也打乱不了排版。"""
    return "".join(SPACES.get(character) or _visible(character) for character in text)


def _visible(character: str) -> str:
    return character if character.isprintable() else f"⟨{ord(character):X}⟩"
