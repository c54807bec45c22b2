"""
The dry check: a train.py is run for two steps at a tiny size on the CPU, and its model is handed to the scorer.

It finds wrong names and shapes, and what the scorer refuses, in seconds. The tools of `anthropic` call it; a command
finds check.sh in its folder, which runs this file.
"""

import contextlib
import math
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

from autoresearch.files import ROOT, append_line, data_root
from autoresearch.judge.static_check import audit_source
from autoresearch.nouns import RunResult
from autoresearch.propose.history import untrusted
from autoresearch.run.scoring import Scorer, train_and_score
from autoresearch.run.training import RunOptions
from autoresearch.settings import Settings
from autoresearch.source import edit_problem
from autoresearch.text import one_line

STEPS = 2  # optimizer steps
SECONDS = 120.0  # after which it counts as broken off; it takes some ten on a quiet core
TOOK = ROOT / "runs" / "check_seconds.txt"  # how long each took, a line each
LOG_CHARACTERS = 6_000  # of the end of its log
PREPARING = threading.Lock()  # several conversations may want the cpu scale's data at once
SCRIPT = """#!/bin/sh
# Runs this folder's train.py for two steps at a tiny size on the CPU. It ends with 0 if that went through.
cd "$(dirname "$0")" && here=$(pwd) && cd '{root}' &&
exec '{python}' -m autoresearch.propose.dry_check "$here" {seed} {sandbox}
"""


def dry_check(settings: Settings, seed: int, should_stop: Callable[[], bool], source: str) -> RunResult:
    """What came of it. The number says nothing."""
    if problem := prepare_cpu_data():
        return RunResult("interrupted", 0.0, error=problem, tail=problem)
    options = RunOptions(
        scale="cpu",
        seed=seed,
        kill_after=SECONDS,
        sandbox=settings.sandbox,
        steps=STEPS,
        memory_gb=settings.memory_gb,
        environment={"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
    )
    TOOK.parent.mkdir(exist_ok=True)
    scratch = tempfile.TemporaryDirectory(prefix="check-", dir=TOOK.parent)
    with scratch as folder, contextlib.closing(Scorer()) as scorer:
        result = train_and_score(source, Path(folder), options, should_stop, scorer=scorer)
    if result.status == "ok":
        append_line(TOOK, f"{result.slot_seconds:.1f}\n")
    return result


def usual_seconds() -> float:
    """The mean of the last five that went through; nan before the first."""
    last = TOOK.read_text().split()[-5:] if TOOK.is_file() else []
    return sum(map(float, last)) / len(last) if last else math.nan


def prepare_cpu_data() -> str:
    """Prepare the cpu scale's data where they are missing: once, some ten seconds. Why that failed, or ""."""
    with PREPARING:
        if (data_root() / "cpu" / "meta.json").exists():
            return ""
        command = [sys.executable, str(ROOT / "prepare_data.py")]
        env = os.environ | {"AUTORESEARCH_SCALE": "cpu"}
        ended = subprocess.run(command, env=env, capture_output=True, text=True, timeout=600)
        return "" if ended.returncode == 0 else f"no data for the cpu scale: {ended.stderr.strip()[-300:]}"


def report(result: RunResult) -> tuple[bool, str]:
    """(whether nothing speaks against the train.py, what the check showed)."""
    took = f"the check took {result.slot_seconds:.0f} s"
    if result.status in ("timeout", "interrupted"):  # the machine may be busy
        return True, f"{took} and was broken off, so that it says nothing: {one_line(result.error)}"
    if result.status == "ok":
        return True, f"{took}: two steps at a tiny size on the CPU went through"
    if result.status == "invalid":
        return False, f"{took}, and the scorer refuses the model: {one_line(result.error)}"
    return False, f"{took} and failed: {one_line(result.error)}\n{untrusted(result.tail, LOG_CHARACTERS)}"


def main() -> None:
    """Check a command's train.py against the best.py beside it, as submit does for `anthropic`."""
    folder, seed, settings = Path(sys.argv[1]), int(sys.argv[2]), Settings.model_validate({"sandbox": sys.argv[3]})
    source, best = (folder / "train.py").read_text(), (folder / "best.py").read_text()
    if problem := edit_problem(best, source) or audit_source(source, best):
        print(problem)
        sys.exit(1)
    good, text = report(dry_check(settings, seed, lambda: False, source))
    print(text)
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
