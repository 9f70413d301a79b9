"""从文档和 Makefile 里取出每一条命令，一条一个 Command。"""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from conftest import ROOT

PAGES = sorted({*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("[a-z]*/README.md")})
ESSAYS = sorted(path for path in (ROOT / "docs").glob("*.md") if path.name != "README.md")
SHELLS = ("bash", "shell", "sh", "console", "powershell")
FENCE = re.compile(r"^```(?P<language>\w*)\n(?P<body>.*?)^```$", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
# 一个 python 代码块，以及紧跟着它（中间只隔空行）的 text 代码块
EXAMPLE = re.compile(r"^```python\n(?P<code>.*?)^```$(?:\s*^```text\n(?P<output>.*?)^```$)?", re.MULTILINE | re.DOTALL)
QUOTE = re.compile(r"^```py\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL)  # 摘自项目代码，不运行
LINK = re.compile(r"\]\((?P<target>[^)\s]+)\)")
IN_COMMENT = re.compile(r"(?:^|[：，；]|或 ?)((?:python|py|make|pip) [^：，；。]+)")
TYPED = re.compile(r"(?:\$ |(?=\.venv/bin/))(.+)")  # 输出里照抄的命令：提示符之后的，和 make 打印的
# “新建文件 `x.py`，写入：”之后的 python3 代码块，是读者自己写的小程序；不用 cat > x.py <<，PowerShell 里没有
SCRIPT = re.compile(r"新建文件 `(?P<path>[^`]+)`，写入：\n\n```python3\n(?P<body>.*?)^```$", re.MULTILINE | re.DOTALL)
WRITE = "写入"
# 行内代码以它们开头、后面还有字，才是命令；单独的 `generate.py` 是文件名
TOOLS = "python3?|py|pip|make|git|uv|ruff|echo|source|cd|apt-get|torchrun|srun|sudo"
STARTERS = re.compile(rf"(?:[\w./]+\.py|{TOOLS}|(?:\.venv/bin/\w+)) .")
SEPARATORS = {"|", "&&", ";"}


@dataclass(frozen=True)
class Command:
    """文档里的一条命令；stdin 是管道左边的 echo 写给它的，或写进文件的各行。"""

    page: str
    line: int
    words: tuple[str, ...]
    stdin: str = ""

    def __str__(self) -> str:
        return f"{self.page}:{self.line} {shlex.join(self.words)}"


def commands_of(page: Path) -> list[Command]:
    """page 里的全部命令，按出现的先后。"""
    name = str(page.relative_to(ROOT))
    text = page.read_text(encoding="utf-8")
    lines = makefile_lines(text) if page.name == "Makefile" else written_lines(text)
    return [command for number, line in sorted(lines) for command in parse(line, name, number)]


def written_lines(text: str) -> list[tuple[int, str]]:
    """[(行号, 命令)]：命令块的每一行、块里的注释提到的、text 块里 $ 之后的、正文里行内代码写的。"""
    found, prose = [], text
    for script in SCRIPT.finditer(text):
        number = text.count("\n", 0, script.start()) + 1
        found.append((number, f"{WRITE} {script['path']}\n{script['body']}"))
    for fence in FENCE.finditer(text):
        start = text.count("\n", 0, fence.start("body")) + 1
        prose = prose.replace(fence[0], "\n" * fence[0].count("\n"))
        is_shell = fence["language"] in SHELLS
        for number, line in enumerate(joined_lines(fence["body"]), start):
            command, _, comment = line.partition("#")
            if is_shell and line.strip():
                found += [(number, part) for part in [command.strip(), *IN_COMMENT.findall(comment.strip())] if part]
            elif fence["language"] == "text" and (typed := TYPED.match(line)):
                found.append((number, typed[1]))
    for number, line in enumerate(prose.splitlines(), 1):
        found += [(number, code) for code in INLINE.findall(line) if STARTERS.match(code)]
    return found


def joined_lines(body: str) -> list[str]:
    """行末有 \\ 的与下一行接成一行；接走的行空着，后面的行号才不变。"""
    lines = body.splitlines()
    for index in range(len(lines) - 2, -1, -1):
        if lines[index].endswith("\\"):
            lines[index], lines[index + 1] = lines[index][:-1] + lines[index + 1], ""
    return lines


def makefile_lines(text: str) -> list[tuple[int, str]]:
    """配方里用虚拟环境运行的各行。"""
    rows = enumerate(text.splitlines(), 1)
    expanded = ((number, line.replace("$(BIN)", ".venv/bin").replace("$(MODULES)", "")) for number, line in rows)
    return [(number, line.strip()) for number, line in expanded if line.startswith("\t.venv/bin/")]


def parse(line: str, page: str, number: int) -> list[Command]:
    """一行可能有几条：用 && 连着，或从管道接过去。带着几行的是写文件。"""
    if "\n" in line:
        head, _, script = line.partition("\n")
        return [Command(page, number, tuple(head.split()), script)]
    lexer = shlex.shlex(line.replace("\\", "/"), posix=True, punctuation_chars="|&;")
    lexer.whitespace_split = True
    commands, words, stdin = [], [], ""
    for word in [*lexer, ";"]:
        if word not in SEPARATORS:
            words.append(word)
            continue
        if word == "|" and words[0] == "echo":
            stdin = " ".join(words[1:]) + "\n"
        else:
            commands.append(Command(page, number, tuple(words), stdin))
            stdin = ""
        words = []
    return commands
