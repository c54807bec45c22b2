"""The depth of a train.py: this project's own, at both scales."""

import pytest
from shipped import TRAIN

from autoresearch.prove.depth import bound_constants, depth_of, with_depth


@pytest.mark.parametrize("scale", ["h100", "cpu"])
def test_the_depth_of_a_scale_is_changed_and_nothing_else(scale):
    depth, other = depth_of(TRAIN, scale), "cpu" if scale == "h100" else "h100"
    deeper = with_depth(TRAIN, scale, 2 * depth)
    assert depth_of(deeper, scale) == 2 * depth and depth_of(deeper, other) == depth_of(TRAIN, other)
    changed = [pair for pair in zip(TRAIN.splitlines(), deeper.splitlines(), strict=True) if pair[0] != pair[1]]
    assert len(changed) == 1 and f"DEPTH = {2 * depth}" in changed[0][1]
    assert with_depth(deeper, scale, depth) == TRAIN


def test_a_train_py_without_the_dial_is_refused():
    for source in ("x = 1\n", "DEPTH = 2 * 3\n", "DEPTH = 1.5\n"):
        with pytest.raises(ValueError, match="no DEPTH"):
            depth_of(source, "cpu")


def test_what_no_rule_ties_to_the_depth_is_listed():
    source = """
DEPTH = 2
REFERENCE = 2
MATRIX_LR = 0.04
HEAD_LR = 0.1
TOTAL_BATCH_SIZE = 2048
ROTARY_BASE = 10_000
ratio = DEPTH / REFERENCE
batch = round(TOTAL_BATCH_SIZE * ratio**0.4)
width = (model.config.n_embd / 768) ** -0.5
group(HEAD_LR * width)
muon(MATRIX_LR)
"""
    assert bound_constants(source, "cpu") == ["MATRIX_LR"]


@pytest.mark.parametrize("scale", ["h100", "cpu"])
def test_rules_tie_rates_batch_and_matrices_of_this_train_py_to_its_depth(scale):
    bound = bound_constants(TRAIN, scale)
    assert bound and all(name.endswith("_WEIGHT_DECAY") and not name.startswith("MATRIX") for name in bound)
