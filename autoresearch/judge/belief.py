"""
What is believed: of a candidate's true gain, of the best's true value, and of what changes usually do. Only numbers.
"""

import math
from dataclasses import dataclass, replace

from autoresearch.judge.noise import mean
from autoresearch.nouns import Noise, Runs

LARGEST_EFFECT = 8.0  # sigma; a larger one is clear anyway, and must not set what is usual


@dataclass(frozen=True)
class Usual:
    """What changes do, in sigma, and how many candidates that is known from."""

    share: float = 0.2  # of the candidates are better than the best
    gain: float = 1.2  # by so much on average
    loss: float = 3.5  # and the others worse by so much
    candidates: float = 60.0  # the weight of the starting values; above it: learned


# -----------------------------------------------------------------------------
# The posterior of one candidate's gain


def log_mills(x: float) -> float:
    """log(Phi(x) / phi(x)) of the standard normal, safe in both tails."""
    if x > -30:
        return math.log(0.5 * math.erfc(-x / math.sqrt(2))) + 0.5 * x * x + 0.5 * math.log(2 * math.pi)
    return math.log1p(-1 / (x * x)) - math.log(-x)  # asymptotic, relative error 3 / x^4


def cut_normal(x: float, deviation: float, log_mills_x: float) -> tuple[float, float]:
    """(mean, variance) of a normal with mean x * deviation, cut to its part above zero."""
    ratio = math.exp(-log_mills_x)
    return deviation * (x + ratio), deviation**2 * max(1 - x * ratio - ratio * ratio, 0.0)


@dataclass(frozen=True)
class Posterior:
    """What is known of a candidate's true gain after its runs, in val_bpb."""

    better: float  # P(gain > 0)
    mean: float
    variance: float
    mean_if_better: float
    loss_if_worse: float


def posterior(gain: float, deviation: float, usual: Usual, sigma: float) -> Posterior:
    """A measured gain with its standard error, met by what is usual. An exponential times a normal is a cut normal."""
    scale_better, scale_worse = usual.gain * sigma, usual.loss * sigma
    x_better = gain / deviation - deviation / scale_better
    x_worse = -gain / deviation - deviation / scale_worse
    odds = math.log(usual.share / (1 - usual.share) * scale_worse / scale_better)
    log_better, log_worse = log_mills(x_better), log_mills(x_worse)
    better = logistic(odds + log_better - log_worse)
    up, variance_up = cut_normal(x_better, deviation, log_better)
    down, variance_down = cut_normal(x_worse, deviation, log_worse)
    variance = better * variance_up + (1 - better) * variance_down + better * (1 - better) * (up + down) ** 2
    return Posterior(better, better * up - (1 - better) * down, variance, up, down)


def logistic(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x > -700 else 0.0


def probability_above(minus: float, gain: float, deviation: float, usual: Usual, sigma: float) -> float:
    """P(true gain > -minus): a little loss is forgiven, as for a simplification."""
    better = posterior(gain, deviation, usual, sigma).better
    worse = -gain / deviation - deviation / (usual.loss * sigma)  # the cut normal of the losses, standardized
    further = worse - minus / deviation
    tail = math.exp(log_mills(further) - log_mills(worse) - 0.5 * (further**2 - worse**2))
    return better + (1 - better) * (1 - min(tail, 1.0))


# -----------------------------------------------------------------------------
# What is known of the best


@dataclass(frozen=True)
class Belief:
    """The best's true val_bpb as a normal, the best's runs, and what changes usually do."""

    best: float
    variance: float
    runs: Runs
    usual: Usual = Usual()


def start(baseline: Runs, noise: Noise) -> Belief:
    return Belief(mean(baseline), noise.sigma**2 / len(baseline), baseline)


def measured_gain(candidate: Runs, belief: Belief, noise: Noise) -> tuple[float, float]:
    """(difference from the best's believed value, its standard error)."""
    return belief.best - mean(candidate), math.sqrt(belief.variance + noise.sigma**2 / len(candidate))


def after_candidate(belief: Belief, candidate: Runs, kept: bool, noise: Noise) -> Belief:
    """What is known once a candidate is decided: its runs say something of the best, and of what is usual."""
    gain, deviation = measured_gain(candidate, belief, noise)
    true_gain = posterior(gain, deviation, belief.usual, noise.sigma)
    usual = learned(belief.usual, true_gain, noise.sigma)
    to_best = belief.variance / deviation**2  # Kalman gain: the share of a surprise that is the best's own error
    best = belief.best - to_best * (gain - true_gain.mean)
    left = belief.variance * (1 - to_best)
    if kept:  # the candidate's value is the best's minus the gain: each unit of true gain moves it 1 - to_best
        return Belief(best - true_gain.mean, left + (1 - to_best) ** 2 * true_gain.variance, candidate, usual)
    return Belief(best, left + to_best**2 * true_gain.variance, belief.runs, usual)


def learned(usual: Usual, true_gain: Posterior, sigma: float) -> Usual:
    """One candidate more: a running mean, weighted by how probable each side is (online EM: Titterington 1984)."""
    better, total = usual.share * usual.candidates, usual.candidates + 1
    worse = usual.candidates - better
    gained = min(true_gain.mean_if_better / sigma, LARGEST_EFFECT) * true_gain.better
    lost = min(true_gain.loss_if_worse / sigma, LARGEST_EFFECT) * (1 - true_gain.better)
    gain = (usual.gain * better + gained) / (better + true_gain.better)
    loss = (usual.loss * worse + lost) / (worse + 1 - true_gain.better)
    return Usual((better + true_gain.better) / total, gain, loss, total)


def after_best_run(belief: Belief, seed: int, val_bpb: float, noise: Noise) -> Belief:
    """One more run of the best."""
    weight = belief.variance / (belief.variance + noise.sigma**2)
    best = belief.best + weight * (val_bpb - belief.best)
    return replace(belief, best=best, variance=(1 - weight) * belief.variance, runs=belief.runs | {seed: val_bpb})
