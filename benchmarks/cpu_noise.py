"""
How much val_bpb of the cpu scale varies, where that comes from, and whether a changed constant shows above it.

    python prepare_data.py --scale cpu && python benchmarks/cpu_noise.py    # about ten minutes on a quiet machine
    python benchmarks/cpu_noise.py clock                                    # the paced clock alone, quiet and busy

Trains train.py as it stands: for a fixed number of steps (the same seed twice, other seeds, other numbers of steps, and
a fourfold and a quarter of MATRIX_LR), then for its own time budget, as the machine is and next to bursts of load
(load.py). "CPU s" is what the budget took in plain CPU time: how far it is from constant is how much the number of
steps would vary without the pace that prepare_data.training_clock() goes by; "sd" is how much it does vary. No GPU
needed. Results: cpu_noise.txt.
"""

import math
import os
import platform
import re
import statistics
import sys
import tempfile
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from load import bursts

from autoresearch.judge.noise import pooled_noise, seed_share
from autoresearch.judge.trust import elapsed, read_record
from autoresearch.nouns import Noise
from autoresearch.run.scoring import Scorer, train_and_score
from autoresearch.run.training import RunOptions

ROOT = Path(__file__).resolve().parents[1]
SOURCE = (ROOT / "train.py").read_text()
SEEDS = (42, 1, 2, 3)
STEPS = 190
SCORER = Scorer()


def measure(source, seed, steps):
    """(val_bpb, steps, CPU seconds of the training) of a train.py text; steps 0: as many as the time budget allows."""
    options = RunOptions("cpu", seed, 600, steps=steps)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        result = train_and_score(source, folder, options, scorer=SCORER)
        noted = read_record(folder)
    if result.status != "ok" or not noted:
        return math.nan, 0, math.nan
    return result.val_bpb, int(result.printed["num_steps"]), elapsed(noted, "clock_started", "evaluated", "cpu")


def series(name, source, seeds, steps=0):
    """Measure one source with each seed in turn and print the row. Returns the runs, seed -> val_bpb."""
    results = [measure(source, seed, steps) for seed in seeds]
    bpbs, counts, seconds = zip(*results, strict=True)
    spread = f"{statistics.stdev(bpbs):.4f}" if len(bpbs) > 1 else ""
    varied = f" sd {100 * statistics.stdev(counts) / statistics.mean(counts):.1f} %" if len(set(counts)) > 1 else ""
    print(
        f"{name:18} {statistics.mean(bpbs):.4f} {spread:7} {min(counts):3}-{max(counts):3}"
        f"  {min(seconds):4.1f}-{max(seconds):4.1f}  " + " ".join(f"{bpb:.4f}" for bpb in bpbs) + varied,
        flush=True,
    )
    return dict(zip(seeds, bpbs, strict=True))


def scaled_matrix_lr(factor):
    """train.py with another learning rate for the matrices."""
    return re.sub(r"^( *MATRIX_LR) = (\S+)", lambda m: f"{m[1]} = {float(m[2]) * factor}", SOURCE, flags=re.M)


print(f"{os.cpu_count()} cores, {platform.machine()}, torch {torch.__version__}, load {os.getloadavg()[0]:.1f}")
print("                   mean   std      steps     CPU s    each run", flush=True)
series("20 s, same seed", SOURCE, [42] * 4)
with bursts():
    series("20 s, bursts", SOURCE, [42] * 4)
if "clock" in sys.argv:
    sys.exit()
for steps in (STEPS - 10, STEPS, STEPS + 10):
    series(f"{steps} steps, seed 42", SOURCE, [42] * (2 if steps == STEPS else 1), steps)
sources = [("as it is", SOURCE), ("LR x 4", scaled_matrix_lr(4)), ("LR / 4", scaled_matrix_lr(0.25))]
layout = [series(f"{name}, seeds", source, SEEDS, STEPS) for name, source in sources]
series("20 s, seeds", SOURCE, SEEDS)
sigma = pooled_noise(layout, Noise(0, 0)).sigma
print(f"noise at equal steps: {sigma:.4f}; the seeds' share of its variance: {seed_share(layout, 0.5):.2f}")
