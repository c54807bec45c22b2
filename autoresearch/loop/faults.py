"""
A fault of the loop itself, or of a library or of git under it: it costs one experiment or one proposal, not the night.

The traceback goes to loop.log. The experiment is recorded as a crash, the proposal is dropped with a note. Three faults
with nothing recorded in between end the session: its results are committed and its summary is shown, as at any end.
"""

import contextlib
from collections.abc import Iterator

from autoresearch.loop.decide import record, settle
from autoresearch.loop.disk import wait_for_room
from autoresearch.loop.inflight import Queue, set_aside
from autoresearch.loop.session import Session, note_fault
from autoresearch.nouns import Experiment, Verdict
from autoresearch.record.ledger import Ledger


@contextlib.contextmanager
def fault_costs(session: Session, ledger: Ledger, queue: Queue, experiment: Experiment | None = None) -> Iterator[None]:
    """Let a fault in the block cost this experiment, if it is about one, and end there."""
    try:
        yield
    except Exception as error:  # whosever fault it is
        wait_for_room(session, ledger.folder)
        reason = note_fault(session, error)
        if experiment:
            give_up(session, ledger, queue, experiment, reason)


def give_up(session: Session, ledger: Ledger, queue: Queue, experiment: Experiment, reason: str) -> None:
    """Let an experiment be a crash, unless it has its row, or set its proposal aside; try the baseline again."""
    try:
        if experiment.number not in queue.experiments and experiment.base >= 0:
            set_aside(ledger, queue, experiment, reason, session.log)
        elif experiment.number in queue.experiments and ledger.has_row(experiment.number):
            settle(session, ledger, queue, experiment)
        elif experiment.number in queue.experiments and ledger.kept:
            record(session, ledger, queue, experiment, Verdict("crash", reason))
        elif experiment.number in queue.experiments:
            queue.undecided.append(experiment)
    except Exception as error:  # of the same cause, most likely: it is decided later, or in the next session
        note_fault(session, error)
        if experiment.number in queue.experiments:
            queue.undecided.append(experiment)
