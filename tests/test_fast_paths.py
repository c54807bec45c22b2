"""train.py's fast paths, each made to fail in every way: plain PyTorch takes its place, a line says so, and the run
ends with a number. What needs a GPU is tried on the CPU, with stand-ins that compute what the documentation says."""

import functools
import math
import re
import sys

import pytest
import torch
import torch.nn.functional as F
from test_train import SOURCE, execute, run, summary

pytestmark = pytest.mark.usefixtures("prepared")
WAYS = ["raises", "nan", "wrong"]
LINES = {
    "windowed attention: varlen_attn": "SDPA with a mask",
    "full attention: FlashAttention-2": "SDPA without it",
    "full attention: cuDNN": "SDPA without it",
    "torch.compile": "eager mode",
    "fused AdamW": "plain AdamW",
}
FA4 = "FlashAttention-4"
FA4_MODULE = "flash_attn.cute.interface"


def as_on_a_gpu(source=SOURCE):
    """train.py with everything tried that it tries on a GPU."""
    for old, new in (
        ("window < T and q.is_cuda and use", "window < T and use"),
        ('if device == "cuda":\n    fast_paths', "if True:\n    fast_paths"),
        ('if device == "cuda":\n    # Small graphs', "if True:\n    # Small graphs"),
    ):
        assert source.count(old) == 1, old
        source = source.replace(old, new)
    return source


def spoiled(x, way):
    """What a broken kernel makes of a result."""
    if way == "raises":
        raise RuntimeError("no kernel image is available\nfor execution on the device")
    return x * {"nan": math.nan, "wrong": 2.0, "": 1.0}[way]


def window_by_mask(way, q, k, v, starts_q, starts_k, longest_q, longest_k, window_size):
    """varlen_attn for documents of one length."""
    q, k, v = (x.unflatten(0, (-1, longest_q)).transpose(1, 2) for x in (q, k, v))
    way = way if torch.nn.attention.current_flash_attention_impl() != "FA4" else sys.modules[FA4_MODULE].way
    position = torch.arange(longest_q)
    distance = position[:, None] - position
    mask = (distance >= 0) & (distance <= window_size[0])
    return spoiled(F.scaled_dot_product_attention(q, k, v, attn_mask=mask), way).transpose(1, 2).flatten(0, 1)


def break_attention(monkeypatch, enabled, way):
    """SDPA with one of its kernels broken: what it gives is spoiled for as long as that kernel is switched on."""
    attention = F.scaled_dot_product_attention

    def with_broken_kernel(*args, is_causal=False, **kwargs):
        y = attention(*args, is_causal=is_causal, **kwargs)
        return spoiled(y, way) if is_causal and enabled() else y

    monkeypatch.setattr(F, "scaled_dot_product_attention", with_broken_kernel)


def break_adamw(monkeypatch, way):
    def step(params, *args, **kwargs):
        for param in params:
            param.copy_(spoiled(param, way))

    monkeypatch.setattr(torch, "_fused_adamw_", step)


def compile_by(way):
    """torch.compile with a backend that spoils what its graphs give."""

    def backend(graph, inputs):
        if way == "raises":
            spoiled(torch.ones(1), way)
        return lambda *args: tuple(
            spoiled(x, way) if isinstance(x, torch.Tensor) and x.is_floating_point() and way else x
            for x in graph(*args)
        )

    return functools.partial(torch.compile, backend=backend)


def install_fa4(monkeypatch, folder, way):
    """A stand-in for the package flash-attn-4, which torch's own registry takes; its kernels give spoiled results."""
    module = folder / "flash_attn/cute/interface.py"
    module.parent.mkdir(parents=True)
    broken = "raise ImportError('libcuda.so.1: cannot open shared object file')"
    module.write_text(f"{broken if way == 'import' else ''}\nway = {way!r}\n_flash_attn_fwd = _flash_attn_bwd = None\n")
    about = folder / "flash_attn_4-4.0.0b18.dist-info/METADATA"
    about.parent.mkdir()
    about.write_text("Metadata-Version: 2.4\nName: flash-attn-4\nVersion: 4.0.0b18\n")
    monkeypatch.syspath_prepend(folder)


@pytest.fixture
def on_a_gpu(monkeypatch, tmp_path):
    """break_path(name, way): what a GPU has, with one path broken. torch's switches are put back afterwards."""

    def break_path(name="", way=""):
        of_windows = way if name.startswith("windowed") else ""
        monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", functools.partial(window_by_mask, of_windows))
        if name == "torch.compile":
            monkeypatch.setattr(torch, "compile", compile_by(way))
        else:
            monkeypatch.setattr(torch, "compile", lambda function, **_: function)
        if name.endswith("FlashAttention-2"):
            break_attention(monkeypatch, torch.backends.cuda.flash_sdp_enabled, way)
        if name.endswith("cuDNN"):
            break_attention(monkeypatch, torch.backends.cuda.cudnn_sdp_enabled, way)
        if name == "fused AdamW":
            break_adamw(monkeypatch, way)
        if name == FA4:
            install_fa4(monkeypatch, tmp_path, way)

    yield break_path
    torch.backends.cuda.enable_flash_sdp(True)
    torch.backends.cuda.enable_cudnn_sdp(True)
    torch.compiler.set_stance("default")
    torch.nn.attention.restore_flash_attention_impl(False)
    torch.nn.attention._fa4._fa4_import_module.cache_clear()
    for module in [name for name in sys.modules if name.partition(".")[0] == "flash_attn"]:
        del sys.modules[module]


def warm_up():
    """train.py as on a GPU, up to where the clock starts."""
    return execute(as_on_a_gpu().partition("step, progress, smooth_loss")[0])


@pytest.mark.slow
def test_what_works_is_used_without_a_word(on_a_gpu, capsys):
    on_a_gpu()
    module = warm_up()
    assert set(module.fast_paths) == set(LINES)
    assert module.use == {"varlen_attn": True} and torch.backends.cuda.flash_sdp_enabled()
    assert all(group["fused"] for group in module.optimizers[1].param_groups)
    assert "failed" not in capsys.readouterr().out


@pytest.mark.slow
def test_flash_attention_4_is_used_where_it_is_installed_and_works(on_a_gpu, capsys):
    on_a_gpu(FA4)
    module = warm_up()
    assert set(module.fast_paths) == {*LINES, FA4} and module.use == {"varlen_attn": True}
    assert torch.nn.attention.current_flash_attention_impl() == "FA4"
    assert "failed" not in capsys.readouterr().out


CASES = [pytest.param(name, way, id=f"{name}, {way}") for name in LINES for way in WAYS]
CASES += [pytest.param(FA4, way, id=f"{FA4}, {way}") for way in ("import", *WAYS)]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Dynamo detected a call to a `functools.lru_cache`")
@pytest.mark.parametrize(("name", "way"), CASES)
def test_what_does_not_work_is_replaced_and_a_line_says_so(name, way, on_a_gpu, capsys):
    on_a_gpu(name, way)
    module = warm_up()
    said = [line for line in capsys.readouterr().out.splitlines() if "failed" in line]
    reason = {
        "import": r"ImportError: libcuda.*",
        "raises": r"\w+: .*no kernel image is available for execution.*",
        "nan": "AssertionError: its numbers are off by nan%",
        "wrong": r"AssertionError: its numbers are off by \d+%",
    }[way]
    assert len(said) == 1 and re.fullmatch(
        rf"{re.escape(name)} failed \({reason}\); using {LINES.get(name, 'FlashAttention-2')}, slower", said[0]
    )
    assert set(module.fast_paths) == set(LINES) - {name}
    assert torch.nn.attention.current_flash_attention_impl() is None
    plain = execute(SOURCE.partition("step, progress, smooth_loss")[0])
    inputs = next(module.batches)[0]
    torch.testing.assert_close(module.model(inputs), plain.model(inputs))


@pytest.mark.slow
def test_a_run_on_which_everything_fails_ends_with_a_number(tmp_path):
    broken = """
import torch

def fails(*args, **kwargs):
    raise NotImplementedError("not on this device")

torch._fused_adamw_ = torch.nn.attention.varlen.varlen_attn = fails
original = torch.nn.functional.scaled_dot_product_attention

def with_broken_kernels(*args, is_causal=False, **kwargs):
    if is_causal and (torch.backends.cuda.flash_sdp_enabled() or torch.backends.cuda.cudnn_sdp_enabled()):
        fails()
    return original(*args, is_causal=is_causal, **kwargs)

torch.nn.functional.scaled_dot_product_attention = with_broken_kernels
compile_graph = torch.compile
torch.compile = lambda function, **options: compile_graph(function, **options, backend=fails)
"""
    source = as_on_a_gpu().replace("import ctypes\n", f"import torch.nn.attention.varlen\n{broken}\nimport ctypes\n", 1)
    result = run(tmp_path, source, STEPS=5, SEED=1)
    said = re.findall(r"^(.*) failed \(.*not on this device.*\); using (.*), slower$", result.stdout, re.M)
    assert dict(said) == LINES
    assert 1 < float(summary(result)["val_bpb"]) < 5
