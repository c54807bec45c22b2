"""
The text of a train.py: parsed, compared, counted, its constants found. This is the one place that parses.
"""

import ast
import functools
import hashlib
import re
import threading
from collections.abc import Iterator

from autoresearch.text import BOM, lines_of

# CPython 3.11 keeps the depth of the parser in one global: two threads that parse at once can fail with SystemError.
PARSER = threading.Lock()
NOT_PYTHON = (SyntaxError, ValueError, RecursionError, MemoryError)  # also: null bytes, nesting without end


def parse(source: str) -> ast.Module:
    """The syntax tree of a text, whose byte order mark is no part of it. Raises one of NOT_PYTHON."""
    with PARSER:
        return ast.parse(source.removeprefix(BOM))


def parse_expression(text: str) -> ast.expr:
    """The syntax tree of one expression. Raises one of NOT_PYTHON."""
    with PARSER:
        return ast.parse(text, mode="eval").body


def syntax_problem(source: str) -> str:
    """Return why a text is not Python, in one line, or ""."""
    try:
        parse(source)
    except NOT_PYTHON as error:
        return str(error)
    return ""


def edit_problem(before: str, after: str) -> str:
    """Return why `after` cannot be an experiment on `before`, or "" if it can."""
    if after == before:
        return "train.py is unchanged"
    if not after.strip():
        return "train.py is empty"
    if problem := syntax_problem(after):
        return f"train.py does not parse: {problem}"
    if code_of(before) == code_of(after):
        return "only comments or layout of train.py changed; the run would be the same"
    return ""


@functools.lru_cache(8)
def lines_of_other_scales(source: str, scale: str) -> range:
    """The lines, from 0, of the constants that only another scale has: the branch that is not taken of train.py's own
    `if SCALE == "h100":`. None where there is no such thing."""
    try:
        branches = [node for node in parse(source).body if isinstance(node, ast.If) and node.orelse]
    except NOT_PYTHON:
        return range(0)
    for branch in branches:
        if match := re.fullmatch(r"SCALE == '(\w+)'", ast.unparse(branch.test)):
            other = branch.orelse if match[1] == scale else branch.body
            return range(other[0].lineno - 1, other[-1].end_lineno or 0)
    return range(0)


@functools.lru_cache(64)
def code_of(source: str) -> str:
    """A hash of what a text does: the same for texts that differ by comments and white space alone."""
    try:
        code = ast.dump(parse(source))
    except NOT_PYTHON:
        code = source
    return hashlib.sha256(code.encode(errors="surrogatepass")).hexdigest()


def count_statements(source: str) -> int:
    """The statements of a text, as no joining of lines changes them: by `;`, or `a, b = 1, 2`. Docstrings are none."""
    count = 0
    for node in ast.walk(parse(source)):
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Tuple):
            targets = [len(target.elts) for target in node.targets if isinstance(target, ast.Tuple)]
            count += max([1, *targets])
        elif isinstance(node, ast.stmt | ast.NamedExpr):
            count += not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))
    return count


def code_lines(source: str) -> int:
    """Lines that are neither empty nor comments."""
    return sum(bool(line.strip()) and not line.strip().startswith("#") for line in lines_of(source))


# -----------------------------------------------------------------------------
# Constants


def reached(statements: list[ast.stmt], scale: str) -> Iterator[ast.stmt]:
    """The statements of a module, with the branch that is run in the place of an `if SCALE == "..."`."""
    for statement in statements:
        if isinstance(statement, ast.If) and (branch := re.fullmatch(r"SCALE == '(\w+)'", ast.unparse(statement.test))):
            yield from reached(statement.body if branch[1] == scale else statement.orelse, scale)
        else:
            yield statement


def assignments(statement: ast.stmt) -> list[tuple[str, ast.expr]]:
    """(name, expression) of `a = x`, `a: float = x` and `a, b = x, y`; nothing of other statements."""
    targets: list[ast.expr] = []
    values: list[ast.expr] = []
    if isinstance(statement, ast.AnnAssign) and statement.value:
        targets, values = [statement.target], [statement.value]
    elif isinstance(statement, ast.Assign) and len(statement.targets) == 1:
        targets, values = statement.targets, [statement.value]
        if isinstance(targets[0], ast.Tuple) and isinstance(values[0], ast.Tuple):
            targets, values = targets[0].elts, values[0].elts
    names = [target.id for target in targets if isinstance(target, ast.Name)]
    return list(zip(names, values, strict=True)) if len(names) == len(targets) == len(values) else []


def with_expression(source: str, expression: ast.expr, text: str) -> str:
    """The source with another text in the place of an expression of it, which stands on one line."""
    lines = lines_of(source)
    line = lines[expression.lineno - 1].encode()  # ast counts columns in bytes
    changed = line[: expression.col_offset] + text.encode() + line[expression.end_col_offset :]
    lines[expression.lineno - 1] = changed.decode()
    return "".join(lines)
