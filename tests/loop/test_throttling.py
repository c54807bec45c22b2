"""A GPU that slows down makes numbers incomparable: a run that lost speed to its own train.py runs again, once."""

import pytest
from loop_helpers import make_repository

from autoresearch.loop.inflight import Candidate, Queue, Slot, Task
from autoresearch.loop.running import run_again_if_new, slower_than_before
from autoresearch.loop.slots import run_of
from autoresearch.nouns import Proposal, RunResult
from autoresearch.record.ledger import Ledger, note_run, read_journal
from autoresearch.record.repository import open_repository


def result(million_tokens: float) -> RunResult:
    measured = {"total_tokens_M": million_tokens, "sm_clock_mhz": 1410.0}
    return RunResult("ok", 320.0, 1.0, 30.0, printed={"training_seconds": 300.0}, measured=measured)


def task(number: int, seed: int) -> Task:
    return Task(Candidate(number, Proposal("x", "x = 1"), 0), seed)


@pytest.fixture
def ledger(tmp_path, monkeypatch):
    folder = make_repository(tmp_path / "repo")
    monkeypatch.setattr("autoresearch.record.ledger.ROOT", folder)
    ledger = Ledger(open_repository(folder), "t")
    note_run(ledger, run_of(task(3, 42), result(300)))
    return ledger


def test_a_slower_run_is_told_by_the_same_train_py(ledger):
    assert slower_than_before("h100", ledger, task(3, 43), result(292)) == ""
    said = slower_than_before("h100", ledger, task(3, 43), result(285))
    assert said == "seed 43, 950 k tokens/s after 1,000, SM clock 1410 MHz"
    assert slower_than_before("h100", ledger, task(4, 43), result(285)) == "", "another train.py"
    assert slower_than_before("cpu", ledger, task(3, 43), result(285)) == "", "paced time is not lost"


def test_it_runs_again_once_and_the_slow_run_is_kept_for_the_record(ledger):
    queue, slow = Queue([Slot()]), task(3, 43)
    assert run_again_if_new(ledger, queue, slow, result(200)) and list(queue.tasks) == [slow]
    assert not run_again_if_new(ledger, queue, slow, result(201))
    again = Ledger(ledger.repo, "t")
    read_journal(again)
    assert [(run.seed, run.purpose) for run in again.runs] == [(42, "judge"), (43, "slow")]
    assert again.good_runs(3, "judge").keys() == {42}
