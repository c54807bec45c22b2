"""
Two edits of one text, put together: a three-way merge by lines.

git's own merge takes edits of neighbouring lines for a conflict. In a block of constants, one a line, that is the usual
case, so here two edits conflict only where they change the same lines, or put different lines into the same place.
"""

from difflib import SequenceMatcher
from typing import NamedTuple

from autoresearch.text import lines_of


class Change(NamedTuple):
    """The lines from `first` up to `last` of the base are replaced; first == last: lines are put in before `first`."""

    first: int
    last: int
    lines: list[str]


def changes(base: list[str], edited: list[str]) -> list[Change]:
    """Return what an edit changed, in order."""
    codes = SequenceMatcher(None, base, edited, autojunk=False).get_opcodes()
    return [Change(i1, i2, edited[j1:j2]) for tag, i1, i2, j1, j2 in codes if tag != "equal"]


def collide(one: Change, other: Change) -> bool:
    """Return whether two changes want the same lines, or the same place between two lines."""
    if one.first == one.last or other.first == other.last:
        inside = one.first < other.first < one.last or other.first < one.first < other.last
        return inside or (one.first, one.last) == (other.first, other.last)
    return one.first < other.last and other.first < one.last


def merge_texts(ours: str, base: str, theirs: str) -> str | None:
    """`ours` with the change from `base` to `theirs` applied, or None where the two changes touch the same lines."""
    lines = lines_of(base)
    first, second = (changes(lines, lines_of(text)) for text in (ours, theirs))
    second = [change for change in second if change not in first]  # made by both
    if any(collide(one, other) for one in first for other in second):
        return None
    for change in sorted([*first, *second], reverse=True):  # from the end, so that the numbers of lines stay true
        lines[change.first : change.last] = change.lines
    return "".join(lines)
