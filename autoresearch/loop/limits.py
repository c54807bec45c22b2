"""
The limits of a session: time, experiments and money that are left.
"""

import itertools
import math
import time

from autoresearch.judge.keep_rule import fresh_seeds
from autoresearch.loop.inflight import Queue
from autoresearch.loop.session import Options, Session
from autoresearch.nouns import RunResult
from autoresearch.record.ledger import Ledger
from autoresearch.row import runs_of
from autoresearch.settings import Settings

# -----------------------------------------------------------------------------
# Time


def last_runs(ledger: Ledger) -> list[RunResult]:
    """The last five runs that ended well."""
    return list(itertools.islice((run.result for run in reversed(ledger.runs) if run.result.status == "ok"), 5))


def run_seconds(ledger: Ledger, time_budget: int) -> float:
    """Wall-clock seconds, never 0, that a run takes at most: as the longest of the last five."""
    ended = last_runs(ledger)
    return 1.05 * max(0.1, *(each.seconds_if_tested for each in ended)) if ended else 1.2 * time_budget + 10


def to_confirm(ledger: Ledger, settings: Settings) -> list[tuple[int, int]]:
    """(experiment, seed) of the runs that are missing: of the best on fresh seeds, and of the baseline next to it."""
    if not ledger.kept[1:]:
        return []  # nothing was found
    best, baseline, done = ledger.best, ledger.kept[0], ledger.confirming
    fresh = fresh_seeds(runs_of(best) | runs_of(baseline) | done, max(0, settings.keep.confirm_runs - len(done)))
    there = {run.seed for run in ledger.fresh_runs(baseline.number)}
    beside = [seed for seed in (*done, *fresh) if seed not in there]
    return [(best.number, seed) for seed in fresh] + [(baseline.number, seed) for seed in beside]


def confirming_seconds(ledger: Ledger, settings: Settings, options: Options, slots: int) -> float:
    """Return what it takes to confirm the best, on all slots."""
    return math.ceil(len(to_confirm(ledger, settings)) / slots) * run_seconds(ledger, options.time_budget)


def time_for_more(session: Session, ledger: Ledger, slots: int) -> bool:
    """Return whether there is time for another experiment, and then for running the best on fresh seeds."""
    needed = run_seconds(ledger, session.options.time_budget)
    needed += confirming_seconds(ledger, session.settings, session.options, slots)
    return time.monotonic() + needed <= session.options.deadline


# -----------------------------------------------------------------------------
# Experiments and money


def experiments_left(options: Options, ledger: Ledger, queue: Queue) -> float:
    """Return how many may still be begun or proposed under --experiments."""
    begun = ledger.tried + len(queue.experiments) + len(queue.waiting) + len(queue.asking.at_work)
    return math.inf if options.experiments is None else options.experiments - begun


def proposals_to_come(session: Session, ledger: Ledger, queue: Queue) -> float:
    """Return how many experiments still fit into --hours and --experiments, on all slots."""
    options, slots = session.options, queue.slots
    seconds = options.deadline - time.monotonic() - confirming_seconds(ledger, session.settings, options, slots)
    by_time = max(0.0, seconds) * slots / run_seconds(ledger, options.time_budget)
    return min(by_time, experiments_left(options, ledger, queue))


def last_costs(ledger: Ledger, count: int) -> list[float]:
    """US dollars of the last experiments that an LLM proposed."""
    return [row.cost for row in ledger.rows if row.cost][-count:]


def over_budget(settings: Settings, ledger: Ledger, queue: Queue) -> str:
    """Return why another proposal could exceed max_cost, or "". It, every proposal in progress and every repair to come
    is taken to cost as much as the most expensive of the last five.
    """
    spent = ledger.spent + queue.spent
    usual = max(last_costs(ledger, 5), default=0.0)
    to_come = sum(max(ask.context.used.cost, usual) for ask in queue.asking.at_work) + usual * len(queue.crashed)
    if settings.max_cost is None or spent + to_come + usual <= settings.max_cost:
        return ""
    return f"the next proposal could pass max_cost ${settings.max_cost:.2f}: ${spent:.2f} are spent"
