"""
The keep rule: from val_bpb numbers alone, is a candidate better than the best so far? No I/O, no torch.

The problem. Two runs of one train.py on two seeds differ by about sigma * sqrt(2). Most changes are worth little or do
harm, so among the numbers below the best's many are lucky ones: a quarter of what a greedy loop keeps is noise. And
what it kept last was chosen for its number, so that number is too good (the winner's curse): the bar is too high for
good small changes, and the reported best is a promise that no rerun holds.

The method, all of it in closed form:
- Noise. sigma is pooled over every source that was run on more than one seed, with a weak prior while those are few.
- Usual changes. A candidate's true gain is, before it runs, better than nothing with probability `share`, by `gain` on
  average, else worse, by `loss` on average: an exponential law on either side of zero. The three numbers start as
  constants (in sigma) and are learned from the history (empirical Bayes: Robbins 1956; Efron and Morris 1973).
- Decision. The law times the normal likelihood of the measured difference gives P(true gain > 0): high, keep; low,
  drop; in between, one more run on another seed. 1 - P of what is kept is the expected share of false keeps (the local
  false discovery rate: Efron, Large-Scale Inference, 2010). Both sides of the law are truncated normals afterwards.
- The best. Its true value is a normal with a mean and a variance, like the state of a Kalman filter. A keep moves it to
  the candidate's posterior: shrunk, not its lucky number. A discard moves it too, for free: where candidates keep
  landing further below the best than usual, it is rather the best that was lucky (moments matched after each one).
- A second look. When the best turns out to have been lucky, its near misses are judged again (`reconsider`).
- Reporting. "Best seen" is the mean of the runs that won; "confirmed best" is the mean of fresh seeds only.

- Pairing. Every candidate's first run is on the same seed as the baseline's. What a seed adds is estimated from all
  sources that were run on several (a two-way layout with random seeds) and taken off before anything else. How much of
  the noise is the seeds' is learned too, from a value that is usual at the scale.

What it does not do. It does not run the best again for each candidate: that costs more than it tells. It does not know
that an idea is a good one, nor whether a number was come by honestly. Only what did well on its first run is run again,
so the seed of first runs looks a little luckier than it is. The posterior takes sigma as known, the same for all
sources, and the noise as normal: a source that diverges on one seed in ten is not seen as such. A kept change is never
taken back.

Units: val_bpb, lower is better; a gain is best - candidate, positive is better. `Usual` alone is in units of sigma.
"""

import math
from dataclasses import dataclass, replace
from statistics import median

import numpy

Runs = dict[int, float]  # seed -> val_bpb of one source

# -----------------------------------------------------------------------------
# Settings


@dataclass(frozen=True)
class KeepRule:
    """`keep:` in program.md. Probabilities are of the candidate being truly better than the best."""

    keep_at_once: float = 0.8  # as probable as this: kept without another run
    keep_at_last: float = 0.7  # less probable: dropped; in between: another run, and after max_runs kept
    max_runs: int = 2  # of one candidate, each with its own seed
    baseline_repeats: int = 2  # further runs of the baseline, for the noise
    confirm_runs: int = 3  # fresh seeds for the best before the loop ends
    simpler_lines: int = 5  # a change that removes so many more lines than it adds is a simplification
    equal: float = 1.0  # a simplification may be worse by so many sigma
    suspicious_gain: float = 0.03  # of the best's val_bpb: more than one change can do, so measured twice


@dataclass(frozen=True)
class Noise:
    """The standard deviation of val_bpb from run to run of one source, and how well it is known."""

    sigma: float
    degrees_of_freedom: float


@dataclass(frozen=True)
class Usual:
    """What changes do, in sigma, and how many candidates that is known from."""

    share: float = 0.2  # of the candidates are better than the best
    gain: float = 1.2  # by so much on average
    loss: float = 3.5  # and the others worse by so much
    candidates: float = 60.0  # the weight of the starting values; above it: learned


NEAR_MISS = 0.3  # a discard as probable as this is worth another look while the same best stands
SPREAD_WEIGHT = 12.0  # sources on one seed that the noise known otherwise counts as
SHARE_WEIGHT = 6.0  # degrees of freedom that the prior share of seeds counts as
LARGEST_SHARE = 0.9  # something is always left to chance
SMALLEST_SIGMA = 1e-6  # val_bpb is printed with six digits
LARGEST_EFFECT = 8.0  # sigma; a larger one is clear anyway, and must not set what is usual

# -----------------------------------------------------------------------------
# Noise


def mean(runs: Runs) -> float:
    return math.fsum(runs.values()) / len(runs)


def plausible(val_bpb: float) -> bool:
    return math.isfinite(val_bpb) and 0 < val_bpb < 20


def pooled_noise(sources: list[Runs], prior: Noise) -> Noise:
    """sigma over all sources with two runs or more; the prior counts as so many degrees of freedom."""
    squares, degrees = prior.degrees_of_freedom * prior.sigma**2, prior.degrees_of_freedom
    for runs in sources:
        center = mean(runs) if len(runs) > 1 else 0.0
        squares += math.fsum((value - center) ** 2 for value in runs.values()) if len(runs) > 1 else 0.0
        degrees += max(len(runs) - 1, 0)
    if not degrees:
        raise ValueError("the noise needs a source with two runs, or a prior")
    return Noise(max(math.sqrt(squares / degrees), SMALLEST_SIGMA), degrees)


# -----------------------------------------------------------------------------
# Pairing by seed


def seed_share(sources: list[Runs], prior: float) -> float:
    """The share, 0 to 0.9, of the variance between runs of one source that their seed explains.

    Analysis of variance of a two-way layout, source + seed: how much less is left within the sources when each seed is
    given a mean of its own, per degree of freedom (Searle, Casella and McCulloch, Variance Components, 1992). `prior`
    is the share expected before anything is measured.
    """
    design, deviations, _ = two_way(sources)
    squares, degrees = deviations @ deviations, sum(len(runs) - 1 for runs in sources if len(runs) > 1)
    if not squares:
        return prior
    fit, _, rank, _ = numpy.linalg.lstsq(design, deviations)
    left = numpy.square(deviations - design @ fit).sum() / (squares / degrees)
    unexplained = (left + SHARE_WEIGHT * (1 - prior)) / (degrees - rank + SHARE_WEIGHT)
    return min(max(1 - float(unexplained), 0.0), LARGEST_SHARE)


def two_way(sources: list[Runs]) -> tuple[numpy.ndarray, numpy.ndarray, list[int]]:
    """(design (runs, seeds), deviations (runs,), seeds) of the sources with several runs, each rid of its own mean."""
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


# -----------------------------------------------------------------------------
# The verdict


@dataclass(frozen=True)
class Verdict:
    status: str  # keep, discard, again (one more run, on next_seed), invalid
    reason: str
    gain: float = math.nan  # measured: from the best's believed value; nan without a number
    expected_gain: float = math.nan  # the same after shrinkage: what is believed
    better: float = math.nan  # P(true gain > 0)
    next_seed: int | None = None  # for `again`
    suspicious: bool = False  # too good for one change


def judge(
    candidate: Runs,
    belief: Belief | None,  # None for the baseline
    noise: Noise,
    rule: KeepRule,
    memory_gb: float = 0.0,
    memory_limit_gb: float = math.inf,
    lines_removed: int = 0,  # lines of code removed minus lines added
) -> Verdict:
    """What becomes of a candidate after its runs so far."""
    if reason := refusal(candidate):
        return Verdict("invalid", reason)
    runs, next_seed = len(candidate), max(candidate) + 1
    if belief is None:
        missing = runs < 1 + rule.baseline_repeats
        return Verdict("again" if missing else "keep", "baseline", next_seed=next_seed if missing else None)
    gain, deviation = measured_gain(candidate, belief, noise)
    true_gain = posterior(gain, deviation, belief.usual, noise.sigma)
    suspicious = gain > rule.suspicious_gain * belief.best
    if not memory_gb <= memory_limit_gb:
        reason = f"memory {memory_gb:.1f} GB is over the limit of {memory_limit_gb:.1f} GB"
        return Verdict("discard", reason, gain, true_gain.mean, true_gain.better, None, suspicious)
    status, reason = decide(true_gain.better, runs, rule)
    if status != "keep" and lines_removed >= rule.simpler_lines:
        equal = probability_above(rule.equal * noise.sigma, gain, deviation, belief.usual, noise.sigma)
        status, reason = decide(equal, runs, rule)
        reason = f"{lines_removed} lines less; not worse by over {rule.equal:g} x noise: {reason}"
    if suspicious and status == "keep":
        status, reason = ("again", "too good for one change, so measured again") if runs < 2 else (status, reason)
        reason = reason if runs < 2 else f"{reason}; suspiciously good, and confirmed on another seed"
    seed = next_seed if status == "again" else None
    return Verdict(status, reason, gain, true_gain.mean, true_gain.better, seed, suspicious)


def refusal(candidate: Runs) -> str:
    """Why these numbers are no numbers, or ""."""
    if not candidate:
        raise ValueError("a candidate without a run cannot be judged")
    for seed, val_bpb in candidate.items():
        if not plausible(val_bpb):
            return f"val_bpb {val_bpb} (seed {seed}) is not a plausible number of bits per byte"
    return ""


def decide(probability: float, runs: int, rule: KeepRule) -> tuple[str, str]:
    """(status, reason) from a probability and the number of runs it rests on."""
    said = f"probability {probability:.2f} after {runs} run{'s' * (runs > 1)}"
    if probability >= rule.keep_at_once:
        return "keep", said
    if probability < rule.keep_at_last:
        return "discard", said
    return ("again" if runs < rule.max_runs else "keep"), said


def reconsider(near: list[Runs], belief: Belief, noise: Noise, rule: KeepRule) -> tuple[int, Verdict] | None:
    """Of the near misses since the last keep, the likeliest, if it would not be dropped today: (its index, verdict).

    The best that they lost to may have been lucky, and what came after has shown it. They stand on that best still.
    """
    verdicts = {}
    for runs_each in {len(runs) for runs in near}:  # with as many runs, the lowest mean is the likeliest
        number = min((n for n, runs in enumerate(near) if len(runs) == runs_each), key=lambda n: mean(near[n]))
        verdicts[number] = judge(near[number], belief, noise, rule)
    number = max(verdicts, key=lambda n: verdicts[n].better, default=None)
    return (number, verdicts[number]) if verdicts and verdicts[number].status in ("keep", "again") else None


# -----------------------------------------------------------------------------
# Reporting the best


@dataclass(frozen=True)
class Estimate:
    val_bpb: float
    standard_error: float
    runs: int


def confirmed_best(runs: Runs, judged: Runs, noise: Noise) -> Estimate | None:
    """The mean over fresh seeds, none of which had a part in the keep; None where there is none."""
    fresh = {seed: val_bpb for seed, val_bpb in runs.items() if seed not in judged}
    return Estimate(mean(fresh), noise.sigma / math.sqrt(len(fresh)), len(fresh)) if fresh else None


def fresh_seeds(runs: Runs, count: int) -> list[int]:
    """The next seeds that the best was not run on."""
    return [max(runs) + 1 + step for step in range(count)]
