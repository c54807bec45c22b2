"""
What is left: time, experiments, money, and room on the disk.
"""

import itertools
import math
import os
import shutil
import time
from pathlib import Path

from autoresearch.files import ROOT, data_root
from autoresearch.guard import GB
from autoresearch.judge.keep_rule import fresh_seeds
from autoresearch.loop.inflight import Queue
from autoresearch.loop.session import Options, Session, notify
from autoresearch.nouns import RunResult
from autoresearch.record.ledger import Ledger
from autoresearch.row import runs_of
from autoresearch.run import sandbox
from autoresearch.settings import Settings

FREE_BYTES = int(1.25 * sandbox.FREE_GB * GB)  # of disk before anything is begun; a run ends at FREE_GB

# -----------------------------------------------------------------------------
# Time


def run_seconds(ledger: Ledger, time_budget: int) -> float:
    """Wall-clock seconds, never 0, that a run is expected to take: as the longest of the last five that ended well."""
    ended = list(itertools.islice((run.result for run in reversed(ledger.runs) if run.result.status == "ok"), 5))
    return 1.05 * max(0.1, *map(seconds_if_tested, ended)) if ended else 1.2 * time_budget + 10


def seconds_if_tested(result: RunResult) -> float:
    """For how long a run takes its slot, or would if the test rows were scored, too: there are as many of them."""
    return result.slot_seconds + (0.0 if "test_bpb" in result.measured else result.extra_seconds)


def to_confirm(ledger: Ledger, settings: Settings) -> list[tuple[int, int]]:
    """(experiment, seed) of the runs that are missing: of the best on fresh seeds, and of the baseline beside it."""
    if not ledger.kept:
        return []
    best, baseline, done = ledger.best, ledger.kept[0], ledger.confirming
    fresh = fresh_seeds(runs_of(best) | runs_of(baseline) | done, max(0, settings.keep.confirm_runs - len(done)))
    there = ledger.baseline_again
    beside = [seed for seed in (*done, *fresh) if best is not baseline and seed not in there]
    return [(best.number, seed) for seed in fresh] + [(baseline.number, seed) for seed in beside]


def confirming_seconds(ledger: Ledger, settings: Settings, options: Options, slots: int) -> float:
    """What it takes to confirm the best, on all slots."""
    return math.ceil(len(to_confirm(ledger, settings)) / slots) * run_seconds(ledger, options.time_budget)


def may_go_on(session: Session, ledger: Ledger) -> bool:
    """Whether nobody wants to stop, and a run would end in time."""
    ends = time.monotonic() + run_seconds(ledger, session.options.time_budget)
    return not session.ending and ends <= session.options.deadline


def time_for_more(session: Session, ledger: Ledger, slots: int) -> bool:
    """Whether there is time for another experiment, and then for running the best on fresh seeds."""
    needed = run_seconds(ledger, session.options.time_budget)
    needed += confirming_seconds(ledger, session.settings, session.options, slots)
    return time.monotonic() + needed <= session.options.deadline


# -----------------------------------------------------------------------------
# Experiments and money


def experiments_left(options: Options, ledger: Ledger, queue: Queue) -> float:
    """How many may still be begun or proposed under --experiments."""
    begun = ledger.tried + len(queue.candidates) + len(queue.waiting) + len(queue.asking.at_work)
    return math.inf if options.experiments is None else options.experiments - begun


def proposals_to_come(session: Session, ledger: Ledger, queue: Queue) -> float:
    """How many experiments still fit into --hours and --experiments, on all slots."""
    options, slots = session.options, len(queue.slots)
    seconds = options.deadline - time.monotonic() - confirming_seconds(ledger, session.settings, options, slots)
    by_time = max(0.0, seconds) * slots / run_seconds(ledger, options.time_budget)
    return min(by_time, experiments_left(options, ledger, queue))


def last_costs(ledger: Ledger, count: int) -> list[float]:
    """US dollars of the last experiments that an LLM proposed."""
    return [row.cost for row in ledger.rows if row.cost][-count:]


def over_budget(settings: Settings, ledger: Ledger, queue: Queue) -> str:
    """Why another proposal could pass max_cost, or "": it, those at work and the repairs to come are as dear each as
    the dearest of the last five.
    """
    spent = ledger.spent + queue.spent
    usual = max(last_costs(ledger, 5), default=0.0)
    to_come = sum(max(ask.context.used.cost, usual) for ask in queue.asking.at_work) + usual * len(queue.crashed)
    if settings.max_cost is None or spent + to_come + usual <= settings.max_cost:
        return ""
    return f"the next proposal could pass max_cost ${settings.max_cost:.2f}: ${spent:.2f} are spent"


# -----------------------------------------------------------------------------
# Disk


def cannot_write(session: Session, folder: Path) -> bool:
    """Whether disk or permissions forbid to write; said once, and the loop waits until that is mended."""
    problem = ""
    for place in (ROOT, ROOT / "runs", folder, data_root()):
        if place.exists() and not os.access(place, os.W_OK):
            problem = f"{place} cannot be written to"
        elif place.exists() and shutil.disk_usage(place).free < FREE_BYTES:
            problem = f"less than {FREE_BYTES / GB:.2f} GB of disk are left at {place}"
    if problem and problem != session.complaint:
        session.log.show(f"waiting: {problem}")
        notify(session, f"a person is needed: {problem}")
    elif session.complaint and not problem:
        session.log.say(f"going on; solved: {session.complaint}")
    session.complaint = problem
    return bool(problem)


def wait_for_room(session: Session, folder: Path) -> None:
    while cannot_write(session, folder) and not session.stop.is_set() and time.monotonic() < session.options.deadline:
        session.stop.wait(2)


def was_lost(session: Session, run_folder: Path, outcome: RunResult | Exception) -> bool:
    """Whether a run's end says nothing of its train.py: its folder or its log was deleted, or the disk was full."""
    if isinstance(outcome, Exception) and not isinstance(outcome, OSError):
        return False
    if not run_folder.exists() or (isinstance(outcome, FileNotFoundError) and f"{run_folder}/" in str(outcome)):
        return True
    if isinstance(outcome, OSError):
        return cannot_write(session, run_folder)
    return outcome.status != "ok" and disk_was_full(session, run_folder)


def disk_was_full(session: Session, run_folder: Path) -> bool:
    """Whether a run may have failed for want of room, by another's fault: what it wrote itself is deleted first."""
    if not cannot_write(session, run_folder):
        return False
    for path in run_folder.iterdir():
        if path.name not in ("train.py", "run.log"):
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
    return cannot_write(session, run_folder)
