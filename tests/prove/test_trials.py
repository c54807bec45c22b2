"""Runs outside a search: what is journaled of them, and what is made again."""

from collections import deque

import pytest
from loop_helpers import make_session

from autoresearch.loop import limits
from autoresearch.loop.inflight import Slot
from autoresearch.loop.trials import Bench, Trial, folder_of, trial_ended
from autoresearch.nouns import RunResult

TRIAL = Trial("the best, 3 steps", "x = 1", 42, 20, steps=3)
CRASH = RunResult("crash", 1.0, error="OSError: [Errno 28] No space left on device")


@pytest.fixture
def bench(tmp_path):
    bench = Bench(make_session(tmp_path / "ablation.log"), None, [Slot()], None, tmp_path / "ablation")
    folder_of(bench, TRIAL).mkdir(parents=True)
    return bench


def end(bench, outcome) -> list[Trial]:
    """What waits to be run after the trial has ended so."""
    waiting = deque()
    trial_ended(bench, bench.slots[0], TRIAL, waiting, outcome)
    return list(waiting)


@pytest.mark.parametrize("outcome", [CRASH, OSError(28, "No space left on device")])
def test_a_run_that_failed_for_want_of_disk_is_made_again(bench, monkeypatch, outcome):
    enough = limits.FREE_BYTES
    monkeypatch.setattr(limits, "FREE_BYTES", 10**18)
    assert end(bench, outcome) == [TRIAL] and not bench.done and not bench.journal.exists()
    monkeypatch.setattr(limits, "FREE_BYTES", enough)
    assert end(bench, CRASH) == [] and bench.done[TRIAL.key].status == "crash" and bench.journal.exists()


@pytest.mark.parametrize("outcome", [CRASH, FileNotFoundError("run.log")])
def test_a_run_whose_folder_was_deleted_is_made_again(bench, outcome):
    folder_of(bench, TRIAL).rmdir()
    assert end(bench, outcome) == [TRIAL] and not bench.done and not bench.journal.exists()


def test_what_is_no_fault_of_the_disk_is_told(bench):
    with pytest.raises(FileNotFoundError):
        end(bench, FileNotFoundError("train.bin"))
    with pytest.raises(RuntimeError):
        end(bench, RuntimeError("the scorer has ended"))
    assert end(bench, RunResult("interrupted", 1.0)) == [] and not bench.done
