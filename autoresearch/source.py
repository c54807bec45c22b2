"""
The text of a train.py: parsed, compared, counted. This is the one place that parses.
"""

import ast
import threading

# CPython 3.11 keeps the depth of the parser in one global: two threads that parse at once can fail with SystemError.
PARSER = threading.Lock()
NOT_PYTHON = (SyntaxError, ValueError, RecursionError, MemoryError)  # also: null bytes, nesting without end


def parse(source: str) -> ast.Module:
    """The syntax tree of a text. Raises one of NOT_PYTHON."""
    with PARSER:
        return ast.parse(source)


def parse_expression(text: str) -> ast.expr:
    """The syntax tree of one expression. Raises one of NOT_PYTHON."""
    with PARSER:
        return ast.parse(text, mode="eval").body


def syntax_problem(source: str) -> str:
    """Why a text is not Python, in one line, or ""."""
    try:
        parse(source)
    except NOT_PYTHON as error:
        return str(error)
    return ""


def edit_problem(before: str, after: str) -> str:
    """Why `after` cannot be an experiment on `before`, or "" if it can."""
    if after == before:
        return "train.py is unchanged"
    if not after.strip():
        return "train.py is empty"
    try:
        same = ast.dump(parse(before)) == ast.dump(parse(after))
    except NOT_PYTHON as error:
        return f"train.py does not parse: {error}"
    if same:
        return "only comments or layout of train.py changed; the run would be the same"
    return ""


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
    return sum(bool(line.strip()) and not line.strip().startswith("#") for line in source.splitlines())
