"""Parsing beside a parsing thread, and how much code a text is."""

import subprocess
import sys
from pathlib import Path

import pytest
from shipped import TRAIN

from autoresearch.merge import merge_texts
from autoresearch.propose.constants import numeric_constants, replaced
from autoresearch.prove.depth import with_depth
from autoresearch.source import code_lines, code_of, count_statements, edit_problem
from autoresearch.text import BOM

ROOT = Path(__file__).parents[1]

# CPython 3.11 fails with SystemError here when both threads use ast.parse itself: garbage whose finalizer lets the
# other thread run in the middle of a parse.
BOTH_PARSE = """
import sys, threading, time
from autoresearch.source import parse
source, errors, count = sys.stdin.read(), [], [0, 0]
class Cycle:
    def __init__(self): self.me = self
    def __del__(self): time.sleep(0.001)
def work(index, until):
    while time.time() < until and not errors:
        Cycle()
        try:
            parse(source)
            count[index] += 1
        except SystemError as error:
            errors.append(str(error))
until = time.time() + 4
threads = [threading.Thread(target=work, args=(index, until)) for index in range(2)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
print(min(count), errors)
sys.exit(bool(errors) or not min(count))
"""


@pytest.mark.slow
def test_two_threads_may_parse_at_once():
    done = subprocess.run([sys.executable, "-c", BOTH_PARSE], cwd=ROOT, input=TRAIN, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_there_is_one_place_that_parses():
    files = [*ROOT.glob("*.py"), *ROOT.glob("autoresearch/**/*.py")]
    users = [str(path.relative_to(ROOT)) for path in files if "ast.parse(" in path.read_text()]
    assert users == ["autoresearch/source.py"]


def test_an_edit_has_to_be_one():
    assert edit_problem("A = 1\n", "A = 1\n") == "train.py is unchanged"
    assert "only comments" in edit_problem("A = 1\n", "A = 1  # one\n")
    assert "does not parse" in edit_problem("A = 1\n", "A = (\n")
    assert edit_problem("A = 1\n", "A = 2\n") == ""


def test_joined_lines_are_as_many_statements():
    apart = '"""A page."""\na = 1\nb = 2\n\n\ndef f(x):\n    """Twice."""\n    y = 2 * x\n    return y\n'
    joined = "a, b = 1, 2\n\n\ndef f(x): y = 2 * x; return y\n"
    assert count_statements(apart) == count_statements(joined) == 5


ODD_LINES = "# a form feed \f, U+2028 \u2028, U+0085 \x85 and \x1c \x0b in a comment\r\nWIDTH = 4\rprint(WIDTH)\n"


@pytest.mark.parametrize("before", ["", BOM, ODD_LINES, BOM + ODD_LINES, 'NOTE = """\f\u2028"""\n'], ids=ascii)
def test_an_expression_is_replaced_where_python_counts_its_line(before):
    source = f"{before}DEPTH = 2\ntrain(DEPTH)\n"
    wanted = f"{before}DEPTH = 4\ntrain(DEPTH)\n".removeprefix(BOM)
    assert with_depth(source, "cpu", 4) == wanted
    changed, _ = replaced(source, [(each, "4") for each in numeric_constants(source, "cpu") if each.name == "DEPTH"])
    assert changed.removeprefix(BOM) == wanted
    assert edit_problem(source, wanted) == "" and code_lines(source) == code_lines(wanted)
    assert merge_texts(source, source, source.replace("= 2", "= 4")) == wanted


@pytest.mark.parametrize(
    ("after", "same"),
    [
        ("x = 1  # another word\n\n\ny = [\n    2,\n]\n", True),
        (f"{BOM}x = (1)\ny=[2]", True),
        ("x = 1\ny = [3]\n", False),
        ("x = 1\ny = ['2']\n", False),
        ("x = = 1", False),
    ],
)
def test_sources_that_differ_by_comments_and_white_space_alone_are_one(after, same):
    assert (code_of("x = 1  # a word\ny = [2]\n") == code_of(after)) == same
    assert code_of("x = = 1") == code_of("x = = 1")
