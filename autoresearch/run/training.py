"""
One run: the text of a train.py in, a RunResult out. Knows nothing of git, history or judgement.

The training is a process in a session of its own: nothing that it prints, forks or hangs on can reach the loop, and the
process group is gone when run_process() returns. Its environment holds what a training needs and no secret.
sandbox.py decides what else it may see, write and use up.
"""

import json
import math
import os
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from autoresearch.files import GUARDED, RECORD, ROOT
from autoresearch.nouns import RunResult
from autoresearch.process import GRACE, Ended, run_process
from autoresearch.run import gpu, sandbox
from autoresearch.text import last_lines

TRACEBACK = 6000  # characters of a traceback that its author is shown
AGAIN = 75  # the exit code by which training_clock() asks for another start: prepare_data.py
FIRST_LOSSES = 10  # that two seeds can't have in common
LEFT_OUT = "  [... frames of libraries are left out ...]\n"
CHAINED = re.compile(
    r"^(During handling of the above exception|The above exception was the direct cause)", re.MULTILINE
)
SAFE_VARIABLES = re.compile(
    r"PATH|HOME|USER|LANG|LC_\w+|TZ|TMPDIR|VIRTUAL_ENV|LD_LIBRARY_PATH|XDG_CACHE_HOME|AUTORESEARCH_DATA_DIR"
    r"|CUDA_\w+|NVIDIA_\w+|(PY)?TORCH(INDUCTOR)?_\w+|TRITON_\w+|OMP_\w+|MKL_\w+"
)


@dataclass(frozen=True)
class RunOptions:
    """The options of a run, whatever it trains."""

    scale: str
    seed: int
    kill_after: float  # seconds of wall-clock time
    sandbox: str = "auto"  # the setting
    budget: int | None = None  # seconds of training; None: the scale's
    steps: int = 0  # of training, instead of the budget
    memory_gb: float | None = None  # of the machine; None: a share of half of it
    runs_at_once: int = 1  # that share the machine
    environment: dict[str, str] = field(default_factory=dict)  # of the slot, like the GPU to use
    start_limit: float = 0.0  # seconds before the clock starts, after which the run begins again; 0: none
    rows: bool = True  # with bubblewrap: it sees the training rows
    score_seconds: float = 600.0  # that the scorer may take
    test: bool = False  # score the test rows too: of a run that no search decides by
    limits: dict[str, int] = field(default_factory=dict)  # instead of those that sandbox.make_limits() gives


# -----------------------------------------------------------------------------
# What a training printed


def parse_summary(text: str) -> dict[str, float]:
    """The `name: number` lines after the last --- line."""
    *before, summary = re.split(r"^---\r?$", text, flags=re.MULTILINE)
    pairs = re.findall(r"^(\w+):\s+(\S+)$", summary, re.MULTILINE) if before else []
    return {name: float(value) for name, value in pairs if re.fullmatch(r"[-+]?(\d+\.?\d*(e[-+]?\d+)?|nan|inf)", value)}


def find_error(tail: str) -> str:
    """The line that names the exception, or else the last line."""
    lines = [line.strip() for line in tail.splitlines() if line.strip()]
    named = [line for line in lines if re.match(r"[\w.]*(Error|Exception|Exit|Interrupt|Warning)\b", line)]
    return (named or lines or ["no output"])[-1][:300]


def traceback_in(log: str) -> str:
    """The last traceback of a log, with all that it is chained to and about TRACEBACK characters long, or ""."""
    parts = re.split(r"^(?=Traceback \(most recent call last\):)", log, flags=re.MULTILINE)
    first = len(parts) - 1
    while first > 1 and CHAINED.search(parts[first - 1]):
        first -= 1
    return shorten_traceback("".join(parts[max(first, 1) :]).rstrip(), TRACEBACK)


def shorten_traceback(text: str, limit: int) -> str:
    """A traceback without frames of libraries, from its middle outwards, until it is within `limit` characters.

    The frames of train.py always stay: they are the ones that its author can fix.
    """
    frames = re.split(r'^(?=  File "|\S)', text, flags=re.MULTILINE)  # a frame, or a line of the exception itself
    size, left_out = len(text), set()
    middle_first = sorted(range(len(frames)), key=lambda at: abs(at - len(frames) / 2))
    for at in [at for at in middle_first if frames[at].startswith("  File") and "train.py" not in frames[at]]:
        if size > limit:
            left_out.add(at)
            size -= len(frames[at])
    kept = [
        "" if at in left_out and at - 1 in left_out else LEFT_OUT if at in left_out else frames[at]
        for at in range(len(frames))
    ]
    text = "".join(kept)
    return text if len(text) <= 2 * limit else f"{text[:limit]}\n[...]\n{text[-limit:]}"


def parse_progress(tail: str) -> str:
    """The latest complete progress line of train.py, without its padding."""
    return tail.rpartition("\n")[2].rpartition("\r")[2].strip()


def parse_losses(log: str) -> list[tuple[float, float]]:
    """(percent of the budget, mean loss of the tenth of it that ends there): of one batch it would tell little."""
    tenths: dict[int, list[float]] = {}
    for percent, loss in re.findall(r"\| +(\d+\.\d) % \| loss (\d+\.\d+)", log):
        tenths.setdefault(max(1, math.ceil(float(percent) / 10)), []).append(float(loss))
    return [(10.0 * tenth, sum(losses) / len(losses)) for tenth, losses in tenths.items()]


# -----------------------------------------------------------------------------
# One training


def safe_environment(options: RunOptions, caches: Path) -> dict[str, str]:
    """The variables that a training may see: a list of what is let through, so that no secret is forgotten.

    What prepare_data.py reads is of the options alone, whatever this process was started with.
    """
    env = {name: value for name, value in os.environ.items() if SAFE_VARIABLES.fullmatch(name)}
    own = {
        "AUTORESEARCH_SCALE": options.scale,
        "AUTORESEARCH_SEED": str(options.seed),
        "PYTHONPATH": str(ROOT),  # where prepare_data.py is
        "PYTHONUNBUFFERED": "1",
    }
    own |= {"AUTORESEARCH_BUDGET": str(options.budget)} if options.budget else {}
    own |= {"AUTORESEARCH_STEPS": str(options.steps)} if options.steps else {}
    if options.scale == "cpu":  # processes that compile would count as work that slows the clock down
        own["TORCHINDUCTOR_COMPILE_THREADS"] = "1"
    return env | sandbox.environment(caches) | own | options.environment


def run_training(
    source: str,
    folder: Path,
    options: RunOptions,
    should_stop: Callable[[], bool] = lambda: False,
    on_progress: Callable[[str], None] = lambda line: None,
) -> RunResult:
    """Train the text `source` once; train.py and run.log are left in `folder`. The number is not made here: scoring.py.

    A result with the status `again` asks for another start, on the compile cache that it filled. None does without a
    start_limit.
    """
    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    sandbox.empty(folder)  # a first start, or a run that was busy, may have left its weights there
    (folder / "train.py").write_text(source)
    command = [sys.executable, "-P", "train.py"]  # -P: no prepare_data.py or torch.py in its own folder is imported
    limits = sandbox.make_limits(options.scale, options.memory_gb, options.runs_at_once) | options.limits
    caches = sandbox.compile_caches(folder, options.scale)
    environment = safe_environment(options, caches)
    environment["AUTORESEARCH_RECORD"] = RECORD
    if options.start_limit:
        environment["AUTORESEARCH_START_LIMIT"] = str(round(options.start_limit))
    shown = [path for path in sandbox.shown_to_runs(options.scale) if options.rows or path.suffix != ".bin"]
    clocks = gpu.Clocks(options.scale != "cpu", environment)

    def watch(tail: str) -> None:
        clocks.look()
        on_progress(parse_progress(tail))

    ended = run_process(
        sandbox.command_line(command, folder, shown, caches, options.sandbox, GRACE, limits),
        folder,
        environment,
        folder / "run.log",
        options.kill_after,
        should_stop,
        watch,
    )
    sandbox.tidy(folder)
    sandbox.prune_caches()
    result = read_result(ended, (folder / "run.log").read_text(errors="replace"), options.kill_after)
    if result.status == "again" and not (options.start_limit and asked_by_the_clock(folder)):
        error = f"exit code {AGAIN} is for training_clock(), which asks for another start once, before the clock starts"
        result = replace(result, status="crash", error=error)
    if result.status != "again":
        sandbox.remove_own_caches(folder)
    guarded = folder / GUARDED
    measured = json.loads(guarded.read_text()) if guarded.is_file() else {}
    guarded.unlink(missing_ok=True)
    return replace(result, measured=measured | clocks.facts())


def asked_by_the_clock(folder: Path) -> bool:
    """Return whether training_clock() noted that a run began too late, and that the clock had not started."""
    path = folder / RECORD
    return path.is_file() and path.stat().st_size < 10_000 and b'"again": true' in path.read_bytes()


def read_result(ended: Ended, log: str, kill_after: float) -> RunResult:
    """Return what a training's end and log say."""
    printed, tail = parse_summary(ended.tail), last_lines(ended.tail)
    first = [float(loss) for loss in re.findall(r"\| loss (\d+\.\d+)", log[:20_000])[:FIRST_LOSSES]]
    result = RunResult("ok", ended.seconds, printed=printed, tail=tail, losses=parse_losses(log), first_losses=first)
    if ended.how == "timeout":
        return replace(result, status="timeout", error=f"killed after {kill_after:.0f} s")
    if ended.how == "stopped":
        return replace(result, status="interrupted", error="stopped before it was done")
    if ended.code == AGAIN:
        return replace(result, status="again", error="it asked for another start")
    if ended.code != 0:
        return replace(result, status="crash", error=find_error(tail), tail=traceback_in(ended.tail) or tail)
    return replace(result, memory_gb=printed.get("peak_vram_mb", 0.0) / 1024)
