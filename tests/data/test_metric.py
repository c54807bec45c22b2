"""The metric of prepare_data.py: bits per byte, and the models that it refuses."""

import itertools
import math

import numpy as np
import pytest
import torch

import prepare_data
from prepare_data import MAX_SEQ_LEN, evaluate_bpb

VOCAB = 1024


class Model(torch.nn.Module):
    """A random table of bigram logits, put through `change(logits, inputs)`."""

    def __init__(self, change=lambda logits, inputs: logits, scale=1.0):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.table = torch.nn.Parameter(scale * torch.randn(VOCAB, VOCAB, generator=generator))
        self.change = change

    def forward(self, inputs):
        return self.change(self.table[inputs], inputs)


@pytest.mark.slow
def test_bpb_is_what_it_says(tokenizer):
    table = Model().table.detach().numpy().astype(np.float64)
    log_probabilities = table - np.log(np.exp(table).sum(1, keepdims=True))
    nats, size = 0.0, 0
    for row in prepare_data.load_rows("val").astype(int):
        for context, target in itertools.pairwise(row.tolist()):
            if target != tokenizer.get_bos_token_id():
                nats -= log_probabilities[context, target]
                size += len(tokenizer.encoding.decode_single_token_bytes(target))
    for batch_size in (1, 100, 100_000):
        assert evaluate_bpb(Model(), tokenizer, batch_size) == pytest.approx(nats / math.log(2) / size, rel=1e-7)


@pytest.mark.slow
def test_uniform_model(tokenizer):
    targets = prepare_data.load_rows("val")[:, 1:]
    tokens = np.sum(targets != tokenizer.get_bos_token_id())
    expected = math.log2(VOCAB) * tokens / tokenizer.token_bytes()[targets].sum()
    assert evaluate_bpb(Model(scale=0), tokenizer, 64) == pytest.approx(expected, rel=1e-7)
    # A vocabulary padded to a rounder size is allowed.
    padded = Model(lambda logits, inputs: torch.nn.functional.pad(logits, (0, 64), value=-math.inf), scale=0)
    assert evaluate_bpb(padded, tokenizer, 64) == pytest.approx(expected, rel=1e-7)


def next_token(logits, inputs):
    return logits + 10 * torch.nn.functional.one_hot(inputs.roll(-1, 1), VOCAB)


def first_sees_last(logits, inputs):
    return torch.cat((logits[:, :1] + logits[:, -1:], logits[:, 1:]), 1)


def mean_of_all(logits, inputs):
    return logits + logits.mean(1, keepdim=True)


def far_ahead(logits, inputs):
    return logits + 0.3 * logits.roll(-MAX_SEQ_LEN // 2, 1)


@pytest.mark.parametrize("batch_size", [1, 16])
@pytest.mark.parametrize("leak", [next_token, first_sees_last, mean_of_all, far_ahead])
def test_model_that_looks_ahead(tokenizer, leak, batch_size):
    with pytest.raises(ValueError, match="not causal"):
        evaluate_bpb(Model(leak), tokenizer, batch_size)


def nan_everywhere(logits, inputs):
    return logits * math.nan


def nan_for_some_token(logits, inputs):
    return torch.where(inputs[..., None] == 1000, math.nan, logits)


def infinite(logits, inputs):
    return logits + math.inf


@pytest.mark.parametrize("change", [nan_everywhere, nan_for_some_token, infinite])
def test_logits_that_are_not_finite(tokenizer, change):
    with pytest.raises(ValueError, match="not finite"):
        evaluate_bpb(Model(change), tokenizer, 32)


@pytest.mark.parametrize(
    "change",
    [
        lambda logits, inputs: logits[:, :, :-1],
        lambda logits, inputs: logits[:, :-1],
        lambda logits, inputs: logits.mean(),
        lambda logits, inputs: logits.flatten(0, 1),
        lambda logits, inputs: (logits, None),
    ],
)
def test_logits_of_another_shape(tokenizer, change):
    with pytest.raises(ValueError, match="the logits are"):
        evaluate_bpb(Model(change), tokenizer, 32)
