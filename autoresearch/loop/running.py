"""
Run: which run is next, and what is done when one has ended.
"""

import dataclasses
import functools
import math

from autoresearch.judge.trust import believe, changed_measure, reason_to_repeat
from autoresearch.loop import limits
from autoresearch.loop.decide import decide, look_again
from autoresearch.loop.inflight import Candidate, Queue, Slot, Task, begin, next_waiting
from autoresearch.loop.session import Session
from autoresearch.loop.slots import run_of, start_run
from autoresearch.loop.verdicts import tokens_per_second
from autoresearch.nouns import FRESH, Proposal, RunResult
from autoresearch.record.ledger import Ledger, branch_source, changed_by_hand, note_run
from autoresearch.run.cluster import ClusterError

SLOWER = 0.03  # of its tokens per second that a run may lack, and still be compared with others

# -----------------------------------------------------------------------------
# What is next


def fill_slots(session: Session, ledger: Ledger, queue: Queue, confirming: bool = False) -> None:
    """Give every idle slot its next run; while `confirming` the best, nothing new begins."""
    while (slot := queue.idle_slot()) and (task := next_task(session, ledger, queue, confirming)):
        queue.at_hand = task.candidate
        ended = functools.partial(run_ended, session, ledger, queue, slot, task)
        folder = ledger.run_folder(task.candidate.number, task.seed)
        start_run(session, slot, task, folder, len(queue.slots), ended)


def next_task(session: Session, ledger: Ledger, queue: Queue, confirming: bool) -> Task | None:
    """The next run: of the experiments under way, or of a new one."""
    while may_run(session, ledger):
        if queue.tasks:
            return queue.tasks.popleft()
        more = not confirming and limits.time_for_more(session, ledger, len(queue.slots))
        candidate = next_candidate(session, ledger, queue) if more else None
        if not candidate:
            return None
        decide(session, ledger, queue, candidate)  # queues its first run, unless no run is needed to judge it
    return None


def may_run(session: Session, ledger: Ledger) -> bool:
    """Whether a run may start now: there is time and room, and evaluator and data are what they were."""
    if session.measure and (problem := changed_measure(session.measure)):
        session.blocked = problem
    return limits.may_go_on(session, ledger) and not limits.cannot_write(session, ledger.folder)


def next_candidate(session: Session, ledger: Ledger, queue: Queue) -> Candidate | None:
    """The next experiment: the baseline first; a second look, if there is reason for one; the oldest proposal."""
    if not ledger.kept:
        return None if queue.candidates else begin(ledger, queue, Proposal("baseline", branch_source(ledger)))
    if problem := changed_by_hand(ledger):
        session.blocked = problem
        return None
    more = limits.experiments_left(session.options, ledger, queue) > 0
    candidate = look_again(session, ledger, queue) if more else None
    return candidate or next_waiting(ledger, queue, session.log)


# -----------------------------------------------------------------------------
# What has ended


def run_ended(
    session: Session, ledger: Ledger, queue: Queue, slot: Slot, task: Task, outcome: RunResult | Exception
) -> None:
    """Put a run into the journal, and decide what follows from it."""
    slot.task, slot.line, queue.at_hand = None, "", task.candidate
    if isinstance(outcome, ClusterError):
        session.blocked = str(outcome)
    elif isinstance(outcome, RunResult) and outcome.status == "interrupted":
        return  # the experiment goes on in the next session
    elif limits.was_lost(session, ledger.run_folder(task.candidate.number, task.seed), outcome):
        repeat(session, ledger, queue, task)
    elif isinstance(outcome, Exception):
        raise outcome
    else:
        limits.wait_for_room(session, ledger.folder)
        if outcome.status == "ok" and session.measure:
            outcome = believe(session.measure, outcome, ledger.run_folder(task.candidate.number, task.seed))
        slow = slower_than_before(session.options.scale, ledger, task, outcome)
        if (why := slow or reason_to_repeat(outcome)) and run_again_if_new(ledger, queue, task, outcome):
            session.log.say(f"{task.candidate.number:4d}  again        seed {task.seed}, {why}")
            return
        note_result(session, ledger, task, outcome)
        if task.purpose == "judge" and task.candidate.number in queue.candidates:
            decide(session, ledger, queue, task.candidate)


def note_result(session: Session, ledger: Ledger, task: Task, result: RunResult) -> None:
    """A run's result in the journal; of one that confirms the best, a line."""
    note_run(ledger, run_of(task, result))
    if task.purpose in FRESH:
        good = result.status == "ok"
        said = f"{result.val_bpb:.6f}  seed {task.seed}, a fresh one" if good else result.error
        word = "baseline" if task.purpose == "beside" else "confirmed" if good else "not confirmed"
        session.log.say(f"{task.candidate.number:4d}  {word:11}  {said}")


def slower_than_before(scale: str, ledger: Ledger, task: Task, result: RunResult) -> str:
    """What a GPU that was throttled does to a run: the same train.py had more tokens per second before. Or ""."""
    runs = ledger.runs_by_number.get(task.candidate.number, [])
    same = [run.result for run in runs if run.attempt == task.candidate.repairs and run.result.status == "ok"]
    if scale == "cpu" or result.status != "ok" or not same:
        return ""
    before, now = max(map(tokens_per_second, same)), tokens_per_second(result)
    clock = result.measured.get("sm_clock_mhz", math.nan)
    said = f"slow: {now / 1e3:,.0f} k tokens/s after {before / 1e3:,.0f}, SM clock {clock:.0f} MHz"
    return said if now < (1 - SLOWER) * before else ""


def run_again_if_new(ledger: Ledger, queue: Queue, task: Task, result: RunResult) -> bool:
    """Keep a slow or busy run for the record and make it once more; False where that was done already: it counts."""
    if any(run.seed == task.seed for run in ledger.runs_for(task.candidate.number, "slow", task.candidate.repairs)):
        return False
    note_run(ledger, dataclasses.replace(run_of(task, result), purpose="slow"))
    queue.tasks.appendleft(task)
    return True


def repeat(session: Session, ledger: Ledger, queue: Queue, task: Task) -> None:
    """A run whose result was lost is made again, once there is a place for it."""
    limits.wait_for_room(session, ledger.folder)
    session.log.say(f"{task.candidate.number:4d}  runs again: its folder is gone or the disk was full")
    queue.tasks.appendleft(task)
