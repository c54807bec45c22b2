"""A second look at a near miss: a row that says that it is one, one that only looks like it, and one that fails."""

import dataclasses
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
from loop_helpers import ROOT, STUB, make_repository, make_row, proposer_script, rows_of, set_level, start_loop

from autoresearch.judge.knowledge import judged, looked_at_again
from autoresearch.loop.bench import Bench
from autoresearch.loop.decide import may_repair
from autoresearch.loop.inflight import Queue
from autoresearch.nouns import Experiment, Proposal, Run, RunResult
from autoresearch.record.ledger import Ledger
from autoresearch.record.repository import Repository
from autoresearch.row import SECOND_LOOK
from autoresearch.settings import Settings

BASELINE = make_row(commit="base")
NEAR = make_row(commit="near", number=1, status="discard", parent="base", description="lower", runs="42:1.995000")
AGAIN = {"number": 2, "parent": "base", "description": "second look at 0001: lower", "runs": "42:1.995000 43:2.010000"}
LOOK = make_row(commit="look", status="discard", **AGAIN)


@pytest.mark.parametrize(
    ("change", "counts"),
    [
        ({}, True),
        ({"status": "keep"}, True),
        ({"status": "crash", "runs": "42:1.995000"}, True),
        ({"status": "crash", "runs": "", "repairs": 1}, True),
        ({"runs": "42:1.993000"}, False),  # a proposer's own words for another edit
        ({"parent": "older"}, False),
        ({"description": "second look at 0000: the best, wider"}, False),
        ({"description": "second look at 0002: itself"}, False),
        ({"description": "second look at 0009: of which nothing is known"}, False),
        ({"description": "a second look at 0001: lower"}, False),
    ],
)
def test_a_second_look_is_one_on_the_same_best_with_the_same_runs(change, counts):
    look = dataclasses.replace(LOOK, **change)
    assert looked_at_again([BASELINE, NEAR, look]) == ({1} if counts else set())
    rows = judged([BASELINE, NEAR, look])
    replaced = counts and look.status != "crash"
    assert (NEAR in rows) != replaced and BASELINE in rows


def test_more_than_ten_thousand_experiments():
    near, look = dataclasses.replace(NEAR, number=10_000), dataclasses.replace(LOOK, number=10_001)
    look = dataclasses.replace(look, description="second look at 10000: lower")
    assert looked_at_again([BASELINE, near, look]) == {10_000}


MILDER = f"""
import sys
sys.path[:0] = [".", {str(ROOT / "tests")!r}]
import printed_loop
from autoresearch.judge import keep_rule
from autoresearch.loop import verdicts

judge_again = verdicts.reconsider

def reconsider(near, *others):
    keep_rule.KEEP_AT_LAST = 0.01 if near else keep_rule.KEEP_AT_LAST
    return judge_again(near, *others)

verdicts.reconsider = reconsider
printed_loop.main()
"""


@pytest.mark.slow
def test_a_second_look_that_fails_is_the_only_one(tmp_path, prepared):
    """The near miss crashes on the next seed. What makes it worth another look: the rule is milder then."""
    repo = make_repository(tmp_path / "repo", train="import os\nSEED = os.environ.get('AUTORESEARCH_SEED')\n" + STUB)
    near = set_level('1.998 if SEED != "43" else diverged()')
    command = proposer_script(repo, [near, set_level(2.5)])
    (tmp_path / "milder.py").write_text(MILDER)
    program = (str(tmp_path / "milder.py"),)
    process = start_loop(repo, "--experiments", "5", "--command", command, program=program)
    out, err = process.communicate(timeout=900)
    done = subprocess.CompletedProcess(command, process.returncode, out, err)
    assert done.returncode == 0, done.stderr
    _, first, look, *others = rows_of(repo)
    assert first.status == "discard" and (look.status, look.runs) == ("crash", first.runs), done.stdout
    assert look.description.startswith("second look at 0001: "), done.stdout
    assert {SECOND_LOOK.sub("", row.description) for row in others} == {"level to 2.5"}, done.stdout


def test_constants_mend_no_crash():
    """Also not that of an LLM whose search goes on with them."""
    failed = RunResult("crash", 1.0, tail="Traceback (most recent call last)\nNameError: oops")
    ledger = Ledger(Repository(Path()), "t", rows=[BASELINE])
    experiment = Experiment(Proposal("wider", "oops"), 0, Path(), 1)
    ledger.runs_by_number = {1: [Run(1, 42, failed)]}
    for proposer, repairs in (("command", True), ("constants", False)):
        session = SimpleNamespace(settings=Settings(), options=SimpleNamespace(proposer=proposer))
        assert may_repair(session, ledger, Queue(Bench(session, [], lambda task: Path())), experiment) == repairs
