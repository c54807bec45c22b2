"""A best that is known, and candidates so many sigma better."""

from autoresearch.judge.belief import start
from autoresearch.nouns import Noise

SIGMA = 0.0003
NOISE = Noise(SIGMA, 20)
BASELINE = {42: 0.9981, 43: 0.9980, 44: 0.9979}
BELIEF = start(BASELINE, NOISE)


def candidate(*gains: float) -> dict[int, float]:
    """Runs of a candidate, from gains in sigma over the baseline."""
    return {42 + number: BELIEF.best - gain * SIGMA for number, gain in enumerate(gains)}
