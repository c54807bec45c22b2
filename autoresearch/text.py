"""
Text for a table, a terminal and a person; and the one line that a program ends with when the mistake is the user's.
"""

import sys
from typing import NoReturn


class BadInput(Exception):
    """What fail() would say, from under a progress bar or in a thread: who catches it prints the line."""


def fail(message: str) -> NoReturn:
    """End the program with one line on stderr and exit code 2: the mistake is the user's to mend."""
    print(f"error: {message}", file=sys.stderr)
    raise SystemExit(2)


def one_line(text: str) -> str:
    """No newline, tab or control character: safe in a table, a commit subject and a terminal."""
    return "".join(character for character in " ".join(text.split()) if character.isprintable())


def last_lines(text: str, count: int = 30) -> str:
    """The last lines as a terminal would show them: of what a carriage return overwrote, only the end remains."""
    lines = [line.rstrip("\r").rpartition("\r")[2].rstrip() for line in text.split("\n")]
    return "\n".join([line for line in lines if line][-count:])


def plural(count: int, name: str) -> str:
    """A count and its name: 1 run, 2 runs."""
    return f"{count} {name}{'s' * (count != 1)}"


def gain_text(gain: float, noise: float) -> str:
    """A gain and how many times the noise of one run it is."""
    return f"{gain:+.6f}, {gain / noise:+.1f} x noise"
