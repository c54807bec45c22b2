"""
Two edits of one text, put together: a three-way merge by lines.

git's own merge takes edits of neighbouring lines for a conflict. In a block of constants, one a line, that is the usual
case, so here two edits conflict only where they change the same lines, or put different lines into the same place.
"""

from difflib import SequenceMatcher
from typing import NamedTuple


class Change(NamedTuple):
    """The lines from `first` up to `last` of the base are replaced; first == last: lines are put in before `first`."""

    first: int
    last: int
    lines: list[str]


def changes(base: list[str], edited: list[str]) -> list[Change]:
    """What an edit changed, in order."""
    codes = SequenceMatcher(None, base, edited, autojunk=False).get_opcodes()
    return [Change(i1, i2, edited[j1:j2]) for tag, i1, i2, j1, j2 in codes if tag != "equal"]


def collide(one: Change, other: Change) -> bool:
    """Whether two changes want the same lines, or the same place between two lines."""
    if one.first == one.last or other.first == other.last:
        inside = one.first < other.first < one.last or other.first < one.first < other.last
        return inside or (one.first, one.last) == (other.first, other.last)
    return one.first < other.last and other.first < one.last


def merge_texts(ours: str, base: str, theirs: str) -> str | None:
    """`ours` with the change from `base` to `theirs` applied, or None where the two changes touch the same lines."""
    lines = base.splitlines(keepends=True)
    first, second = (changes(lines, text.splitlines(keepends=True)) for text in (ours, theirs))
    second = [change for change in second if change not in first]  # made by both
    if any(collide(one, other) for one in first for other in second):
        return None
    return with_changes(lines, [*first, *second])


def with_changes(base: list[str], wanted: list[Change]) -> str:
    lines = list(base)
    for change in sorted(wanted, reverse=True):  # from the end, so that the numbers of lines stay true
        lines[change.first : change.last] = change.lines
    return "".join(lines)


def correct_text(ours: str, base: str, theirs: str, old: set[str]) -> str | None:
    """`ours` with the change from `base` to `theirs` applied where there is still something to change.

    There is not within lines of the base that `ours` has no more, or has lines of `old` in the place of. None where
    the two touch in another way, be it only that theirs puts lines in beside what ours changed.
    """
    lines = base.splitlines(keepends=True)
    first, second = (changes(lines, text.splitlines(keepends=True)) for text in (ours, theirs))
    gone = [change for change in first if old.issuperset(change.lines)]
    left = [change for change in second if change not in first and not any(within(change, one) for one in gone)]
    put_in = [change.first for change in left if change.first == change.last]
    if any(change.first <= place <= change.last for change in first for place in put_in):
        return None
    return merge_texts(ours, base, with_changes(lines, left))


def within(change: Change, other: Change) -> bool:
    """Whether a change edits nothing but lines that another edits, too."""
    return collide(change, other) and other.first <= change.first and change.last <= other.last
