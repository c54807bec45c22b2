"""What is in flight when the loop is killed: of an experiment that it was about to commit, nothing is lost."""

import pytest
from loop_helpers import STUB, git, make_repository, make_row
from rich.console import Console

from autoresearch.loop.bench import Bench, Slot
from autoresearch.loop.inflight import Queue, begin, restore_queue
from autoresearch.loop.proposers import restart_repaired
from autoresearch.nouns import Experiment, Proposal
from autoresearch.record.ledger import Ledger, move_branch, write_result
from autoresearch.record.lines import Log
from autoresearch.record.repository import open_repository


@pytest.fixture
def ledger(tmp_path, monkeypatch):
    folder = make_repository(tmp_path / "repo")
    git(folder, "branch", "autoresearch/t")
    monkeypatch.setattr("autoresearch.record.ledger.ROOT", folder)
    return Ledger(open_repository(folder), "t")


@pytest.fixture
def killed(monkeypatch):
    """A function that calls another one and kills it as it would commit an experiment."""

    def call_and_kill(function, *arguments):
        with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
            patch.setattr("autoresearch.loop.inflight.write_experiment", lambda *_: 1 / 0)
            function(*arguments)

    return call_and_kill


def empty_queue(ledger) -> Queue:
    return Queue(Bench(None, [Slot()], lambda task: ledger.folder))


def experiment(ledger, description: str, source: str) -> Experiment:
    base = 0 if ledger.kept else -1
    return Experiment(Proposal(description, source), base, ledger.experiment_folder(ledger.next_number))


def restored(ledger) -> Queue:
    """The queue as the next session finds it."""
    queue = empty_queue(ledger)
    restore_queue(ledger, queue, Log(Console(), ledger.folder / "loop.log"))
    return queue


def test_a_baseline_that_has_no_commit_yet_begins_anew_and_is_no_proposal(ledger, killed):
    killed(begin, ledger, empty_queue(ledger), experiment(ledger, "baseline", STUB))
    ledger.taken.clear()
    queue = restored(ledger)
    assert not queue.waiting and not queue.experiments
    begin(ledger, queue, baseline := experiment(ledger, "baseline", STUB))
    assert baseline.number == 0


def test_a_repair_that_has_no_commit_yet_gets_it(ledger, killed):
    write_result(ledger, make_row(), -1, STUB, "baseline", "keep")
    move_branch(ledger, 0)
    ledger.taken.add(0)
    begin(ledger, empty_queue(ledger), idea := experiment(ledger, "an idea", "it = crashes"))
    killed(restart_repaired, ledger, idea, Proposal("an idea", "it = 1"))
    assert ledger.source_of(1) == "it = crashes"
    found = restored(ledger).experiments[1]
    assert (found.proposal.source, found.repairs, found.base) == ("it = 1", 1, 0) and ledger.source_of(1) == "it = 1"
