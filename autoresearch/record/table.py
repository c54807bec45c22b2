"""
Tables as `status`, the page and the terminal show them.
"""

import math
from typing import Any

from autoresearch.text import one_line

Table = tuple[str, list[str], list[list[Any]]]  # (title, heads, rows); a column whose head begins with > is of numbers


def say(pattern: str, value: float | None) -> str:
    """A number in its pattern, nothing for null and nan."""
    return "" if value is None or not math.isfinite(value) else pattern.format(value)


def table_lines(title: str, heads: list[str], rows: list[list[Any]]) -> list[str]:
    """A table as text, nothing without rows."""
    cells = [[head.removeprefix(">") for head in heads], *([one_line(str(cell)) for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    forms = [f"{'>' if head[0] == '>' else '<'}{width}" for head, width in zip(heads, widths, strict=True)]
    lines = ["  ".join(map(format, row, forms)).rstrip() for row in cells]
    return ["", title, *(f"  {line}" for line in lines)] if rows else []
