"""JSON 写错了，说清在第几行第几列、错在哪里。"""

import json
from pathlib import Path

from utils.errors import UserError

# Python 的 json 说的几句英文，按开头认；3.13 起多了 Illegal trailing comma
REASONS = {
    "Unexpected UTF-8 BOM": "开头多了字节顺序标记",
    "Expecting value": "这里缺少一个值",
    "Expecting property name enclosed in double quotes": "这里应是双引号括起的字段名",
    "Expecting ':' delimiter": "字段名后面缺少冒号",
    "Expecting ',' delimiter": "两项之间缺少逗号",
    "Illegal trailing comma": "最后一项后面多了逗号",
    "Extra data": "已经结束，后面却还有内容",
    "Unterminated string": "引号没有合上",
    "Invalid control character": "引号里有换行之类的控制字符，应写成 \\n 的样子",
    "Invalid \\u": "\\u 后面应是四位十六进制数",
    "Invalid \\escape": "反斜杠后面的字符不对，反斜杠自己应写成 \\\\",
}


def json_error(path: Path, error: ValueError | RecursionError, advice: str, line: int = 1) -> UserError:
    """json.loads 抛出的 error -> 给用户看的；读的那段文字从文件的第 line 行开始。"""
    if isinstance(error, json.JSONDecodeError):
        found = [chinese for english, chinese in REASONS.items() if error.msg.startswith(english)]
        place = f"第 {line + error.lineno - 1} 行第 {error.colno} 列"
        return UserError(path, f"{place}不是合法 JSON：{(found or [error.msg])[0]}", advice)
    reason = "嵌套太深" if isinstance(error, RecursionError) else "有一个数太长"
    return UserError(path, f"从第 {line} 行起不是合法 JSON：{reason}", advice)
