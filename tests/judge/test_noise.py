"""The noise of a run: pooled over sources, and what of it is a seed's."""

import math

import numpy
import pytest

from autoresearch.judge.noise import (
    drift,
    mean,
    paired,
    pooled_noise,
    seed_offsets,
    seed_share,
    winsorized,
    without_seed,
)
from autoresearch.nouns import Noise


def test_one_unstable_source_does_not_set_the_noise():
    prior = Noise(0.0085, 2)
    sources = [{42: 1.90, 43: 1.908, 44: 1.895}, *({42: 1.9 + 0.001 * n} for n in range(25))]
    unstable = {42: 1.62, 43: 1.95}
    before, after = (pooled_noise(winsorized(each, prior), prior).sigma for each in (sources, [*sources, unstable]))
    assert pooled_noise([*sources, unstable], prior).sigma > 0.1 and after < 2 * before
    assert winsorized(sources, prior) == sources


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


@pytest.mark.parametrize(("sigma", "said"), [(1.0, ""), (3.0, "chance for gains"), (0.1, "gains for chance")])
def test_repeats_that_disagree_with_the_first_noise_are_told(sigma, said):
    """With the noise that it started with, a false alarm is rare."""
    chance, lines = numpy.random.default_rng(1), []
    for _ in range(100):
        baseline, *others = (dict(enumerate(chance.normal(2, s, 3))) for s in (0.01, *[0.01 * sigma] * 8))
        lines.append(drift(Noise(0.01, 2), baseline, [baseline, *others]))
    told = [line for line in lines if line]
    assert len(told) >= 90 and all(said in line for line in told) if said else len(told) <= 8
    assert not drift(Noise(0.01, 2), {42: 2.0}, [{42: 2.0}, {42: 1.0}])
