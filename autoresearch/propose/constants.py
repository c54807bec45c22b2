"""
constants: a proposer without an LLM. It changes a few numeric constants of train.py: what an LLM has to beat.

    python agent_loop.py --hours 8 --proposer constants

What it may change: every `NAME = number` that is read somewhere in what runs at this scale, for more than printing it.
A constant whose change gave the very number of the best, seed for seed, is left alone from then on.

How far: each constant moves on its natural scale by half a step or a whole one. A step doubles or halves what is
positive (rates, sizes, widths), and of a ratio p its odds, p / (1 - p): near one, that is its distance from one.
Integers stay integers, powers of two powers of two, zero gets a small start. A crash halves the steps of what it
changed.

Which one, and which way: Thompson sampling (Thompson 1933; for linear models Agrawal and Goyal, ICML 2013). The gain of
a change, in units of the noise, is taken as linear in its steps. The history gives the slope of every constant as a
normal with an uncertainty, at first wider for learning rates, batch size and warm-down, which matter nearly everywhere.
One slope each is drawn from it, and the four steepest move, uphill. The regression tells their shares in the gain
apart, as in a screening design (Plackett and Burman 1946). So what gained is pushed further, what lost is tried the
other way, what loses both ways or does nothing is left, and the untried stays open.

The same seed, number and history give the same proposal.
"""

import ast
import itertools
import math
import random
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # imported where it is used: it takes a while
    import numpy

from autoresearch.nouns import Proposal
from autoresearch.propose.context import CannotPropose, Context, NothingLeft
from autoresearch.row import Row, runs_of
from autoresearch.source import NOT_PYTHON, assignments, edit_problem, parse, parse_expression, reached
from autoresearch.text import BOM

USUAL_SLOPE = 0.7  # standard deviation of a constant's slope before it was tried, in noise per step
STEEP = re.compile(r"(MATRIX|EMBEDDING)_LR$|^LEARNING_RATE|^LR$|BATCH_SIZE|WARMDOWN")  # what matters nearly everywhere
STEEP_SLOPE = 2.0  # of these
AS_BAD_AS = -3.0  # what a crash, a timeout or an invalid run counts as, in noise
CLEAR = 4.0  # a gain or loss is clear from so many times the noise on, and counts as no more
CHANGED = 4  # constants at a time: alone, few would show above the noise
TRIES = 200


@dataclass
class NumericConstant:
    name: str
    value: float
    start: int  # its expression in the source, in bytes
    end: int
    text: str


# -----------------------------------------------------------------------------
# The constants of a train.py


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
    if isinstance(expression, ast.Constant) and isinstance(expression.value, int | float):
        return None if isinstance(expression.value, bool) else expression.value
    return None


def numeric_constants(source: str, scale: str) -> list[NumericConstant]:
    """The constants `NAME = number` of a train.py that take effect at this scale, in order."""
    encoded, tree = source.encode(), parse(source)  # ast counts columns in bytes
    first = len(BOM.encode()) if source.startswith(BOM) else 0
    line_starts = [first, *itertools.accumulate(map(len, encoded.splitlines(keepends=True)))]
    used, found = names_used(tree, scale), []
    for name, node in itertools.chain.from_iterable(map(assignments, reached(tree.body, scale))):
        value = literal_number(node)
        if value is not None and name in used and re.fullmatch(r"[A-Z][A-Z0-9_]*", name):
            start = line_starts[node.lineno - 1] + node.col_offset
            end = line_starts[(node.end_lineno or 0) - 1] + (node.end_col_offset or 0)
            found.append(NumericConstant(name, value, start, end, encoded[start:end].decode()))
    return found


def names_used(tree: ast.Module, scale: str) -> set[str]:
    """The names that what runs depends on: not those that are only printed, or only read by what is itself not used."""
    reads: dict[str, set[str]] = {"": set()}  # "": the statements that do something
    for statement in reached(tree.body, scale):
        defines: list[tuple[str, ast.AST]] = [*assignments(statement)]
        if isinstance(statement, ast.FunctionDef | ast.ClassDef):
            defines = [(statement.name, statement)]
        for name, node in defines or [("", statement)]:
            reads.setdefault(name, set()).update(names_read(node))
    used: set[str] = set()
    waiting = [""]
    while waiting:
        for name in reads.get(waiting.pop(), set()) - used:
            used.add(name)
            waiting.append(name)
    return used


def names_read(node: ast.AST) -> Iterator[str]:
    """Every name that is read in a piece of code, except by print()."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print":
        return
    if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Store):
        yield node.id
    for child in ast.iter_child_nodes(node):
        yield from names_read(child)


# -----------------------------------------------------------------------------
# Natural scales

RATIO = re.compile("FRACTION|RATIO|MOMENTUM|BETA|DROPOUT|SHARE|WINDOW")
POSITIVE = re.compile("LR|RATE|INIT|DECAY|SCALE|STD|BASE")  # may pass one
COUNT = re.compile("DEPTH|LAYER")  # a power of two only by chance


def is_ratio(name: str, value: float) -> bool:
    """Whether a constant has to stay between zero and one, by its name, else by its value."""
    if isinstance(value, int) or not 0 < value <= 1:
        return False
    return bool(RATIO.search(name)) or (value < 1 and not POSITIVE.search(name))


def position(value: float, ratio: bool) -> float:
    """Where a value stands on its natural scale, in steps."""
    if ratio:
        value = 0.97 if value >= 1 else max(value, 0.01)  # from either end by steps that can be seen
        return math.log2(value / (1 - value))
    return math.log2(abs(value) or 2**-10)


def moved(constant: NumericConstant, steps: float, rng: random.Random) -> str:
    """A constant's value so many steps further, as source text; the old text where it cannot move."""
    name, value = constant.name, constant.value
    if value == 0:
        return str(2 ** rng.randint(0, 3)) if isinstance(value, int) else f"{10 ** rng.uniform(-3, -1):.2g}"
    if isinstance(value, int):
        return moved_integer(constant, steps)
    if not is_ratio(name, value):
        text = f"{value * 2**steps:.3g}"
        return text if re.search("[.e]", text) else f"{text}.0"  # a float stays one
    odds = 2 ** (position(value, ratio=True) + steps)
    left = f"{1 / (1 + odds):.2g}"  # near one, it is the distance from one that matters
    return f"{1 - float(left):.6g}" if odds > 9 else f"{odds / (1 + odds):.3g}"


def moved_integer(constant: NumericConstant, steps: float) -> str:
    """The same for an integer other than zero: one, at least, and by one, at least."""
    value, direction = int(constant.value), 1 if steps > 0 else -1
    if value >= 4 and value & (value - 1) == 0 and not COUNT.search(constant.name):
        exponent = value.bit_length() - 1 + direction * max(1, round(abs(steps)))
        return f"2**{exponent}" if "**" in constant.text else str(2 ** max(exponent, 0))
    size = int(float(f"{abs(value) * 2**steps:.3g}"))
    size = abs(value) + direction if size == abs(value) else size
    return str(max(size, 1) if value > 0 else -max(size, 1))


# -----------------------------------------------------------------------------
# What the history says

CHANGE = re.compile(r"\b([A-Z][A-Z0-9_]*) (\S+(?: [*/] \S+)?) -> ([^\s,;:\[]+)")
Change = frozenset[tuple[str, str, str]]  # of (name, old text, new text)
FAILED = ("crash", "timeout", "invalid")


def changes_in(description: str) -> Change:
    """The changes that a description of ours names: "NAME old -> new, NAME old -> new"."""
    return frozenset(CHANGE.findall(description))


def judged(rows: list[Row]) -> dict[tuple[str, Change], Row]:
    """The latest row of each change on each best (its commit): a second look replaces the first."""
    return {(row.parent, change): row for row in rows if (change := changes_in(row.description))}


def inert(rows: list[Row]) -> set[str]:
    """Constants whose change gave the very number of the best, on every seed that both were run on."""
    found, bests = set(), {row.commit: runs_of(row) for row in rows if row.status == "keep"}
    for (parent, change), row in judged(rows).items():
        best, runs = bests.get(parent, {}), runs_of(row)
        shared = best.keys() & runs.keys()
        if shared and all(best[seed] == runs[seed] for seed in shared):
            found |= {name for name, *_ in change}
    return found


def number_in(text: str) -> float | None:
    """The number that a text of a description stands for, if any."""
    try:
        return literal_number(parse_expression(text))
    except (*NOT_PYTHON, ArithmeticError):  # someone else's description
        return None


def steps_in(change: Change) -> dict[str, float]:
    """By how many steps a change moved each constant, on the scale of its old value; more than two count as two."""
    steps = {}
    for name, *texts in change:
        old, new = map(number_in, texts)
        if old is not None and new is not None:
            ratio = is_ratio(name, old)
            steps[name] = max(-2.0, min(2.0, position(new, ratio) - position(old, ratio)))
    return steps


def gain_in_noise(row: Row) -> float:
    """What a row says of its change, in noise; nan where it says nothing."""
    if row.status in FAILED:
        return AS_BAD_AS
    gain = row.gain / row.noise if row.noise > 0 else math.nan
    return max(-CLEAR, min(CLEAR, gain)) if math.isfinite(gain) else math.nan


def learn_slopes(names: list[str], rows: Iterable[tuple[Change, float]]) -> tuple["numpy.ndarray", "numpy.ndarray"]:
    """(mean, Cholesky root of the precision) of every constant's slope, in noise per step.

    Bayesian linear regression on the (change, gain in noise) of the past: prior normal(0, what is usual), noise 1.
    """
    import numpy

    prior = [STEEP_SLOPE if STEEP.search(name) else USUAL_SLOPE for name in names]
    precision, weighted = numpy.diag(1 / numpy.array(prior) ** 2), numpy.zeros(len(names))
    for change, gain in rows:
        steps = steps_in(change)
        moves = numpy.array([steps.get(name, 0.0) for name in names])
        precision += numpy.outer(moves, moves)
        weighted += moves * gain
    return numpy.linalg.solve(precision, weighted), numpy.linalg.cholesky(precision)


# -----------------------------------------------------------------------------
# The proposal


def propose_constants(context: Context) -> Proposal:
    """Change the constants with the steepest slopes. The same seed, number and history give the same proposal."""
    import numpy

    rng = random.Random(f"{context.options.seed}/{context.number}")
    without_effect, rows = inert(context.rows), judged(context.rows)
    found = numeric_constants(context.best_source, context.options.scale)
    if not found:
        raise CannotPropose("train.py has no numeric constants at its top level that could be changed")
    constants = [constant for constant in found if constant.name not in without_effect]
    if not constants:
        raise NothingLeft("no constant is left whose change has an effect on val_bpb")
    past = [(change, gain_in_noise(row)) for (_, change), row in rows.items()]
    past = [(change, gain) for change, gain in past if math.isfinite(gain)]
    failed = Counter(name for (_, change), row in rows.items() if row.status in FAILED for name, *_ in change)
    slopes, root = learn_slopes([constant.name for constant in constants], past)
    tried = {changes_in(description) for description in context.tried}
    for _ in range(TRIES):
        drawn = slopes + numpy.linalg.solve(root.T, [rng.gauss(0, 1) for _ in constants])
        steepest = numpy.argsort(-abs(drawn))[:CHANGED].tolist()
        changes = []
        for index in steepest:
            constant = constants[index]
            size = rng.choice([0.5, 1.0, 1.0]) / 2 ** failed[constant.name]
            text = moved(constant, math.copysign(size, drawn[index]), rng)
            changes += [(constant, text)] if text != constant.text else []  # one layer cannot be less
        source, description = replaced(context.best_source, changes)
        if changes_in(description) not in tried and not edit_problem(context.best_source, source):
            return Proposal(description, source, category="constant")
    raise NothingLeft("no change of a constant is left that was not tried on this best")


def replaced(source: str, changes: list[tuple[NumericConstant, str]]) -> tuple[str, str]:
    """(source with the new texts of some constants, description of what changed)."""
    encoded, changes = source.encode(), sorted(changes, key=lambda change: change[0].start)
    for constant, text in reversed(changes):
        encoded = encoded[: constant.start] + text.encode() + encoded[constant.end :]
    return encoded.decode(), ", ".join(f"{constant.name} {constant.text} -> {text}" for constant, text in changes)
