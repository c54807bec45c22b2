"""
The one maker of a Context: what a proposer is told, from the session, the ledger and what is in flight.
"""

import functools
import math
import time
from pathlib import Path

from autoresearch.judge.belief import measured_gain, posterior
from autoresearch.judge.keep_rule import KEEP_AT_ONCE
from autoresearch.loop.inflight import Queue
from autoresearch.loop.limits import proposals_to_come, run_seconds
from autoresearch.loop.session import Session
from autoresearch.loop.verdicts import attempt_runs, forbidden
from autoresearch.nouns import Experiment, Run
from autoresearch.propose.context import Context, Crash, Training
from autoresearch.propose.dry_check import dry_check
from autoresearch.record.ledger import Ledger
from autoresearch.record.reading import read_experiment


def make_context(
    session: Session, ledger: Ledger, queue: Queue, folder: Path, crashed: Experiment | None = None
) -> Context:
    """All that a proposer may know at this moment, for an experiment of its own or to repair one that crashed."""
    options, settings = session.options, session.settings
    crash = None
    if crashed:
        tail = attempt_runs(ledger, crashed)[-1].result.tail
        crash = Crash(crashed.number, crashed.proposal.source, tail, crashed.repairs + 1)
    late = options.deadline - run_seconds(ledger, options.time_budget)
    return Context(
        number=crashed.number if crashed else ledger.next_number,
        options=options,
        settings=settings,
        instructions=session.instructions,
        best_source=ledger.source_of(ledger.best.number),
        rows=list(ledger.rows),
        folder=folder,
        notebook=ledger.folder / "notebook.md",
        deadline=min(late, time.monotonic() + settings.proposal_timeout),
        noise=ledger.known.paired_noise.sigma,
        keep_gain=keep_gain(ledger),
        experiments_left=proposals_to_come(session, ledger, queue) if ledger.best.runs else math.inf,
        failures=[(failure.after, failure.reason) for failure in ledger.failures if failure.told],
        under_way=under_way(queue),
        trainings=recent_trainings(ledger, options.scale),
        crash=crash,
        read=functools.partial(read_experiment, ledger),
        forbidden=functools.partial(forbidden, ledger),
        check=functools.partial(dry_check, settings, options.seed, lambda: session.ending),
        should_stop=lambda: session.ending,
        log=session.log.say,
    )


def under_way(queue: Queue) -> list[str]:
    """Return what runs, waits or is being written, in words."""
    begun = [f"{each.number}, running: {each.proposal.description}" for each in queue.experiments.values()]
    waiting = [f"{max(each.number, 0) or 'next'}, waiting for a slot: {each.title}" for each in queue.waiting]
    written = [f"{asked.context.number}, {asked.context.doing}" for asked in queue.asking.at_work]
    return begun + waiting + written


def recent_trainings(ledger: Ledger, scale: str) -> list[Training]:
    """Return how training went: the best's first run, then the last three experiments'."""
    best, runs = ledger.best.number, ledger.runs_by_number
    last = [row.number for row in ledger.rows if row.number != best and row.number in runs][-3:]
    first = [runs[number][0] for number in [best, *last] if number in runs]
    return [training_of(run, scale) for run in first if run.result.losses]


def training_of(run: Run, scale: str) -> Training:
    result = run.result
    return Training(
        run.number,
        result.losses,
        steps=int(result.facts.get("num_steps", 0)),
        tokens_per_second=result.tokens_per_second if result.status == "ok" else math.nan,
        memory_gb=result.memory_gb or math.nan,
        mfu_percent=math.nan if scale == "cpu" else result.facts.get("mfu_percent") or math.nan,
    )


def keep_gain(ledger: Ledger) -> float:
    """The measured gain, in val_bpb, at which one run of a candidate is kept; nan where the best has no number."""
    known = ledger.known
    if not (belief := known.beliefs.get(ledger.best.commit)):
        return math.nan
    sigma = known.paired_noise.sigma
    _, deviation = measured_gain({0: belief.best}, belief, known.paired_noise)
    low, high = 0.0, 20 * deviation
    for _ in range(40):
        middle = (low + high) / 2
        enough = posterior(middle, deviation, belief.usual, sigma).better >= KEEP_AT_ONCE
        low, high = (low, middle) if enough else (middle, high)
    return high
