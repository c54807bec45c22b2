"""
The proposer at work, in a thread: when it is asked, what it is told, and what becomes of its answer when there is none.
"""

import contextlib
import dataclasses
import functools
import heapq
import math
import statistics
import time
import traceback
from collections.abc import Callable

from autoresearch.loop.bench import in_thread
from autoresearch.loop.briefing import make_context
from autoresearch.loop.decide import decide, fault_costs, record
from autoresearch.loop.disk import cannot_write
from autoresearch.loop.inflight import (
    Ask,
    Asking,
    Queue,
    commit_experiment,
    let_wait,
    new_proposal_folder,
    note_dropped,
)
from autoresearch.loop.limits import last_runs, over_budget, time_for_more
from autoresearch.loop.session import Session, notify
from autoresearch.loop.verdicts import verdict_on
from autoresearch.nouns import Experiment, Proposal
from autoresearch.process import GRACE
from autoresearch.propose.anthropic import propose_by_anthropic
from autoresearch.propose.command import propose_by_command
from autoresearch.propose.constants import propose_constants
from autoresearch.propose.context import CannotPropose, Context, Fault, NothingLeft, ProposalFailed, Refused
from autoresearch.record.ledger import Ledger, keep_crashed, note_failure
from autoresearch.text import plural

PROPOSERS: dict[str, Callable[[Context], Proposal]] = {
    "anthropic": propose_by_anthropic,
    "command": propose_by_command,
    "constants": propose_constants,
}
AT_WORK = 8  # proposals written at once at most; with more slots, one for each
ABOUT_A_RUN = 1.1  # of a run's time: a proposal that takes no more is begun alone, with one slot
MAX_REFUSALS = 3  # proposals in a row that the model declines; then the search ends
GIVE_UP, GIVE_UP_SECONDS = 8, 600.0  # failures in a row and the time that they took, after which a search ends
BEGIN_SECONDS = 60.0  # that a first answer may take to begin, before another is asked for all the same

# -----------------------------------------------------------------------------
# When it is asked


def propose(session: Session, ledger: Ledger, queue: Queue, reason: str) -> None:
    """Have the proposer write what is missing: first repairs, then edits for the slots that are free soon.

    With a reason to stop, repairs only, as long as there is time to run them. As many are at work at once as the slots
    need; a second one begins when the first has begun to answer, so that it reads from the API's cache what the first
    has put there.
    """
    asking = queue.asking
    tell_of_money(session, ledger, queue)
    if not ledger.kept or time.monotonic() < asking.not_before or cannot_write(session, ledger.folder):
        return
    if is_over(session, ledger, queue):
        return
    if any(not ask.begun.is_set() and time.monotonic() < ask.since + BEGIN_SECONDS for ask in asking.at_work):
        return
    if queue.crashed:
        crashed = queue.crashed.popleft()
        with fault_costs(session, ledger, queue, crashed):
            ask(session, ledger, queue, crashed)
    elif not reason and wants_proposal(session, ledger, queue):
        ask(session, ledger, queue, None)


def tell_of_money(session: Session, ledger: Ledger, queue: Queue) -> None:
    """Say at once that max_cost is reached, or that it is no longer: what runs may go on for an hour."""
    problem = over_budget(session.settings, ledger, queue) if ledger.kept else ""
    if problem and not session.spent_up:
        session.log.say(f"   -  no further proposal: {problem}; what is under way goes on")
    session.spent_up = bool(problem)


def is_over(session: Session, ledger: Ledger, queue: Queue) -> bool:
    """Return whether nothing that is written now would run in this session."""
    return session.ending or not time_for_more(session, ledger, queue.slots)


def wants_proposal(session: Session, ledger: Ledger, queue: Queue) -> bool:
    """Return whether another edit has to be begun now, to be there when a slot is free for it.

    As late as that allows, so that it knows as many results as it can. The margin is how much the times of proposals
    vary, and half of the time between two starts of runs. With one slot, and proposals that take no longer than a run,
    there is one at a time, so that only the result of the present run is unknown to it.
    """
    under_way = len(queue.waiting) + len(queue.asking.at_work)
    most = 1 if session.options.proposer == "constants" else max(AT_WORK, queue.slots)
    if len(queue.asking.at_work) >= most:
        return False
    a_run = statistics.fmean([each.slot_seconds for each in last_runs(ledger)] or [session.options.time_budget])
    written = queue.asking.seconds or [0.0]
    usual = statistics.fmean(written)
    if queue.slots == 1 and under_way and usual <= ABOUT_A_RUN * a_run:
        return False
    margin = statistics.pstdev(written) + min(usual, a_run / queue.slots / 2)
    return seconds_to_slot(queue, len(queue.bench.tasks) + under_way, a_run) <= usual + margin


def seconds_to_slot(queue: Queue, others: int, a_run: float) -> float:
    """Return how soon a slot should be free, after this number of other runs. `a_run`: seconds of one."""
    now = time.monotonic()
    free = [max(0.02 * a_run, slot.since + a_run - now) if slot.task else 0.0 for slot in queue.bench.slots]
    heapq.heapify(free)
    for _ in range(others):
        heapq.heapreplace(free, free[0] + a_run)
    return free[0]


def turn_of_constants(context: Context) -> bool:
    """Return whether this experiment is of the constants' share; on a plateau every second one is."""
    share = context.settings.constants_share
    if share and context.on_plateau:
        share = max(share, 0.5)
    return not context.crash and math.floor(context.number * share) > math.floor((context.number - 1) * share)


def answer(context: Context, proposer: str, constants_first: bool) -> Proposal:
    """Return the answer of the session's proposer, or of constants, if it is its turn and it has something left."""
    if constants_first:
        with contextlib.suppress(CannotPropose, NothingLeft):
            return propose_constants(context)
    return PROPOSERS[proposer](context)


def ask(session: Session, ledger: Ledger, queue: Queue, crashed: Experiment | None) -> None:
    """Ask the proposer in a thread, to repair what crashed or for something new."""
    folder = ledger.experiment_folder(crashed.number) if crashed else new_proposal_folder(ledger)
    context = make_context(session, ledger, queue, folder, crashed)
    if not crashed:  # told once: to whoever begins next, not to who is at work already
        context.note, queue.asking.notes = "\n\n".join(queue.asking.notes), []
    ledger.taken.add(context.number)
    asked = Ask(context, crashed)
    context.begun = asked.begun.set
    context.spent = functools.partial(spent_beside, ledger, queue, asked)
    constants_first = turn_of_constants(context)
    if constants_first and context.note:
        queue.asking.notes.insert(0, context.note)  # it is for an LLM
    if session.options.proposer != "anthropic" or constants_first:
        asked.begun.set()

    asked.answer = in_thread(lambda: answer(context, session.options.proposer, constants_first))
    queue.asking.at_work.append(asked)


def answered(session: Session, queue: Queue) -> list[Ask]:
    """The proposers whose answer is there, or whose time is over. When the session is being stopped, that is now."""
    ends = time.monotonic() if session.stop.is_set() else session.options.deadline  # which may have come nearer
    for asked in queue.asking.at_work:
        asked.context.deadline = min(asked.context.deadline, ends)
    late = time.monotonic() - 2 * GRACE  # a command is being killed
    return [asked for asked in queue.asking.at_work if asked.answer.done() or asked.context.deadline < late]


def spent_beside(ledger: Ledger, queue: Queue, asked: Ask) -> float:
    """US dollars so far, with what the other proposers at work have used by now."""
    others = sum(other.context.used.cost for other in [*queue.asking.at_work] if other is not asked)
    return ledger.spent + queue.spent + others


# -----------------------------------------------------------------------------
# What becomes of its answer


def take_answer(session: Session, ledger: Ledger, queue: Queue, asked: Ask) -> None:
    """Queue a new proposal, start a repaired experiment again, or note that there was none."""
    asking, crashed = queue.asking, asked.crashed
    asking.at_work.remove(asked)
    outcome = outcome_of(session, queue, asked)
    if isinstance(outcome, ProposalFailed):
        no_proposal_came(session, ledger, queue, outcome, crashed, asked.context)
        return
    asking.failures = asking.refusals = 0
    asking.seconds.append(time.monotonic() - asked.since)
    if crashed:
        restart_repaired(ledger, crashed, outcome)
        session.log.say(f"{crashed.number:4d}  repaired     attempt {crashed.repairs}: {outcome.description[:80]}")
        decide(session, ledger, queue, crashed)
        return
    context = asked.context
    experiment = Experiment(outcome, context.best.number, context.folder, context.number)
    with fault_costs(session, ledger, queue, experiment):
        let_wait(queue, experiment)


def outcome_of(session: Session, queue: Queue, asked: Ask) -> Proposal | ProposalFailed:
    """The answer, or why there is none: a fault of ours or of a library costs one proposal, not the night."""
    used = asked.context.used
    if not asked.answer.done():
        return Fault("it took too long", used)
    error = asked.answer.exception()
    if error is None or isinstance(error, ProposalFailed):
        return error or asked.answer.result()
    if not queue.asking.failures:
        session.log.write("".join(traceback.format_exception(error)))
    return Fault(f"{type(error).__name__}: {error} (traceback in loop.log)", used)


def restart_repaired(ledger: Ledger, crashed: Experiment, repaired: Proposal) -> None:
    """The same experiment with the repaired train.py; the one that crashed stays reachable by a ref of its own."""
    keep_crashed(ledger, crashed.number, crashed.repairs)
    usage = crashed.proposal.usage + repaired.usage
    crashed.proposal = dataclasses.replace(crashed.proposal, source=repaired.source, usage=usage)
    crashed.repairs += 1
    commit_experiment(ledger, crashed)


def no_proposal_came(
    session: Session,
    ledger: Ledger,
    queue: Queue,
    failure: ProposalFailed,
    crashed: Experiment | None,
    context: Context,
) -> None:
    """Say it and note it; what was to be repaired stays a crash, or waits for a session with time for it.

    Some failures end the session.
    """
    if session.stop.is_set() and not failure.usage.tokens:
        return
    fault, refused = isinstance(failure, Fault), isinstance(failure, Refused)
    told = not fault and not refused  # where nobody's edit is to blame, no later proposer hears of it
    over = is_over(session, ledger, queue)
    kind = "refused" if refused else "stopped" if over and fault else "failed"
    if crashed:
        note_failure(ledger, str(failure), failure.usage, told=told, kind=kind)
    else:
        note_dropped(ledger, context.folder, str(failure), failure.usage, told=told, kind=kind)
    if not crashed and not refused:  # a refused experiment keeps its number: the next one is another
        ledger.taken.discard(context.number)
    if not crashed or fault:
        wait_longer(queue.asking, failure, context.note)
    session.blocked = session.blocked or block_reason(queue.asking, failure)
    wait = queue.asking.not_before - time.monotonic()
    then = f"; asking again in {wait:.0f} s" if wait > 1 and not session.ending else ""
    word = f"no {'repair' if crashed else 'proposal'}" if kind == "failed" else f"proposal {kind}"
    session.log.say(f"   -  {word}: {failure}{then}")
    if queue.asking.failures == GIVE_UP and not session.ending:
        notify(session, f"a person is needed: {GIVE_UP} proposals in a row failed, the last: {failure}")
    hope = queue.asking.failures < GIVE_UP and not over_budget(session.settings, ledger, queue)
    if crashed and fault and (over or hope):
        queue.crashed.append(crashed)
    elif crashed:
        record(session, ledger, queue, crashed, verdict_on(ledger, session.settings, crashed))


def gives_up(session: Session, asking: Asking) -> str:
    """Return why the search waits no longer for its proposer, or "". With --hours it goes on trying until they end."""
    lasted = time.monotonic() - asking.failing_since
    if asking.failures < GIVE_UP or lasted < GIVE_UP_SECONDS or math.isfinite(session.options.deadline):
        return ""
    return f"{asking.failures} proposals in a row failed, in {lasted / 60:.0f} minutes"


def wait_longer(asking: Asking, failure: ProposalFailed, note: str) -> None:
    """Count a proposal that failed, tell the next one why, and wait a little longer each time.

    `note`: what its proposer was told, which is told again where nobody's edit is to blame.
    """
    asking.failures += 1
    asking.failing_since = asking.failing_since if asking.failures > 1 else time.monotonic()
    if not isinstance(failure, Fault | Refused):
        asking.notes.append(f"The last proposal failed: {failure}")
    elif note and note not in asking.notes:  # as where the constants had their turn
        asking.notes.insert(0, note)
    asking.not_before = time.monotonic() + (min(2.0 ** (asking.failures - 2), 300) if asking.failures > 1 else 0)
    asking.nothing_left = str(failure) if isinstance(failure, NothingLeft) else ""


def block_reason(asking: Asking, failure: ProposalFailed) -> str:
    """Return why only a person can go on after this failure, or ""."""
    asking.refusals = asking.refusals + 1 if isinstance(failure, Refused) else 0
    if isinstance(failure, CannotPropose):
        return str(failure)
    if asking.refusals < MAX_REFUSALS:
        return ""
    declined = f"{plural(asking.refusals, 'proposal')} declined in a row ({failure})"
    return f"{declined}; whether and how to go on is for a person to decide: see Refusals in docs/researcher.md"
