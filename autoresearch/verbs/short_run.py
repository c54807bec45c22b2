"""
A short run to try a machine: the card from outside, the card from inside the sandbox, some steps of train.py.
"""

import contextlib
import json
import math
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from autoresearch.files import ROOT
from autoresearch.judge import trust
from autoresearch.judge.static_check import audit_source
from autoresearch.judge.trust import load_measure
from autoresearch.loop.bench import Bench, Slot, run_all, train_here
from autoresearch.loop.session import Options, Session, run_options
from autoresearch.nouns import RunResult, Task
from autoresearch.run import gpu, sandbox
from autoresearch.run.training import RunOptions, run_training

FOLDER = ROOT / "runs" / "check"  # where the logs are left
PROBE_SECONDS, RUN_SECONDS = 120.0, 400.0  # at most; compiling takes 70 s on a slow host
GOOD_PRODUCT = 0.6  # of the datasheet's peak: published are 0.8 on an H100
LONG_START = 60.0  # seconds outside training at the h100 scale: more is a compile cache that was empty
H100_TOKENS = 2.6  # per parameter of the shipped train.py in 300 s, at 1.057 M tokens/s: docs/performance.md
FULL = 0.9  # of the GPU's memory: a larger model would not fit
FALL_BACK = re.compile(r"^(.+) failed \((.*)\); using (.+)$", re.M)  # a line of train.py


@dataclass(frozen=True)
class Line:
    """The finding about one thing."""

    name: str
    state: str  # ok; slow: it works, but not as well as it could; wrong
    text: str
    fix: str = ""
    facts: dict[str, Any] = field(default_factory=dict)  # the numbers in the text, for --json


def short_run(session: Session) -> Iterator[Line]:
    """Every line about the machine; the last one, if all went well, has the seconds that a whole run takes."""
    options = run_options(session, kill_after=PROBE_SECONDS)
    if options.scale != "cpu":
        yield from card_lines()
    seen, problem = look_from_inside(options)
    if problem:
        yield Line("inside a run", "wrong", problem, f"read {FOLDER / 'inside/run.log'}")
        return
    yield from inside_lines(seen, options)
    if options.scale == "cpu" or seen.get("gpu"):
        yield from training_lines(session, replace(options, kill_after=RUN_SECONDS), seen)


# -----------------------------------------------------------------------------
# The card, from outside


def card_lines() -> Iterator[Line]:
    """Report what nvidia-smi says."""
    try:
        card, others = gpu.read_gpu(), gpu.read_processes()
    except RuntimeError as error:
        yield Line("GPU", "wrong", str(error), "install the NVIDIA driver, or see what `nvidia-smi` says")
        return
    memory, power, usual = (gpu.number(card[name]) for name in ("memory.total", "power.limit", "power.default_limit"))
    text = f"{card['name']}, driver {card['driver_version']}, {memory / 1024:.0f} GB, up to {card['clocks.max.sm']} MHz"
    yield Line("GPU", "ok", text, "", {"name": card["name"], "driver": card["driver_version"]})
    facts = {"power_limit_w": power, "default_power_limit_w": usual}
    if power < 0.97 * usual:
        fix = f"sudo nvidia-smi -i {gpu.the_gpu()} -pl {usual:.0f}"
        yield Line("power limit", "slow", f"{power:.0f} W, the card's own is {usual:.0f} W", fix, facts)
    else:
        yield Line("power limit", "ok", f"{power:.0f} W", "", facts)
    if reason := gpu.slowdown(card):
        yield Line(
            "GPU clock", "slow", f"held down: {reason}", "see to its cooling and power: nvidia-smi -q -d PERFORMANCE"
        )
    if others:
        fix = "end them, or take another GPU: CUDA_VISIBLE_DEVICES=1"
        yield Line("others on the GPU", "slow", "; ".join(others)[:300], fix)
    else:
        yield Line("others on the GPU", "ok", f"none, {gpu.number(card['memory.used']):.0f} MB are in use")


# -----------------------------------------------------------------------------
# The machine, from inside a run


def look_from_inside(options: RunOptions) -> tuple[dict[str, Any], str]:
    """Return what probe.py found out instead of a training, or why it found nothing."""
    variables = {"PROBE_CHECKOUT": str(ROOT), "PROBE_PROCESS": str(os.getpid())}
    options = replace(options, environment=variables)
    result = run_training(Path(gpu.__file__).with_name("probe.py").read_text(), FOLDER / "inside", options)
    with contextlib.suppress(ValueError, IndexError):
        seen = json.loads([line for line in result.tail.splitlines() if line.startswith("{")][-1])
        if isinstance(seen, dict):
            return seen, ""
    return {}, result.error


def inside_lines(seen: dict[str, Any], options: RunOptions) -> Iterator[Line]:
    versions = f"Python {seen['python']}, torch {seen['torch']}"
    if options.scale == "cpu":
        yield Line("torch", "ok", versions, "", {"torch": seen["torch"]})
    elif not seen["cuda"]:
        fix = "install a CUDA build of torch: https://pytorch.org/get-started/locally"
        yield Line("torch", "wrong", f"{versions}, which has no CUDA", fix)
    elif not seen.get("gpu"):
        outside = "" if options.sandbox == "off" else ", or try `sandbox: off` in program.md to see whether that is why"
        yield Line("torch", "wrong", "a run sees no GPU", f"python -c 'import torch; torch.cuda.init()'{outside}")
    else:
        card = f"CUDA {seen['cuda']}, {seen['gpu']}, capability {seen['capability']}"
        yield Line("torch", "ok", f"{versions}, {card}", "", {"torch": seen["torch"], "gpu": seen["gpu"]})
        yield from speed_lines(seen)
    yield sandbox_line(seen, options)


def speed_lines(seen: dict[str, Any]) -> Iterator[Line]:
    """The kernels that are there, and a product of matrices against the card's peak."""
    flash = "FlashAttention-2" if seen["flash_attention"] else "no FlashAttention-2"
    kernels = f"cuDNN {seen['cudnn']}, {flash}, Triton {seen['triton'] or 'missing'}"
    state, fix = ("ok", "") if seen["triton"] else ("slow", "pip install triton: torch.compile needs it")
    yield Line("kernels", state, kernels, fix)
    speed = seen["bf16_tflops"]
    peak = next((peak for name, peak in gpu.PEAK_TFLOPS.items() if name in seen["gpu"]), math.inf)
    facts = {"bf16_tflops": speed}
    if peak == math.inf:
        yield Line("bf16 product", "ok", f"{speed:.0f} TFLOP/s; this card's peak is not known here", "", facts)
        return
    text = f"{speed:.0f} TFLOP/s, {100 * speed / peak:.0f} % of the datasheet's {peak:g}"
    good = speed > GOOD_PRODUCT * peak
    fix = "" if good else "see its clocks and power: nvidia-smi -q -d CLOCK,POWER,PERFORMANCE"
    yield Line("bf16 product", "ok" if good else "slow", text, fix, facts)


def sandbox_line(seen: dict[str, Any], options: RunOptions) -> Line:
    """Return whether what should be hidden from a run is hidden."""
    shown = [what for what in ("checkout", "network", "processes") if seen[f"sees_{what}"]]
    lines = sandbox.describe(options.sandbox, options.scale, options.memory_gb)
    if lines[0].startswith("sandbox: none"):
        fix = "`sandbox: auto` in program.md" if options.sandbox == "off" else sandbox.INSTALL
        return Line("sandbox", "slow", f"{lines[0].removeprefix('sandbox: ')}; {lines[1]}", fix)
    if shown:
        return Line("sandbox", "wrong", f"bubblewrap is on, but a run sees: {', '.join(shown)}", "please report this")
    return Line("sandbox", "ok", "bubblewrap: a run sees no network, no checkout, no process of yours")


# -----------------------------------------------------------------------------
# Some steps of train.py


def training_lines(session: Session, options: RunOptions, seen: dict[str, Any]) -> Iterator[Line]:
    """Run some steps of train.py as it is on disk, made and judged as in a search, and report on them."""
    source = (ROOT / "train.py").read_text()
    if problem := audit_source(source, source):
        yield Line("train.py", "wrong", problem, "git restore train.py")
        return
    folder, steps = FOLDER / "steps", options.steps
    (FOLDER / "measure.json").unlink(missing_ok=True)
    session.measure = load_measure(FOLDER, options.scale, session.options.measured_budget)
    clocks = gpu.Clocks(asked=options.scale != "cpu", every=0.5)
    train = train_here()
    slot = Slot(train=lambda text, place, asked, stop, _: train(text, place, asked, stop, lambda line: clocks.look()))
    ended = run_all(Bench(session, [slot], lambda task: folder), [Task("check", source, options.seed, "check")])
    if not ended:
        yield Line(f"{steps} steps", "wrong", session.blocked or "stopped", f"read {folder / 'run.log'}")
        return
    ((_, result),) = ended
    log = (folder / "run.log").read_text(errors="replace")
    for name, reason, instead in FALL_BACK.findall(log):
        yield Line(
            "fall-back", "slow", f"{name} failed ({reason}); using {instead}", "a newer torch or driver may help"
        )
    if result.status != "ok":
        yield Line(f"{steps} steps", "wrong", f"{result.status}: {result.error}", f"read {folder / 'run.log'}")
        return
    speed = speed_line(log, result, steps, seen, clocks)
    yield speed
    known = min(result.printed.get(name, 0) for name in ("depth", "num_params_M")) > 0  # train.py may print otherwise
    if options.scale != "cpu" and known and speed.facts:
        yield budget_line(speed.facts["tokens_per_second"], result.printed, session.options.time_budget)
    yield Line("scorer", "ok", f"val_bpb {result.val_bpb:.4f} after {steps} steps is believed")
    yield overhead_line(result, folder, session.options)


def speed_line(log: str, result: RunResult, steps: int, seen: dict[str, Any], clocks: gpu.Clocks) -> Line:
    """Step time, tokens per second, MFU, memory, clock."""
    last = re.findall(r"\| (\d+\.\d) k tok/s", log)
    per_step = re.findall(r"\| (\d+) tokens per step", log)
    if not last or not per_step:
        text, fix = (
            f"val_bpb {result.val_bpb:.4f}, but no tokens per second in the log",
            "give train.py its own lines back",
        )
        return Line(f"{steps} steps", "slow", text, fix)
    speed = 1000 * float(last[-1])
    facts = {"tokens_per_second": speed, "step_ms": 1000 * int(per_step[0]) / speed}
    facts |= {"mfu_percent": result.printed.get("mfu_percent", math.nan), "peak_gb": result.memory_gb} | clocks.facts()
    text = f"{facts['step_ms']:.0f} ms a step, {speed / 1000:.1f} k tokens/s, "
    text += f"MFU {facts['mfu_percent']:.1f} %, " if facts["mfu_percent"] > 0 else ""
    text += f"peak memory {result.memory_gb:.1f} GB"
    text += f", SM clock {facts['sm_clock_mhz']:.0f} MHz" if "sm_clock_mhz" in facts else ""
    if result.memory_gb > FULL * seen.get("gpu_memory_gb", math.inf):
        fix = "a smaller DEVICE_BATCH_SIZE in train.py leaves room for larger models"
        return Line(f"{steps} steps", "slow", f"{text}, nearly all there is", fix, facts)
    return Line(f"{steps} steps", "ok", text, "", facts)


def size_at(depth: int) -> tuple[float, float]:
    """(parameters, FLOPs per token) of train.py's model at the h100 scale, up to gates and scalars."""
    width, long_windows = 128 * math.ceil(depth * 57 / 128), (depth + 4) // 5
    blocks, table = 12 * depth * width**2, 8192 * width
    window = 2048 * long_windows + 256 * (depth - long_windows)
    return blocks + (10 + (depth + 1) // 2) * table, 6 * (blocks + table) + 12 * width * window


def budget_line(speed: float, printed: dict[str, float], budget: int) -> Line:
    """Report the tokens per parameter in the budget, and the DEPTH at which they would be as many as on an H100."""
    depth, tokens = int(printed["depth"]), speed * budget
    here, (parameters, work) = tokens / printed["num_params_M"] / 1e6, size_at(depth)
    seen = {d: here * parameters * work / math.prod(size_at(d)) for d in range(1, 33)}
    alike = min(seen, key=lambda d: abs(math.log(seen[d] / H100_TOKENS)))
    text = f"{budget} s are {tokens / 1e6:.0f} M tokens, {here:.2g} per parameter at depth {depth}; "
    text += f"on an H100 {H100_TOKENS} in 300 s, as about here at DEPTH = {alike}"
    return Line("budget", "ok", text, "", {"tokens_per_parameter": here, "depth_as_on_h100": alike})


def overhead_line(result: RunResult, folder: Path, options: Options) -> Line:
    """Return what a run takes besides its training, of it the scorer, which does all its work in a short run too."""
    record = trust.read_record(folder)
    assert record, "believe() has seen it"
    trained = trust.elapsed(record, "clock_started", "evaluated", "wall")
    outside = result.slot_seconds - trained
    pace = trained / result.printed["training_seconds"] if options.scale == "cpu" else 1.0  # of this machine's seconds
    whole = options.time_budget * pace + outside
    facts = {"overhead_seconds": outside, "evaluation_seconds": result.extra_seconds, "run_seconds": whole}
    text = f"{outside:.0f} s outside training, {result.extra_seconds:.0f} of them the scorer: "
    text += f"a run takes {whole:.0f} s"
    if options.scale != "cpu" and outside > LONG_START:
        return Line("a whole run", "slow", text, "run check again: the first run compiles for all that follow", facts)
    return Line("a whole run", "ok", text, "", facts)
