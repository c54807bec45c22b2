"""
A fault of the loop itself, or of a library or of git under it: it costs one experiment or one proposal, not the night.

agent_loop.py has one `try` around each step of the loop. What the step was working on is queue.at_hand. The traceback
goes to loop.log. The experiment is recorded as a crash, the proposal is dropped with a note. Three faults with nothing
recorded in between end the session: its results are committed and its summary is shown, as at any end.
"""

import traceback

from autoresearch.loop import limits
from autoresearch.loop.decide import record, settle
from autoresearch.loop.inflight import Candidate, Queue, Waiting, set_aside
from autoresearch.loop.session import Session
from autoresearch.nouns import Proposal, Verdict
from autoresearch.record.ledger import Ledger, note_failure
from autoresearch.text import one_line

MOST_FAULTS = 3  # in a row, with nothing recorded in between


def take_fault(session: Session, ledger: Ledger, queue: Queue, error: Exception) -> str:
    """Write down what went wrong, and give up what was at hand. A full disk is waited for first.

    Returns why the session has to end, or "".
    """
    limits.wait_for_room(session, ledger.folder)
    reason = f"a fault of the loop: {type(error).__name__}: {one_line(str(error))[:200]}"
    session.log.say(f"   !  {reason} (traceback in loop.log)")
    session.log.write("".join(traceback.format_exception(error)))
    session.faults += 1
    at_hand, queue.at_hand = queue.at_hand, None
    try:
        give_up(session, ledger, queue, at_hand, reason)
    except Exception as second:  # of the same cause, most likely: what was at hand is decided later, or next session
        session.log.write("".join(traceback.format_exception(second)))
        session.faults += 1
        if isinstance(at_hand, Candidate) and at_hand.number in queue.candidates:
            queue.undecided.append(at_hand)
    if session.faults < MOST_FAULTS:
        return ""
    session.blocked = f"three faults in a row, the last: {reason}"
    return session.blocked


def give_up(
    session: Session, ledger: Ledger, queue: Queue, at_hand: Candidate | Waiting | Proposal | None, reason: str
) -> None:
    """An experiment becomes a crash, unless it has its row; a proposal is dropped; the baseline is tried again."""
    if isinstance(at_hand, Proposal):
        note_failure(ledger, f"{at_hand.description}: {reason}", at_hand.usage)
    elif isinstance(at_hand, Waiting):
        set_aside(ledger, queue, at_hand, reason, session.log)
    elif isinstance(at_hand, Candidate) and at_hand.number in queue.candidates:
        if ledger.has_row(at_hand.number):
            settle(session, ledger, queue, at_hand)
        elif ledger.kept:
            record(session, ledger, queue, at_hand, Verdict("crash", reason), is_fault=True)
        else:
            queue.undecided.append(at_hand)
