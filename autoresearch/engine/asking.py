"""
The proposer at work, in a thread: when it is asked, what it is told, and what becomes of its answer when there is none.
"""

import dataclasses
import functools
import threading
import time
import traceback
from collections.abc import Callable

from autoresearch.engine.deciding import decide, record
from autoresearch.engine.knowledge import knowledge
from autoresearch.engine.limits import cannot_write, run_seconds
from autoresearch.engine.queue import Asking, Candidate, Queue, add_proposal, commit_candidate, new_proposal_folder
from autoresearch.engine.session import Session
from autoresearch.engine.verdicts import attempt_runs, forbidden, verdict_on
from autoresearch.nouns import Proposal
from autoresearch.process import GRACE
from autoresearch.propose.claude import propose_by_claude
from autoresearch.propose.command import propose_by_command
from autoresearch.propose.constants import propose_constants
from autoresearch.propose.context import (
    CannotPropose,
    Context,
    Crash,
    NothingLeft,
    ProposalFailed,
    Refused,
    Training,
)
from autoresearch.record.ledger import Ledger, keep_crashed, note_failure, read_experiment
from autoresearch.settings import Settings

PROPOSERS: dict[str, Callable[[Context], Proposal]] = {
    "anthropic": propose_by_claude,
    "command": propose_by_command,
    "constants": propose_constants,
}
Outcome = Proposal | ProposalFailed

# -----------------------------------------------------------------------------
# When it is asked


def propose(session: Session, ledger: Ledger, queue: Queue, reason: str) -> None:
    """Have the proposer write what is missing: first repairs, then an edit per idle slot and those to look ahead.

    With a reason to stop, repairs only.
    """
    idle = not queue.asking.context and time.time() >= queue.asking.not_before and ledger.kept
    if not idle or cannot_write(session, ledger.folder):
        return
    seconds = run_seconds(ledger, session.options.time_budget)
    if queue.crashed:
        context = make_context(session, ledger, queue, queue.crashed.popleft())
    elif not reason and wants_proposal(queue, session.settings, seconds):
        context = make_context(session, ledger, queue, None)
    else:
        return
    ask(session, queue.asking, context, functools.partial(proposal_came, session, ledger, queue))


def wants_proposal(queue: Queue, settings: Settings, seconds: float) -> bool:
    """Whether an edit is missing for an idle slot, or to look ahead. `seconds`: that a run is expected to take."""
    idle = len(queue.slots) - len(queue.running) - len(queue.tasks)
    return idle + look_ahead(queue, settings, seconds) > len(queue.waiting)


def look_ahead(queue: Queue, settings: Settings, seconds: float) -> int:
    """How many proposals may wait for a slot. What waits knows less than what is written later, so few are enough."""
    if settings.look_ahead is not None:
        return settings.look_ahead
    share = queue.asking.seconds * len(queue.slots) / seconds  # of the time that the slots leave it
    if share < 0.02:
        return 0
    return max(1, len(queue.slots) // 2) + (share > 0.5)  # benchmarks/engine.py shows that the slots stay busy


def ask(session: Session, asking: Asking, context: Context, came: Callable[[Context, Outcome], None]) -> None:
    """Ask the proposer in a thread, to mend what crashed or for something new; then came() is called in the loop's."""
    asking.context, asking.since = context, time.time()

    def work() -> None:
        outcome: Outcome
        try:
            outcome = PROPOSERS[session.options.proposer](context)
        except ProposalFailed as failure:
            outcome = failure
        except Exception as error:  # a fault of ours or of a library costs one proposal, not the night
            session.log.write(traceback.format_exc())
            outcome = ProposalFailed(f"{type(error).__name__}: {error} (traceback in loop.log)")
        session.events.put(functools.partial(came, context, outcome))

    threading.Thread(target=work, daemon=True).start()


def overdue(asking: Asking, stopping: bool) -> bool:
    """Whether nobody waits for the proposer any more: its time is over. Where the session is stopped, that is now."""
    if not asking.context:
        return False
    if stopping:
        asking.context.deadline = min(asking.context.deadline, time.time())
    return time.time() > asking.context.deadline + 2 * GRACE  # a command is being killed


# -----------------------------------------------------------------------------
# What it is told


def make_context(session: Session, ledger: Ledger, queue: Queue, crashed: Candidate | None) -> Context:
    """All that the proposer may know at this moment."""
    options, settings = session.options, session.settings
    late = options.deadline - run_seconds(ledger, options.time_budget)
    return Context(
        number=ledger.next_number + len(queue.waiting),
        seed=options.seed,
        scale=options.scale,
        max_seq_len=options.max_seq_len,
        time_budget=options.time_budget,
        vocab_size=options.vocab_size,
        settings=settings,
        instructions=session.instructions,
        best_source=ledger.source_of(ledger.best.number),
        rows=list(ledger.rows),
        failures=[(failure.after, failure.reason) for failure in ledger.failures],
        noise=knowledge(ledger, options.scale).paired_noise.sigma,
        waiting=queue.descriptions,
        trainings=recent_trainings(ledger),
        note="" if crashed else hand_over_notes(queue.asking),
        crash=crash_of(ledger, crashed) if crashed else None,
        folder=ledger.experiment_folder(crashed.number) if crashed else new_proposal_folder(ledger),
        notebook=ledger.folder / "notebook.md",
        spent=ledger.spent + queue.spent,
        deadline=min(late, time.time() + settings.proposal_timeout),
        command=options.command,
        read=functools.partial(read_experiment, ledger),
        forbidden=functools.partial(forbidden, ledger),
        should_stop=lambda: session.ending,
        log=session.log.say,
    )


def hand_over_notes(asking: Asking) -> str:
    """What the next proposer has to know. It is told once: to whoever begins next, not to who is at work already."""
    notes, asking.notes = asking.notes, []
    return "\n\n".join(notes)


def recent_trainings(ledger: Ledger, count: int = 3) -> list[Training]:
    """How training went: the best's first run, then the last experiments'."""
    best, runs = ledger.best.number, ledger.runs_by_number
    last = [row.number for row in ledger.rows if row.number != best and row.number in runs][-count:]
    first = [runs[number][0] for number in [best, *last] if number in runs]
    return [Training(run.number, run.result.losses, run.result.summary) for run in first if run.result.losses]


def crash_of(ledger: Ledger, crashed: Candidate) -> Crash:
    (*_, run) = attempt_runs(ledger, crashed)
    return Crash(crashed.number, crashed.proposal.source, run.result.tail, crashed.repairs + 1)


# -----------------------------------------------------------------------------
# What becomes of its answer


def proposal_came(session: Session, ledger: Ledger, queue: Queue, context: Context, outcome: Outcome) -> None:
    """Queue a new proposal, start a repaired experiment again, or note that there was none."""
    asking = queue.asking
    if asking.context is not context:  # it came after all, when nobody waited for it any more
        return
    asking.context, asking.seconds = None, time.time() - asking.since
    crashed = queue.candidates[context.crash.number] if context.crash else None
    if isinstance(outcome, ProposalFailed):
        no_proposal_came(session, ledger, queue, outcome, crashed)
        return
    asking.failures = asking.refusals = 0
    if crashed:
        restart_repaired(ledger, crashed, outcome)
        session.log.say(f"{crashed.number:4d}  repaired     attempt {crashed.repairs}: {outcome.description[:80]}")
        decide(session, ledger, queue, crashed)
    else:
        add_proposal(queue, outcome, context.best.number, context.folder)


def restart_repaired(ledger: Ledger, crashed: Candidate, repaired: Proposal) -> None:
    """The same experiment with the mended train.py; the one that crashed stays reachable by a ref of its own."""
    keep_crashed(ledger, crashed.number, crashed.repairs)
    usage = crashed.proposal.usage + repaired.usage
    crashed.proposal = dataclasses.replace(crashed.proposal, source=repaired.source, usage=usage)
    crashed.repairs += 1
    commit_candidate(ledger, crashed)


def no_proposal_came(
    session: Session, ledger: Ledger, queue: Queue, failure: ProposalFailed, crashed: Candidate | None
) -> None:
    """Say it and note it; what was to be repaired stays a crash. Some failures end the session."""
    if session.stop.is_set() and not failure.usage.tokens:
        return
    note_failure(ledger, str(failure), failure.usage)
    session.log.say(f"   -  no {'repair' if crashed else 'proposal'}: {failure}")
    if crashed:
        verdict = verdict_on(ledger, session.options, session.settings, crashed)
        record(session, ledger, queue, crashed, verdict)
    else:
        wait_longer(queue.asking, failure)
    session.blocked = session.blocked or block_reason(queue.asking, failure, session.settings.max_refusals)


def wait_longer(asking: Asking, failure: ProposalFailed) -> None:
    """Count a proposal that failed, tell the next one why, and wait a little longer each time."""
    asking.failures += 1
    asking.notes.append(f"The last proposal failed: {failure}")
    asking.not_before = time.time() + (min(2.0 ** (asking.failures - 2), 300) if asking.failures > 1 else 0)
    asking.nothing_left = str(failure) if isinstance(failure, NothingLeft) else ""


def block_reason(asking: Asking, failure: ProposalFailed, max_refusals: int) -> str:
    """Why only a person can go on after this failure, or ""."""
    asking.refusals = asking.refusals + 1 if isinstance(failure, Refused) else 0
    if isinstance(failure, CannotPropose):
        return str(failure)
    if asking.refusals < max_refusals:
        return ""
    return (
        f"{asking.refusals} proposals in a row were declined ({failure}); whether and how to go on is for a person "
        "to decide: see Refusals in docs/researcher.md"
    )
