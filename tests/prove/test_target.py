"""Time to target on made-up trainings whose slope, noise and speed-up are known."""

import math

import numpy
import pytest

from autoresearch.nouns import Noise
from autoresearch.prove.target import fit_line, next_budget, paired_sigma, passes, predicted_seconds, time_to_target

SEEDS = range(3)


class Training:
    """val_bpb = a - b ln t - gain, bent by `bend`, with a part of the noise that is the seed's."""

    def __init__(self, chance, b=0.08, sigma=0.0005, bend=0.0):
        self.chance, self.b, self.sigma, self.bend = chance, b, sigma, bend
        self.offsets = chance.normal(0, sigma, len(SEEDS))

    def true_value(self, seconds, gain):
        x = math.log(seconds / 1000)
        return 1.0 - self.b * x + self.bend * x * x - gain

    def runs(self, seconds, gain=0.0):
        noise = self.chance.normal(0, self.sigma, len(SEEDS))
        value = self.true_value(seconds, gain)
        return {seed: value + self.offsets[seed] + noise[seed] for seed in SEEDS}


def promote(training, gain, horizon=1000):
    """What the verb does, without trainings. (time to target or None, budgets of the best, sigma)."""
    base = {budget: training.runs(budget) for budget in (750, 1000, 1250)}
    points = {horizon: training.runs(horizon, gain)}
    prior = Noise(training.sigma, 4)
    while True:
        noise = paired_sigma([*base.values(), *points.values()], prior)
        budget = next_budget(points, base[horizon], fit_line(base, noise.sigma), noise.sigma, 10)
        if budget is None:
            return time_to_target(points, base[horizon], noise), points, base, noise
        points[budget] = training.runs(budget, gain)


@pytest.mark.parametrize("gain,bend", [(0.008, 0.0), (0.03, 0.0), (0.1, 0.0), (0.1, 0.01)])
def test_the_speed_up_is_recovered_within_its_interval(gain, bend):
    chance, inside, tried, widths = numpy.random.default_rng(3), 0, [], []
    for _ in range(200):
        training = Training(chance, bend=bend)
        found, points, _, _ = promote(training, gain)
        low, high = 1.0, 1000.0  # the true time by bisection
        while high / low > 1.0001:
            middle = math.sqrt(low * high)
            low, high = (low, middle) if training.true_value(middle, gain) < 1.0 else (middle, high)
        inside += bool(found) and found.low < high < found.high
        tried.append(len(points))
        widths.append(found.high / found.low - 1 if found else math.nan)
    assert inside >= 180, (inside, numpy.mean(tried))
    assert numpy.mean(tried) < 6 and numpy.nanmean(widths) < 0.06, (numpy.mean(tried), numpy.nanmean(widths))


def test_a_shorter_run_confirms_it():
    chance, confirmed = numpy.random.default_rng(4), 0
    for _ in range(100):
        found, points, base, noise = promote(Training(chance), 0.03)
        shortest = min((b for b in points if passes(points, b, base[1000], noise.sigma)), default=1000)
        confirmed += bool(found) and shortest < 1.05 * found.high
    assert confirmed >= 90


def test_without_a_gain_there_is_no_time_to_target():
    chance, claimed = numpy.random.default_rng(5), 0
    for _ in range(100):
        found, _, _, _ = promote(Training(chance), -0.003)
        claimed += found is not None
    assert claimed <= 5


def test_where_a_second_is_worth_little_beside_the_noise_there_may_be_no_time_but_no_error():
    told = 0
    for seed in range(300):
        training = Training(numpy.random.default_rng(seed), b=0.001)  # twice the noise
        for gain in (0.0005, 0.001, 0.002):
            found, points, base, noise = promote(training, gain)
            told += bool(found) and 0 < found.low < found.seconds < found.high < 100 * max(points)
            predicted_seconds(1000, -gain, fit_line(base, noise.sigma))
    assert told > 600
    line = fit_line({750: {0: 1.0}, 1000: {0: 1.0 - 1e-9}}, 0.0005)
    assert math.isnan(predicted_seconds(1000, -0.003, line))


def test_the_prediction_is_that_of_the_slope():
    training = Training(numpy.random.default_rng(6), sigma=1e-9)
    line = fit_line({budget: training.runs(budget) for budget in (750, 1000, 1250)}, 1e-9)
    assert line.b == pytest.approx(0.08, rel=1e-3)
    assert predicted_seconds(1000, 0.08 * math.log(2), line) == pytest.approx(500, rel=1e-3)
