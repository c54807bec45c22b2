"""
mutate: a proposer without an LLM. It changes one or two numeric constants of train.py: the baseline an LLM must beat.
"""

import ast
import itertools
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass

from proposers import CannotPropose, Context, Proposal, ProposalFailed, edit_problem


@dataclass
class NumericConstant:
    name: str
    value: float
    start: int  # its expression in the source, in bytes
    end: int
    text: str


def literal_number(expression: ast.expr) -> float | None:
    """The value of `3`, `-0.5`, `2**18` or `1 / 8`; None for anything else."""
    if isinstance(expression, ast.UnaryOp) and isinstance(expression.op, ast.USub):
        value = literal_number(expression.operand)
        return None if value is None else -value
    if isinstance(expression, ast.BinOp):
        left, right = literal_number(expression.left), literal_number(expression.right)
        if left is None or right is None:
            return None
        if isinstance(expression.op, ast.Pow) and 0 < left <= 64 and abs(right) <= 64:
            return left**right
        if isinstance(expression.op, ast.Div) and right:
            return left / right
        return left * right if isinstance(expression.op, ast.Mult) else None
    is_number = isinstance(expression, ast.Constant) and type(expression.value) in (int, float)
    return expression.value if is_number else None


def constant_assignments(statements: list[ast.stmt], scale: str) -> Iterator[tuple[str, ast.expr]]:
    """(NAME, expression) of the assignments at module level and in the branch of `if SCALE == "..."` that is run."""
    for statement in statements:
        if isinstance(statement, ast.If):
            if branch := re.fullmatch(r"SCALE == '(\w+)'", ast.unparse(statement.test)):
                yield from constant_assignments(statement.body if branch[1] == scale else statement.orelse, scale)
        elif isinstance(statement, ast.Assign) and len(statement.targets) == 1:
            target, value = statement.targets[0], statement.value
            several = isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple)
            for name, expression in zip(target.elts, value.elts, strict=True) if several else [(target, value)]:
                if isinstance(name, ast.Name) and re.fullmatch(r"[A-Z][A-Z0-9_]*", name.id):
                    yield name.id, expression


def numeric_constants(source: str, scale: str) -> list[NumericConstant]:
    """The constants `NAME = number` of a train.py that take effect at this scale, in order."""
    encoded = source.encode()  # ast counts columns in bytes
    line_starts = [0, *itertools.accumulate(map(len, encoded.splitlines(keepends=True)))]
    found = []
    for name, node in constant_assignments(ast.parse(source).body, scale):
        value = literal_number(node)
        if value is not None:
            start = line_starts[node.lineno - 1] + node.col_offset
            end = line_starts[node.end_lineno - 1] + node.end_col_offset
            found.append(NumericConstant(name, value, start, end, encoded[start:end].decode()))
    return found


def mutate_value(constant: NumericConstant, rng: random.Random) -> str:
    """A new value for a constant, as source text: powers of two double or halve, others move by up to factor two."""
    value, factor = constant.value, 2 ** rng.choice([-1, -0.5, 0.5, 1])
    if isinstance(value, int) and value > 0 and value & (value - 1) == 0:
        exponent = max(0, value.bit_length() - 1 + rng.choice([-1, 1]))
        return f"2**{exponent}" if "**" in constant.text else str(2**exponent)
    if isinstance(value, int):
        return str(max(1, round(value * factor)))
    if value == 0:
        return f"{10 ** rng.uniform(-3, -1):.2g}"
    if 0.5 < value < 1:  # a fraction close to one: move its distance from one
        return f"{1 - (1 - value) * factor:.4g}"
    return f"{value * factor:.3g}"


def propose_mutation(context: Context) -> Proposal:
    """Change one constant, or now and then two. The same seed and experiment number give the same proposal."""
    rng = random.Random(f"{context.seed}/{context.number}")
    constants = numeric_constants(context.best_source, context.scale)
    if not constants:
        raise CannotPropose("train.py has no numeric constants at its top level that mutate could change")
    for _ in range(100):
        chosen = rng.sample(constants, min(len(constants), rng.choice([1, 1, 1, 2])))
        source, changes = context.best_source.encode(), []
        for constant in sorted(chosen, key=lambda constant: -constant.start):
            text = mutate_value(constant, rng)
            source = source[: constant.start] + text.encode() + source[constant.end :]
            changes.append(f"{constant.name} {constant.text} -> {text}")
        description = ", ".join(reversed(changes))
        if not edit_problem(context.best_source, source.decode()) and description not in context.tried:
            return Proposal(description, source.decode())
    raise ProposalFailed("mutate found no change that was not tried on this best")
