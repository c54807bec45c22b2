"""The bench: one set of rules for every run, whether of a search or of `ablate` and `promote`."""

import dataclasses
import functools
import json
import math
import threading
from pathlib import Path

import pytest
from loop_helpers import make_repository, make_session

from autoresearch.loop.bench import Bench, Slot, run_all
from autoresearch.loop.inflight import bench_of
from autoresearch.nouns import Experiment, Proposal, RunResult, Task
from autoresearch.prove.trials import Trials, note_run, read_journal, runs_before
from autoresearch.record.ledger import Ledger
from autoresearch.record.ledger import read_journal as read_search_journal
from autoresearch.record.repository import open_repository
from autoresearch.run import sandbox

GOOD = RunResult("ok", 1.0, 2.0)
CRASH = RunResult("crash", 1.0, error="OSError: [Errno 28] No space left on device")


def fast(million_tokens: float, val_bpb: float = 2.0) -> RunResult:
    measured = {"total_tokens_M": million_tokens, "sm_clock_mhz": 1410.0}
    return RunResult("ok", 320.0, val_bpb, 30.0, printed={"training_seconds": 300.0}, measured=measured)


@pytest.fixture(params=["search", "proof"])
def kind(request) -> str:
    return request.param


@pytest.fixture
def session(tmp_path, kind):
    return make_session(tmp_path / "loop.log")


@pytest.fixture
def ledger(tmp_path, monkeypatch) -> Ledger:
    folder = make_repository(tmp_path / "repo")
    monkeypatch.setattr("autoresearch.record.ledger.ROOT", folder)
    return Ledger(open_repository(folder), "t")


@pytest.fixture
def trials(session, ledger, tmp_path) -> Trials:
    folder = tmp_path / "ablation"
    folder.mkdir()
    return Trials(ledger, session.log, folder, "h100", 42, 20, 5.0)


@pytest.fixture
def bench(session, ledger, trials, kind) -> Bench:
    """A bench of one slot, which ends each run as the test says: a result, or what is raised."""
    slot = Slot()
    if kind == "search":
        return bench_of(session, ledger, [slot])
    before, note = functools.partial(runs_before, trials), functools.partial(note_run, trials)
    return Bench(session, [slot], trials.folder_of, before, note)


@pytest.fixture
def task(kind, tmp_path):
    """A maker of runs of one train.py, by seed."""
    experiment = Experiment(Proposal("the best", "x = 1"), 0, tmp_path / "0003", 3) if kind == "search" else None

    def make(seed: int) -> Task:
        return Task("the best", "x = 1", seed, "judge" if experiment else "prove", experiment, budget=20)

    return make


def ends(bench: Bench, *outcomes: RunResult | Exception, at_first=lambda folder: None) -> list[int]:
    """Let the runs end so, one after the other; the seeds in the order in which they ran."""
    left, ran = list(outcomes), []

    def train(source, folder, options, should_stop, on_progress) -> RunResult:
        folder.mkdir(parents=True, exist_ok=True)
        ran.append(options.seed)
        outcome = left.pop(0)
        if len(ran) == 1:
            at_first(folder)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    bench.slots[0].train = train
    return ran


@pytest.fixture
def journaled(kind, ledger, trials):
    """What the journal holds, read again as after a kill: (seed, status, whether it counts)."""

    def read() -> list[tuple[int, str, bool]]:
        if kind == "search":
            again = Ledger(ledger.repo, "t")
            read_search_journal(again)
            return [(run.seed, run.result.status, run.purpose != "slow") for run in again.runs]
        again = Trials(ledger, trials.log, trials.folder, "h100", 42, 20, 5.0)
        read_journal(again)
        found = [(key, result.status, True) for key, result in again.done.items()]
        found += [(key, result.status, False) for key, result in again.slow.items()]
        return sorted((int(key.split("-seed")[1].split("-")[0]), *rest) for key, *rest in found)

    return read


def test_a_run_that_lost_speed_to_its_own_train_py_is_made_again_once(bench, task, journaled):
    bench.session.options = dataclasses.replace(bench.session.options, scale="h100")
    ran = ends(bench, fast(300), fast(285), fast(299), fast(200), fast(201), fast(292))
    results = run_all(bench, [task(42), task(43), task(44), task(45)])
    assert ran == [42, 43, 43, 44, 44, 45], "the slow ones again; the second time a slow one counts"
    assert [result.measured["total_tokens_M"] for _, result in results] == [300, 299, 201, 292]
    assert {(seed, counts) for seed, _, counts in journaled()} == {
        (42, True), (43, True), (43, False), (44, True), (44, False), (45, True)
    }  # fmt: skip
    assert "slow: 950 k tokens/s after 1,000, SM clock 1410 MHz" in bench.session.log.path.read_text()


def test_a_run_whose_clocks_contradict_each_other_is_made_again_once(bench, task, journaled):
    busy = RunResult("busy", 20.0, 1.5, error="it took 24 s of CPU time where 16 s are usual")
    ran = ends(bench, busy, GOOD, busy, busy)
    assert [result.status for _, result in run_all(bench, [task(42), task(43)])] == ["ok", "busy"]
    assert ran == [42, 42, 43, 43]
    assert sorted(journaled()) == [(42, "busy", False), (42, "ok", True), (43, "busy", False), (43, "busy", True)]


def test_speed_is_not_lost_at_the_cpu_scale(bench, task):
    assert len(ends(bench, fast(300), fast(100))) == 0
    assert len(run_all(bench, [task(42), task(43)])) == 2


def test_a_fault_of_the_scorer_costs_one_run(bench, task, journaled):
    ends(bench, GOOD, RuntimeError("the scorer has ended"), GOOD)
    results = run_all(bench, [task(42), task(43), task(44)])
    assert [result.status for _, result in results] == ["ok", "fault", "ok"]
    assert results[1][1].error == "a fault of the loop: RuntimeError: the scorer has ended"
    assert [seed for seed, *_ in journaled()] == [42, 44], "a fault is no result: another call runs it again"
    assert "Traceback (most recent call last)" in bench.session.log.path.read_text()
    assert not bench.session.blocked


def test_a_fault_of_what_judges_it_costs_one_run(bench, task, monkeypatch):
    monkeypatch.setattr("autoresearch.loop.bench.believed", lambda *_: 1 / 0)
    ends(bench, GOOD)
    ((_, result),) = run_all(bench, [task(42)])
    assert (result.status, result.error) == ("fault", "a fault of the loop: ZeroDivisionError: division by zero")


def test_three_faults_in_a_row_stop_the_bench(bench, task):
    ran = ends(bench, *[RuntimeError("the scorer has ended")] * 4)
    assert len(run_all(bench, [task(seed) for seed in range(4)])) == len(ran) == 3
    assert bench.session.blocked.startswith("three faults in a row, the last: a fault of the loop: RuntimeError")


@pytest.mark.slow
@pytest.mark.parametrize("outcome", [CRASH, OSError(28, "No space left on device")])
def test_a_run_that_failed_for_lack_of_space_is_made_again(bench, task, journaled, monkeypatch, outcome):
    """The disk is full when the run ends, and somebody makes room a moment later."""
    enough = sandbox.ROOM_GB

    def fill_disk():
        monkeypatch.setattr(sandbox, "ROOM_GB", 10**9)
        threading.Timer(0.3, monkeypatch.setattr, (sandbox, "ROOM_GB", enough)).start()

    ran = ends(bench, outcome, CRASH, at_first=lambda folder: fill_disk())
    results = run_all(bench, [task(42)])
    assert ran == [42, 42] and [result.status for _, result in results] == ["crash"]
    assert journaled() == [(42, "crash", True)]


@pytest.mark.parametrize("outcome", [CRASH, FileNotFoundError("run.log"), GOOD])
def test_a_run_whose_folder_was_deleted_is_made_again(bench, task, journaled, outcome):
    ran = ends(bench, outcome, GOOD, at_first=Path.rmdir)
    assert len(run_all(bench, [task(42)])) == 1
    assert ran == [42, 42] and journaled() == [(42, "ok", True)]


def test_an_interrupted_run_is_left_to_the_next_call(bench, task, journaled):
    ends(bench, RunResult("interrupted", 1.0))
    assert run_all(bench, [task(42)]) == [] and journaled() == []


def test_nothing_begins_that_would_end_too_late(bench, task):
    ran = ends(bench, GOOD)
    bench.session.options = dataclasses.replace(bench.session.options, deadline=0.0)
    assert run_all(bench, [task(42)], lambda _: 1.0) == [] and ran == []


@pytest.mark.parametrize("kind", ["proof"], indirect=True)
def test_journals_of_the_version_before_are_read(trials):
    old = {"status": "ok", "seconds": 1.0, "val_bpb": 2.0, "summary": {"num_steps": 3.0}}
    key = "0123456789ab-seed42-20s"
    line = json.dumps({"event": "run", "at": 1.0, "key": key, "what": "x", "result": old})
    trials.journal.write_text(f"{line}\n{{cut")
    read_journal(trials)
    assert trials.done[key].printed == {"num_steps": 3.0} and math.isnan(trials.done[key].tokens_per_second)
