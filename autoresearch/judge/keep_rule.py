"""
The keep rule: from val_bpb numbers alone, is a candidate better than the best so far? No I/O, no torch.

The problem. Two runs of one train.py on two seeds differ by about sigma * sqrt(2). Most changes are worth little or do
harm, so among the numbers below the best's many are lucky ones: a quarter of what a greedy loop keeps is noise. And
what it kept last was chosen for its number, so that number is too good (the winner's curse): the bar is too high for
good small changes, and reruns of the reported best come out worse.

The method, all of it in closed form. The first two parts are in noise.py, the next and the belief of the best in
belief.py, the rest is here:
- Noise. sigma is pooled over every source that was run on more than one seed, with a weak prior while those are few.
- Pairing. Every candidate's first run is on the same seed as the baseline's. What a seed adds is estimated from all
  sources that were run on several (a two-way layout with random seeds) and taken off before anything else. How much of
  the noise is the seeds' is learned too, from a value that is usual at the scale.
- Usual changes. Before it runs, a candidate is better than the best with probability `share`, by `gain` on average,
  else worse, by `loss` on average: an exponential law on either side of zero. The three numbers start as constants (in
  sigma) and are learned from the history (empirical Bayes: Robbins 1956; Efron and Morris 1973).
- Decision. The law times the normal likelihood of the measured difference gives P(true gain > 0): high, keep; low,
  drop; in between, one more run on another seed. 1 - P of what is kept is the expected share of false keeps (the local
  false discovery rate: Efron, Large-Scale Inference, 2010). Both sides of the law are truncated normals afterwards.
- The best. Its true value is a normal with a mean and a variance, like the state of a Kalman filter. A keep moves it to
  the candidate's posterior: shrunk, not its lucky number. A discard moves it too, for free: where candidates keep
  landing further below the best than usual, the best was lucky (moments matched after each one).
- A second look. When the best turns out to have been lucky, its near misses are judged again (`reconsider`).
- Reporting. "Best seen" is the mean of the runs that won; "confirmed best" is the mean of fresh seeds only.

What it does not do. It does not run the best again for each candidate: that costs more than it tells. It does not know
that an idea is a good one, nor whether a number was come by honestly. Only what did well on its first run is run again,
so the seed of first runs looks a little luckier than it is. The posterior takes sigma as known, the same for all
sources, and the noise as normal: a source that diverges on one seed in ten is not seen as such, unless two of its runs
show it (`UNSTABLE`). A kept change is never taken back.

Units: val_bpb, lower is better; a gain is best - candidate, positive is better. `Usual` alone is in units of sigma.
"""

import math

from autoresearch.judge.belief import Belief, measured_gain, posterior, probability_above
from autoresearch.judge.noise import mean, plausible, variance
from autoresearch.nouns import Estimate, Noise, Runs, Verdict
from autoresearch.text import plural

KEEP_AT_ONCE = 0.8  # probability of a true gain at which one run is enough for a keep
KEEP_AT_LAST = 0.7  # less probable than this: dropped. In between: another run, until there are MAX_RUNS
MAX_RUNS = 2  # of one candidate, each on its own seed
SIMPLER_STATEMENTS = 5  # this many statements less are a simplification
EQUAL = 1.0  # a simplification may be worse by this many times the noise
UNSTABLE = 5.0  # times the noise: a candidate whose runs differ by a larger standard deviation is not kept
SUSPICIOUS_GAIN = 0.03  # share of val_bpb: a larger gain is measured on two seeds and flagged


# -----------------------------------------------------------------------------
# The verdict


def judge(
    candidate: Runs,
    belief: Belief | None,  # None for the baseline
    noise: Noise,
    baseline_repeats: int = 0,
    memory_gb: float = 0.0,
    memory_limit_gb: float = math.inf,
    statements_less: int = 0,  # than the best has
) -> Verdict:
    """What becomes of a candidate after its runs so far."""
    if reason := refusal(candidate):
        return Verdict("invalid", reason)
    runs, next_seed = len(candidate), max(candidate) + 1
    if belief is None:
        missing = runs < 1 + baseline_repeats
        return Verdict("again" if missing else "keep", "baseline", next_seed=next_seed if missing else None)
    gain, deviation = measured_gain(candidate, belief, noise)
    true_gain = posterior(gain, deviation, belief.usual, noise.sigma)
    suspicious = gain > SUSPICIOUS_GAIN * belief.best
    if not memory_gb <= memory_limit_gb:
        reason = f"memory {memory_gb:.1f} GB is over the limit of {memory_limit_gb:.1f} GB"
        return Verdict("discard", reason, gain, true_gain.better, None, suspicious)
    spread = math.sqrt(variance(candidate)) if runs > 1 else 0.0
    if spread > UNSTABLE * noise.sigma:
        reason = f"unstable: the standard deviation of its runs is {spread / noise.sigma:.0f} times the noise"
        return Verdict("discard", reason, gain, true_gain.better, None, suspicious)
    status, reason = decide(true_gain.better, runs)
    if status != "keep" and statements_less >= SIMPLER_STATEMENTS:
        equal = probability_above(EQUAL * noise.sigma, gain, deviation, belief.usual, noise.sigma)
        status, reason = decide(equal, runs)
        reason = f"{statements_less} statements less; not worse by over {EQUAL:g} x noise: {reason}"
    if suspicious and status == "keep":
        status, reason = ("again", "too good for one change, so measured again") if runs < 2 else (status, reason)
        reason = reason if runs < 2 else f"{reason}; suspiciously good, and confirmed on another seed"
    seed = next_seed if status == "again" else None
    return Verdict(status, reason, gain, true_gain.better, seed, suspicious)


def refusal(candidate: Runs) -> str:
    """Why these numbers are no numbers, or ""."""
    if not candidate:
        raise ValueError("a candidate without a run cannot be judged")
    for seed, val_bpb in candidate.items():
        if not plausible(val_bpb):
            return f"val_bpb {val_bpb} (seed {seed}) is not a plausible number of bits per byte"
    return ""


def better_of_two(candidate: Belief, best: Belief, runs: int) -> tuple[str, str]:
    """(status, reason) of a change that beat its own best, and does not merge with what was kept meanwhile.

    `candidate`: what would be believed of it as a best; `best`: of the present one; `runs`: of the candidate.
    """
    deviation = math.sqrt(candidate.variance + best.variance)
    return decide(0.5 * math.erfc((candidate.best - best.best) / deviation / math.sqrt(2)), runs)


def decide(probability: float, runs: int) -> tuple[str, str]:
    """(status, reason) from a probability and the number of runs it rests on."""
    said = f"probability {probability_text(probability)} after {plural(runs, 'run')}"
    if probability >= KEEP_AT_ONCE:
        return "keep", said
    if probability < KEEP_AT_LAST:
        return "discard", said
    return ("again" if runs < MAX_RUNS else "keep"), said


def probability_text(probability: float) -> str:
    """With as many digits, at least two, as show on which side of the rule's thresholds it is: 0.797, not 0.80."""
    for digits in range(2, 6):
        text = f"{probability:.{digits}f}"
        if all((float(text) >= limit) == (probability >= limit) for limit in (KEEP_AT_ONCE, KEEP_AT_LAST)):
            return text
    return f"{probability:.6f}"


def reconsider(near: list[Runs], belief: Belief, noise: Noise) -> tuple[int, Verdict] | None:
    """Of the near misses since the last keep, the likeliest, if it would not be dropped today: (its index, verdict).

    The best that they lost to may have been lucky, and what came after has shown it. They stand on that best still.
    """
    verdicts = {}
    for runs_each in {len(runs) for runs in near}:  # with as many runs, the lowest mean is the likeliest
        number = min((n for n, runs in enumerate(near) if len(runs) == runs_each), key=lambda n: mean(near[n]))
        verdicts[number] = judge(near[number], belief, noise)
    if not verdicts:
        return None
    likeliest = max(verdicts, key=lambda number: verdicts[number].better)
    return (likeliest, verdicts[likeliest]) if verdicts[likeliest].status in ("keep", "again") else None


# -----------------------------------------------------------------------------
# Reporting the best


def confirmed_best(fresh: Runs, noise: Noise) -> Estimate | None:
    """The mean over fresh seeds, none of which had a part in the keep; None where there is none."""
    return Estimate(mean(fresh), noise.sigma / math.sqrt(len(fresh)), len(fresh)) if fresh else None


def confirmed_gain(best: Runs, baseline: Runs, noise: Noise) -> Estimate | None:
    """Baseline - best, the mean over the seeds of both. `noise`: of a run whose seed's offset is taken off."""
    gains = {seed: baseline[seed] - best[seed] for seed in baseline.keys() & best.keys()}
    return Estimate(mean(gains), noise.sigma * math.sqrt(2 / len(gains)), len(gains)) if gains else None


def fresh_seeds(runs: Runs, count: int) -> list[int]:
    """The next seeds after those of `runs`."""
    return [max(runs) + 1 + step for step in range(count)]
