"""
The depth of a train.py: found, changed and nothing else, and which of its constants do not follow it.
"""

import ast
import re
from collections.abc import Iterator

from autoresearch.source import assignments, parse, reached, with_expression

BOUND = re.compile(r"(_LR|BATCH_SIZE|WEIGHT_DECAY)$")  # what is tuned at a depth, a batch or a number of tokens
OF_DEPTH = {"DEPTH", "depth", "n_layer", "n_embd"}  # words by which an expression follows the depth
PLAIN_CALLS = {"max", "min", "round", "int", "float", "ceil", "sqrt", "log2"}


def live_constants(source: str, scale: str) -> dict[str, ast.Constant]:
    """NAME -> its number, of the top level and of the branches of `if SCALE == ...` that a scale takes."""
    found = {}
    for statement in live_statements(parse(source).body, scale):
        for name, value in assignments(statement):
            if isinstance(value, ast.Constant) and isinstance(value.value, int | float):
                found[name] = value
    return found


def live_statements(body: list[ast.stmt], scale: str) -> Iterator[ast.stmt]:
    """reached(), and into both branches of every other `if`."""
    for statement in reached(body, scale):
        if isinstance(statement, ast.If):
            yield from live_statements([*statement.body, *statement.orelse], scale)
        else:
            yield statement


def depth_of(source: str, scale: str) -> int:
    """DEPTH of a train.py. ValueError if it sets none by a number."""
    constant = live_constants(source, scale).get("DEPTH")
    if constant is None or not isinstance(constant.value, int):
        raise ValueError("its train.py sets no DEPTH = number, the one dial that promotion turns")
    return constant.value


def with_depth(source: str, scale: str, depth: int) -> str:
    """The train.py with another DEPTH: nothing else of it changes."""
    depth_of(source, scale)
    return with_expression(source, live_constants(source, scale)["DEPTH"], str(depth))


# -----------------------------------------------------------------------------
# Constants that stand behind no rule


def bound_constants(source: str, scale: str) -> list[str]:
    """The constants that are tuned at one depth and that no arithmetic of the file ties to it, by name."""
    tree = parse(source)
    following = words_of_depth(tree)
    ruled: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.BinOp) and following & (words := words_in(node)):
            ruled |= words
    return sorted(name for name in live_constants(source, scale) if BOUND.search(name) and name not in ruled)


def words_of_depth(tree: ast.Module) -> set[str]:
    """OF_DEPTH, and the variables that are computed from them by arithmetic."""
    assigned = [
        (node.targets[0].id, words_in(node.value))
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and is_arithmetic(node.value)
    ]
    words = set(OF_DEPTH)
    while more := {name for name, used in assigned if used & words} - words:
        words |= more
    return words


def words_in(node: ast.AST) -> set[str]:
    names = {each.id for each in ast.walk(node) if isinstance(each, ast.Name)}
    return names | {each.attr for each in ast.walk(node) if isinstance(each, ast.Attribute)}


def is_arithmetic(node: ast.expr) -> bool:
    calls = [each.func for each in ast.walk(node) if isinstance(each, ast.Call)]
    return all(words_in(call) & PLAIN_CALLS for call in calls)
