"""
The combinations of factors that are run: two levels each, in (1) and out (-1), in mirrored pairs.

Up to three factors all combinations are run. More: a Plackett-Burman design, folded over, that is each row and its
mirror (Box and Wilson 1951). In the difference of a row and its mirror whatever two factors do together cancels, so
what each is worth by itself is seen clear of pairs, in a few dozen runs instead of 2^factors. The best
(all in) and the baseline (all out) are a pair of it.
"""

import numpy
import pydoe

LEAST_RUNS = 24  # with fewer factors each row is run on several seeds, so that a factor's standard error is 0.4 sigma
SPARE = 3  # columns for no factor, from 8 factors on: the scatter that is left has four degrees of freedom or more


def half_design(factors: int) -> numpy.ndarray:
    """(pairs, factors) of 1 and -1: one row of each mirrored pair, all in first."""
    if factors <= 3:
        full = pydoe.ff2n(factors)
        rows = full[full[:, 0] > 0]
    else:
        rows = plackett_burman(factors)
    return rows[numpy.argsort(-rows.sum(axis=1), kind="stable")].astype(int)


def plackett_burman(factors: int) -> numpy.ndarray:
    """The smallest design that the library has for this number of factors: it has none of 28 rows, or of 36."""
    columns = factors if factors < 8 else factors + SPARE
    for size in range(columns, 4 * columns):
        try:
            return pydoe.pbdesign(size)[:, :factors]
        except ValueError:
            continue
    raise ValueError(f"no design for {factors} factors")


def seeds_per_row(factors: int) -> int:
    return -(-LEAST_RUNS // (2 * len(half_design(factors))))


def ordered_rows(factors: int, seeds: list[int]) -> list[tuple[int, tuple[int, ...], int]]:
    """(pair, levels, seed) in the order of running: pairs by chance, a row next to its mirror, on the same seed."""
    half, chance, rows = half_design(factors), numpy.random.default_rng(0), []
    for seed in seeds:
        for pair in chance.permutation(len(half)):
            for sign in chance.permutation([1, -1]):
                rows.append((int(pair), tuple((sign * half[pair]).tolist()), seed))
    return rows
