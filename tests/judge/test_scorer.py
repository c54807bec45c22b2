"""The number: a model handed over as a graph, what a graph may be, and the models that the scorer refuses."""

import itertools
import json
import math
import os
import signal

import numpy as np
import pytest
import torch

import prepare_data
from autoresearch.guard import processes_below
from autoresearch.judge import scorer
from autoresearch.judge.graph import find_operator, load_graph
from autoresearch.run.scoring import score_once
from prepare_data import MAX_SEQ_LEN, SCALE, Tokenizer, evaluate_bpb, hand_over

VOCAB = 1024
torch.set_num_threads(1)


class Model(torch.nn.Module):
    """A random table of bigram logits, put through `change(logits, inputs)`."""

    def __init__(self, change=lambda logits, inputs: logits, scale=1.0):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.table = torch.nn.Parameter(scale * torch.randn(VOCAB, VOCAB, generator=generator))
        self.change = change

    def forward(self, inputs):
        return self.change(self.table[inputs], inputs)


@pytest.fixture(scope="session")
def tokenizer(prepared):
    return Tokenizer.from_directory()


@pytest.fixture
def said(tmp_path, tokenizer):
    """A function: hand a model over, and give the scorer's answer, without a process for it."""

    def score(model, batch_size=16, rows=128):
        hand_over(model, VOCAB, batch_size, tmp_path)
        files = [os.open(tmp_path / name, os.O_RDONLY) for name in ("graph.json", "tensors.bin")]
        return scorer.answer(*files, prepare_data.load_rows("val")[:rows], tokenizer.token_bytes())

    return score


# -----------------------------------------------------------------------------
# The number


@pytest.mark.slow
def test_bpb_is_what_it_says(tokenizer, said):
    table = Model().table.detach().numpy().astype(np.float64)
    log_probabilities = table - np.log(np.exp(table).sum(1, keepdims=True))
    nats, size = 0.0, 0
    for row in prepare_data.load_rows("val").astype(int):
        for context, target in itertools.pairwise(row.tolist()):
            if target != tokenizer.get_bos_token_id():
                nats -= log_probabilities[context, target]
                size += len(tokenizer.encoding.decode_single_token_bytes(target))
    expected = pytest.approx(nats / math.log(2) / size, rel=1e-7)
    for batch_size in (1, 100, 100_000):
        assert said(Model(), batch_size, rows=None)["val_bpb"] == expected
    assert evaluate_bpb(Model(), tokenizer, 100) == expected  # by hand: the same scorer, in its sandbox


def test_the_test_rows_are_scored_where_they_are_asked_for(tmp_path, tokenizer, said):
    model = Model(scale=0.5)
    assert "test_bpb" not in said(model, rows=16)
    files = [os.open(tmp_path / name, os.O_RDONLY) for name in ("graph.json", "tensors.bin")]
    test_rows, sizes = prepare_data.load_rows("test")[:32], tokenizer.token_bytes()
    both = scorer.answer(*files, prepare_data.load_rows("val")[:16], sizes, test_rows)
    files = [os.open(tmp_path / name, os.O_RDONLY) for name in ("graph.json", "tensors.bin")]
    assert both["test_bpb"] == pytest.approx(scorer.answer(*files, test_rows, sizes)["val_bpb"])
    assert both["test_bpb"] != pytest.approx(both["val_bpb"], rel=1e-3)


def test_uniform_model(tokenizer, said):
    targets = prepare_data.load_rows("val")[:128, 1:]
    tokens = np.sum(targets != tokenizer.get_bos_token_id())
    expected = math.log2(VOCAB) * tokens / tokenizer.token_bytes()[targets].sum()
    assert said(Model(scale=0))["val_bpb"] == pytest.approx(expected, rel=1e-7)
    # A vocabulary padded to a rounder size is allowed.
    padded = Model(lambda logits, inputs: torch.nn.functional.pad(logits, (0, 64), value=-math.inf), scale=0)
    assert said(padded)["val_bpb"] == pytest.approx(expected, rel=1e-7)


def test_a_refusal_reaches_who_runs_it_by_hand(tmp_path, tokenizer):
    hand_over(Model(lambda logits, inputs: logits.flip(1)), VOCAB, 16, tmp_path)
    with pytest.raises(ValueError, match="not causal"):
        score_once(tmp_path, SCALE)


# -----------------------------------------------------------------------------
# What a model may not do


def next_token(logits, inputs):
    return logits + 10 * torch.nn.functional.one_hot(inputs.roll(-1, 1), VOCAB)


def first_sees_last(logits, inputs):
    return torch.cat((logits[:, :1] + logits[:, -1:], logits[:, 1:]), 1)


def mean_of_all(logits, inputs):
    return logits + logits.mean(1, keepdim=True)


def far_ahead(logits, inputs):
    return logits + 0.3 * logits.roll(-MAX_SEQ_LEN // 2, 1)


def aligned_pairs(logits, inputs):
    pairs = logits.view(len(logits), -1, 2, VOCAB)
    return (pairs + 0.01 * pairs.flip(2)).view(logits.shape)


def a_little(logits, inputs):
    return logits + 0.01 * logits.roll(-1, 1)


def last_but_one(logits, inputs):
    return torch.cat((logits[:, :-2], logits[:, -2:-1] + logits[:, -1:], logits[:, -1:]), 1)


@pytest.mark.parametrize("batch_size", [1, 16])
@pytest.mark.parametrize("leak", [next_token, first_sees_last, mean_of_all, far_ahead, aligned_pairs, a_little])
def test_model_that_looks_ahead(said, leak, batch_size):
    assert "not causal" in said(Model(leak), batch_size)["refused"]


def test_a_look_ahead_at_one_place_shows_among_all_rows(said):
    assert "not causal" in said(Model(last_but_one), 64, rows=None)["refused"]


def test_rows_that_see_each_other(said):
    assert "not causal" in said(Model(lambda logits, inputs: logits + 0.01 * logits.mean(0)))["refused"]


def nan_everywhere(logits, inputs):
    return logits * math.nan


def nan_for_some_token(logits, inputs):
    return torch.where(inputs[..., None] == 1000, math.nan, logits)


def infinite(logits, inputs):
    return logits + math.inf


@pytest.mark.parametrize("change", [nan_everywhere, nan_for_some_token, infinite])
def test_logits_that_are_not_finite(said, change):
    assert "not finite" in said(Model(change), rows=None)["refused"]


def test_half_a_vocabulary(said):
    assert "the logits are (16, 128, 512), not (16, 128, 1024)" in said(Model(lambda x, _: x[..., :512]))["refused"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda logits, inputs: logits[:, :-1], "the logits are"),
        (lambda logits, inputs: logits.mean(), "the logits are"),
        (lambda logits, inputs: logits.flatten(0, 1), "the logits are"),
        (lambda logits, inputs: (logits, None), "the logits are"),
        (lambda logits, inputs: logits * inputs.sum().item(), "depends on the tokens"),
        (lambda logits, inputs: logits * inputs[0].tolist()[0], "depends on the tokens"),
        (lambda logits, inputs: logits + torch.from_numpy(inputs.numpy() % 3)[..., None], "depends on the tokens"),
        (lambda logits, inputs: logits * (1 + int(inputs.sum()) % 100), "depends on the tokens"),
    ],
)
def test_what_can_t_be_handed_over(said, change, words):
    """The last four see the tokens' values in Python; other tokens are told apart with a probability near one."""
    attempts = []
    for scale in (1.0, 2.0):
        try:
            attempts.append(said(Model(change, scale)))
        except ValueError as error:
            assert words in str(error) and "plain PyTorch" in str(error)
            return
    pytest.fail(f"it was scored: {attempts}")


# -----------------------------------------------------------------------------
# What a model may do


def in_place(logits, inputs):
    logits[:, 1:] += logits[:, :-1].clone()
    logits[:, 0] = 5
    return logits.mul_(0.5)


def fresh_memory(logits, inputs):
    made = torch.empty_like(logits)
    made[:, ::2], made[:, 1::2] = logits[:, ::2], 2 * logits[:, 1::2]
    return made


def compiled(logits, inputs):
    return torch.compile(torch.tanh, dynamic=False)(logits)


def vectorized(logits, inputs):
    return torch.vmap(lambda row: row.relu() + row.new_ones(()).cumsum(0))(logits)


def bf16(logits, inputs):
    with torch.autocast("cpu", torch.bfloat16):
        return logits @ torch.eye(VOCAB)


def cached(logits, inputs, masks={}):  # noqa: B006 (what a model keeps from its first call on)
    mask = masks.setdefault("mask", torch.ones(VOCAB, VOCAB).tril()[3])
    return logits * mask


def windowed(logits, inputs):
    q = torch.nn.functional.one_hot(inputs, VOCAB).float().view(len(inputs), MAX_SEQ_LEN, 4, -1).transpose(1, 2)
    y = torch.nn.functional.scaled_dot_product_attention(q, q, q, is_causal=True)
    return logits + y.transpose(1, 2).reshape(logits.shape)


@pytest.mark.slow
@pytest.mark.parametrize("change", [in_place, fresh_memory, compiled, vectorized, bf16, cached, windowed])
def test_what_a_forward_may_be(said, change, tokenizer):
    """The graph gives the model's own numbers."""
    model, tokens = Model(change), torch.from_numpy(prepare_data.load_rows("val")[:16].astype(np.int64))
    answer = said(model, rows=16)
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):
        losses = torch.nn.functional.cross_entropy(model(tokens[:, :-1]).float().mT, tokens[:, 1:], reduction="none")
    sizes = torch.from_numpy(tokenizer.token_bytes())[tokens[:, 1:]]
    expected = losses[sizes > 0].sum().item() / sizes.sum().item() / math.log(2)
    assert answer["val_bpb"] == pytest.approx(expected, rel=1e-6)


def test_a_compiled_model(said):
    assert said(torch.compile(Model()))["val_bpb"] == said(Model())["val_bpb"]


# -----------------------------------------------------------------------------
# What a graph may be


def counts_calls(logits, inputs, count=torch.zeros(())):  # noqa: B008 (a state beside the model)
    return logits + 0 * count.add_(1)


def test_a_model_that_changes_its_own_tensors(said):
    assert "changes the model's own tensors" in said(Model(counts_calls))["refused"]


def test_a_model_that_draws_random_numbers(said):
    with pytest.raises(ValueError, match="draws random numbers"):
        said(Model(lambda logits, inputs: torch.dropout(logits, 0.5, True)))


def test_minus_infinity_for_the_special_token_is_no_look_ahead(said, tokenizer):
    """The special token has no bytes: its loss does not count, nor does the difference of two infinite ones."""
    column = torch.where(torch.arange(VOCAB) == tokenizer.get_bos_token_id(), -torch.inf, 0.0)
    assert said(Model(lambda logits, inputs: logits + column))["val_bpb"] < 8


def test_a_thin_look_ahead_by_one_is_found(said):
    """Each place learns a little of its own target. In the mean of all places before a cut it would be thin."""

    def thin(logits, inputs):
        following = torch.nn.functional.pad(inputs[:, 1:], (0, 1))
        return logits + 1e-4 * torch.nn.functional.one_hot(following, VOCAB)

    assert "not causal" in said(Model(thin))["refused"]


def test_a_branch_on_tokens_is_refused(said):
    """Both batches of chance tokens would take the same branch, and the graph would keep it for all texts."""
    with pytest.raises(ValueError, match="Python looks at a value that depends on the tokens"):
        said(Model(lambda logits, inputs: logits * 2 if (inputs == 3).any() else logits))


@pytest.mark.slow
def test_what_is_said_of_one_model_is_not_said_of_the_next(tmp_path, tokenizer):
    """Its process was killed when the number was there already."""
    hand_over(Model(), VOCAB, 16, tmp_path)
    runner = scorer.Runner(VOCAB)
    for _ in range(2):
        runner.read(*(os.open(tmp_path / name, os.O_RDONLY) for name in ("graph.json", "tensors.bin")))
        assert runner(torch.zeros(16, MAX_SEQ_LEN, dtype=torch.int64)).shape == (16, MAX_SEQ_LEN, VOCAB)
        server, model = processes_below(os.getpid())
        os.kill(model, signal.SIGKILL)
        runner.end()
    os.kill(server, signal.SIGKILL)
    os.waitpid(server, 0)


def test_a_broken_hand_over_is_named(tmp_path, tokenizer):
    (tmp_path / "graph.json").write_text("{}")
    (tmp_path / "tensors.bin").write_text("")
    files = [os.open(tmp_path / name, os.O_RDONLY) for name in ("graph.json", "tensors.bin")]
    said = scorer.answer(*files, prepare_data.load_rows("val")[:16], tokenizer.token_bytes())
    assert said == {"refused": "the model that was handed over could not be run (KeyError: 'shape')"}


@pytest.mark.parametrize(
    "name",
    [
        "aten.from_file.default",
        "aten.set_.source_Tensor",
        "aten.resize_.default",
        "aten.randn.default",
        "aten.save",
        "aten.add.out",
        "aten._reshape_alias.default",
        "os.system",
        "builtins.eval",
        "aten.__class__",
        "aten",
        "aten.rand_like.default",
        "aten.normal_.default",
        "aten.sparse_resize_.default",
        "prims.empty.default",
    ],
)
def test_operators_that_are_refused(name):
    with pytest.raises(ValueError):
        find_operator(name)


@pytest.mark.parametrize("name", ["aten.mm.default", "aten.add_.Tensor", "aten.rsqrt.default", "aten.copy_.default"])
def test_operators_that_are_allowed(name):
    assert str(find_operator(name)) == name


GRAPH = {"shape": [1, 4], "nodes": [], "logits": {"tensor": 0}}


@pytest.mark.parametrize(
    "graph",
    [
        {},
        GRAPH | {"tensors": [{"dtype": "float32", "shape": [1000], "start": 0}]},
        GRAPH | {"tensors": [{"dtype": "float32", "shape": [1], "start": -4}]},
        GRAPH | {"tensors": [{"dtype": "float32", "shape": [-1], "start": 0}]},
        GRAPH | {"tensors": [{"dtype": "load", "shape": [1], "start": 0}]},
        GRAPH | {"tensors": [], "nodes": [["aten.mm.default", [], []], ["os.system", ["ls"], []]]},
    ],
)
def test_files_that_are_no_graph(graph):
    with pytest.raises((ValueError, KeyError)):
        load_graph(json.dumps(graph).encode(), bytes(64), torch.device("cpu"))


def test_memory_that_nobody_has_written_is_empty():
    nodes = [["aten.empty_strided.default", [[1000], [2]], [["dtype", {"torch": "float32"}]]]]
    nodes += [["aten.as_strided.default", [{"node": 0}, [1999], [1], 0], []]]
    graph = {"shape": [1, 4], "tensors": [], "nodes": nodes, "logits": {"node": 1}}
    torch.full((1999,), 7.0)  # what would lie there
    assert load_graph(json.dumps(graph).encode(), b"", torch.device("cpu"))(torch.zeros(1, 4)).count_nonzero() == 0
