"""train.py: its parts against plain references, in float64 where that sharpens the comparison, and whole short runs."""

import ast
import gc
import itertools
import math
import os
import re
import resource
import runpy
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F
from functorch.compile import make_boxed_func
from shipped import TRAIN as SOURCE
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.testing import CompileCounter
from torch._functorch._aot_autograd.autograd_cache import check_node_safe
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

import prepare_data
from autoresearch.propose.constants import literal_number
from autoresearch.source import assignments, reached, with_expression

ROOT = Path(__file__).parent.parent

DEFINITIONS = SOURCE.partition("# Setup\n")[0]
VOCABULARY, T = 64, 32
torch.set_num_threads(1)  # two are slower than one where anything else runs


numbers = itertools.count()


def load(definitions=DEFINITIONS):
    """The definitions part of train.py as a module."""
    module = types.ModuleType(f"train_definitions_{next(numbers)}")
    sys.modules[module.__name__] = module  # @dataclass looks its module up, torch.compile too
    exec(compile(definitions, "train.py", "exec"), module.__dict__)
    return module


train = load()


def expressions(source=SOURCE):
    """{name: expression} of every assignment that the cpu scale executes."""
    return dict(pair for statement in reached(ast.parse(source).body, "cpu") for pair in assignments(statement))


def set_constant(name, value, source=SOURCE):
    """`source` with the value of a module-level constant of the cpu scale replaced."""
    return with_expression(source, expressions(source)[name], str(value))


def cpu_constants():
    """{name: value} of every `NAME = number` that the cpu scale executes."""
    numbers = {name: literal_number(expression) for name, expression in expressions().items() if name.isupper()}
    return {name: value for name, value in numbers.items() if value is not None}


def small_model(module=train, depth=2, seed=0):
    torch.manual_seed(seed)
    model = module.GPT(module.build_config(depth, VOCABULARY, T))
    model.init_weights()
    return model


def with_live_outputs(model):
    """Replace the zero-initialised parts by noise, so that every path carries a signal."""
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():
                parameter.normal_(std=0.3)
    return model


def run(tmp_path, source=SOURCE, **environment):
    """Run a train.py text as its own process; AUTORESEARCH_STEPS and the like come as keyword arguments."""
    path = tmp_path / "train.py"
    path.write_text(source)
    variables = {f"AUTORESEARCH_{name}": str(value) for name, value in environment.items()}
    return subprocess.run(
        [sys.executable, path],
        env={**os.environ, "AUTORESEARCH_SCALE": "cpu", "PYTHONPATH": str(ROOT), **variables},
        capture_output=True,
        text=True,
        timeout=900,
    )


def summary(result):
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr
    return dict(re.findall(r"^(\w+): +(\S+)$", result.stdout.partition("\n---\n")[2], re.M))


# -----------------------------------------------------------------------------
# Attention and model


def dense_attention(q, k, v, window):
    """Attention of (B, T, heads, head_dim) written out with a dense mask."""
    T = q.size(1)
    scores = torch.einsum("bihd,bjhd->bhij", q, k) / q.size(-1) ** 0.5
    for i in range(T):
        for j in range(T):
            if not 0 <= i - j < window:
                scores[:, :, i, j] = -math.inf
    return torch.einsum("bhij,bjhd->bihd", scores.softmax(-1), v)


@pytest.mark.parametrize("window", [1, 5, T - 1, T, 2 * T])
def test_attention_is_that_of_a_dense_mask(window):
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, T, 3, 8, dtype=torch.float64)
    torch.testing.assert_close(train.attend(q, k, v, window), dense_attention(q, k, v, window))


def test_window_as_long_as_the_row_is_full_attention():
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, T, 3, 8, dtype=torch.float64)
    torch.testing.assert_close(train.attend(q, k, v, T), train.attend(q, k, v, 10 * T), rtol=0, atol=0)


def packed_attention(q, k, v, starts_q, starts_k, longest_q, longest_k, window_size):
    """What torch documents of varlen_attn, whose kernel needs a GPU: documents packed into (tokens, heads, head_dim),
    each with attention from `window_size[0]` positions before to `window_size[1]` after."""
    assert torch.equal(starts_q, starts_k) and longest_q == longest_k == starts_q.diff().max()
    assert window_size[1] == 0
    documents = zip(*(x[None].split(starts_q.diff().tolist(), 1) for x in (q, k, v)), strict=True)
    return torch.cat([dense_attention(*document, window_size[0] + 1)[0] for document in documents])


@pytest.mark.parametrize("window", [1, 5, T - 1])
def test_windowed_attention_for_a_gpu_is_that_of_a_dense_mask(window, monkeypatch):
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", packed_attention)
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, T, 3, 8, dtype=torch.float64)
    expected = dense_attention(q, k, v, window)
    torch.testing.assert_close(train.flash_window(q, k, v, window), expected)


def test_rotary_keeps_lengths_and_sees_only_distances():
    model = small_model()
    torch.manual_seed(0)
    a, b = torch.randn(2, 1, 1, 1, train.HEAD_DIM).expand(2, 1, T, 1, -1)
    a, b = train.rotate(a, model.cos, model.sin)[0, :, 0], train.rotate(b, model.cos, model.sin)[0, :, 0]
    torch.testing.assert_close(a.norm(dim=-1), a[:1].norm(dim=-1).expand(T))
    products = a @ b.T
    for distance in (0, 1, 7):
        diagonal = products.diagonal(distance)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(products.diagonal(1), products.diagonal(-1)[:1], atol=1e-2)  # the direction counts


@pytest.mark.parametrize(("depth", "layers"), [(1, [0]), (2, [1]), (5, [0, 2, 4]), (8, [1, 3, 5, 7])])
def test_value_embeddings_are_on_alternate_layers_with_the_last(depth, layers):
    model = small_model(depth=depth)
    assert sorted(map(int, model.value_embeddings)) == layers
    assert [i for i, block in enumerate(model.blocks) if block.gate is not None] == layers


def test_bigram_hash_sees_a_token_and_the_one_before_it(monkeypatch):
    monkeypatch.setattr(train, "BIGRAM_ROWS", 16_384)
    torch.manual_seed(0)
    idx = torch.randint(8192, (4, T))
    rows = train.bigram_hash(idx)
    assert rows.shape == idx.shape and rows.min() >= 0 and rows.max() < train.BIGRAM_ROWS
    assert len(rows.unique()) > 0.98 * idx.numel()  # other pairs, other rows, but for a few
    altered = idx.clone()
    altered[:, 7] += 1
    assert (train.bigram_hash(altered) != rows).any(0).nonzero().flatten().tolist() == [7, 8]


@pytest.mark.parametrize("depth", [1, 2, 6, 9])
def test_windows_follow_the_pattern_and_the_last_is_long(depth):
    short = int(T * train.SHORT_WINDOW)
    pattern = (train.WINDOW_PATTERN * depth)[:depth]
    windows = train.build_config(depth, VOCABULARY, T).windows
    assert windows[-1] == T
    assert windows[:-1] == [short if letter == "S" else T for letter in pattern[:-1]]


def test_window_is_never_longer_than_the_row():
    module = load(set_constant("SHORT_WINDOW", 3.0, DEFINITIONS))
    assert module.build_config(2, VOCABULARY, T).windows == [T, T]


@pytest.mark.parametrize("depth", [1, 2, 5])
def test_gpt_is_causal(depth):
    model = with_live_outputs(small_model(depth=depth))
    idx = torch.randint(VOCABULARY, (2, T))
    before = model(idx)
    for cut in (1, 7, T - 1):
        altered = idx.clone()
        altered[:, cut:] = (altered[:, cut:] + 1) % VOCABULARY
        after = model(altered)
        torch.testing.assert_close(after[:, :cut], before[:, :cut])
        assert not torch.allclose(after[:, cut], before[:, cut])


def test_logits_are_float32_capped_and_start_near_uniform():
    model = small_model()
    logits = model(torch.randint(VOCABULARY, (2, T)))
    assert logits.shape == (2, T, VOCABULARY)
    assert logits.dtype == torch.float32
    assert logits.abs().max() < 0.1
    with torch.no_grad():
        model.lm_head.weight.mul_(1e6)
    assert model(torch.randint(VOCABULARY, (2, T))).abs().max() <= train.SOFTCAP


def test_attention_gets_bf16_under_autocast():
    """What the GPU's kernels require; autocast itself would hand them float32 after the norm and the rotary."""
    module = load()
    received = []

    def attend(q, k, v, window):
        received.extend(x.dtype for x in (q, k, v))
        return train.attend(q, k, v, window)

    module.attend = attend
    model = small_model(module)
    with torch.autocast("cpu", torch.bfloat16):
        model(torch.randint(VOCABULARY, (2, T)))
    assert received == [torch.bfloat16] * 6


def test_flops_against_a_hand_count():
    model = small_model(depth=2)  # dim 64: q, k, v, proj, two MLP matrices of 4x, a gate on the last layer, the head
    assert (model.config.n_embd, model.config.windows) == (64, [int(T * train.SHORT_WINDOW), T])
    matmul = 2 * 12 * 64**2 + train.GATE_CHANNELS * 2 + VOCABULARY * 64
    attention = 2 * 2 * 64 * (int(T * train.SHORT_WINDOW) + T)  # scores and mixing, a multiply and an add each
    assert model.flops_per_token() == 3 * (2 * matmul + attention)  # backward costs twice forward


# -----------------------------------------------------------------------------
# Loss


def plain_loss(x, weight, targets):
    """The mean cross-entropy under the softly capped logits, all of them at once."""
    return F.cross_entropy(train.SOFTCAP * torch.tanh(x @ weight.mT / train.SOFTCAP), targets)


def loss_and_gradients(loss_function, *arguments):
    """The loss, a third of which is run backward, and the gradients of the first two arguments."""
    leaves = [argument.detach().clone().requires_grad_() for argument in arguments[:2]]
    loss = loss_function(*leaves, *arguments[2:])
    (loss / 3).backward()
    return loss.detach(), *(leaf.grad for leaf in leaves)


def states_and_targets(count, dtype=torch.float64):
    torch.manual_seed(0)
    weight = 3 * torch.randn(VOCABULARY, 16, dtype=dtype)  # large enough for the cap to bend
    return torch.randn(count, 16, dtype=dtype), weight, torch.randint(VOCABULARY, (count,))


@pytest.mark.parametrize("chunk", [1, 7, 50, 64])
def test_chunked_loss_and_its_gradients_are_the_plain_ones(chunk):
    arguments = states_and_targets(50)
    expected = loss_and_gradients(plain_loss, *arguments)
    found = loss_and_gradients(train.ChunkedLoss.apply, *arguments, chunk)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-13)


def test_chunked_loss_in_bf16_is_near_the_plain_one():
    x, weight, targets = states_and_targets(200)
    expected = loss_and_gradients(plain_loss, x.bfloat16().double(), weight.bfloat16().double(), targets)
    found = loss_and_gradients(train.ChunkedLoss.apply, x.bfloat16(), weight.float(), targets, 64)
    assert [tensor.dtype for tensor in found] == [torch.float32, torch.bfloat16, torch.float32]
    for tensor, reference in zip(found, expected, strict=True):
        assert (tensor - reference).norm() < 1e-2 * reference.norm()


def test_logits_never_exist_whole():
    sizes = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            sizes.extend(x.numel() for x in torch.utils._pytree.tree_leaves(result) if isinstance(x, torch.Tensor))
            return result

    with Watch():
        loss_and_gradients(train.ChunkedLoss.apply, *states_and_targets(1000), 100)
    assert max(sizes) == max(100 * VOCABULARY, 1000 * 16)


def test_mean_loss_is_the_cross_entropy_of_the_logits():
    model = with_live_outputs(small_model())
    inputs, targets = torch.randint(VOCABULARY, (2, 3, T))
    expected = F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())
    torch.testing.assert_close(train.mean_loss(model, inputs, targets), expected)


OPTIONS = {"dynamic": False, "fullgraph": True}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Dynamo detected a call to a `functools.lru_cache`")
def test_compiled_training_is_three_graphs_and_never_compiles_again():
    module = load()
    model = with_live_outputs(small_model(module))
    reference = with_live_outputs(small_model())
    optimizers = module.build_optimizers(model)
    features, losses, updates = CompileCounter(), CompileCounter(), CompileCounter()
    model.features = torch.compile(model.features, backend=features, **OPTIONS)
    module.loss_and_gradients = torch.compile(module.loss_and_gradients, backend=losses, **OPTIONS)
    module.muon_update = torch.compile(module.muon_update, backend=updates, **OPTIONS)
    for step in range(5):
        reference.load_state_dict(model.state_dict())
        inputs, targets = torch.randint(VOCABULARY, (2, 3, T))
        x = model.features(inputs).flatten(0, 1)
        loss = module.ChunkedLoss.apply(x, model.lm_head.weight, targets.flatten(), 32)  # three chunks
        torch.testing.assert_close(loss, train.mean_loss(reference, inputs, targets))
        loss.backward()
        module.set_schedule(optimizers, step, step / 4)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        if step == 1:  # the warm-up is over: see undo_steps()
            for optimizer in optimizers:
                optimizer.state.clear()
    model.eval()
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):  # as it is handed over
        reference.load_state_dict(model.state_dict())
        torch.testing.assert_close(model(inputs), reference(inputs))
    shapes = {module.upright(parameter).shape[1:] for parameter in model.blocks.parameters()}
    assert (features.frame_count, losses.frame_count, updates.frame_count) == (1, 1, len(shapes))


def check_cacheable(graph, _=None):
    """Raise an error where torch's compile cache would not keep the graph, and each start would make it anew."""
    for node in graph.graph.nodes:
        check_node_safe(node)
    return graph.forward


def trace(function, *arguments):
    """The graphs that torch.compile makes of the forward and the backward pass, as lists of nodes. None is run."""
    graphs = []

    def backend(graph, inputs):
        check_cacheable(graph)
        return aot_autograd(fw_compiler=compiler, bw_compiler=compiler)(graph, inputs)

    def compiler(graph, _):
        graphs.append(graph.graph.nodes)
        (output,) = graph.graph.find_nodes(op="output")
        values = [None if node is None else node.meta["val"] for node in output.args[0]]
        results = [None if x is None else torch.zeros(x.shape, dtype=x.dtype) for x in values]
        return make_boxed_func(lambda *_: results)

    torch.compile(function, backend=backend, **OPTIONS)(*arguments).backward()
    return graphs


@pytest.mark.slow
def test_features_that_a_gpu_compiles():
    """What needs a GPU to run can be traced without: windows by varlen_attn, both ways."""
    module = load()
    short = module.build_config(3, VOCABULARY, T).windows[0]
    full, windowed = module.attend, module.flash_window

    def attend_on_a_gpu(q, k, v, window):
        return (windowed if window < T else full)(q, k, v, window)

    module.attend = attend_on_a_gpu
    model = small_model(module, depth=3)
    inputs = torch.randint(VOCABULARY, (4, T))
    forward, backward = trace(lambda inputs: model.features(inputs).sum(), inputs)
    for nodes, kernel in ((forward, "_varlen_attn.default"), (backward, "_varlen_attn_backward.default")):
        windows = [node.args for node in nodes if str(node.target).endswith(kernel)]
        assert len(windows) == 2 and all([short - 1, 0] in arguments for arguments in windows)


@pytest.mark.slow
def test_compile_cache_keeps_the_other_graphs():
    x, weight, targets = states_and_targets(50)
    torch.compile(train.loss_and_gradients, backend=check_cacheable, **OPTIONS)(x, weight, targets)
    params = torch.randn(2, 64, 16)
    scalars = (torch.tensor(0.5) for _ in range(3))
    update = torch.compile(train.muon_update, backend=check_cacheable, **OPTIONS)
    update(params, params.clone(), params.clone(), params[..., :1].clone(), *scalars)


# -----------------------------------------------------------------------------
# Optimizer


@pytest.mark.parametrize("shape", [(3, 16, 16), (2, 64, 16), (2, 16, 64)])
def test_orthogonalize_against_svd(shape):
    torch.manual_seed(0)
    G = torch.randn(shape, dtype=torch.float64)
    U, _, Vh = torch.linalg.svd(G, full_matrices=False)
    core = U.mT @ train.orthogonalize(G) @ Vh.mT  # in the singular basis of G: diagonal, near 1
    values = core.diagonal(dim1=-2, dim2=-1)
    torch.testing.assert_close(core, torch.diag_embed(values), rtol=0, atol=1e-6)
    assert values.min() > 0.7 and values.max() < 1.3


def test_a_stack_is_orthogonalized_matrix_by_matrix():
    torch.manual_seed(0)
    G = torch.randn(3, 16, 64, dtype=torch.float64) * torch.tensor([1e-3, 1.0, 1e3])[:, None, None]
    alone = torch.cat([train.orthogonalize(matrix[None]) for matrix in G])
    torch.testing.assert_close(train.orthogonalize(G), alone)


@pytest.mark.parametrize("depth", [1, 2, 5])
def test_every_parameter_is_in_one_group(depth):
    model = small_model(depth=depth)
    optimizers = train.build_optimizers(model)
    grouped = [id(p) for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in model.parameters())


def test_muon_steps_a_wide_matrix_as_its_transpose():
    torch.manual_seed(0)
    tall = nn.Parameter(torch.randn(64, 16, dtype=torch.float64))
    wide = nn.Parameter(tall.detach().mT.clone())
    before = tall.detach().clone()
    muon = train.Muon([tall, wide], lr=0.1, weight_decay=0.5)
    assert len(muon.param_groups) == 1
    for _ in range(2):
        tall.grad = torch.randn(64, 16, dtype=torch.float64)
        wide.grad = tall.grad.mT.clone()
        with torch.no_grad():
            wide.copy_(tall.mT)
            before.copy_(tall)
        muon.step()
        step = before - tall.detach()
        assert step.abs().max() > 0
        torch.testing.assert_close(step, 2 * (before - wide.detach().mT))  # (rows / columns)^0.5 as large


def test_muon_keeps_the_size_of_an_orthogonal_step_and_decays_only_in_agreement():
    torch.manual_seed(0)
    grads, params = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    buffers = torch.zeros_like(params), torch.zeros(3, 16, 1, dtype=torch.float64)
    steps = []
    for weight_decay in (0.0, 0.5):
        after = params.clone()
        scalars = (torch.tensor(x, dtype=torch.float64) for x in (0.9, 0.1, weight_decay))
        train.muon_update(grads, after, *(buffer.clone() for buffer in buffers), *scalars)
        steps.append((params - after) / 0.1)
    torch.testing.assert_close(steps[0].norm(dim=(1, 2)), torch.full((3,), 4.0).double(), rtol=0.15, atol=0)
    agree = steps[0] * params >= 0
    torch.testing.assert_close(steps[1] - steps[0], 0.5 * params * agree)


def test_schedule_end_points():
    optimizers = train.build_optimizers(small_model())
    muon, adamw = optimizers
    first = [group["lr"] for group in muon.param_groups + adamw.param_groups]
    for progress, factor in ((0.0, 1), (1 - train.WARMDOWN_FRACTION, 1), (1.0, train.FINAL_LR_FRACTION)):
        train.set_schedule(optimizers, 10**6, progress)
        rates = [group["lr"] for group in muon.param_groups + adamw.param_groups]
        assert rates == pytest.approx([rate * factor for rate in first])
    assert muon.param_groups[0]["momentum"] == pytest.approx(train.MUON_MOMENTUM_LAST)
    assert muon.param_groups[0]["weight_decay"] == pytest.approx(0)
    for step, momentum in ((0, train.MUON_MOMENTUM_FIRST), (train.MOMENTUM_WARMUP_STEPS, train.MUON_MOMENTUM)):
        train.set_schedule(optimizers, step, 0.0)
        assert muon.param_groups[0]["momentum"] == pytest.approx(momentum)
    assert muon.param_groups[0]["weight_decay"] == train.MATRIX_WEIGHT_DECAY


# -----------------------------------------------------------------------------
# Constants


def logits_after(module, steps=6):
    """The logits of a small model after a few steps on made-up tokens."""
    model = small_model(module, depth=module.DEPTH)
    optimizers = module.build_optimizers(model)
    generator = torch.Generator().manual_seed(1)
    for step in range(steps):
        idx = torch.randint(VOCABULARY, (4, T + 1), generator=generator)
        logits = model(idx[:, :-1])
        loss = F.cross_entropy(logits.flatten(0, 1), idx[:, 1:].flatten())
        loss.backward()
        module.set_schedule(optimizers, step, step / (steps - 1))
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    return logits.detach()


@pytest.fixture(scope="module")
def unchanged_logits():
    return logits_after(train)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(cpu_constants()) - {"TOTAL_BATCH_SIZE"}))
def test_every_constant_takes_effect(name, unchanged_logits):
    value = cpu_constants()[name]
    factor = 2 if isinstance(value, int) else 0.5
    changed = load(set_constant(name, type(value)(value * factor) or 0.1, DEFINITIONS))
    assert not torch.equal(logits_after(changed), unchanged_logits)


def test_there_are_constants_and_each_is_set_once():
    names = re.findall(r"^ *([A-Z][A-Z0-9_]+) = [\d.]", SOURCE, re.M)
    assert {"DEPTH", "MATRIX_LR", "WARMDOWN_FRACTION", "TOTAL_BATCH_SIZE"} <= set(cpu_constants())
    assert max(map(names.count, names)) <= 2  # one for each scale


# -----------------------------------------------------------------------------
# Rules for another depth


def first_settings(source):
    """What stands at the first step: tokens per step, and the rate and weight decay of each group of parameters."""
    module = load(source)
    optimizers = module.build_optimizers(small_model(module))
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    tokens = module.TOTAL_BATCH_SIZE * module.BATCH_FACTOR
    return tokens, [(group["first_lr"], group["first_weight_decay"]) for group in groups]


def without_rules(source):
    return re.sub(r"^(BATCH|LR|DECAY)_FACTOR = .*", r"\1_FACTOR = 1", source, flags=re.M)


@pytest.mark.parametrize("source", [DEFINITIONS, DEFINITIONS.replace('if SCALE == "h100"', 'if SCALE == "cpu"')])
def test_at_the_tuned_depth_the_rules_change_nothing_to_the_last_digit(source):
    assert first_settings(source) == first_settings(without_rules(source))


@pytest.mark.parametrize(("times", "batch"), [(0.5, 1), (2, 1), (4, 2), (8, 2), (16, 4)])
def test_what_the_rules_do_at_another_depth(times, batch):
    source = set_constant("DEPTH", int(2 * times), DEFINITIONS)
    (tokens, groups), (ruled_tokens, ruled) = first_settings(without_rules(source)), first_settings(source)
    assert ruled_tokens == batch * tokens
    for (rate, decay), (ruled_rate, ruled_decay) in zip(groups, ruled, strict=True):
        muon = decay == train.MATRIX_WEIGHT_DECAY
        assert ruled_rate == pytest.approx(rate * batch**0.5)
        assert ruled_decay == pytest.approx(decay * (batch**0.5 / times if muon else 1))


# -----------------------------------------------------------------------------
# Setup and warm-up, in this process


def execute(source):
    """Run a text of train.py here, as a module."""
    collecting, threads = gc.isenabled(), torch.get_num_threads()
    try:
        return load(source)
    finally:
        torch.set_num_threads(threads)
        if collecting:
            gc.enable()


@pytest.mark.usefixtures("prepared")
def test_nothing_is_left_of_the_warm_up(monkeypatch):
    monkeypatch.delitem(prepare_data.noted, "clock_started", raising=False)  # another test's
    module = execute(SOURCE.partition("step, progress, smooth_loss")[0])
    random_state = torch.get_rng_state()
    torch.manual_seed(module.SEED)
    assert torch.equal(torch.get_rng_state(), random_state)
    fresh = module.GPT(module.config)
    fresh.init_weights()
    for name, tensor in fresh.state_dict().items():
        assert torch.equal(module.model.state_dict()[name], tensor), name
    assert all(parameter.grad is None for parameter in module.model.parameters())
    assert not any(optimizer.state for optimizer in module.optimizers)
    module.training_clock()  # until then, batches hold tokens by chance
    first = next(module.make_dataloader(module.tokenizer, module.rows_per_pass, module.MAX_SEQ_LEN, "train"))
    assert all(torch.equal(a, b) for a, b in zip(next(module.batches)[:2], first[:2], strict=True))


@pytest.mark.usefixtures("prepared")
def test_no_value_is_read_in_a_step():
    """Reading one would make the host wait for the GPU; of a fake tensor, it is an error."""
    setup = SOURCE.partition("def fits_in_memory(")[0].replace("GPT(config).to(device)", "GPT(config)")
    with FakeTensorMode(allow_non_fake_inputs=True):
        module = execute(setup)
        rows = torch.zeros(module.rows_per_pass, module.MAX_SEQ_LEN, dtype=torch.int64)
        batches = itertools.repeat((rows, rows, 1))
        for step in range(3):
            loss = module.train_step(batches, step, step / 2)
        with pytest.raises(DataDependentOutputException):
            loss.item()


# -----------------------------------------------------------------------------
# Whole runs, by steps


@pytest.fixture(scope="module")
def short_run(prepared, tmp_path_factory):
    return run(tmp_path_factory.mktemp("short_run"), STEPS=5, SEED=1)


@pytest.fixture(scope="module")
def small_passes(prepared, tmp_path_factory):
    """The same in passes of four rows."""
    fewer_rows = re.sub(r"DEVICE_BATCH_SIZE = min\(64,", "DEVICE_BATCH_SIZE = min(4,", SOURCE)
    return run(tmp_path_factory.mktemp("small_passes"), fewer_rows, STEPS=5, SEED=1)


KEYS = "val_bpb training_seconds total_seconds peak_vram_mb mfu_percent total_tokens_M num_steps num_params_M depth"


@pytest.mark.slow
@pytest.mark.xdist_group("short_run")
def test_summary_has_every_key(short_run):
    values = summary(short_run)
    assert list(values) == KEYS.split()
    assert all(math.isfinite(float(value)) for value in values.values())
    assert values["num_steps"] == "5"
    assert 1 < float(values["val_bpb"]) < 5
    assert re.findall(r"^step (\d+) \|", short_run.stdout, re.M) == ["1", "2", "3", "4", "5"]


@pytest.mark.slow
@pytest.mark.xdist_group("short_run")
def test_same_seed_gives_the_same_number_whatever_the_warm_up(short_run, tmp_path):
    warm_up = "for _ in range(2):\n            train_step("
    assert SOURCE.count(warm_up) == 1
    without = SOURCE.replace(warm_up, "for _ in range(0):\n            train_step(")
    assert summary(run(tmp_path, without, STEPS=5, SEED=1))["val_bpb"] == summary(short_run)["val_bpb"]


@pytest.mark.slow
@pytest.mark.xdist_group("short_run")
def test_another_seed_gives_another_number(short_run, tmp_path):
    assert summary(run(tmp_path, STEPS=5, SEED=2))["val_bpb"] != summary(short_run)["val_bpb"]


@pytest.mark.slow
@pytest.mark.xdist_group("short_run")
def test_batch_size_takes_effect_and_need_not_divide(short_run, tmp_path):
    rows = cpu_constants()["TOTAL_BATCH_SIZE"] // 128
    result = run(tmp_path, set_constant("TOTAL_BATCH_SIZE", rows * 128 - 200), STEPS=5, SEED=1)
    assert f"{(rows - 2) * 128} tokens per step, 1 passes" in result.stdout
    assert summary(result)["val_bpb"] != summary(short_run)["val_bpb"]


@pytest.mark.slow
@pytest.mark.xdist_group("short_run")
def test_passes_add_up_to_the_same_step(short_run, small_passes):
    assert re.search(r"tokens per step, [2-9] passes", small_passes.stdout)
    assert float(summary(small_passes)["val_bpb"]) == pytest.approx(float(summary(short_run)["val_bpb"]), abs=2e-4)


def out_of_memory_above(rows):
    """train.py as it would be on a GPU with room for so many rows per pass."""
    step = "    total = torch.zeros((), device=device)\n"
    assert SOURCE.count(step) == 1
    full = f"    if rows_per_pass > {rows}:\n        raise torch.OutOfMemoryError('CUDA out of memory')\n"
    return SOURCE.replace(step, step + full)


@pytest.mark.slow
@pytest.mark.xdist_group("short_run")
def test_what_does_not_fit_is_halved_and_the_step_stays(short_run, small_passes, tmp_path):
    result = run(tmp_path, out_of_memory_above(5), STEPS=5, SEED=1)
    assert re.findall(r"^out of memory: (.*)$", result.stdout, re.M) == [
        "now 2 passes of 16 rows per step",
        "now 4 passes of 8 rows per step",
        "now 8 passes of 4 rows per step",
    ]
    values, expected = summary(result), summary(short_run)
    assert values["total_tokens_M"] == expected["total_tokens_M"]
    assert values["val_bpb"] == summary(small_passes)["val_bpb"]


@pytest.mark.slow
@pytest.mark.usefixtures("prepared")
def test_a_model_that_never_fits_says_so(tmp_path):
    result = run(tmp_path, out_of_memory_above(0), STEPS=5)
    assert result.returncode == 1
    assert result.stderr == "out of memory with one row per pass: the model is too large for this GPU\n"


@pytest.mark.usefixtures("prepared")
@pytest.mark.parametrize(
    "source",
    [
        pytest.param(set_constant("SOFTCAP", "math.nan"), marks=pytest.mark.slow),
        pytest.param(set_constant("UNEMBEDDING_LR", 1e4), marks=pytest.mark.slow),
    ],
    ids=["nan", "huge learning rate"],
)
def test_divergence_ends_the_run_at_once(source, tmp_path):
    result = run(tmp_path, source, STEPS=500)
    assert result.returncode == 1
    assert "training has diverged" in result.stderr
    assert "val_bpb" not in result.stdout
    assert len(re.findall(r"^step \d+ \|", result.stdout, re.M)) < 20


# -----------------------------------------------------------------------------
# Whole runs, by the clock


@pytest.mark.slow
@pytest.mark.usefixtures("prepared")
def test_a_run_keeps_its_time_budget(tmp_path):
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    values = summary(run(tmp_path, BUDGET=8))
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 20  # CPU seconds in all
    assert float(values["training_seconds"]) == pytest.approx(8, abs=0.5)
    assert float(values["val_bpb"]) < 2.6


# -----------------------------------------------------------------------------
# benchmarks/train_bench.py


def load_bench():
    return types.SimpleNamespace(**runpy.run_path(str(ROOT / "benchmarks/train_bench.py")))


def test_starting_values_are_put_in_place_of_the_constants():
    bench = load_bench()
    starting = bench.set_constants(SOURCE, bench.STARTING_VALUES, "h100")
    before, after = (
        dict(pair for statement in reached(ast.parse(source).body, "h100") for pair in assignments(statement))
        for source in (SOURCE, starting)
    )
    for name, expression in after.items():
        value = bench.STARTING_VALUES.get(name)
        assert ast.unparse(expression) == (ast.unparse(before[name]) if value is None else repr(value))
    with pytest.raises(ValueError, match="NO_SUCH_NAME is set 0 times"):
        bench.set_constants(SOURCE, {"NO_SUCH_NAME": 1}, "h100")
    assert "training_seconds / 7)" in bench.set_budget(SOURCE, 7)


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available() or torch.version.cuda, reason="torch has CUDA here")
@pytest.mark.parametrize("script, missing", [("train_bench", "one NVIDIA GPU"), ("stand_in_gpu", "has no CUDA")])
def test_benchmark_without_what_it_needs_says_so(script, missing):
    command = [sys.executable, ROOT / f"benchmarks/{script}.py"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert (result.returncode, result.stdout, result.stderr.count("\n")) == (2, "", 1)
    assert missing in result.stderr
