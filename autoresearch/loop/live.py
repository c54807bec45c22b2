"""
The live view of the loop: a line per slot; progress.png and report.html, drawn next to everything else.
"""

import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from autoresearch.loop.bench import Bench
from autoresearch.loop.inflight import Queue
from autoresearch.loop.limits import last_costs, proposals_to_come
from autoresearch.loop.session import Session
from autoresearch.propose.models import cost_line
from autoresearch.record.ledger import Ledger
from autoresearch.record.lines import Log, progress_parts, speed_parts
from autoresearch.record.repository import Repository
from autoresearch.run import sandbox
from autoresearch.text import one_line, plural

DRAW_EVERY = 30.0  # seconds between two drawings


def announce(session: Session, ledger: Ledger, queue: Queue) -> None:
    """Say what this session is, and what is there already."""
    options, settings, slots = session.options, session.settings, queue.slots
    several = f" | {slots} slots" if slots > 1 else ""
    a_run = f"{options.time_budget} {'paced s' if options.scale == 'cpu' else 's'} a run"
    about = f"{ledger.branch} | scale {options.scale}, {a_run}{several} | proposer {options.proposer}"
    session.log.say(f"{about} | until {options.until}")
    if ledger.kept:
        best = f"best {ledger.best.val_bpb:.6f} (experiment {ledger.best.number})"
        see = f"see: python agent_loop.py status --tag {ledger.tag}"
        session.log.show(f"{plural(ledger.tried, 'experiment')} so far, {best}, {see}")
    for line in sandbox.describe(settings.sandbox, options.scale, settings.memory_gb, slots):
        session.log.say(line)
    if options.proposer == "anthropic":
        more, costs = proposals_to_come(session, ledger, queue), last_costs(ledger, 20)
        session.log.say(cost_line(settings, more, costs))


def live_lines(session: Session, ledger: Ledger, queue: Queue) -> list[str]:
    """Return what runs now, a line per slot, and what the proposer does. The terminal cuts what comes last."""
    best = [f"best {ledger.best.val_bpb:.6f}"] if ledger.kept else []
    lines = slot_lines(queue.bench, best, (session.log.width or 80) >= 110)
    for asked in queue.asking.at_work:
        number, what = (asked.crashed.number, "repairing") if asked.crashed else (asked.context.number, "at work on")
        lines.append(f"{number:4d} | {session.options.proposer} is {what} it")
    wait = queue.asking.not_before - time.monotonic()
    if queue.asking.failures and wait > 0:
        lines.append(f"      {plural(queue.asking.failures, 'proposal')} failed in a row; asking again in {wait:.0f} s")
    rest = [f"{plural(len(queue.waiting), 'proposal')} waiting"] if queue.waiting else []
    return [*lines, "      " + ", ".join([f"until {session.options.until}", *rest])]


def slot_lines(bench: Bench, best: Sequence[str] = (), wide: bool = False) -> list[str]:
    """Return what runs now, a line per slot."""
    options, lines = bench.session.options, []
    for slot in bench.slots:
        if task := slot.task:
            number = f"{task.experiment.number:4d}" if task.experiment else "  "
            seed = f" seed {task.seed}" if task.seed != options.seed or not task.experiment else ""
            name = f"{slot.name}  " if slot.name else ""
            parts = progress_parts(slot.line, time.monotonic() - slot.since, options.scale)
            speed = speed_parts(slot.line) if wide else []
            lines.append(" | ".join([f"{name}{number}{seed}", *parts, *best, *speed, task.title]))
    return lines


def draw(what: str, log: Log, make: Callable[[], object]) -> None:
    """Draw a picture or a page; that it cannot be drawn is no reason to stop."""
    try:
        make()
    except Exception as error:
        log.write(traceback.format_exc())
        log.say(f"   !  {what} is not drawn: {type(error).__name__}: {one_line(str(error))[:200]}")


@dataclass
class Drawing:
    """progress.png and report.html, as they were drawn last."""

    log: Log
    repo: Repository
    tag: str
    picture: Path  # progress.png
    rows: int = 0  # that are on them
    not_before: float = 0.0  # time.monotonic() before which they are not drawn again
    thread: threading.Thread | None = None

    def draw_if_due(self, rows: int) -> None:
        """Draw them again, in a thread, when there are new rows; but not again and again."""
        if rows == self.rows or time.monotonic() < self.not_before or (self.thread and self.thread.is_alive()):
            return
        self.rows, self.not_before = rows, time.monotonic() + DRAW_EVERY
        # Not a daemon: a process that ends while matplotlib's own code runs in one is aborted.
        self.thread = threading.Thread(target=self.draw)
        self.thread.start()

    def draw_last(self) -> None:
        """Draw what a session ends with."""
        if self.thread:
            self.thread.join()
        self.draw()

    def draw(self) -> None:
        """Read the search from the disk again, and share nothing with the loop's thread."""
        from autoresearch.record.page import write_page  # which imports numpy and matplotlib

        draw("report.html", self.log, lambda: write_page(self.repo, self.tag, self.picture))
