"""
The noise of a run, from all runs of a search: its standard deviation, and what of it a seed explains. Only numbers.
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from statistics import median
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # imported where it is used: it takes a while
    import numpy

from autoresearch.nouns import Noise, Runs

SPREAD_WEIGHT = 12.0  # sources on one seed that the noise known otherwise counts as
SHARE_WEIGHT = 6.0  # degrees of freedom that the prior share of seeds counts as
LARGEST_SHARE = 0.9  # something is always left to chance
LARGEST_SPREAD = 4.0  # times the middle variance within a source: what is more says that this source is unstable
SMALLEST_SIGMA = 1e-6  # val_bpb is printed with six digits
BEYOND_CHANCE = 0.001  # the probability below which repeats disagree with a noise that is little known itself

# -----------------------------------------------------------------------------
# Noise


def mean(runs: Mapping[Any, float]) -> float:
    """The mean of val_bpb by seed."""
    return math.fsum(runs.values()) / len(runs)


def plausible(val_bpb: float) -> bool:
    return math.isfinite(val_bpb) and 0 < val_bpb < 20


def variance(runs: Runs) -> float:
    """The variance within one source that was run twice or more."""
    return math.fsum((value - mean(runs)) ** 2 for value in runs.values()) / (len(runs) - 1)


def winsorized(sources: list[Runs], prior: Noise) -> list[Runs]:
    """The sources, with the deviations of an unstable one made smaller, so that it does not set the noise of all.

    The middle variance is the weighted median over the sources and the prior. Of a normal's sample variance the median
    is less than the mean (Wilson and Hilferty 1931).
    """
    known = [(variance(runs), len(runs) - 1) for runs in sources if len(runs) > 1]
    middles: list[tuple[float, float]] = [(each / (1 - 2 / (9 * degrees)) ** 3, degrees) for each, degrees in known]
    middles = sorted([*middles, (prior.sigma**2, prior.degrees_of_freedom)])
    half, below = sum(degrees for _, degrees in middles) / 2, 0.0
    middle = next((each for each, degrees in middles if (below := below + degrees) >= half), 0.0)
    return [shrunk(runs, LARGEST_SPREAD * middle) if len(runs) > 1 and middle else runs for runs in sources]


def shrunk(runs: Runs, largest: float) -> Runs:
    """The runs, closer to their mean where their variance is over `largest`."""
    center, factor = mean(runs), math.sqrt(min(1.0, largest / max(variance(runs), SMALLEST_SIGMA**2)))
    return {seed: center + factor * (val_bpb - center) for seed, val_bpb in runs.items()}


def pooled_with(prior: Noise, squares: float, degrees: float) -> Noise:
    """The noise of runs whose deviations have this sum of squares; the prior counts as so many degrees of freedom."""
    total = prior.degrees_of_freedom + degrees
    if not total:
        raise ValueError("the noise needs a source with two runs, or a prior")
    return Noise(max(math.sqrt((prior.degrees_of_freedom * prior.sigma**2 + squares) / total), SMALLEST_SIGMA), total)


def pooled_noise(sources: list[Runs], prior: Noise) -> Noise:
    """The noise over all sources with two runs or more."""
    repeated = [runs for runs in sources if len(runs) > 1]
    squares = math.fsum((value - mean(runs)) ** 2 for runs in repeated for value in runs.values())
    return pooled_with(prior, squares, sum(len(runs) - 1 for runs in repeated))


def drift(prior: Noise, baseline: Runs, sources: list[Runs]) -> str:
    """A line where all repeats but the baseline's first disagree, by a chi-square test, with the noise known from
    those; "" if not. The baseline is the first of the sources."""
    from scipy.special import gammainc, gammaincc

    start = pooled_noise([baseline], prior)
    repeats = [{seed: value for seed, value in sources[0].items() if seed not in baseline}, *sources[1:]]
    repeated = [runs for runs in repeats if len(runs) > 1]
    degrees = sum(len(runs) - 1 for runs in repeated)
    squares = math.fsum(variance(runs) * (len(runs) - 1) for runs in repeated) / start.sigma**2
    more = degrees > 0 and squares > degrees
    tail = gammaincc if more else gammainc
    if not degrees or 2 * tail(degrees / 2, squares / 2) >= BEYOND_CHANCE:
        return ""
    told = f"repeats scatter {math.sqrt(squares / degrees):.1f} times as much as the noise that the search started with"
    wrong = "chance for gains" if more else "gains for chance"
    return f"{told}, beyond chance (p < {BEYOND_CHANCE}): its first verdicts may have taken {wrong}"


# -----------------------------------------------------------------------------
# Pairing by seed


def seed_share(sources: list[Runs], prior: float) -> float:
    """The share, 0 to 0.9, of the variance between runs of one source that their seed explains.

    Analysis of variance of a two-way layout, source + seed: how much less is left within the sources when each seed is
    given a mean of its own, per degree of freedom (Searle, Casella and McCulloch, Variance Components, 1992). `prior`
    is the share expected before anything is measured.
    """
    import numpy

    design, deviations, _ = two_way(sources)
    squares, degrees = deviations @ deviations, sum(len(runs) - 1 for runs in sources if len(runs) > 1)
    if not squares:
        return prior
    fit, _, rank, _ = numpy.linalg.lstsq(design, deviations)
    left = numpy.square(deviations - design @ fit).sum() / (squares / degrees)
    unexplained = (left + SHARE_WEIGHT * (1 - prior)) / (degrees - rank + SHARE_WEIGHT)
    return min(max(1 - float(unexplained), 0.0), LARGEST_SHARE)


def two_way(sources: list[Runs]) -> tuple["numpy.ndarray", "numpy.ndarray", list[int]]:
    """(design (runs, seeds), deviations (runs,), seeds) of the sources with several runs, each rid of its own mean."""
    import numpy

    repeated = [runs for runs in sources if len(runs) > 1]
    seeds = sorted({seed for runs in repeated for seed in runs})
    design = [numpy.equal.outer(list(runs), seeds) - numpy.isin(seeds, list(runs)) / len(runs) for runs in repeated]
    deviations = [numpy.array(list(runs.values())) - mean(runs) for runs in repeated]
    return numpy.vstack([numpy.zeros((0, len(seeds))), *design]), numpy.concatenate([[], *deviations]), seeds


def seed_offsets(sources: list[Runs], share: float) -> dict[int, float]:
    """What each seed adds to val_bpb, shrunk, from the sources that were run on more than one.

    A seed does much the same to a file and to a small edit of it. Every candidate runs first on the seed that the best
    was run on, so without this one lucky seed of the baseline would put all candidates down together. The best linear
    unbiased prediction of random seed effects (Henderson 1975), which is a ridge regression.
    """
    import numpy

    design, deviations, seeds = two_way(sources)
    if not share or not seeds:
        return {}
    ridge = (1 - share) / share * numpy.eye(len(seeds))
    offsets = numpy.linalg.solve(design.T @ design + ridge, design.T @ deviations)
    return dict(zip(seeds, offsets.tolist(), strict=True))


def without_seed(runs: Runs, offsets: dict[int, float]) -> Runs:
    return {seed: val_bpb - offsets.get(seed, 0.0) for seed, val_bpb in runs.items()}


def paired(noise: Noise, sources: list[Runs], share: float) -> Noise:
    """The noise that is left of a run when its seed's offset, known from `sources`, is taken off.

    Never more than what many sources differ by on one seed: that is chance, and the worth of what was changed on top.
    """
    known = sum(len(runs) > 1 for runs in sources)
    reliability = share * known / (1 - share + share * known)  # of the offset: Spearman 1910, Brown 1910
    left = noise.sigma**2 * (1 - share * reliability)
    spread, count = spread_on_one_seed(sources)
    bound = (SPREAD_WEIGHT * left + count * spread**2) / (SPREAD_WEIGHT + count)
    return replace(noise, sigma=max(math.sqrt(min(left, bound)), SMALLEST_SIGMA))


def spread_on_one_seed(sources: list[Runs]) -> tuple[float, int]:
    """(standard deviation by the median absolute deviation, number) of the values on the seed with the most runs."""
    by_seed: dict[int, list[float]] = {}
    for runs in sources:
        for seed, val_bpb in runs.items():
            by_seed.setdefault(seed, []).append(val_bpb)
    values = max(by_seed.values(), key=len, default=[])
    if len(values) < 2:
        return 0.0, 0
    middle = median(values)
    return 1.4826 * median(abs(value - middle) for value in values), len(values)
