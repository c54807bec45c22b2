"""Edits of neighbouring lines merge, edits of the same lines do not; where git's merge is clean, ours says the same."""

import random
import subprocess

import pytest

from autoresearch.merge import merge_texts

BASE = "A = 1\nB = 2\nC = 3\nD = 4\n"


@pytest.mark.parametrize(
    ("ours", "theirs", "merged"),
    [
        ("A = 9\nB = 2\nC = 3\nD = 4\n", "A = 1\nB = 8\nC = 3\nD = 4\n", "A = 9\nB = 8\nC = 3\nD = 4\n"),  # neighbours
        ("A = 9\nB = 2\nC = 3\nD = 4\n", "A = 8\nB = 2\nC = 3\nD = 4\n", None),  # the same line
        (
            "A = 9\nB = 2\nC = 3\nD = 4\n",
            "A = 9\nB = 2\nC = 3\nD = 7\n",
            "A = 9\nB = 2\nC = 3\nD = 7\n",
        ),  # both made it
        ("B = 2\nC = 3\nD = 4\n", "A = 1\nB = 8\nC = 3\nD = 4\n", "B = 8\nC = 3\nD = 4\n"),  # a line is gone
        (
            "A = 1\nX = 0\nB = 2\nC = 3\nD = 4\n",
            "A = 1\nY = 0\nB = 2\nC = 3\nD = 4\n",
            None,
        ),  # one place
        ("A = 1\nX = 0\nB = 2\nC = 3\nD = 4\n", "A = 1\nB = 8\nC = 3\nD = 4\n", "A = 1\nX = 0\nB = 8\nC = 3\nD = 4\n"),
        ("A = 1\nE = 5\nD = 4\n", "A = 1\nB = 2\nX = 0\nC = 3\nD = 4\n", None),  # into what the other has replaced
        (BASE, "A = 1\nB = 2\nC = 3\nD = 4", "A = 1\nB = 2\nC = 3\nD = 4"),  # no newline at the end
    ],
)
def test_two_edits_of_a_block_of_constants(ours, theirs, merged):
    assert merge_texts(ours, BASE, theirs) == merged


def edited(rng: random.Random, lines: list[str]) -> str:
    """A text with a few lines replaced, removed or put in."""
    lines = list(lines)
    for _ in range(rng.randint(1, 3)):
        at, new = rng.randrange(len(lines)), [f"new {rng.random()}\n" for _ in range(rng.randint(0, 2))]
        lines[at : at + rng.randint(0, 2)] = new
    return "".join(lines)


def test_where_git_merges_so_do_we(tmp_path):
    rng, clean = random.Random(1), 0
    for _ in range(60):
        lines = [f"line {number}\n" for number in range(30)]
        base, ours, theirs = "".join(lines), edited(rng, lines), edited(rng, lines)
        for name, text in (("base", base), ("ours", ours), ("theirs", theirs)):
            (tmp_path / name).write_text(text)
        command = ["git", "merge-file", "-p", "-q", "ours", "base", "theirs"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        if done.returncode == 0:
            clean += 1
            assert merge_texts(ours, base, theirs) == done.stdout
    assert clean > 20
