"""重画 docs/pictures/ 里的每一幅图：python -m docs.pictures"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

FOLDER = Path(__file__).parent
CHAPTERS = sorted(path.stem for path in FOLDER.glob("*.py") if path.stem not in ("__main__", "svg"))


def draw(chapter: str) -> str:
    """一章的图，SVG 文字：由同名的 .py 里的 draw() 画出。"""
    return import_module(f"docs.pictures.{chapter}").draw().svg()


if __name__ == "__main__":
    for chapter in CHAPTERS:
        (FOLDER / f"{chapter}.svg").write_text(draw(chapter), encoding="utf-8")
        print(f"已画 docs/pictures/{chapter}.svg")
