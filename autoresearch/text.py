"""
Text and tables for a terminal and a person; and the one line that a program ends with when the mistake is the user's.
"""

import codecs
import io
import math
import shlex
import sys
from pathlib import Path
from typing import Any, NoReturn

# The byte order marks of files that are not UTF-8. UTF-32's begins with that of UTF-16.
MARKS = {codecs.BOM_UTF32_LE: "UTF-32", codecs.BOM_UTF32_BE: "UTF-32", codecs.BOM_UTF16_LE: "UTF-16"}
MARKS |= {codecs.BOM_UTF16_BE: "UTF-16"}
BOM = "\ufeff"  # some editors put it before a text; Python reads over it


class BadInput(ValueError):
    """A mistake of the user's that is found under a progress bar or in a thread: who catches it calls fail()."""


def fail(message: str) -> NoReturn:
    """End the program with one line on stderr and exit code 2: the mistake is the user's to fix."""
    print(f"error: {message}", file=sys.stderr)
    raise SystemExit(2)


def decode(raw: bytes, path: Path, line: int = 1) -> str:
    """The text of UTF-8 bytes without their byte order mark. `line`: of the file, where they begin.

    Raises BadInput that names the file, its encoding as far as that can be told, and the command that converts it.
    """
    encoding = next((name for mark, name in MARKS.items() if raw.startswith(mark)), "")
    try:
        if not encoding:
            return raw.decode("utf-8-sig")
        problem = f"this is {encoding}"
    except UnicodeDecodeError as error:
        encoding = "WINDOWS-1252"
        line += error.object.count(b"\n", 0, error.start)
        problem = f"line {line} has the byte 0x{error.object[error.start]:02x}, which is not UTF-8"
    converted = f"iconv -f {encoding} -t UTF-8 {shlex.quote(str(path))} > NEW"
    raise BadInput(f"{path}: {problem}; convert it: {converted} (or -f its own encoding; -f UTF-8 -c drops bad bytes)")


def read_text(path: Path) -> str:
    """A file of UTF-8 text, with or without a byte order mark. Raises BadInput; line ends become newlines."""
    return decode(path.read_bytes(), path).replace("\r\n", "\n").replace("\r", "\n")


def lines_of(source: str) -> list[str]:
    """The lines of a text with their ends, by Python's rule: str.splitlines() ends one at a form feed, too."""
    return list(io.StringIO(source.removeprefix(BOM), newline=""))


def one_line(text: str) -> str:
    """No newline, tab or control character: safe in a table, a commit subject and a terminal."""
    return "".join(character for character in " ".join(text.split()) if character.isprintable())


def cut(text: str, limit: int) -> str:
    """The beginning of a text; of one that is too long, an ellipsis says so."""
    return text if len(text) <= limit else f"{text[: max(0, limit - 1)]}…"


def last_lines(text: str, count: int = 30) -> str:
    """The last lines as a terminal would show them: of what a carriage return overwrote, only the end remains."""
    lines = [line.rstrip("\r").rpartition("\r")[2].rstrip() for line in text.split("\n")]
    return "\n".join([line for line in lines if line][-count:])


def plural(count: int, name: str) -> str:
    """A count and its name: 1 run, 2 runs."""
    return f"{count} {name}{'s' * (count != 1)}"


# -----------------------------------------------------------------------------
# Tables

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


def tables_text(tables: list[Table], lines: list[str]) -> str:
    """Tables, and lines below them."""
    return "\n".join([*(line for table in tables for line in table_lines(*table)), "", *lines])
