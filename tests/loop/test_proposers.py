"""The proposer at work, without a loop: what it is told, and what becomes of its answer."""

import dataclasses
import threading
import time
from collections import deque

import pytest
from loop_helpers import STUB, make_repository, make_session

from autoresearch.loop import proposers
from autoresearch.loop.bench import Slot, wait
from autoresearch.loop.decide import decide
from autoresearch.loop.inflight import Ask, Asking, Queue, begin, bench_of, restore_queue
from autoresearch.loop.limits import over_budget
from autoresearch.loop.proposers import answered, ask, block_reason, propose, take_answer
from autoresearch.nouns import Experiment, Proposal, Run, RunResult, Task, Usage
from autoresearch.propose.context import Fault, NothingLeft, ProposalFailed, Refused
from autoresearch.record.ledger import note_run
from autoresearch.record.reading import read_ledger
from autoresearch.record.repository import open_repository
from autoresearch.record.restore import open_ledger
from autoresearch.settings import Settings


@pytest.fixture
def search(tmp_path, monkeypatch):
    """(session, ledger, queue) of a search that has its baseline."""
    folder = make_repository(tmp_path / "repo")
    for module in ("record.ledger", "record.restore", "loop.disk"):
        monkeypatch.setattr(f"autoresearch.{module}.ROOT", folder)
    session = make_session(folder / "runs/t/loop.log", "command", Settings(max_cost=4.0))
    ledger, _ = read_ledger(open_repository(folder), "t")
    queue = Queue(bench_of(session, ledger, [Slot()]))
    open_ledger(ledger, "HEAD", session.log)
    for seed in (42, 43, 44):
        note_run(ledger, Run(0, seed, RunResult("ok", 10.0, 2.0 + seed / 1e4)))
    begun(session, ledger, queue, Proposal("baseline", STUB))
    assert [row.status for row in ledger.rows] == ["keep"]
    return session, ledger, queue


def begun(session, ledger, queue, proposal: Proposal) -> Experiment:
    """A proposal that has become an experiment, and what follows from its runs so far."""
    folder = ledger.experiment_folder(ledger.next_number)
    begin(ledger, queue, experiment := Experiment(proposal, 0 if ledger.kept else -1, folder))
    decide(session, ledger, queue, experiment)
    return experiment


def take_answers(session, ledger, queue) -> None:
    """Wait for the proposers at work, and take their answers, as the loop does."""
    while queue.asking.at_work:
        wait(queue.bench, [asked.answer for asked in queue.asking.at_work])
        for asked in answered(session, queue):
            take_answer(session, ledger, queue, asked)


def add_row(session, ledger, queue, cost: float) -> None:
    """An experiment whose proposal cost so much, and that did not even begin."""
    begun(session, ledger, queue, Proposal("idea", STUB + "import socket\n", usage=Usage(1, cost=cost)))
    assert ledger.rows[-1].cost == cost


# -----------------------------------------------------------------------------
# Money


def test_what_those_at_work_will_cost_counts(search, tmp_path):
    session, ledger, queue = search
    add_row(session, ledger, queue, 1.0)
    context = proposers.make_context(*search, tmp_path)
    assert not over_budget(session.settings, ledger, queue)
    queue.asking.at_work = [Ask(context), Ask(proposers.make_context(*search, tmp_path))]
    assert not over_budget(session.settings, ledger, queue), "1 is spent, two at work and the next may cost 1 each"
    context.used = Usage(1, cost=1.01)
    assert "could pass max_cost $4.00: $1.00 are spent" in over_budget(session.settings, ledger, queue)
    del queue.asking.at_work[0]
    assert not over_budget(session.settings, ledger, queue)
    queue.crashed.extend([Experiment(Proposal("a slip", STUB), 0, ledger.experiment_folder(2), 2)] * 2)
    assert over_budget(session.settings, ledger, queue), "they are to be repaired"


def test_each_proposer_sees_what_the_others_use_meanwhile(search, monkeypatch):
    done = threading.Event()
    monkeypatch.setitem(proposers.PROPOSERS, "command", lambda context: done.wait(60) and Proposal("x", "y = 1"))
    add_row(*search, 1.0)
    ask(*search, None)
    ask(*search, None)
    first, second = (asked.context for asked in search[2].asking.at_work)
    assert first.spent() == second.spent() == 1.0
    first.used, second.used = Usage(1, cost=0.25), Usage(1, cost=0.5)
    assert (first.spent(), second.spent()) == (1.5, 1.25)
    done.set()
    take_answers(*search)


# -----------------------------------------------------------------------------
# When it is asked


def wanted(search, running: list[float], under_way: int, taken: list[float]) -> bool:
    """Whether a proposal is begun, where runs of 10 s began `running` seconds ago, and proposals have `taken` long."""
    session, ledger, queue = search
    now = time.monotonic()
    for slot, age in zip(queue.bench.slots, running, strict=False):
        slot.task, slot.since = Task("run", STUB, 42), now - age
    queue.asking.seconds = deque(taken)
    queue.waiting = deque([Experiment(Proposal("waits", STUB), 0, ledger.folder)] * under_way)
    return proposers.wants_proposal(session, ledger, queue)


def test_with_one_slot_one_proposal_is_begun_so_that_it_ends_with_the_run(search):
    assert wanted(search, [], 0, [2.0])
    assert not wanted(search, [1.0], 0, [2.0, 2.0]), "there is time, and the run may end early"
    assert not wanted(search, [5.0], 0, [2.0, 2.0])
    assert wanted(search, [5.0], 0, [1.0, 3.0]), "their times vary: the margin is larger"
    assert wanted(search, [6.5], 0, [2.0, 2.0])
    assert not wanted(search, [12.0], 1, [10.0]), "the result of this run is to be known to the next but one"
    assert wanted(search, [0.1], 1, [20.0]), "of such long ones two are at work at once"
    assert not wanted(search, [12.0], 0, [0.01]), "it takes no time: better written when the slot is free"


def test_with_several_slots_as_many_proposals_are_under_way_as_runs_begin_meanwhile(search):
    search[2].bench.slots = [Slot(str(n)) for n in range(4)]
    ages = [0.1, 2.6, 5.1, 7.6]  # one ends every 2.5 s
    for taken, enough in ((2.0, 1), (5.0, 2), (10.0, 4)):
        assert [wanted(search, ages, n, [taken]) for n in (enough - 1, enough)] == [True, False]


# -----------------------------------------------------------------------------
# Numbers


def test_an_experiment_keeps_the_number_that_its_proposer_was_told(search, monkeypatch):
    """Also where another begins before it, over a restart, and in what the next proposer is told of it."""
    session, ledger, queue = search
    answers = {1: Proposal("one", STUB + "A = 1\n"), 2: Proposal("two", STUB + "A = 2\n")}
    monkeypatch.setitem(proposers.PROPOSERS, "command", lambda context: answers[context.number])
    ask(*search, None)
    ask(*search, None)
    assert [asked.context.number for asked in queue.asking.at_work] == [1, 2]
    assert queue.asking.at_work[1].context.under_way == ["1, begun"]
    take_answers(*search)
    assert begun(session, ledger, queue, Proposal("a second look", STUB + "A = 3\n")).number == 3
    ledger.taken -= {1, 2}  # as the next session finds it: neither has a commit
    restore_queue(ledger, later := Queue(queue.bench), session.log)
    assert sorted((each.number, each.title) for each in later.waiting) == [(1, "one"), (2, "two")]
    for experiment in later.waiting:
        begin(ledger, later, experiment)
    assert {number: each.title for number, each in later.experiments.items() if number < 3} == {1: "one", 2: "two"}


def test_a_failed_proposal_gives_its_number_back_and_a_refused_one_does_not(search, monkeypatch):
    _, ledger, queue = search
    failures = [ProposalFailed("no"), Refused("declined"), Fault("down")]

    def fail(context):
        raise failures.pop(0)

    monkeypatch.setitem(proposers.PROPOSERS, "command", fail)
    for number in (1, 1, 2):
        ask(*search, None)
        assert queue.asking.at_work[0].context.number == number
        take_answers(*search)
    assert ledger.next_number == 2
    assert [failure.told for failure in ledger.failures] == [True, False, False]
    assert not any("declined" in note for note in queue.asking.notes), "no later prompt has a word of a refusal"


# -----------------------------------------------------------------------------
# Repairs, and what comes between


@pytest.fixture
def crashed(search) -> Experiment:
    """An experiment that crashed by a slip and waits for its repair."""
    session, ledger, queue = search
    experiment = begun(session, ledger, queue, Proposal("a slip", STUB + "LEVEL = oops\n"))
    tail = "Traceback (most recent call last):\nNameError: name 'oops' is not defined"
    note_run(ledger, Run(experiment.number, 42, RunResult("crash", 1.0, error=tail[-35:], tail=tail)))
    queue.bench.tasks.clear()
    decide(session, ledger, queue, experiment)
    assert list(queue.crashed) == [experiment]
    return experiment


def fail_repair(session, ledger, queue, crashed) -> list[str]:
    """Let its repair end with a fault that has used tokens. What the experiment's rows say then."""
    crashed = queue.crashed.popleft()
    folder = ledger.experiment_folder(crashed.number)
    asked = Ask(proposers.make_context(session, ledger, queue, folder, crashed), crashed)
    asked.answer.set_exception(Fault("no more", Usage(1, cost=0.5)))
    queue.asking.at_work.append(asked)
    take_answer(session, ledger, queue, asked)
    assert ledger.failures[-1].cost == 0.5
    return [row.status for row in ledger.rows if row.number == crashed.number]


def test_a_repair_that_an_outage_keeps_from_being_made_is_asked_for_again_and_then_a_crash(search, crashed):
    for _ in range(proposers.GIVE_UP - 1):
        assert fail_repair(*search, crashed) == [] and search[2].asking.not_before
    assert fail_repair(*search, crashed) == ["crash"]


def test_a_search_gives_up_after_eight_failures_and_ten_minutes_but_not_before_its_hours_end(search):
    session, _, queue = search
    for age, failures in ((601, 7), (599, 8), (601, 8)):
        queue.asking = Asking(failures=failures, failing_since=time.monotonic() - age)
        assert bool(proposers.gives_up(session, queue.asking)) == ((age, failures) == (601, 8))
    session.options = dataclasses.replace(session.options, deadline=time.monotonic() + 3600)
    assert not proposers.gives_up(session, queue.asking)


@pytest.mark.parametrize("end", ["stop", "hours"])
def test_what_was_being_repaired_when_the_session_ended_is_repaired_in_the_next(search, crashed, end):
    session, ledger, queue = search
    if end == "stop":
        session.stop.set()
    else:
        session.options = dataclasses.replace(session.options, deadline=time.monotonic() + 5)  # half of a run
    assert fail_repair(session, ledger, queue, crashed) == []
    propose(session, ledger, queue, "it ends")
    assert not queue.asking.at_work, "there is no time to run what it would write"
    restore_queue(ledger, later := Queue(bench_of(session, ledger, [Slot()])), session.log)
    decide(session, ledger, later, later.undecided.popleft())
    assert [experiment.number for experiment in later.crashed] == [crashed.number]


def test_a_repair_is_made_where_nothing_new_may_be_proposed(search, crashed, monkeypatch):
    monkeypatch.setitem(proposers.PROPOSERS, "command", lambda context: Proposal("mended", STUB))
    propose(*search, "9 experiments done")
    take_answers(*search)
    assert search[2].experiments[crashed.number].repairs == 1


@pytest.mark.parametrize("constants_share", [0.0, 1.0])
def test_a_note_is_told_again_where_the_api_was_down(search, monkeypatch, constants_share):
    def fail(failure: Exception):
        raise failure

    session, ledger, queue = search
    monkeypatch.setattr(proposers, "propose_constants", lambda context: fail(NothingLeft("all tried")))
    monkeypatch.setitem(proposers.PROPOSERS, "command", lambda context: fail(Fault("the API is down")))
    session.settings = Settings(constants_share=constants_share)
    queue.asking.notes = ["1 crashed", "2 crashed"]
    for _ in range(2):
        ask(session, ledger, queue, None)
        take_answers(session, ledger, queue)
    assert queue.asking.notes == ["1 crashed\n\n2 crashed"]


def test_refusals_in_a_row_end_the_search():
    asking = Asking()
    failures = [Refused("no"), Refused("no"), ProposalFailed("it does not parse"), *[Refused("no")] * 3]
    reasons = [block_reason(asking, failure) for failure in failures]
    assert not any(reasons[:-1]) and reasons[-1].startswith("3 proposals declined in a row")
