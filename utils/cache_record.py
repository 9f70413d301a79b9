"""缓存里的小记录：一行 sha256，之后是 JSON。坏了、没有、写不进，都当作没有记过。"""

import contextlib
import hashlib
import json
from pathlib import Path

from utils.errors import RunError
from utils.files import write_atomically


def read_record(path: Path) -> dict | None:
    """没有、读不出或者坏了，都是 None。"""
    with contextlib.suppress(OSError, ValueError):
        digest, content = path.read_bytes().split(b"\n", 1)
        if hashlib.sha256(content).hexdigest().encode() == digest:
            return json.loads(content)
    return None


def write_record(path: Path, record: dict) -> None:
    """写不进去也不要紧，下次再算一遍。"""
    content = json.dumps(record).encode("ascii")
    data = hashlib.sha256(content).hexdigest().encode() + b"\n" + content
    with contextlib.suppress(OSError, RunError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, lambda file: file.write(data))
