"""The analysis of an ablation, where the truth is known: it is right as often as it says."""

import itertools

import numpy
import pytest

from autoresearch.nouns import Noise
from autoresearch.prove.design import half_design, ordered_rows, seeds_per_row
from autoresearch.prove.effects import Pair, analyse, p_of_worse, paired_difference

SIGMA = 0.005
TRUTH = [0.3, 0.1, 0.05, 0.02, 0.02, 0.0, -0.03]


def measured_pairs(truth, chance, pairwise=0.0, seeds=(1,)) -> list[Pair]:
    """Runs whose val_bpb is the sum of what is in, a bit for each two that are in together, the seed's, and noise."""
    pairs = []
    for seed in seeds:
        offset = chance.normal(0, SIGMA)

        def run(levels, offset=offset):
            inside = (numpy.array(levels) + 1) / 2
            together = pairwise * sum(inside[a] * inside[b] for a, b in itertools.combinations(range(len(inside)), 2))
            return 2 - inside @ truth - together + offset + chance.normal(0, SIGMA)

        for row in half_design(len(truth)).tolist():
            pairs.append(Pair(tuple(row), run(row), run([-level for level in row]), seed))
    return pairs


@pytest.mark.parametrize("factors", range(1, 30))
def test_a_design_is_balanced_and_has_best_and_baseline(factors):
    half = half_design(factors)
    assert half[0].tolist() == [1] * factors
    rows = numpy.vstack([half, -half])
    assert (rows.T @ rows == len(rows) * numpy.eye(factors)).all(), "no effect is mixed with another"
    triples = itertools.combinations_with_replacement(range(factors), 3) if factors < 8 else ()
    assert all((rows[:, a] * rows[:, b] * rows[:, c]).sum() == 0 for a, b, c in triples), "or with a pair"
    order = ordered_rows(factors, [7] * seeds_per_row(factors))
    assert len(order) >= 24 and len({levels for _, levels, _ in order}) == len(rows)
    assert len(order) / 2 - factors >= 4, "pairs are left to show their own scatter"
    assert all(
        one[1] == tuple(-level for level in other[1]) for one, other in zip(order[::2], order[1::2], strict=True)
    )


@pytest.mark.slow
@pytest.mark.parametrize("known", [Noise(SIGMA, 4), Noise(SIGMA, 40)])
def test_effects_lie_within_their_intervals_and_what_does_nothing_is_rarely_called_real(known):
    chance, inside, real, harmful, sums = numpy.random.default_rng(5), [], 0, 0, []
    for _ in range(400):
        effects = analyse(measured_pairs(numpy.array(TRUTH), chance, pairwise=0.01), known)
        truth = numpy.array(TRUTH) + 0.01 * 6 / 2  # the others are in half of the time
        inside.append([worth.low < true < worth.high for worth, true in zip(effects.worths, truth, strict=True)])
        nothing = analyse(measured_pairs(numpy.array([*TRUTH[:5], 0.0, 0.0]), chance), known).worths[5]
        real, harmful = real + (nothing.verdict == "real"), harmful + (nothing.verdict == "harmful")
        sums.append(abs(effects.sum - effects.total) < 2.6 * numpy.hypot(effects.sum_error, effects.total_error))
    assert numpy.mean(inside) > 0.90, "of 95 %"
    assert real <= 0.05 * 400 and harmful <= 0.05 * 400
    assert numpy.mean(sums) > 0.95


def test_large_effects_are_found_and_dependence_shows():
    chance, found, seen, false = numpy.random.default_rng(6), 0, 0, 0
    for _ in range(100):
        effects = analyse(measured_pairs(numpy.array(TRUTH), chance), Noise(SIGMA, 20))
        verdicts = [worth.verdict for worth in effects.worths]
        found += verdicts[:5] == ["real"] * 5 and verdicts[6] == "harmful"
        false += effects.dependence_p < 0.05
        seen += analyse(measured_pairs(numpy.array(TRUTH), chance, 0.02), Noise(SIGMA, 20)).dependence_p < 0.05
    assert found >= 90 and seen >= 90 and false <= 12


def test_a_pair_that_is_missing_costs_precision_and_too_few_are_refused():
    pairs = measured_pairs(numpy.array(TRUTH), numpy.random.default_rng(7))
    whole, part = analyse(pairs, Noise(SIGMA, 20)), analyse(pairs[1:], Noise(SIGMA, 20))
    assert part.worths[0].standard_error > whole.worths[0].standard_error and numpy.isnan(part.total)
    with pytest.raises(ValueError, match="too few"):
        analyse(pairs[:6], Noise(SIGMA, 20))


def test_what_is_no_worse_within_the_noise_is_accepted():
    chance, refused, passed = numpy.random.default_rng(8), 0, 0
    for _ in range(400):
        best = {seed: 1 + chance.normal(0, SIGMA) for seed in range(3)}
        same = {seed: 1 + chance.normal(0, SIGMA) for seed in range(3)}
        worse = {seed: 1 + 4 * SIGMA + chance.normal(0, SIGMA) for seed in range(3)}
        refused += p_of_worse(paired_difference(same, best, SIGMA), 30) < 0.05
        passed += p_of_worse(paired_difference(worse, best, SIGMA), 30) >= 0.05
    assert refused <= 40 and passed <= 10
