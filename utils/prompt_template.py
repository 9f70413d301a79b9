"""提示语模板：一轮对话怎样写成一段文字。训练和对话用的是同一份，名字随模型文件走。"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Turn:
    """一轮：用户说的和模型答的。"""

    question: str
    answer: str = ""  # 还没有回答时为空


@dataclass(frozen=True)
class Template:
    """before 和 after 之间是用户说的话，after 之后由模型接着写；回答之后是文本结束符。"""

    before: str
    after: str

    def prompt(self, question: str) -> str:
        """一轮里模型要接着写的那段开头。"""
        return f"{self.before}{question}{self.after}"


TEMPLATES = {
    "zh": Template("问：", "\n答："),
    "en": Template("Instruction: ", "\nAnswer: "),
}


def join_question(instruction: str, text: str) -> str:
    """指令和它要处理的内容（可以没有）合成一句问话。"""
    return f"{instruction}\n{text}" if text else instruction


def choose_template(texts: list[str]) -> str:
    """汉字多过拉丁字母就用中文的模板。"""
    sample = "".join(texts)
    chinese = sum("\u4e00" <= character <= "\u9fff" for character in sample)
    latin = sum(character.isascii() and character.isalpha() for character in sample)
    return "zh" if chinese >= latin else "en"
