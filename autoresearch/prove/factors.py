"""
The kept changes of a search as factors: what can be taken out of the best by itself, and what only together.

    compose(keeps, {3, 9})           the train.py that the baseline and the kept changes 3 and 9 make
    take_out(keeps, [(3,), (4, 9)])  the best without the kept changes 3, 4 and 9
    find_factors(keeps, problem)     the factors; problem(source) says why a train.py cannot run, or ""

Each kept change is a factor, but:
- Those that edit the value of one constant are one: 2048 -> 3072 -> 5120 says one thing.
- What cannot be taken out alone (a later change edits its lines, the rest does not parse, is refused or crashes) is
  joined with what needs it. What cannot be taken out with any other stays in: it is fixed.
"""

import ast
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from autoresearch.merge import merge_texts
from autoresearch.source import NOT_PYTHON, edit_problem, parse
from autoresearch.text import lines_of


@dataclass(frozen=True)
class Keep:
    """A kept change: the train.py of the best that it was made for, and its own."""

    number: int
    title: str
    before: str
    after: str


@dataclass(frozen=True)
class Factor:
    """Kept changes that are taken out together."""

    numbers: tuple[int, ...]
    title: str
    joined: tuple[str, ...] = ()  # why they are one

    @property
    def name(self) -> str:
        return "+".join(map(str, self.numbers))


Problem = Callable[[str], str]
Group = tuple[int, ...]


@dataclass(frozen=True)
class Factors:
    """The kept changes of a search, for an ablation."""

    keeps: list[Keep]
    removable: list[Factor]
    fixed: list[tuple[Factor, str]] = field(default_factory=list)  # stay in, and why

    def without(self, out: Iterable[Factor]) -> str:
        """The best without these. Raises Conflict."""
        return take_out(self.keeps, [factor.numbers for factor in out])

    def source(self, levels: Iterable[int]) -> str:
        """The train.py where `levels` gives each factor 1 (in) or -1 (out)."""
        pairs = zip(self.removable, levels, strict=True)
        return self.without(factor for factor, level in pairs if level < 0)


class Conflict(Exception):
    """A kept change that does not fit on a train.py without others."""

    def __init__(self, number: int):
        super().__init__(f"change {number} edits lines of what is taken out")
        self.number = number


# -----------------------------------------------------------------------------
# Texts


def compose(keeps: list[Keep], included: set[int]) -> str:
    """The baseline with the included changes made again, in their order. Raises Conflict where one does not fit."""
    text = keeps[0].before
    for keep in keeps:
        if keep.number in included:
            merged = merge_texts(text, keep.before, keep.after)
            if merged is None:
                raise Conflict(keep.number)
            text = merged
    return text


def take_out(keeps: list[Keep], out: list[Group]) -> str:
    """The best without these groups of changes; without all of them, the baseline. Raises Conflict."""
    return compose(keeps, {keep.number for keep in keeps}.difference(*out))


def constants(source: str) -> dict[tuple[str, int], str]:
    """Every NAME = literal at the top level or in an if there: (name, how many of it came before) -> value."""
    found: dict[tuple[str, int], str] = {}
    try:
        waiting: list[ast.stmt] = list(parse(source).body)
    except NOT_PYTHON:
        return found
    while waiting:
        node = waiting.pop(0)
        if isinstance(node, ast.If):
            waiting = [*node.body, *node.orelse, *waiting]
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            name, is_literal = node.targets[0].id, not any(isinstance(each, ast.Name) for each in ast.walk(node.value))
            if is_literal:
                found[name, sum(other == name for other, _ in found)] = ast.unparse(node.value)
    return found


def edited_constants(keep: Keep) -> set[str]:
    """The constants whose value a change edited."""
    before, after = constants(keep.before), constants(keep.after)
    return {name for name, at in before.keys() & after.keys() if before[name, at] != after[name, at]}


# -----------------------------------------------------------------------------
# Joining


@dataclass
class Joining:
    """Groups of changes as they grow together."""

    keeps: list[Keep]
    problem: Problem
    groups: list[Group] = field(default_factory=list)
    reasons: list[tuple[int, str]] = field(default_factory=list)  # (a change, why its group grew)
    fixed: dict[Group, str] = field(default_factory=dict)

    def group_of(self, number: int) -> Group:
        return next(group for group in [*self.groups, *self.fixed] if number in group)

    def join(self, one: Group, other: Group, reason: str) -> None:
        if other in self.fixed:
            self.fix(one, f"{reason}, which stays in")
            return
        self.groups = [group for group in self.groups if group not in (one, other)] + [tuple(sorted(one + other))]
        self.groups.sort()
        self.reasons.append((one[0], reason))

    def fix(self, group: Group, reason: str) -> None:
        self.groups.remove(group)
        self.fixed[group] = reason

    def why_not(self, out: list[Group]) -> tuple[str, int | None]:
        """(why these groups cannot be taken out together or "", the change that does not fit then)."""
        try:
            source = take_out(self.keeps, out)
        except Conflict as conflict:
            return str(conflict), conflict.number
        return self.problem(source), None


def find_factors(keeps: list[Keep], problem: Problem, marked: Iterable[int] = ()) -> Factors:
    """The factors of a search. `marked`: changes that a person says must stay in."""
    joining = Joining(keeps, problem, [(keep.number,) for keep in keeps])
    join_chains(joining)
    for group in [group for group in joining.groups if set(marked) & set(group)]:
        joining.fix(group, "marked by hand")
    while any(settle(joining, [group]) for group in joining.groups):
        pass
    return as_factors(joining)


def join_chains(joining: Joining) -> None:
    """Changes that edit the value of one constant become one."""
    last: dict[str, int] = {}
    for keep in joining.keeps:
        for name in sorted(edited_constants(keep)):
            one, other = joining.group_of(last.get(name, keep.number)), joining.group_of(keep.number)
            if one != other:
                joining.join(one, other, f"{last[name]} and {keep.number} edit {name}")
            last[name] = keep.number


def settle(joining: Joining, out: list[Group]) -> bool:
    """If these groups cannot be taken out together, join or fix one of them. Whether anything changed."""
    reason, conflicting = joining.why_not(out)
    if not reason:
        return False
    blamed = blame(joining, out, conflicting)
    if conflicting is not None:
        other = joining.group_of(conflicting)
        joining.join(blamed, other, f"{conflicting} edits lines of {names(blamed)}")
        return True
    others = [group for group in joining.groups if group != blamed]
    partners = sorted(others, key=lambda group: (not uses(joining, group, blamed), *distance(blamed, group)))
    helping = [group for group in partners if group not in out and not joining.why_not([*out, group])[0]]
    helping += [group for group in partners if group in out]
    if helping:
        joining.join(blamed, helping[0], f"without {names(blamed)}: {reason}")
    else:
        joining.fix(blamed, f"without it: {reason}")
    return True


def blame(joining: Joining, out: list[Group], conflicting: int | None) -> Group:
    """The one of these groups that must not be out with the others, or with the removal that does not fit."""
    others = [group for group in out[::-1] if conflicting not in group]
    if own := [group for group in out if conflicting in group]:
        others = [group for group in others if joining.why_not([group, *own])[0]] or others
    return next((one for one in others if not joining.why_not([g for g in out if g != one])[0]), others[0])


def uses(joining: Joining, group: Group, other: Group) -> bool:
    """Return whether a group's edits use a word that the other's brought into the file."""
    keeps = {keep.number: keep for keep in joining.keeps}
    brought = [words(lines_of(keeps[n].after)) - words(lines_of(keeps[n].before)) for n in other]
    added = [set(lines_of(keeps[n].after)) - set(lines_of(keeps[n].before)) for n in group]
    return bool(set().union(*brought) & words(line for lines in added for line in lines))


def words(lines: Iterable[str]) -> set[str]:
    return {word for line in lines for word in re.findall(r"[^\W\d]\w*", line)}


def distance(group: Group, other: Group) -> tuple[bool, int]:
    """Later changes are the likelier ones to need an earlier one, the next first."""
    return max(other) < min(group), min(abs(a - b) for a in group for b in other)


def names(group: Group) -> str:
    return "+".join(map(str, group))


def as_factors(joining: Joining) -> Factors:
    titles = {keep.number: keep.title for keep in joining.keeps}
    best = joining.keeps[-1].after

    def factor(group: Group) -> Factor:
        why = tuple(reason for number, reason in joining.reasons if number in group)
        return Factor(group, "; ".join(titles[number] for number in group), why)

    removable, fixed = [], [(factor(group), reason) for group, reason in joining.fixed.items()]
    for group in joining.groups:
        rest = {keep.number for keep in joining.keeps} - set(group)
        nothing_left = edit_problem(best, compose(joining.keeps, rest))
        if nothing_left:  # later changes have undone it: there is nothing to take out
            fixed.append((factor(group), "nothing of it is left in the best"))
        else:
            removable.append(factor(group))
    return Factors(joining.keeps, removable, fixed)


def join_for(factors: Factors, problem: Problem, rows: Iterable[Iterable[int]]) -> Factors | None:
    """The factors with those joined that one of these rows cannot do without each other; None if all rows can run."""
    groups = [factor.numbers for factor in factors.removable]
    joining = Joining(factors.keeps, problem, groups)
    joining.fixed = {factor.numbers: reason for factor, reason in factors.fixed}
    known = [(number, reason) for f in factors.removable for number in f.numbers[:1] for reason in f.joined]
    joining.reasons = known + [(f.numbers[0], reason) for f, _ in factors.fixed for reason in f.joined]
    for levels in rows:
        out = [factor.numbers for factor, level in zip(factors.removable, levels, strict=True) if level < 0]
        if out and settle(joining, out):
            return as_factors(joining)
    return None
