"""
The worth of each factor, from val_bpb of mirrored pairs of runs. Only numbers.

The difference of a pair is the sum of what its factors are worth, each with the sign of its level, and the noise of two
runs; what factors do in pairs cancels. So: ordinary least squares of the differences on the levels. sigma is pooled
with what the search knows of it; where the differences are scattered far more than that, three factors act together,
and their own scatter is taken. Which factors are clear of chance: Benjamini and Hochberg (1995), false discovery rate
FALSE_RATE. The means of the pairs, which hold the rest, tell how much factors depend on each other.
"""

from dataclasses import dataclass

import numpy
from scipy import stats

from autoresearch.judge.noise import pooled_with
from autoresearch.nouns import Noise

FALSE_RATE = 0.05
LACK_OF_FIT = 0.01  # the probability below which scatter is not the runs' noise alone


@dataclass(frozen=True)
class Pair:
    """A row and its mirror, on one seed."""

    levels: tuple[int, ...]  # of the row, in which some factor is in
    row: float  # val_bpb
    mirror: float
    seed: int


@dataclass(frozen=True)
class Worth:
    """The fall of val_bpb by a factor, averaged over the presence of the others."""

    gain: float
    standard_error: float
    low: float  # 95 % interval
    high: float
    p: float  # of no effect
    verdict: str  # real, nothing, harmful


@dataclass(frozen=True)
class Effects:
    """An analysed design."""

    worths: list[Worth]
    sigma: float  # of a run, as used
    degrees_of_freedom: float
    sum: float  # of the worths
    sum_error: float
    total: float  # baseline - best, as measured in the same runs
    total_error: float
    dependence: float  # standard deviation of what combinations do beyond the sum of their factors
    dependence_p: float  # of none


def analyse(pairs: list[Pair], noise: Noise) -> Effects:
    """Effects and verdicts. `noise`: of a run, its seed taken off, as the search knows it. ValueError if too few."""
    if not pairs:
        raise ValueError("no pair of runs ended well")
    levels = numpy.array([pair.levels for pair in pairs], float)
    differences = numpy.array([pair.mirror - pair.row for pair in pairs])
    factors = levels.shape[1]
    gains, _, rank, _ = numpy.linalg.lstsq(levels, differences)
    if rank < factors:
        raise ValueError(f"{len(pairs)} pairs of runs ended well, too few to tell {factors} factors apart")
    left = numpy.square(differences - levels @ gains).sum() / 2  # a difference has the variance of two runs
    used = pooled(left, len(pairs) - factors, noise)
    sigma, freedom = used.sigma, used.degrees_of_freedom
    covariance = 2 * sigma**2 * numpy.linalg.inv(levels.T @ levels)
    errors = numpy.sqrt(numpy.diag(covariance))
    ps = 2 * stats.t.sf(abs(gains) / errors, freedom)
    significant = stats.false_discovery_control(ps) < FALSE_RATE
    width = stats.t.ppf(0.975, freedom)
    verdicts = numpy.where(significant, numpy.where(gains > 0, "real", "harmful"), "nothing").tolist()
    columns = zip(gains, errors, ps, verdicts, strict=True)
    worths = [
        Worth(float(g), float(e), float(g - width * e), float(g + width * e), float(p), v) for g, e, p, v in columns
    ]
    corners = [pair.mirror - pair.row for pair in pairs if min(pair.levels) > 0]
    return Effects(
        worths,
        sigma,
        freedom,
        sum=float(gains.sum()),
        sum_error=float(numpy.sqrt(covariance.sum())),
        total=float(numpy.mean(corners)) if corners else float("nan"),
        total_error=sigma * (2 / len(corners)) ** 0.5 if corners else float("nan"),
        **dependence(pairs, noise),
    )


def pooled(squares: float, freedom: int, noise: Noise) -> Noise:
    """The runs' own scatter with the search's noise; the scatter alone where it is larger beyond chance."""
    own = squares / freedom if freedom else 0.0
    if freedom and stats.f.sf(own / noise.sigma**2, freedom, noise.degrees_of_freedom) < LACK_OF_FIT:
        return Noise(float(own**0.5), float(freedom))
    return pooled_with(noise, float(squares), freedom)


def dependence(pairs: list[Pair], noise: Noise) -> dict[str, float]:
    """Return how the means of pairs differ on each seed, beyond noise: with additive factors they are all the same."""
    squares, count = 0.0, 0
    for seed in {pair.seed for pair in pairs}:
        means = numpy.array([(pair.row + pair.mirror) / 2 for pair in pairs if pair.seed == seed])
        squares, count = squares + numpy.square(means - means.mean()).sum(), count + len(means) - 1
    if not count:
        return {"dependence": 0.0, "dependence_p": 1.0}
    variance, chance = squares / count, noise.sigma**2 / 2
    return {
        "dependence": float(max(variance - chance, 0.0) ** 0.5),
        "dependence_p": float(stats.f.sf(variance / chance, count, noise.degrees_of_freedom)),
    }


@dataclass(frozen=True)
class Difference:
    """Two sources on the same seeds: val_bpb of the first minus the second's."""

    value: float
    standard_error: float
    seeds: int


def paired_difference(first: dict[int, float], second: dict[int, float], sigma: float) -> Difference:
    both = sorted(first.keys() & second.keys())
    values = [first[seed] - second[seed] for seed in both]
    return Difference(float(numpy.mean(values)), sigma * (2 / len(both)) ** 0.5, len(both))


def p_of_worse(difference: Difference, freedom: float) -> float:
    """The probability that a first source no worse than the second looks as much worse by chance (one-sided)."""
    return float(stats.t.sf(difference.value / difference.standard_error, freedom))
