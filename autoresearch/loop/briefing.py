"""
What a proposer is told beside the experiments: the machine, what a keep needs, what is left; and the check it may make.
"""

import contextlib
import functools
import math
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from autoresearch.files import ROOT, data_root
from autoresearch.judge.belief import measured_gain, posterior
from autoresearch.judge.keep_rule import KEEP_AT_ONCE
from autoresearch.loop.inflight import Queue
from autoresearch.loop.limits import proposals_to_come
from autoresearch.loop.session import Session, run_options
from autoresearch.nouns import RunResult
from autoresearch.record.ledger import Ledger
from autoresearch.record.reading import read_diffs, read_experiment
from autoresearch.run.scoring import Scorer, train_and_score

CHECK_STEPS = 2  # optimizer steps of a check
CHECK_SECONDS = 120.0  # of a check, after which it counts as broken off; it takes some ten seconds on a quiet core
PREPARING = threading.Lock()  # several conversations may want the cpu scale's data at once


SHARED = ("seed", "scale", "max_seq_len", "time_budget", "vocab_size")  # fields of Options that Context has, too


def about_session(session: Session) -> dict[str, Any]:
    """The fields of Context that need no search: settings, instructions and machine."""
    shared = {name: getattr(session.options, name) for name in SHARED}
    own = {"settings": session.settings, "instructions": session.instructions}
    return shared | own | {"machine": machine_text(session.options.scale)}


def about_search(session: Session, ledger: Ledger) -> dict[str, Any]:
    """Those, and the ones that tell of a search's experiments and let a proposer look further."""
    options = session.options
    return about_session(session) | {
        "best_source": ledger.source_of(ledger.best.number),
        "rows": list(ledger.rows),
        "noise": ledger.known.paired_noise.sigma,
        "command": options.command,
        "tag": options.tag,
        "log": session.log.say,
        "read": functools.partial(read_experiment, ledger),
        "diffs": functools.partial(read_diffs, ledger),
        "check": make_check(session) if options.proposer == "anthropic" else None,
    }


def what_is_left(session: Session, ledger: Ledger, queue: Queue) -> dict[str, Any]:
    """The fields of Context that say what a keep needs, and what this session still has."""
    return {
        "keep_gain": keep_gain(session, ledger),
        "time_left": session.options.deadline - time.monotonic(),
        "experiments_left": proposals_to_come(session, ledger, queue),
    }


def keep_gain(session: Session, ledger: Ledger) -> float:
    """The measured gain, in val_bpb, at which one run of a candidate is kept; nan before there is a best."""
    known = ledger.known
    if not ledger.kept:
        return math.nan
    belief, sigma = known.beliefs[ledger.best.commit], known.paired_noise.sigma
    _, deviation = measured_gain({0: belief.best}, belief, known.paired_noise)
    low, high = 0.0, 20 * deviation
    for _ in range(40):
        middle = (low + high) / 2
        enough = posterior(middle, deviation, belief.usual, sigma).better >= KEEP_AT_ONCE
        low, high = (low, middle) if enough else (middle, high)
    return high


# -----------------------------------------------------------------------------
# The machine


def package(name: str) -> str:
    try:
        return f"{name} {version(name)}"
    except PackageNotFoundError:
        return f"no {name}"


@functools.cache
def machine_text(scale: str) -> str:
    """Device, memory, versions, and the kernels that these versions have. Asked once: it is part of a cached prompt."""
    versions = f"Python {sys.version.split()[0]}, {package('torch')}, {package('triton')}"
    if scale == "cpu":
        return (
            f"- one thread of a CPU, {versions}\n- eager: torch.compile would take more than a minute before each run"
        )
    return (
        f"- {gpu_text()}, {versions}\n"
        "- attention that is there without a download: torch.nn.attention.varlen.varlen_attn (FlashAttention-2, with "
        "window_size, forward and backward), scaled_dot_product_attention (cuDNN for full causal layers; it has no "
        "window), flex_attention (compiled), Triton kernels of your own\n"
        "- torch.compile: compiling is not part of the budget, as it is done in the warm-up steps, but a run's "
        "wall-clock time is limited; what changes the shapes or the graph compiles anew"
    )


def gpu_text() -> str:
    """Name and memory of the first GPU, by the driver: torch would take up memory of it."""
    command = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    if not shutil.which(command[0]):
        return "one NVIDIA GPU (not in the machine that this is written on: see the logs)"
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    lines = ended.stdout.strip().splitlines()
    return f"{lines[0]} (name, memory, driver)" if ended.returncode == 0 and lines else "one NVIDIA GPU"


# -----------------------------------------------------------------------------
# The check


def make_check(session: Session) -> Callable[[str], RunResult]:
    """A function that runs a train.py for a few steps at the cpu scale and scores it, beside the trainings."""
    environment = {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    options = run_options(
        session, scale="cpu", steps=CHECK_STEPS, budget=None, kill_after=CHECK_SECONDS, environment=environment
    )

    def check(source: str) -> RunResult:
        if problem := prepare_cpu_data():
            return RunResult("interrupted", 0.0, error=problem, tail=problem)
        (ROOT / "runs").mkdir(exist_ok=True)
        scratch = tempfile.TemporaryDirectory(prefix="check-", dir=ROOT / "runs")
        with scratch as folder, contextlib.closing(Scorer()) as scorer:
            return train_and_score(source, Path(folder), options, lambda: session.ending, scorer=scorer)

    return check


def prepare_cpu_data() -> str:
    """Prepare the cpu scale's data where they are missing: once, some ten seconds. Why that failed, or ""."""
    with PREPARING:
        if (data_root() / "cpu" / "meta.json").exists():
            return ""
        command = [sys.executable, str(ROOT / "prepare_data.py")]
        env = os.environ | {"AUTORESEARCH_SCALE": "cpu"}
        ended = subprocess.run(command, env=env, capture_output=True, text=True, timeout=600)
        return "" if ended.returncode == 0 else f"no data for the cpu scale: {ended.stderr.strip()[-300:]}"
