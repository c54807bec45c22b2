"""The keep rule: tables of cases, and properties that hold for any numbers."""

import itertools
import math
import random

import pytest
from candidates import BASELINE, BELIEF, NOISE, SIGMA, candidate

from autoresearch.judge import keep_rule
from autoresearch.judge.belief import after_best_run, start
from autoresearch.judge.keep_rule import confirmed_best, confirmed_gain, decide, fresh_seeds, judge, reconsider
from autoresearch.nouns import Noise


def status(*gains: float, **facts) -> str:
    return judge(candidate(*gains), BELIEF, NOISE, **facts).status


@pytest.mark.parametrize(
    ("gains", "expected"),
    [
        ((10,), "keep"),
        ((4,), "keep"),
        ((1.8,), "again"),
        ((0.5,), "discard"),
        ((0,), "discard"),
        ((-3,), "discard"),
        ((-1000,), "discard"),
        ((1.8, 1.8), "keep"),
        ((1.8, -0.5), "discard"),
        ((1.8, -5), "discard"),
    ],
)
def test_verdicts(gains, expected):
    assert status(*gains) == expected


def test_a_larger_gain_never_does_worse():
    order = {"discard": 0, "again": 1, "keep": 2}
    for first in (None, -1.0, 1.5, 1.8, 3.0):
        for facts in ({}, {"statements_less": 10}):
            known = () if first is None else (first,)
            gains = [step / 20 for step in range(-400, 400)]
            gains = [gain for gain in gains if first is None or abs(gain - first) < 7]  # further apart: unstable
            steps = [order[status(*known, gain, **facts)] for gain in gains]
            assert steps == sorted(steps)


def test_a_candidate_whose_runs_differ_by_far_more_than_others_is_not_kept():
    assert status(30, 30) == "keep" and status(30, 24) == "keep"
    assert status(30, 20) == "discard", "ten times the noise between two runs"


def test_only_the_difference_counts():
    for shift, factor in itertools.product((0, 0.5, -0.3), (1, 10)):
        noise = Noise(SIGMA * factor, 20)
        belief = start({seed: shift + 0.998 + factor * (value - 0.998) for seed, value in BASELINE.items()}, noise)
        for gain in (-2, 0.5, 1.8, 3):
            verdict = judge({42: belief.best - gain * noise.sigma}, belief, noise)
            assert verdict.status == status(gain)
            assert verdict.gain == pytest.approx(gain * noise.sigma)


def test_again_names_an_unused_seed_and_others_none():
    verdict = judge(candidate(1.8), BELIEF, NOISE)
    assert (verdict.status, verdict.next_seed) == ("again", 43)
    assert judge(candidate(9), BELIEF, NOISE).next_seed is None


def test_a_near_miss_gets_a_second_look_when_the_best_was_lucky():
    belief = start({42: 0.998}, NOISE)
    near = [{42: belief.best - gain * SIGMA} for gain in (-1, 1.2, 0.5)]
    assert judge(near[1], belief, NOISE).status == "discard"
    assert reconsider(near, belief, NOISE) is None
    assert reconsider([], belief, NOISE) is None
    for seed in (43, 44, 45):
        belief = after_best_run(belief, seed, 0.9984, NOISE)
    number, verdict = reconsider(near, belief, NOISE)
    assert number == 1 and verdict.status in ("again", "keep")


def test_the_number_of_runs_is_limited(monkeypatch):
    for most in (1, 2, 4):
        for name, value in {"MAX_RUNS": most, "KEEP_AT_ONCE": 0.999, "KEEP_AT_LAST": 0.001}.items():
            monkeypatch.setattr(keep_rule, name, value)
        assert judge(candidate(*[1.5] * most), BELIEF, NOISE).status in ("keep", "discard")
        if most > 1:
            assert judge(candidate(*[1.5] * (most - 1)), BELIEF, NOISE).status == "again"


def test_the_baseline_is_repeated_then_kept():
    assert judge({42: 0.998}, None, NOISE, 2).next_seed == 43
    assert judge({42: 0.998, 43: 0.998}, None, NOISE, 2).status == "again"
    assert judge(BASELINE, None, NOISE, 2).status == "keep"
    assert judge({42: 0.998}, None, NOISE).status == "keep"


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 0.0, -0.5, 20.0, 1e300])
def test_implausible_numbers_are_invalid(value):
    for runs, belief in (({42: value}, BELIEF), ({42: 0.9, 43: value}, BELIEF), ({42: value}, None)):
        verdict = judge(runs, belief, NOISE)
        assert verdict.status == "invalid"
        assert "plausible" in verdict.reason


def test_no_run_is_an_error():
    with pytest.raises(ValueError, match="without a run"):
        judge({}, BELIEF, NOISE)


def test_memory_over_the_limit_is_dropped_and_said():
    verdict = judge(candidate(9), BELIEF, NOISE, memory_gb=81.25, memory_limit_gb=80)
    assert verdict.status == "discard"
    assert "81.2 GB" in verdict.reason and "80.0 GB" in verdict.reason
    assert status(9, memory_gb=80, memory_limit_gb=80) == "keep"
    assert status(9, memory_gb=math.nan, memory_limit_gb=80) == "discard"


@pytest.mark.parametrize(
    ("gains", "lines", "expected"),
    [
        ((0,), 4, "discard"),
        ((0,), -50, "discard"),
        ((0.5,), 5, "keep"),
        ((0, 0), 20, "keep"),
        ((-4,), 100, "discard"),
        ((5,), 100, "keep"),
    ],
)
def test_simplifications(gains, lines, expected):
    verdict = judge(candidate(*gains), BELIEF, NOISE, statements_less=lines)
    assert verdict.status == expected
    assert ("statements less" in verdict.reason) == (lines >= 5 and gains != (5,))


def test_a_gain_too_good_for_one_change_is_measured_twice(monkeypatch):
    good = {42: BELIEF.best * 0.95}
    verdict = judge(good, BELIEF, NOISE)
    assert (verdict.status, verdict.suspicious, verdict.next_seed) == ("again", True, 43)
    confirmed = judge(good | {43: BELIEF.best * 0.951}, BELIEF, NOISE)
    assert (confirmed.status, confirmed.suspicious) == ("keep", True)
    assert "suspicious" in confirmed.reason
    assert judge(good | {43: BELIEF.best * 1.2}, BELIEF, NOISE).status == "discard"
    assert not judge(candidate(5), BELIEF, NOISE).suspicious
    monkeypatch.setattr(keep_rule, "MAX_RUNS", 1)
    assert judge(good, BELIEF, NOISE).status == "again"


def test_the_confirmed_best_is_the_mean_of_fresh_seeds():
    confirmed = confirmed_best({44: 0.994, 45: 0.996}, NOISE)
    assert (confirmed.val_bpb, confirmed.runs) == (pytest.approx(0.995), 2)
    assert confirmed.standard_error == pytest.approx(SIGMA / math.sqrt(2))
    assert confirmed_best({}, NOISE) is None
    assert fresh_seeds({42: 0.990, 45: 0.996}, 2) == [46, 47]


def test_the_confirmed_gain_is_over_the_baseline_on_the_same_seeds():
    gain = confirmed_gain({45: 0.99, 46: 0.98, 47: 0.9}, {42: 2.0, 45: 1.0, 46: 1.01}, NOISE)
    assert (gain.val_bpb, gain.runs) == (pytest.approx(0.02), 2)
    assert gain.standard_error == pytest.approx(SIGMA)
    assert confirmed_gain({45: 0.99}, {42: 1.0}, NOISE) is None


def test_no_gain_is_seldom_kept():
    generator = random.Random(1)
    kept = 0
    for _ in range(2000):
        belief = start({seed: 0.998 + generator.gauss(0, SIGMA) for seed in range(3)}, NOISE)
        runs, verdict = {}, None
        while verdict is None or verdict.status == "again":
            runs[len(runs)] = 0.998 + generator.gauss(0, SIGMA)
            verdict = judge(runs, belief, NOISE)
        kept += verdict.status == "keep"
    assert 0.02 < kept / 2000 < 0.16  # a coin flip under a greedy rule with an honest bar


@pytest.mark.parametrize(
    ("probability", "text"), [(0.797, "0.797"), (0.8, "0.80"), (0.12, "0.12"), (0.69999, "0.69999"), (0.5, "0.50")]
)
def test_a_probability_is_shown_on_its_side_of_the_thresholds(probability, text):
    status, said = decide(probability, 1)
    assert f"probability {text} after 1 run" in said
    assert (status == "keep") == (probability >= 0.8)
