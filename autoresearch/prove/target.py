"""
The time in which the best reaches what the baseline reaches, from whole runs at several budgets. Only numbers.

A time to target is never read off a curve: the learning rate falls with the budget, so the loss in mid-run says nothing
of the end. Each point here is the end of a whole run. The worth of a second (val_bpb = a - b ln t) and the gain at the
same budget predict the first shorter budget. Later budgets bracket the target. A line through the nearby runs, over
ln t, gives the time and its interval.
"""

import math
from dataclasses import dataclass

import numpy
from scipy import stats

from autoresearch.judge.noise import mean, pooled_with
from autoresearch.nouns import Noise, Runs

PASS = 2.33  # standard errors that the mean has to be below the target: one-sided 1 %
BRACKET = 1.25  # the budgets on both sides of the target are no further apart than this
NEAR = math.log(1.6)  # how far from the target a budget may be and still tell of it
FAR = math.log(10)  # how far from the runs that tell of it a time, or an end of its interval, may be
MOST = 8  # budgets of the best that are tried
Points = dict[int, Runs]  # budget in seconds -> val_bpb by seed


@dataclass(frozen=True)
class Line:
    """val_bpb = value - b (ln t - ln middle), through whole runs."""

    value: float
    b: float
    middle: float  # ln t
    runs: int
    spread: float  # sum of squares of ln t about its middle, over the runs
    error: float  # of b


@dataclass(frozen=True)
class TimeToTarget:
    """When the best reaches the target, in seconds of training, with a 95 % interval."""

    seconds: float
    low: float
    high: float


def paired_sigma(sources: list[Runs], prior: Noise) -> Noise:
    """The noise that is left of a run when its seed's share is taken off, from sources that ran on the same seeds."""
    seeds = sorted(set.intersection(*(set(runs) for runs in sources)))
    table = numpy.array([[runs[seed] for seed in seeds] for runs in sources])
    left = table - table.mean(0) - table.mean(1, keepdims=True) + table.mean()
    return pooled_with(prior, float(numpy.square(left).sum()), max((len(sources) - 1) * (len(seeds) - 1), 0))


def fit_line(points: Points, sigma: float) -> Line:
    """The least-squares line over ln t."""
    places = numpy.array([math.log(budget) for budget, runs in points.items() for _ in runs])
    values = numpy.array([value for runs in points.values() for value in runs.values()])
    middle = places.mean()
    spread = float(numpy.square(places - middle).sum())
    b = -float((places - middle) @ values) / spread
    return Line(float(values.mean()), b, float(middle), len(values), spread, sigma / math.sqrt(spread))


def predicted_seconds(horizon: int, gain: float, line: Line) -> float:
    """Return where the best should reach the baseline's val_bpb, if a second is worth to it what it is to the baseline.

    nan where that cannot be told: a second is worth next to nothing.
    """
    return horizon * math.exp(-gain / line.b) if abs(gain) < 100 * line.b else math.nan


def passes(points: Points, budget: int, target: Runs, sigma: float) -> bool:
    """Return whether the runs at a budget are below the target beyond chance."""
    runs = points[budget]
    error = sigma * math.sqrt(1 / len(runs) + 1 / len(target))
    return mean(target) - mean(runs) >= PASS * error


def next_budget(points: Points, target: Runs, baseline: Line, sigma: float, least: int) -> int | None:
    """The next budget to try the best at; None when enough is known. `least`: the shortest that makes sense."""
    goal = mean(target)
    reached = [budget for budget, runs in points.items() if mean(runs) <= goal]
    if not reached or len(points) >= MOST:
        return None
    high = min(reached)
    missed = [budget for budget in points if budget < high]
    if not missed:
        wanted = high * math.exp(-(goal - mean(points[high])) / local_slope(points, baseline, sigma))
        wanted = min(max(wanted, high / 4), high / 1.08)
    elif high / max(missed) > BRACKET and high - max(missed) > 1:
        low = max(missed)
        wanted = cut_in(low, high, mean(points[low]) - goal, goal - mean(points[high]))
    else:
        return confirming_budget(points, target, sigma)
    budget = max(round(wanted), least)
    return None if budget in points else budget


def cut_in(low: int, high: int, above: float, below: float) -> float:
    """Between two budgets, where a line meets the target; not too close to either."""
    share = min(max(above / (above + below), 0.2), 0.8) if above + below > 0 else 0.5
    return low * (high / low) ** share


def local_slope(points: Points, baseline: Line, sigma: float) -> float:
    """Return what a second is worth to the best at its shortest runs; with one point only, to the baseline."""
    shortest = sorted(points)[:2]
    slope = fit_line({budget: points[budget] for budget in shortest}, sigma).b if len(shortest) > 1 else baseline.b
    return max(slope, baseline.b / 4, 1e-9)


def confirming_budget(points: Points, target: Runs, sigma: float) -> int | None:
    """A budget a little beyond the target at which the best should be below it beyond chance.

    None if one is there, or if there is none below the horizon.
    """
    time = time_to_target(points, target, Noise(sigma, math.inf))
    if not time or time.seconds >= max(points):
        return None
    error = sigma * math.sqrt(1 / len(target) + 1 / len(points[max(points)]))
    beyond = 1.3 * PASS * error / max(near_line(points, time.seconds, sigma).b, 1e-9)
    if beyond >= math.log(max(points) / time.seconds):
        return None
    wanted = math.ceil(time.seconds * math.exp(beyond))
    tried = [budget for budget in points if budget >= time.seconds]
    if any(passes(points, budget, target, sigma) and budget <= max(1.03 * wanted, wanted + 1) for budget in tried):
        return None
    while wanted in points:  # it was tried, and chance was against it: a little longer
        wanted = max(math.ceil(1.02 * wanted), wanted + 1)
    return wanted if wanted < max(points) else None


def near_line(points: Points, seconds: float, sigma: float) -> Line:
    """The line through the runs near a time, the two budgets around it at least."""
    around = [max((b for b in points if b <= seconds), default=min(points))]
    around += [min((b for b in points if b >= seconds and b not in around), default=max(points))]
    near = [budget for budget in points if abs(math.log(budget / seconds)) < NEAR]
    return fit_line({budget: points[budget] for budget in {*near, *around}}, sigma)


def time_to_target(points: Points, target: Runs, noise: Noise) -> TimeToTarget | None:
    """Return the time at which the line near the target meets it.

    None if that is not known: all budgets lie on one side of it, or a second is worth too little there.
    """
    goal = mean(target)
    reached = [budget for budget, runs in points.items() if mean(runs) <= goal]
    missed = [budget for budget in points if reached and budget < min(reached)]
    if not missed:
        return None
    low, high = max(missed), min(reached)
    seconds = cut_in(low, high, mean(points[low]) - goal, goal - mean(points[high]))
    line = near_line(points, seconds, noise.sigma)
    if line.b <= 0:
        return None
    place = line.middle + (line.value - goal) / line.b
    variance = 1 / len(target) + 1 / line.runs + (place - line.middle) ** 2 / line.spread
    width = stats.t.ppf(0.975, noise.degrees_of_freedom) * noise.sigma * math.sqrt(variance) / line.b
    if abs(place - line.middle) + width > FAR:
        return None
    return TimeToTarget(math.exp(place), math.exp(place - width), math.exp(place + width))
