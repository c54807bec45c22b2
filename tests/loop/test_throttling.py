"""A run that lost speed to its own train.py, or whose clocks contradict each other, runs again, once."""

import math

import pytest
from loop_helpers import make_context, make_repository, make_row, make_session

from autoresearch.loop.inflight import Candidate, Queue, Slot, Task
from autoresearch.loop.running import run_again_if_new, slower_than_before
from autoresearch.loop.slots import run_of
from autoresearch.loop.verdicts import verdict_on
from autoresearch.nouns import Proposal, RunResult
from autoresearch.propose.brief import by_category
from autoresearch.propose.constants import gain_in_noise
from autoresearch.propose.history import history_line, ideas
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
    assert said == "slow: 950 k tokens/s after 1,000, SM clock 1410 MHz"
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


def test_clocks_that_contradict_each_other_twice_tell_nothing_of_an_edit_but_what_was_good(ledger):
    busy = RunResult("busy", 20.0, 1.5, error="it took 24 s of CPU time where 16 s are usual")
    queue, again = Queue([Slot()]), task(3, 43)
    assert run_again_if_new(ledger, queue, again, busy) and list(queue.tasks) == [again]
    assert not run_again_if_new(ledger, queue, again, busy)
    note_run(ledger, run_of(again, busy))
    session = make_session(ledger.folder / "log")
    verdict = verdict_on(ledger, session.options, session.settings, again.candidate)
    assert verdict.status == "busy"
    assert verdict.reason == f"the machine was busy: seed 42 gave 1.000000 ({busy.error})"


def test_a_busy_row_is_no_failure_of_the_idea(tmp_path):
    rows = [make_row()] + [make_row(number=n, status="busy", category="model", gain=math.nan) for n in (1, 2)]
    context = make_context(tmp_path, rows=[*rows, make_row(number=3, status="discard", gain=-0.1, category="data")])
    assert context.streak == 1
    assert by_category(context) == ["data: 1 discard"] and not ideas(rows[1:])
    assert "busy" in history_line(rows[1], {})
    assert math.isnan(gain_in_noise(rows[1]))
