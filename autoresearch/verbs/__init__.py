"""The verbs of the command line, next to the search itself. Each is imported only when it is asked for."""

import argparse
import contextlib
import importlib
import sys
from collections.abc import Iterator

from autoresearch.record.repository import GitError
from autoresearch.text import fail, one_line
from autoresearch.view import long_look, short_look, use_utf8

SHORT = ("status", "report", "propose")  # they print and end
LAST = "of the search (default: the one that ran last)"
LONG = ("check", "profile", "ablate", "promote")  # they run for minutes or hours


def run_verb(words: list[str]) -> None:
    """Do what a command line asks for and end the program, if its first word is a verb."""
    if words and words[0] in SHORT + LONG:
        with command_line(short=words[0] in SHORT):
            importlib.import_module(f"autoresearch.verbs.{words[0]}").main(words[1:])
        sys.exit()


def make_parser(verb: str, description: str | None, tag: str = LAST) -> argparse.ArgumentParser:
    """A verb's parser, with --tag unless its help is ""; --help shows the description as it is written."""
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog=f"agent_loop.py {verb}", description=description, formatter_class=formatter)
    if tag:
        parser.add_argument("--tag", help=tag)
    return parser


@contextlib.contextmanager
def command_line(short: bool = False) -> Iterator[None]:
    """Show a command's output, and one line if it cannot go on."""
    use_utf8()
    try:
        with short_look() if short else long_look():
            yield
    except (OSError, GitError) as error:  # a full disk, a lost permission: nothing was recorded wrongly
        fail(f"{one_line(str(error))}; fix that and run the same command again")
