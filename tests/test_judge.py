"""The keep rule: tables of cases, and properties that hold for any numbers."""

import itertools
import math
import random

import numpy
import pytest

from judge import (
    KeepRule,
    Noise,
    Usual,
    after_best_run,
    after_candidate,
    confirmed_best,
    cut_normal,
    fresh_seeds,
    judge,
    log_mills,
    mean,
    paired,
    pooled_noise,
    posterior,
    probability_above,
    reconsider,
    seed_offsets,
    seed_share,
    start,
    without_seed,
)

SIGMA = 0.0003
NOISE = Noise(SIGMA, 20)
RULE = KeepRule()
BASELINE = {42: 0.9981, 43: 0.9980, 44: 0.9979}
BELIEF = start(BASELINE, NOISE)


def candidate(*gains: float) -> dict[int, float]:
    """Runs of a candidate, from gains in sigma over the baseline."""
    return {42 + number: BELIEF.best - gain * SIGMA for number, gain in enumerate(gains)}


def status(*gains: float, **facts) -> str:
    return judge(candidate(*gains), BELIEF, NOISE, RULE, **facts).status


# -----------------------------------------------------------------------------
# The verdict


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
        for facts in ({}, {"lines_removed": 10}):
            known = () if first is None else (first,)
            steps = [order[status(*known, step / 20, **facts)] for step in range(-400, 400)]
            assert steps == sorted(steps)


def test_only_the_difference_counts():
    for shift, factor in itertools.product((0, 0.5, -0.3), (1, 10)):
        noise = Noise(SIGMA * factor, 20)
        belief = start({seed: shift + 0.998 + factor * (value - 0.998) for seed, value in BASELINE.items()}, noise)
        for gain in (-2, 0.5, 1.8, 3):
            verdict = judge({42: belief.best - gain * noise.sigma}, belief, noise, RULE)
            assert verdict.status == status(gain)
            assert verdict.gain == pytest.approx(gain * noise.sigma)


def test_again_names_an_unused_seed_and_others_none():
    verdict = judge(candidate(1.8), BELIEF, NOISE, RULE)
    assert (verdict.status, verdict.next_seed) == ("again", 43)
    assert judge(candidate(9), BELIEF, NOISE, RULE).next_seed is None


def test_a_near_miss_gets_a_second_look_when_the_best_was_lucky():
    belief = start({42: 0.998}, NOISE)
    near = [{42: belief.best - gain * SIGMA} for gain in (-1, 1.2, 0.5)]
    assert judge(near[1], belief, NOISE, RULE).status == "discard"
    assert reconsider(near, belief, NOISE, RULE) is None
    assert reconsider([], belief, NOISE, RULE) is None
    for seed in (43, 44, 45):
        belief = after_best_run(belief, seed, 0.9984, NOISE)
    number, verdict = reconsider(near, belief, NOISE, RULE)
    assert number == 1 and verdict.status in ("again", "keep")


def test_the_number_of_runs_is_limited():
    for most in (1, 2, 4):
        rule = KeepRule(max_runs=most, keep_at_once=0.999, keep_at_last=0.001)
        assert judge(candidate(*[1.5] * most), BELIEF, NOISE, rule).status in ("keep", "discard")
        if most > 1:
            assert judge(candidate(*[1.5] * (most - 1)), BELIEF, NOISE, rule).status == "again"


def test_the_baseline_is_repeated_then_kept():
    assert judge({42: 0.998}, None, NOISE, RULE).next_seed == 43
    assert judge({42: 0.998, 43: 0.998}, None, NOISE, RULE).status == "again"
    assert judge(BASELINE, None, NOISE, RULE).status == "keep"
    assert judge({42: 0.998}, None, NOISE, KeepRule(baseline_repeats=0)).status == "keep"


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 0.0, -0.5, 20.0, 1e300])
def test_implausible_numbers_are_invalid(value):
    for runs, belief in (({42: value}, BELIEF), ({42: 0.9, 43: value}, BELIEF), ({42: value}, None)):
        verdict = judge(runs, belief, NOISE, RULE)
        assert verdict.status == "invalid"
        assert "plausible" in verdict.reason


def test_no_run_is_an_error():
    with pytest.raises(ValueError, match="without a run"):
        judge({}, BELIEF, NOISE, RULE)


def test_memory_over_the_limit_is_dropped_and_said():
    verdict = judge(candidate(9), BELIEF, NOISE, RULE, memory_gb=81.25, memory_limit_gb=80)
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
    verdict = judge(candidate(*gains), BELIEF, NOISE, RULE, lines_removed=lines)
    assert verdict.status == expected
    assert ("lines less" in verdict.reason) == (lines >= 5 and gains != (5,))


def test_a_gain_too_good_for_one_change_is_measured_twice():
    good = {42: BELIEF.best * 0.95}
    verdict = judge(good, BELIEF, NOISE, RULE)
    assert (verdict.status, verdict.suspicious, verdict.next_seed) == ("again", True, 43)
    once = judge(good, BELIEF, NOISE, KeepRule(max_runs=1))
    assert once.status == "again"
    confirmed = judge(good | {43: BELIEF.best * 0.951}, BELIEF, NOISE, RULE)
    assert (confirmed.status, confirmed.suspicious) == ("keep", True)
    assert "suspicious" in confirmed.reason
    assert judge(good | {43: BELIEF.best * 1.2}, BELIEF, NOISE, RULE).status == "discard"
    assert not judge(candidate(5), BELIEF, NOISE, RULE).suspicious


# -----------------------------------------------------------------------------
# The statistics


def test_pooled_noise_is_numpys_pooled_variance():
    generator = numpy.random.default_rng(0)
    groups = [generator.normal(1, 0.01, size) for size in (1, 2, 3, 7)]
    sources = [dict(enumerate(map(float, group))) for group in groups]
    squares = sum(group.var(ddof=1) * (len(group) - 1) for group in groups if len(group) > 1)
    noise = pooled_noise(sources, Noise(0, 0))
    assert noise.degrees_of_freedom == 9
    assert noise.sigma == pytest.approx(math.sqrt(squares / 9))
    with_prior = pooled_noise(sources, Noise(0.02, 4))
    assert with_prior.sigma == pytest.approx(math.sqrt((squares + 4 * 0.02**2) / 13))


def test_pooled_noise_without_repeats():
    assert pooled_noise([{42: 1.0}], Noise(0.01, 4)) == Noise(0.01, 4)
    assert pooled_noise([{42: 1.0, 43: 1.0}], Noise(0, 0)).sigma > 0
    with pytest.raises(ValueError, match="two runs"):
        pooled_noise([{42: 1.0}], Noise(0.01, 0))


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


def test_the_confirmed_best_leaves_out_what_was_judged():
    judged, runs = {42: 0.990, 43: 0.992}, {42: 0.990, 43: 0.992, 44: 0.994, 45: 0.996}
    confirmed = confirmed_best(runs, judged, NOISE)
    assert (confirmed.val_bpb, confirmed.runs) == (pytest.approx(0.995), 2)
    assert confirmed.standard_error == pytest.approx(SIGMA / math.sqrt(2))
    assert confirmed_best(judged, judged, NOISE) is None
    assert fresh_seeds(runs, 2) == [46, 47]


def test_no_gain_is_seldom_kept():
    generator = random.Random(1)
    kept = 0
    for _ in range(2000):
        belief = start({seed: 0.998 + generator.gauss(0, SIGMA) for seed in range(3)}, NOISE)
        runs, verdict = {}, None
        while verdict is None or verdict.status == "again":
            runs[len(runs)] = 0.998 + generator.gauss(0, SIGMA)
            verdict = judge(runs, belief, NOISE, RULE)
        kept += verdict.status == "keep"
    assert 0.02 < kept / 2000 < 0.16  # a coin flip under a greedy rule with an honest bar


# -----------------------------------------------------------------------------
# Pairing


def two_way_table(sources: int, seeds: int, share: float, generator) -> list[dict[int, float]]:
    """Runs of sources on the same seeds, with noise of variance 1 of which `share` is the seeds'."""
    own, of_seed = math.sqrt(1 - share), generator.normal(0, math.sqrt(share), seeds)
    levels = generator.normal(0, 10, sources)
    return [
        {seed: float(level + of_seed[seed] + generator.normal(0, own)) for seed in range(seeds)} for level in levels
    ]


def test_a_seed_that_moves_all_sources_alike_is_taken_off():
    sources = [{1: 2.0 + level, 2: 2.2 + level, 3: 2.1 + level} for level in (0.0, 0.5, 1.0, 1.5)]
    offsets = seed_offsets(sources, 0.3)
    assert offsets[2] == pytest.approx(-offsets[1]) and offsets[3] == pytest.approx(0, abs=1e-12)
    assert 0.05 < offsets[2] < 0.1  # shrunk
    assert without_seed({2: 2.2, 9: 2.2}, offsets) == {2: 2.2 - offsets[2], 9: 2.2}
    assert mean(without_seed(sources[0], offsets)) == pytest.approx(2.1)


def test_the_more_sources_the_less_shrinkage():
    pair = {1: 1.0, 2: 2.0}
    for share in (0.1, 0.5, 0.9):
        sizes = [seed_offsets([pair] * count, share)[2] for count in (1, 2, 8, 1000)]
        assert sizes == sorted(sizes) and sizes[0] == pytest.approx(share * 0.5) and 0.49 < sizes[-1] < 0.5
    assert seed_offsets([pair], 0.0) == seed_offsets([{1: 1.0}, {}], 0.5) == {}


def test_offsets_are_the_conditional_mean_of_a_normal():
    """With known levels taken off by contrasts, the prediction is E[seeds | differences within the sources]."""
    sources = [{0: 1.0, 1: 1.4, 2: 0.7}, {0: 5.0, 1: 5.1}, {1: 3.0, 3: 2.2}]
    share, contrasts, values = 0.4, [], []
    for number, runs in enumerate(sources):
        for seed in list(runs)[1:]:
            first = next(iter(runs))
            contrasts.append({("seed", seed): 1, ("seed", first): -1, (number, seed): 1, (number, first): -1})
            values.append(runs[seed] - runs[first])
    variance = lambda key: share if key[0] == "seed" else 1 - share  # noqa: E731
    covariance = [[sum(a[key] * b.get(key, 0) * variance(key) for key in a) for b in contrasts] for a in contrasts]
    with_seed = numpy.array([[c.get(("seed", seed), 0) * share for c in contrasts] for seed in range(4)])
    expected = with_seed @ numpy.linalg.solve(covariance, values)
    offsets = seed_offsets(sources, share)
    assert [offsets[seed] for seed in range(4)] == pytest.approx(list(expected))


@pytest.mark.parametrize("share", [0.0, 0.3, 0.7])
def test_the_share_of_the_seeds_is_found(share):
    generator = numpy.random.default_rng(1)
    found = [seed_share(two_way_table(12, 12, share, generator), 0.3) for _ in range(60)]
    assert numpy.mean(found) == pytest.approx(share, abs=0.06)
    assert all(0 <= each <= 0.9 for each in found)


def test_the_share_starts_as_expected_and_follows_the_data():
    alone = [{1: 1.0}, {1: 2.0}]
    one = [{1: 1.0, 2: 1.1, 3: 1.3}]  # a single source cannot tell seeds from chance
    for prior in (0.0, 0.3, 0.6):
        assert seed_share([], prior) == seed_share(alone, prior) == prior
        assert seed_share(one, prior) == pytest.approx(prior)
        assert seed_share([{1: 1.0, 2: 1.0}], prior) == prior  # no noise at all
    alike = [{1: level, 2: level + 1.0, 3: level - 0.5} for level in range(8)]
    apart = [{1: 0.0, 2: (-1.0) ** level, 3: 0.0} for level in range(8)]
    shares = [seed_share(alike[:count], 0.3) for count in range(1, 9)]
    assert shares == sorted(shares) and shares[-1] > 0.7
    assert seed_share(apart, 0.3) < 0.15


def test_seeds_that_are_never_shared_tell_nothing():
    apart = [{2 * source: 1.0, 2 * source + 1: 1.0 + 0.1 * source} for source in range(1, 9)]
    assert seed_share(apart, 0.3) == pytest.approx(0.3)


def test_pairing_leaves_less_noise():
    noise, pairs = Noise(0.01, 5), [{1: level, 2: level + 1.0} for level in range(10_000)]
    left = [paired(noise, pairs[:count], 0.6).sigma for count in (0, 1, 4, 10_000)]
    assert left == sorted(left, reverse=True) and left[0] == noise.sigma
    assert left[-1] == pytest.approx(noise.sigma * math.sqrt(0.4), rel=1e-3)
    assert paired(noise, pairs[:1], 0.0) == paired(noise, [{1: 1.0}], 0.9) == noise


def test_chance_is_no_more_than_many_sources_differ_by_on_one_seed():
    generator = numpy.random.default_rng(3)
    noise, baseline = Noise(0.01, 5), {42: 1.0, 43: 1.03}
    narrow = [baseline, *({42: 1.0 + value} for value in generator.normal(0, 0.003, 300))]
    assert paired(noise, narrow, 0.3).sigma == pytest.approx(0.003, rel=0.15)
    few = paired(noise, narrow[:6], 0.3).sigma
    assert 0.003 < few < paired(noise, [baseline], 0.3).sigma
    wide = [baseline, *({42: 1.0 + value} for value in generator.normal(0, 0.05, 300))]
    assert paired(noise, wide, 0.3) == paired(noise, [baseline], 0.3)
    outliers = [*narrow, *({42: 3.0 + number} for number in range(30))]
    assert paired(noise, outliers, 0.3).sigma < 0.005
    assert paired(noise, [{42: 1.0}] * 1000, 0.3).sigma > 0
