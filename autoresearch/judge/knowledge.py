"""
All runs of a search together: the noise, what each seed adds, what is believed of every best and of every change.
From rows and runs alone, so that the same rows always give the same decisions.
"""

import dataclasses
import math
from dataclasses import dataclass

from autoresearch.judge.belief import Belief, after_best_run, after_candidate, measured_gain, posterior, start
from autoresearch.judge.keep_rule import confirmed_best, confirmed_gain
from autoresearch.judge.noise import (
    drift,
    mean,
    paired,
    pooled_noise,
    seed_offsets,
    seed_share,
    winsorized,
    without_seed,
)
from autoresearch.nouns import Estimate, Noise, Runs
from autoresearch.row import SECOND_LOOK, Row, runs_of

# What val_bpb differs by from run to run, until this search has measured it: the published figure for the h100 scale
# (seven degrees of freedom), benchmarks/cpu_noise.txt for the cpu scale.
USUAL_NOISE = {"h100": Noise(0.00032, 2), "cpu": Noise(0.0085, 2)}
USUAL_SHARE = {"h100": 0.3, "cpu": 0.5}  # of its variance that the seed explains, likewise


@dataclass(frozen=True)
class Gain:
    """Baseline - best, in val_bpb."""

    baseline: float
    best: float
    standard_error: float  # of the difference
    of: str  # confirmed: both on the same fresh seeds, as far as there are such runs; believed

    @property
    def value(self) -> float:
        return self.baseline - self.best


@dataclass(frozen=True)
class Knowledge:
    """Noise, beliefs and gain after so many rows."""

    rows: list[Row]  # the experiments that have a val_bpb, each change once
    noise: Noise  # of a run on any seed
    paired_noise: Noise  # of a run whose seed's offset is taken off: what a gain is measured against, and what is shown
    offsets: dict[int, float]  # what each seed is known to add
    beliefs: dict[str, Belief]  # of every best that there was, by its commit; {} before the baseline
    drift: str  # a line where the repeats disagree with the noise that the search started with, or ""
    confirmed: Estimate | None  # the best on fresh seeds
    gain: Gain | None  # None where nothing was kept

    def believed_gains(self) -> dict[int, tuple[float, float]]:
        """By experiment: P(truly better than the best it was tried on), believed gain; with what is usual by now."""
        gains = {}
        newest = max(self.beliefs.values(), key=lambda belief: belief.usual.candidates, default=None)
        for row in self.rows[1:]:
            if newest and (belief := self.beliefs.get(row.parent)):
                measured = measured_gain(without_seed(runs_of(row), self.offsets), belief, self.paired_noise)
                true_gain = posterior(*measured, newest.usual, self.paired_noise.sigma)
                gains[row.number] = (true_gain.better, true_gain.mean)
        return gains


def judged(rows: list[Row]) -> list[Row]:
    """The experiments that have a val_bpb, each change once: where it was judged last."""
    rows = [row for row in rows if row.status in ("keep", "discard") and row.runs]
    again = looked_at_again(rows)
    return [row for row in rows if row.number not in again]


def looked_at_again(rows: list[Row]) -> set[int]:
    """The numbers of the near misses that had a second look, however it ended.

    A proposer may describe an edit in the same words. A second look is on the same best, and has the same runs first.
    """
    by_number, found = {row.number: row for row in rows}, set()
    for row in rows:
        near = gone_on_from(row, by_number)
        if near and (near.status, near.parent) == ("discard", row.parent):
            found.add(near.number)
    return found


def gone_on_from(row: Row, by_number: dict[int, Row]) -> Row | None:
    """The row of the same source whose runs this one has first."""
    match = SECOND_LOOK.match(row.description)
    before = by_number.get(int(match[1])) if match else None
    if not before or before is row:
        return None
    return before if row.repairs or row.runs.startswith(before.runs) else None  # repaired: its runs are new


def by_source(rows: list[Row], later: dict[int, Runs]) -> list[Runs]:
    """All runs of every source, the baseline's first: where one was judged again, they are pooled."""
    rows = [row for row in rows if row.status in ("keep", "discard") and row.runs]
    by_number = {row.number: row for row in rows}
    first: dict[int, int] = {}
    found: dict[int, Runs] = {}
    for row in rows:
        before = None if row.repairs else gone_on_from(row, by_number)
        first[row.number] = own = first.get(before.number, row.number) if before else row.number
        found[own] = found.get(own, {}) | runs_of(row) | later.get(row.number, {})
    return list(found.values())


def knowledge(rows: list[Row], later: dict[int, Runs], scale: str) -> Knowledge:
    """All that follows from rows, and from the later runs, on fresh seeds, of what was kept, by its number."""
    candidates, kept = judged(rows), [row for row in rows if row.status == "keep"]
    fresh = later.get(kept[-1].number, {}) if kept else {}
    first = later.get(kept[0].number, {}) if kept[1:] else {}
    beside = {seed: val_bpb for seed, val_bpb in first.items() if seed in fresh}  # like with like
    sources = winsorized(by_source(rows, later), USUAL_NOISE[scale])
    noise, share = pooled_noise(sources, USUAL_NOISE[scale]), seed_share(sources, USUAL_SHARE[scale])
    left, offsets = paired(noise, sources, share), seed_offsets(sources, share)
    beliefs, confirmed = replay(candidates, fresh, offsets, left), confirmed_best(fresh, noise)
    drifted = drift(USUAL_NOISE[scale], runs_of(kept[0]), sources) if beliefs else ""
    gain = searched_gain(runs_of(kept[0]), beliefs[kept[-1].commit], confirmed, noise) if kept[1:] else None
    if sure := confirmed_gain(fresh, beside, left):
        gain = Gain(mean(beside), mean(beside) - sure.val_bpb, sure.standard_error, "confirmed")
    return Knowledge(candidates, noise, left, offsets, beliefs, drifted, confirmed, gain)


def searched_gain(baseline: Runs, best: Belief, confirmed: Estimate | None, noise: Noise) -> Gain:
    """From the baseline's runs to the best on fresh seeds or, where there are none, to what is believed of it."""
    sure = confirmed or Estimate(best.best, math.sqrt(best.variance), len(best.runs))
    error = math.hypot(sure.standard_error, noise.sigma / math.sqrt(len(baseline)))
    return Gain(mean(baseline), sure.val_bpb, error, "confirmed" if confirmed else "believed")


def replay(rows: list[Row], fresh: Runs, offsets: dict[int, float], noise: Noise) -> dict[str, Belief]:
    """The belief in every best after all that was tried on it, in the order of decision. `fresh`: of the last best."""
    beliefs: dict[str, Belief] = {}
    for row in rows:
        runs = without_seed(runs_of(row), offsets)
        if not beliefs:
            beliefs[row.commit] = newest = start(runs, noise)
            continue
        before = dataclasses.replace(beliefs.get(row.parent, newest), usual=newest.usual)  # what is usual is shared
        newest = after_candidate(before, runs, row.status == "keep", noise)
        beliefs[row.commit if row.status == "keep" else row.parent] = newest
    for seed, val_bpb in without_seed(fresh, offsets).items() if beliefs else ():
        last = [row.commit for row in rows if row.status == "keep"][-1]
        beliefs[last] = after_best_run(beliefs[last], seed, val_bpb, noise)
    return beliefs
