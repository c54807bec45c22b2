"""
What all runs of a search say together: the noise, what each seed adds, what is believed of every best. From the ledger
alone, so that the same rows always give the same decisions.
"""

import dataclasses
import functools
from dataclasses import dataclass

from autoresearch.judge.belief import Belief, after_best_run, after_candidate, start
from autoresearch.judge.keep_rule import confirmed_best, confirmed_gain
from autoresearch.judge.noise import paired, pooled_noise, seed_offsets, seed_share, without_seed
from autoresearch.nouns import Estimate, Noise, Runs
from autoresearch.record.ledger import Ledger
from autoresearch.row import SECOND_LOOK, Row, runs_of

# What val_bpb differs by from run to run, until this search has measured it: the published figure for the h100 scale
# (seven degrees of freedom), benchmarks/cpu_noise.txt for the cpu scale.
USUAL_NOISE = {"h100": Noise(0.00032, 2), "cpu": Noise(0.0085, 2)}
USUAL_SHARE = {"h100": 0.3, "cpu": 0.5}  # of its variance that the seed explains, likewise


@dataclass(frozen=True)
class Knowledge:
    """What all runs so far say together."""

    noise: Noise  # of a run on any seed
    paired_noise: Noise  # of a run whose seed's offset is taken off: what a gain is measured against
    offsets: dict[int, float]  # what each seed is known to add
    beliefs: dict[str, Belief]  # of every best that there was, by its commit; {} before the baseline
    confirmed: Estimate | None  # the best on fresh seeds
    gain: Estimate | None  # baseline - best on those seeds


def judged(ledger: Ledger) -> list[Row]:
    """The experiments that have a val_bpb, each change once: where it was judged last."""
    rows = [row for row in ledger.rows if row.status in ("keep", "discard") and row.runs]
    again = looked_at_again(rows)
    return [row for row in rows if row.number not in again]


def looked_at_again(rows: list[Row]) -> set[int]:
    """The numbers of the near misses that had a second look, however it ended.

    A proposer may describe an edit in the same words. A second look is on the same best, and has the same runs first.
    """
    by_number, found = {row.number: row for row in rows}, set()
    for row in rows:
        match = SECOND_LOOK.match(row.description)
        near = by_number.get(int(match[1])) if match else None
        if not near or near is row or (near.status, near.parent) != ("discard", row.parent):
            continue
        if row.repairs or row.runs.startswith(near.runs):  # where it was repaired, its runs are new
            found.add(near.number)
    return found


def knowledge(ledger: Ledger, scale: str) -> Knowledge:
    """Made anew only when there is something new."""
    return known_after(ledger, scale, len(ledger.rows), len(ledger.confirming) + len(ledger.beside))


@functools.lru_cache(2)  # the loop's ledger, and the one that the page is drawn from
def known_after(ledger: Ledger, scale: str, rows: int, confirming: int) -> Knowledge:
    """What is known after so many rows and confirming runs."""
    fresh, candidates = ledger.confirming, judged(ledger)
    later = {ledger.kept[0].number: ledger.beside, ledger.best.number: fresh} if ledger.kept else {}
    sources = [runs_of(row) | later.get(row.number, {}) for row in candidates]
    noise, share = pooled_noise(sources, USUAL_NOISE[scale]), seed_share(sources, USUAL_SHARE[scale])
    left, offsets = paired(noise, sources, share), seed_offsets(sources, share)
    beliefs = replay(candidates, fresh, offsets, left)
    confirmed, gain = confirmed_best(fresh, noise), confirmed_gain(fresh, ledger.beside, left)
    return Knowledge(noise, left, offsets, beliefs, confirmed, gain)


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
