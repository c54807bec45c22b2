"""What is believed of a gain, of the best and of usual changes: against the integral, and for any numbers."""

import math
import random

import numpy
import pytest
from candidates import BELIEF, NOISE, SIGMA, candidate

from autoresearch.judge.belief import (
    Usual,
    after_best_run,
    after_candidate,
    cut_normal,
    log_mills,
    posterior,
    probability_above,
    start,
)


@pytest.mark.parametrize("gain", [-8, -2, -0.3, 0, 0.7, 2, 8])
@pytest.mark.parametrize("deviation", [0.3, 1.0, 1.4])
def test_posterior_is_the_integral(gain, deviation):
    usual = Usual(share=0.25, gain=1.5, loss=3.0)
    x = numpy.linspace(-60, 60, 100_001)
    prior = numpy.where(x > 0, 0.25 / 1.5 * numpy.exp(-abs(x) / 1.5), 0.75 / 3 * numpy.exp(-abs(x) / 3))
    weight = prior * numpy.exp(-0.5 * ((gain - x) / deviation) ** 2)
    weight /= weight.sum()
    center = (weight * x).sum()
    found = posterior(gain, deviation, usual, 1.0)
    assert found.better == pytest.approx(weight[x > 0].sum(), abs=2e-3)
    assert found.mean == pytest.approx(center, abs=2e-3)
    assert found.variance == pytest.approx((weight * (x - center) ** 2).sum(), abs=2e-3)
    for minus in (0.0, 1.0, 2.5):
        above = probability_above(minus, gain, deviation, usual, 1.0)
        assert above == pytest.approx(weight[x > -minus].sum(), abs=2e-3)


def test_tails_are_finite_and_smooth():
    values = [log_mills(x / 10) for x in range(-5000, 5000)]
    assert all(math.isfinite(value) for value in values)
    assert values == sorted(values)
    for gain in (-1e6, -1e3, -40, 40, 1e3, 1e6):
        found = posterior(gain, 1.0, Usual(), 1.0)
        assert 0 <= found.better <= 1 and found.variance >= 0
        assert found.mean == pytest.approx(gain, abs=1)
        assert 0 <= probability_above(1.0, gain, 1.0, Usual(), 1.0) <= 1
    assert cut_normal(-1e4, 1.0, log_mills(-1e4))[0] > 0


def test_a_lucky_winner_is_not_believed():
    runs = candidate(2.5)
    after = after_candidate(BELIEF, runs, True, NOISE)
    assert runs[42] < after.best < BELIEF.best
    assert after.runs == runs
    assert after.variance < SIGMA**2


def test_a_discard_says_a_little_of_the_best():
    belief = start({42: 0.998}, NOISE)
    unlucky, lucky = (after_candidate(belief, {42: belief.best - gain * SIGMA}, False, NOISE) for gain in (1.5, -1.0))
    assert unlucky.best < belief.best < lucky.best
    far = after_candidate(belief, {42: belief.best + 40 * SIGMA}, False, NOISE)
    assert abs(far.best - belief.best) < 0.5 * SIGMA
    assert far.variance == pytest.approx(belief.variance, rel=0.05)


def test_runs_of_the_best_are_a_mean():
    belief = start({42: 0.998}, NOISE)
    for seed, value in ((43, 0.9986), (44, 0.9977)):
        belief = after_best_run(belief, seed, value, NOISE)
    assert belief.best == pytest.approx((0.998 + 0.9986 + 0.9977) / 3)
    assert belief.variance == pytest.approx(SIGMA**2 / 3)
    assert list(belief.runs) == [42, 43, 44]


def test_what_is_usual_is_learned():
    generator = random.Random(0)
    belief = BELIEF
    for _ in range(400):  # nothing is ever good, and the harm is small
        belief = after_candidate(belief, candidate(generator.gauss(-1, 1)), False, NOISE)
        assert 0 < belief.usual.share < 1 and belief.usual.gain > 0 and belief.usual.loss > 0
    assert belief.usual.share < 0.15
    assert belief.usual.loss < 2.5
    huge = after_candidate(BELIEF, candidate(-3000), False, NOISE)
    assert huge.usual.loss < Usual().loss + 0.3
