"""结果怎样写：中位数、范围和 Markdown 表格。"""

from statistics import median


def table(header: list[str], rows: list[list[str]]) -> str:
    """Markdown 表格。"""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def number(value: float) -> str:
    """三位有效数字，不用科学记数法。"""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def spread(values: list[float]) -> str:
    """中位数（最小–最大）"""
    return f"{number(median(values))}（{number(min(values))}–{number(max(values))}）"


def ratio(larger: list[float], smaller: list[float]) -> str:
    """两个中位数之比。"""
    return f"{median(larger) / median(smaller):.2f}×"


def gigabytes(num_bytes: float) -> str:
    return f"{num_bytes / 1e9:.2f}"
