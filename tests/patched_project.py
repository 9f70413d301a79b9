"""改动过的项目：在临时文件夹里放一份源文件，改一处，用它代替原来的包，用完还原。"""

import contextlib
import importlib.util
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from conftest import ROOT

PACKAGES = ("model", "utils", "checks")
FOLDERS = (*PACKAGES, "configs")


class PatchedProject:
    """folder 里的一份项目。不必另开进程：torch 只载入一次，没有改的文件也只编译一次。"""

    def __init__(self, folder: Path):
        self.folder = folder
        for name in FOLDERS:
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))

    @contextlib.contextmanager
    def replaced(self, path: str, old: str, new: str) -> Iterator[None]:
        """里面 import 到的是改过的包；old 要在 path 里恰好出现一次。"""
        text = (self.folder / path).read_text(encoding="utf-8")
        assert text.count(old) == 1, f"{path} 里有 {text.count(old)} 处：{old}"
        self._write(path, text.replace(old, new))
        saved = _take_out()
        sys.path.insert(0, str(self.folder))
        importlib.invalidate_caches()
        try:
            yield
        finally:
            sys.path.remove(str(self.folder))
            _take_out()
            sys.modules.update(saved)
            self._write(path, text)

    def _write(self, path: str, text: str) -> None:
        """编译好的旧文件要删掉：一秒之内改两次，Python 看不出改过。"""
        (self.folder / path).write_text(text, encoding="utf-8", newline="")
        Path(importlib.util.cache_from_source(self.folder / path)).unlink(missing_ok=True)


def _take_out() -> dict:
    names = [name for name in sys.modules if name.partition(".")[0] in PACKAGES]
    return {name: sys.modules.pop(name) for name in names}
