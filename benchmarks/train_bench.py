"""
How good and how fast train.py is: on one NVIDIA GPU next to the published starting values, on a CPU next to the same
model in plain PyTorch.

    python prepare_data.py --source ../shared/corpus && python benchmarks/train_bench.py --budget 120   # one GPU
    python prepare_data.py --scale cpu && python benchmarks/train_bench.py --cpu                        # any machine

On a GPU: two files are trained, train.py with STARTING_VALUES in place of its constants and train.py as it stands. Both
run on the prepared data of the h100 scale, for --budget seconds each, after a shorter run with an empty compile cache.
Overhead is total_seconds - training_seconds, the whole evaluation included. Then every candidate for attend() is timed.
Keep --budget low enough for the data: a run that sees its text often measures something else.

On a CPU: train.py's own step and the same step with everything written out (attention over a dense mask, norms from
their formula, a Muon that takes one matrix after the other, an AdamW that takes one tensor after the other), in turns,
in CPU seconds of one thread; the medians, and where train.py's time goes. Results: train_bench.txt.
"""

import argparse
import ast
import datetime
import functools
import gc
import itertools
import os
import platform
import re
import statistics
import sys
import tempfile
import time
import types
from pathlib import Path

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
SOURCE = (ROOT / "train.py").read_text()
REFERENCE_TOKENS_PER_SECOND = 499.6e6 / 300.1  # the public baseline run on an H100: 39.8 % MFU, val_bpb 0.9979
COLD_BUDGET = 20  # seconds of training with an empty compile cache, which is run for its overhead

# What the public recipe started from in March 2026. What it had and no constant here tells: weight decay that falls
# linearly, Adam betas of (0.8, 0.95) for all; the rest of the code is train.py's own in both runs.
STARTING_VALUES = {
    "DEPTH": 8,
    "ASPECT_RATIO": 64,
    "TOTAL_BATCH_SIZE": 2**19,
    "BIGRAM_ROWS": 1,
    "BIGRAM_LR": 0.0,  # which start at zero: off
    "UNEMBEDDING_LR": 0.004,
    "MOMENTUM_WARMUP_STEPS": 300,
    "WINDOW_PATTERN": "SSSL",
    "SHORT_WINDOW": 0.5,
    "ROTARY_BASE": 10_000,
    "QK_SCALE": 1.0,
    "GATE_CHANNELS": 32,
    "GATE_RANGE": 2.0,
    "EMBEDDING_INIT": 1.0,
    "MATRIX_INIT": 1.0,
    "FC_INIT": 1.0,
    "RESIDUAL_FIRST": 1.0,
    "RESIDUAL_LAST": 1.0,
    "X0_FIRST": 0.1,
    "X0_LAST": 0.1,
    "BACKOUT_INIT": 0.0,
    "SMEAR_LR": 0.0,  # of smear and backout, which start at zero: off
    "MUON_MOMENTUM": 0.95,
    "MUON_MOMENTUM_LAST": 0.95,
    "MUON_BETA2": 0.95,
    "EMBEDDING_LR": 0.6,
    "EMBEDDING_WEIGHT_DECAY": 0.0,
    "VALUE_EMBEDDING_LR": 0.6,
    "VALUE_EMBEDDING_WEIGHT_DECAY": 0.0,
    "UNEMBEDDING_WEIGHT_DECAY": 0.0,
    "WARMDOWN_FRACTION": 0.5,
    "FINAL_LR_FRACTION": 0.0,
}

# -----------------------------------------------------------------------------
# Sources


def set_constants(source, values, scale):
    """`source` with other values of its constants, in the branch of `scale`. Each has to be there exactly once."""
    from autoresearch.source import assignments, reached, with_expression

    for name, value in values.items():
        found = [pair for statement in reached(ast.parse(source).body, scale) for pair in assignments(statement)]
        places = [expression for place, expression in found if place == name]
        if len(places) != 1:
            raise ValueError(f"{name} is set {len(places)} times in train.py; STARTING_VALUES needs it once")
        source = with_expression(source, places[0], repr(value))
    return source


def set_budget(source, seconds):
    """`source` with another time budget."""
    text = "training_seconds / TIME_BUDGET)"
    if source.count(text) != 1:
        raise ValueError(f"train.py has {source.count(text)} times {text!r}, not once")
    return source.replace(text, f"training_seconds / {seconds})")


def machine():
    """One line: what this was measured on, with what, when."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{os.cpu_count()} x {cpu_name()}"
    return f"{device}, torch {torch.__version__}, Python {platform.python_version()}, {datetime.date.today()}"


def cpu_name():
    path = Path("/proc/cpuinfo")
    names = re.findall(r"^model name\s*: (.*)$", path.read_text(), re.M) if path.exists() else []
    return names[0] if names else platform.machine()


# -----------------------------------------------------------------------------
# On a GPU


def train(source, budget, folder):
    """The summary of one training, in numbers. RuntimeError with the end of the log if it failed."""
    from autoresearch.run.training import RunOptions, run_training

    result = run_training(set_budget(source, budget), folder, RunOptions("h100", 42, budget + 600, sandbox="off"))
    if result.status != "ok":
        raise RuntimeError(f"the training in {folder} failed: {result.error}\n{result.tail}")
    return result.printed


def measure(source, budget, folder):
    """{column: number} of one file: a short run with an empty compile cache, then one of `budget` seconds."""
    from prepare_data import DATA_ROOT

    (folder / "data").mkdir(parents=True)
    (folder / "data/h100").symlink_to(DATA_ROOT / "h100")
    os.environ["AUTORESEARCH_DATA_DIR"] = str(folder / "data")  # beside which the compile cache lies
    cold = train(source, min(COLD_BUDGET, budget), folder / "cold")
    warm = train(source, budget, folder / "warm")
    return {
        "val_bpb": warm["val_bpb"],
        "M tokens/s": warm["total_tokens_M"] / warm["training_seconds"],
        "MFU, %": warm["mfu_percent"],
        "peak memory, GB": warm["peak_vram_mb"] / 1024,
        "overhead cold, s": cold["total_seconds"] - cold["training_seconds"],
        "overhead warm, s": warm["total_seconds"] - warm["training_seconds"],
        "steps": warm["num_steps"],
        "M parameters": warm["num_params_M"],
    }


def compare_on_gpu(budget):
    """Train both files and print the table."""
    with tempfile.TemporaryDirectory() as folder:
        starting = measure(set_constants(SOURCE, STARTING_VALUES, "h100"), budget, Path(folder) / "starting")
        shipped = measure(SOURCE, budget, Path(folder) / "shipped")
    print(f"{budget} s of training each, seed 42; MFU by the dense bf16 peak, 989.5 TFLOP/s on an H100\n")
    print(f"{'':20}{'starting':>12}{'shipped':>12}{'ratio':>9}")
    for name, first in starting.items():
        ratio = shipped[name] / first if first else float("nan")
        print(f"{name:20}{first:12.4f}{shipped[name]:12.4f}{ratio:9.3f}")
    ratio = starting["M tokens/s"] * 1e6 / REFERENCE_TOKENS_PER_SECOND
    print(f"\nTokens/s at the starting shape: {ratio:.3f} x those of the public baseline (1.665 M/s, 39.8 % MFU).")


def sdpa(backend, q, k, v, window):
    """Full causal attention by one of SDPA's kernels."""
    with sdpa_kernel(backend):
        return F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v)), is_causal=True).transpose(1, 2)


def flex(q, k, v, window):
    """Causal attention over a window, or over all, by FlexAttention."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    def visible(batch, head, query, key):
        return (query >= key) & (query - key < window)

    T = q.size(1)
    mask = create_block_mask(visible, None, None, T, T, device=q.device)
    return flex_attention(*(x.transpose(1, 2) for x in (q, k, v)), block_mask=mask).transpose(1, 2)


def time_attention(rows=64, T=2048, heads=5, head_dim=128):
    """Print milliseconds, forward and backward, of every candidate for attend(), as train.py would compile it."""
    from torch.utils.benchmark import Timer  # which looks for a CUDA compiler, aloud

    module = load_train(SOURCE.partition("# Setup\n")[0])
    q, k, v = (
        torch.randn(rows, T, heads, head_dim, device="cuda", dtype=torch.bfloat16, requires_grad=True) for _ in range(3)
    )
    names = ("CUDNN_ATTENTION", "FLASH_ATTENTION", "EFFICIENT_ATTENTION")
    full = {name.lower(): functools.partial(sdpa, SDPBackend.__members__[name]) for name in names}
    short = {"varlen_attn": module.flash_window, "flex_attention": flex}
    print(f"\nAttention, {rows} rows of {T}, {heads} heads of {head_dim}, bf16: ms forward and backward")
    for window, candidates in ((T // 8, short), (T // 2, short), (T, {"attend()": module.attend, **full})):
        for name, function in candidates.items():
            compiled = torch.compile(functools.partial(function, window=window), dynamic=False, fullgraph=True)
            text = "compiled(q, k, v).backward(gradient)"
            variables = {"compiled": compiled, "q": q, "k": k, "v": v, "gradient": torch.randn_like(q)}
            try:
                timing = Timer(text, globals=variables).blocked_autorange(min_run_time=1)
                print(f"    window {window:5}  {name:22}{1e3 * timing.median:8.2f}")
            except RuntimeError as error:  # this GPU or this build has no such kernel
                print(f"    window {window:5}  {name:22}   none: {str(error).splitlines()[0][:80]}")


# -----------------------------------------------------------------------------
# On a CPU


def load_train(source):
    """A text of train.py, run as a module."""
    module = types.ModuleType("train_benchmark")
    sys.modules[module.__name__] = module  # @dataclass looks its module up
    exec(compile(source, "train.py", "exec"), module.__dict__)
    return module


def plain_attention(q, k, v, window):
    """attend(), written out."""
    T, D = q.size(1), q.size(-1)
    distance = torch.arange(T)[:, None] - torch.arange(T)
    hidden = (distance < 0) | (distance >= window)
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    scores = (q @ k.mT / D**0.5).masked_fill(hidden, float("-inf"))
    return (scores.softmax(-1) @ v).transpose(1, 2)


def plain_norm(x):
    """norm(), written out."""
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + torch.finfo(x.dtype).eps)


def plain_version(module):
    """The same training with nothing fused and nothing stacked."""
    module.attend, module.norm = plain_attention, plain_norm
    muon, adamw = module.optimizers
    muon.param_groups = [{**group, "params": [matrix]} for group in muon.param_groups for matrix in group["params"]]
    for group in adamw.param_groups:
        group.update(fused=False, foreach=False)
    return module


def time_step(module, step):
    """(CPU seconds, loss) of one step."""
    started = time.process_time()
    loss = module.train_step(module.batches, step, 0.5).item()
    return time.process_time() - started, loss


def time_parts(module, steps=20):
    """{part: milliseconds per step} of train.py's step, as train_step() takes them one after the other."""
    spent = dict.fromkeys(["batch", "forward and loss", "backward", "Muon", "AdamW"], 0.0)
    muon, adamw = module.optimizers
    for _ in range(steps):
        marks = [time.process_time()]
        inputs, targets, _ = next(module.batches)
        marks.append(time.process_time())
        loss = module.mean_loss(module.model, inputs, targets)
        for work in (loss.backward, muon.step, adamw.step):
            marks.append(time.process_time())
            work()
        marks.append(time.process_time())
        for (name, seconds), (start, end) in zip(list(spent.items()), itertools.pairwise(marks), strict=True):
            spent[name] = seconds + 1e3 * (end - start) / steps
        muon.zero_grad()
        adamw.zero_grad()
    return spent


def print_top_operations(module, steps=10, count=10):
    """The operations that take most of train.py's step, by torch's profiler."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        for step in range(steps):
            time_step(module, step)
    averages = profile.key_averages()
    total = sum(event.self_cpu_time_total for event in averages)
    for event in sorted(averages, key=lambda event: -event.self_cpu_time_total)[:count]:
        print(f"    {event.key[:58]:60}{100 * event.self_cpu_time_total / total:5.1f} %")


def compare_on_cpu(steps):
    """Time both versions in turns and print the ratio, and where the time goes."""
    setup = SOURCE.partition("# Compile and warm up on steps")[0]
    loader = "batches = make_dataloader(tokenizer, rows_per_pass, MAX_SEQ_LEN, 'train')\n"
    versions = {"train.py": load_train(setup + loader), "plain": plain_version(load_train(setup + loader))}
    gc.disable()  # as train.py does
    times = {name: [] for name in versions}
    losses = {name: [] for name in versions}
    for step in range(3 + steps):
        for name, module in versions.items():
            seconds, loss = time_step(module, step)
            times[name].append(1e3 * seconds)
            losses[name].append(loss)
    medians = {name: statistics.median(values[3:]) for name, values in times.items()}
    quarters = {name: statistics.quantiles(values[3:], n=4) for name, values in times.items()}
    print(f"CPU milliseconds of one thread per step, {steps} steps in turns: median, and the middle half\n")
    for name, median in medians.items():
        print(f"    {name:10}{median:8.1f}   {quarters[name][0]:6.1f} to {quarters[name][2]:6.1f}")
    print(f"    ratio     {medians['plain'] / medians['train.py']:8.2f}   plain / train.py, more is better")
    difference = max(abs(a - b) for a, b in zip(*losses.values(), strict=True))
    print(f"\nBoth train the same: their losses over {3 + steps} steps differ by at most {difference:.1e}.")
    print("\nWhere train.py's step goes, in ms:\n")
    for name, milliseconds in time_parts(versions["train.py"]).items():
        print(f"    {name:20}{milliseconds:8.1f}")
    print("\nIts operations, as shares of the CPU time that the profiler sees:\n")
    print_top_operations(versions["train.py"])


# -----------------------------------------------------------------------------
# Command line


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budget", type=int, default=120, help="seconds of training on a GPU (default: 120)")
    parser.add_argument("--cpu", action="store_true", help="step time on a CPU instead")
    parser.add_argument("--steps", type=int, default=100, help="with --cpu: steps of each version (default: 100)")
    args = parser.parse_args()
    # Before prepare_data and train.py are imported: they read it then.
    os.environ["AUTORESEARCH_SCALE"] = "cpu" if args.cpu else "h100"
    from autoresearch.text import fail

    if not args.cpu and not torch.cuda.is_available():
        fail("this needs one NVIDIA GPU; on a CPU, --cpu compares step times")
    print(machine())
    if args.cpu:
        compare_on_cpu(args.steps)
    else:
        compare_on_gpu(args.budget)
        time_attention()


if __name__ == "__main__":
    main()
