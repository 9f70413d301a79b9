"""把数据、模板、样式、脚本和被讲解的代码装成一个 HTML 文件。"""

import ast
import html
import json
import re
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
ROOT = FOLDER.parent.parent
SCRIPTS = """numbers elements state tokens embedding attention heads map pair stream lens sampling next generation loss
main""".split()
SOURCE = re.compile(r'data-source="(\S+?\.py) ([\w.]+)"')


def build_page(data: dict) -> bytes:
    """完整的网页，UTF-8。"""
    template = (FOLDER / "page.html").read_text(encoding="utf-8")
    sources = {f"{path} {name}": find_source(path, name) for path, name in SOURCE.findall(template)}
    scripts = [(FOLDER / "script" / f"{name}.js").read_text(encoding="utf-8") for name in SCRIPTS]
    parts = {
        "title": html.escape(data["title"]),
        "style": (FOLDER / "style.css").read_text(encoding="utf-8"),
        "data": embed_json({**data, "sources": sources}),
        "script": "\n".join(scripts),
    }
    # 一遍替换完：数据里碰巧写着 {{script}} 也只是文字
    page = re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], template)
    return page.encode("utf-8", errors="replace")  # 标题里可能有孤立的代理字符


def embed_json(data: dict) -> str:
    """放进 <script> 的 JSON：< 写成转义，文字里的 </script> 就结束不了它；非 ASCII 也转义，孤立的代理字符也写得出。"""
    return json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")


def find_source(path: str, name: str) -> str:
    """项目文件 path 里叫 name（如 MultiHeadAttention.forward）的类或函数的代码；没有就抛出 KeyError。"""
    text = (ROOT / path).read_text(encoding="utf-8")
    node: ast.AST = ast.parse(text)
    for part in name.split("."):
        children = {child.name: child for child in ast.iter_child_nodes(node) if hasattr(child, "name")}
        node = children[part]
    lines = text.splitlines()[node.lineno - 1 : node.end_lineno]
    indent = len(lines[0]) - len(lines[0].lstrip())
    return "\n".join(line[indent:] for line in lines)
