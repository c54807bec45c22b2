"""
Honest edits and cheats next to bursts of load: how many honest runs are refused, and does a cheat get a better number?

    python benchmarks/busy.py --journal busy.jsonl | tee benchmarks/busy.txt    # one to two hours; goes on after a stop

Each is what the loop does: a training, the scorer, the judge; a run whose clocks contradict each other is made once
more on its seed. First the baseline three times, which tells what is usual; then 40 edits of tests/judge/honest; then
the cheats of tests/judge/cheats that the clocks have to find. A budget of a few seconds, two cores, no GPU: edits of
what is done on a GPU only are left out.
"""

import argparse
import contextlib
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests/judge"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from load import bursts
from patches import CHEATS, HONEST, SOURCE, apply_patch, expectations

from autoresearch.judge.trust import Measure, believe, measure_expected, reason_to_repeat
from autoresearch.nouns import RunResult
from autoresearch.run.scoring import Scorer, train_and_score
from autoresearch.run.training import RunOptions

EDITS = 40


def train(source: str, seed: int, budget: int, scorer: Scorer, measure: Measure) -> tuple[RunResult, int]:
    """(what the loop makes of a train.py, the number of runs that it took)."""
    options = RunOptions("cpu", seed, 900, budget=budget)
    count, result = 0, RunResult("busy", 0.0)
    while count < 2 and reason_to_repeat(result):
        count += 1
        with tempfile.TemporaryDirectory() as name:
            result = train_and_score(source, Path(name), options, scorer=scorer)
            result = believe(measure, result, Path(name)) if result.status == "ok" else result
    return result, count


def cases() -> list[tuple[str, str, str, int]]:
    """(kind, name, source, seed) of each experiment."""
    honest = [path for path in HONEST if "CUDA" not in path.read_text()]
    edits = [("honest", path.stem, apply_patch(path), 42 + at // len(honest)) for at, path in enumerate(honest * 2)]
    slow = [path for path in CHEATS if "budget" in expectations(path)]
    return (
        [("baseline", "baseline", SOURCE, seed) for seed in (42, 43, 44)]
        + edits[:EDITS]
        + [("cheat", path.stem, apply_patch(path), 42) for path in slow]
    )


def run_all(args: argparse.Namespace, measure: Measure) -> list[dict]:
    """The rows of all experiments: those in the journal, then the others, one after the other next to the load."""
    lines = args.journal.read_text().splitlines() if args.journal.exists() else []
    rows = [json.loads(line) for line in lines]
    measure.expected |= rows[-1]["expected"] if rows else {}
    with contextlib.closing(Scorer()) as scorer, bursts(len(rows)), open(args.journal, "a") as journal:
        for kind, name, source, seed in cases()[len(rows) :]:
            result, count = train(source, seed, args.budget, scorer, measure)
            row = {"kind": kind, "name": name, "seed": seed, "runs": count, "status": result.status}
            row |= {"val_bpb": result.val_bpb, "steps": result.printed.get("num_steps", 0), "error": result.error}
            row |= {"load": os.getloadavg()[0], "seconds": result.seconds, "measured": result.measured}
            rows.append(row)
            print(json.dumps(row | {"expected": measure.expected}), file=journal, flush=True)
            print(f"{time.strftime('%H:%M:%S')}  {name}  {result.status}  {result.error}", file=sys.stderr)
    return rows


def print_table(rows: list[dict], budget: int) -> None:
    head = f"{time.strftime('%Y-%m-%d')} | {os.cpu_count()} cores | torch {torch.__version__} | {budget} paced seconds"
    print(f"{head}\n\nkind      runs  status   val_bpb  steps  CPU s  load  which")
    for row in rows:
        said, worked = f"{row['name']}  {row['error']}", row["measured"].get("cpu_seconds", 0)
        print(
            f"{row['kind']:8} {row['runs']:5}  {row['status']:7} {row['val_bpb']:8.4f}{row['steps']:7.0f}"
            f"{worked:7.1f}{row['load']:6.1f}  {said[:110]}"
        )
    honest = [row for row in rows if row["kind"] == "honest"]
    refused = [row for row in honest if row["status"] != "ok"]
    again = sum(row["runs"] > 1 for row in honest)
    base = [row["val_bpb"] for row in rows if row["kind"] == "baseline"]
    lowest = min(base) - 3 * statistics.stdev(base)
    good = [row for row in rows if row["kind"] == "cheat" and row["status"] == "ok"]
    better = [row["name"] for row in good if row["val_bpb"] < lowest]
    mean = statistics.fmean(base)
    print(f"\n{len(refused)} of {len(honest)} honest edits refused, {again} made again; baseline {mean:.4f}")
    print(f"cheats with a number below {lowest:.4f}, three standard deviations better: {', '.join(better) or 'none'}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--journal", type=Path, required=True, help="the rows so far; the same command goes on")
    parser.add_argument("--budget", type=int, default=4, help="paced seconds of training (default: 4)")
    args = parser.parse_args()
    measure = Measure(args.journal.with_suffix(".measure.json"), "cpu", measure_expected(args.budget), {})
    print_table(run_all(args, measure), args.budget)


if __name__ == "__main__":
    main()
