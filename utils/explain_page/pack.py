"""张量和 token 怎样写进网页的 JSON。"""

import base64
import sys

from torch import Tensor

from utils.text_utils import Tokenizer

SPACES = {" ": "␣", "\n": "↵", "\t": "⇥", "\u3000": "␣"}


def pack(tensor: Tensor) -> dict:
    """形状和小端 float32 的 base64：比写成十进制小，又一位不差。"""
    array = tensor.detach().float().contiguous().cpu().numpy()
    if sys.byteorder == "big":
        array = array.byteswap()
    return {"shape": list(tensor.shape), "float32": base64.b64encode(array.tobytes()).decode("ascii")}


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
    """给人看的样子：空白和控制字符用记号代替，半个字写出它的字节。"""
    if token_id == tokenizer.end_of_text_id:
        return "⟨结束⟩"
    text = token_text(tokenizer, token_id)
    if not text:
        return f"⟨{show_bytes(tokenizer.token_bytes(token_id))}⟩"
    return "".join(SPACES.get(character) or _visible(character) for character in text)


def _visible(character: str) -> str:
    return character if character.isprintable() else f"⟨{ord(character):X}⟩"
