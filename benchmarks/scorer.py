"""
What the scorer costs an experiment at the cpu scale, side by side with an evaluation in the run's own process.

    python prepare_data.py --scale cpu && python benchmarks/scorer.py [--against COMMIT] [--pairs N]

Whole experiments by the clock, in turn: train_and_score() as it is here, with a scorer that is warm, and run_training()
of a commit whose evaluate_bpb made the number itself, checked out beside it. Wall-clock seconds: compare within one run
of this, on a machine with nothing else to do. No GPU needed. Results: scorer.txt.
"""

import argparse
import contextlib
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from autoresearch.judge.trust import elapsed, read_record
from autoresearch.run.scoring import Scorer, train_and_score
from autoresearch.run.training import RunOptions

ROOT = Path(__file__).resolve().parents[1]
IN_PROCESS = """
import json, os, sys, time
from pathlib import Path
os.environ["AUTORESEARCH_RECORD"] = "record.json"
from autoresearch.run.training import RunOptions, run_training
started = time.monotonic()
result = run_training(Path("train.py").read_text(), Path(sys.argv[1]), RunOptions("cpu", 42, 600))
print(json.dumps([result.status, result.val_bpb, time.monotonic() - started]))
"""


def here(scorer, folder):
    """(val_bpb, seconds of the whole experiment, record) with the scorer."""
    started = time.monotonic()
    result = train_and_score((ROOT / "train.py").read_text(), folder, RunOptions("cpu", 42, 600), scorer=scorer)
    assert result.status == "ok", result.error
    return result.val_bpb, time.monotonic() - started, read_record(folder)


def there(checkout, folder):
    """The same with the evaluator of another checkout."""
    command = [sys.executable, "-c", IN_PROCESS, str(folder)]
    environment = os.environ | {"PYTHONPATH": str(checkout)}
    done = subprocess.run(command, cwd=checkout, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    status, val_bpb, seconds = json.loads(done.stdout)
    assert status == "ok"
    return val_bpb, seconds, json.loads((folder / "record.json").read_text())


def outside(seconds, record):
    """Seconds of an experiment that are not its training: what training takes differs from minute to minute."""
    return seconds - elapsed(record, "clock_started", "evaluated", "wall")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", default="486954d")
    parser.add_argument("--pairs", type=int, default=6)
    args = parser.parse_args()
    print(
        f"{time.strftime('%Y-%m-%d')} | {os.cpu_count()} cores, {platform.machine()}, load {os.getloadavg()[0]:.1f}\n"
    )
    print(f"{'':12}{'val_bpb':>10}{'whole':>9}{'outside training':>18}{'evaluate_bpb':>14}   seconds")
    rows = {"scorer": [], args.against: []}
    with tempfile.TemporaryDirectory() as name, contextlib.closing(Scorer()) as scorer:
        checkout = Path(name) / "checkout"
        add = ["git", "worktree", "add", "-q", "--detach", str(checkout), args.against]
        subprocess.run(add, cwd=ROOT, check=True)
        try:
            here(scorer, Path(name) / "warm")
            for pair in range(args.pairs):
                for label, run in (("scorer", lambda f: here(scorer, f)), (args.against, lambda f: there(checkout, f))):
                    folder = Path(name) / f"{label}{pair}"
                    val_bpb, seconds, record = run(folder)
                    inside = elapsed(record, "evaluated", "finished", "wall")
                    rows[label].append((outside(seconds, record), seconds))
                    print(
                        f"{label:12}{val_bpb:10.6f}{seconds:9.2f}{outside(seconds, record):18.2f}{inside:14.2f}",
                        flush=True,
                    )
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", str(checkout)], cwd=ROOT, check=True)
    new, old = (statistics.median(first for first, _ in each) for each in rows.values())
    whole = statistics.median(seconds for _, seconds in rows[args.against])
    print(f"\nmedians outside training: {new:.2f} s with the scorer, {old:.2f} s without")
    print(f"{new - old:+.2f} s an experiment, {100 * (new - old) / whole:+.1f} % of {whole:.1f} s")


if __name__ == "__main__":
    main()
