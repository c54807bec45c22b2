"""
How much val_bpb of the cpu scale varies, and whether a changed constant shows above that. No GPU needed.

    python prepare_data.py --scale cpu && python benchmarks/cpu_noise.py    # about ten minutes

Trains train.py as it stands for its own time budget: five times with one seed on an idle machine, five times with one
spinning process per core, and with five seeds. A time budget lets the number of steps differ, so a fourfold and a
quarter of MATRIX_LR are compared at an equal number of steps, with three seeds each. Results: cpu_noise.txt.
"""

import math
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
SOURCE = (ROOT / "train.py").read_text()
REPEATS = 5


def measure(source, seed, steps):
    """(val_bpb, steps) of one training run of a train.py text; steps 0: as many as the time budget allows."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "train.py"
        path.write_text(source)
        changes = {"PYTHONPATH": str(ROOT), "AUTORESEARCH_SCALE": "cpu", "AUTORESEARCH_SEED": str(seed)}
        changes["AUTORESEARCH_STEPS"] = str(steps)
        run = subprocess.run([sys.executable, path], env=os.environ | changes, stdout=subprocess.PIPE, text=True)
    values = dict(re.findall(r"^(\w+): +(\S+)$", run.stdout, re.M))
    return (float(values["val_bpb"]), int(values["num_steps"])) if run.returncode == 0 else (math.nan, 0)


def series(name, source, seeds, steps=0):
    """Measure one source with each seed in turn and print the row."""
    results = [measure(source, seed, steps) for seed in seeds]
    bpbs = [bpb for bpb, _ in results]
    spread = f"{statistics.stdev(bpbs):.4f}  {max(bpbs) - min(bpbs):.4f}" if len(bpbs) > 1 else f"{'-':6}  {'-':6}"
    steps = f"{min(s for _, s in results)}-{max(s for _, s in results)}"
    print(
        f"{name:16} {statistics.mean(bpbs):.4f}  {spread}  {steps:>9}  " + " ".join(f"{bpb:.4f}" for bpb in bpbs),
        flush=True,
    )


def scaled_matrix_lr(factor):
    """train.py with another learning rate for the matrices."""
    return re.sub(r"^( *MATRIX_LR) = (\S+)", lambda m: f"{m[1]} = {float(m[2]) * factor}", SOURCE, flags=re.M)


print(f"{os.cpu_count()} cores, {platform.machine()}, torch {torch.__version__}, load {os.getloadavg()[0]:.1f}")
print("                 mean    std     range       steps  each run", flush=True)
series("same seed, idle", SOURCE, [42] * REPEATS)
spinners = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(os.cpu_count())]
try:
    series("same seed, busy", SOURCE, [42] * REPEATS)
finally:
    for spinner in spinners:
        spinner.kill()
        spinner.wait()
series("five seeds", SOURCE, range(1, 1 + REPEATS))
for name, factor in (("fixed steps", 1), ("fixed, LR x 4", 4), ("fixed, LR / 4", 1 / 4)):
    series(name, scaled_matrix_lr(factor), [42, 1, 2], steps=190)
