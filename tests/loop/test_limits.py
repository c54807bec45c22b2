"""What is left: how long a run takes, so that none begins that would be stopped while it is scored."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from autoresearch.loop.disk import was_lost
from autoresearch.loop.limits import run_seconds
from autoresearch.nouns import Run, RunResult, Task
from autoresearch.prove.trials import seconds_of
from autoresearch.record.ledger import Ledger
from autoresearch.record.repository import Repository

TESTED = {"test_bpb": 1.6}


def ledger_of(*results: RunResult, purpose: str = "judge") -> Ledger:
    runs = [Run(0, 42 + n, result, purpose, ended=100.0 * (n + 1)) for n, result in enumerate(results)]
    return Ledger(Repository(Path()), "t", runs=runs)


def test_a_run_takes_its_first_start_and_its_scoring_too():
    assert run_seconds(Ledger(Repository(Path()), "t"), 20) == 34
    assert run_seconds(ledger_of(RunResult("ok", 13.0)), 20) == pytest.approx(1.05 * 13)
    scored = RunResult("ok", 13.0, 1.6, extra_seconds=2.0)
    assert run_seconds(ledger_of(scored), 20) == pytest.approx(1.05 * 17), "13 s, and 2 s each for val and test rows"
    tested = RunResult("ok", 13.0, 1.6, measured=TESTED, extra_seconds=4.0)
    assert run_seconds(ledger_of(tested, purpose="confirm"), 20) == pytest.approx(1.05 * 17)
    assert run_seconds(ledger_of(scored, *[RunResult("ok", 12.0)] * 5), 20) == pytest.approx(1.05 * 12), "long ago"
    assert run_seconds(ledger_of(scored, RunResult("timeout", 200.0)), 20) == pytest.approx(1.05 * 17)


def test_a_trial_takes_its_scoring_too():
    task = Task("the best", "x = 1", 42, budget=20)
    trials = SimpleNamespace(done={"abc-seed42-20s": RunResult("ok", 13.0, 1.6, extra_seconds=2.0)})
    assert seconds_of(trials, task) == pytest.approx(1.05 * 17)


def test_a_run_that_took_its_node_down_and_left_no_log_is_not_made_again_for_ever(tmp_path):
    (tmp_path / "train.py").touch()
    assert not was_lost(SimpleNamespace(complaint=""), tmp_path, RunResult("crash", 9.0, error="its node was lost"))


def test_a_run_whose_log_alone_was_deleted_is_lost(tmp_path):
    gone = FileNotFoundError(2, "No such file or directory", str(tmp_path / "run.log"))
    assert was_lost(SimpleNamespace(complaint=""), tmp_path, gone)
