"""
The first minutes on a new GPU as one script: docs/first_hour.md in a folder of results.

    python benchmarks/first_hour.py --source FOLDER --minutes 15                       # one GPU
    python benchmarks/first_hour.py --source FOLDER --recipe recipe.py --out results   # next to another train.py
    python benchmarks/first_hour.py --dry                                              # the same on a CPU, in little

In this order, as far as --minutes go: prepare the data; `check` with an empty compile cache and with a full one; train
train.py, the same without FlashAttention-4 where flash-attn-4 is installed, and --recipe, for --budget seconds each;
three experiments of the loop on constants, with a third of that budget; its report and a profile. The loop works in a
clone of this checkout's commit, so no branch and no file of yours is touched. --recipe is a whole train.py, such as the
public recipe's with the five changes of docs/guards.md. Each step leaves its output in --out, and a step that fails
ends nothing. summary.txt has a line for each step, and the figures.
"""

import argparse
import datetime
import importlib.metadata
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TAG = "first"
FA4 = 'importlib.metadata.distributions(name="flash-attn-4")'  # in train.py: what is installed
FIGURES = ("val_bpb", "mfu_percent", "peak_vram_mb", "training_seconds", "total_seconds", "total_tokens_M")


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(f"first-{datetime.date.today()}"), help="folder of results")
    parser.add_argument("--source", help="text to prepare, as for prepare_data.py (default: what is prepared)")
    parser.add_argument("--recipe", type=Path, help="another train.py to train next to the shipped one")
    parser.add_argument("--budget", type=int, default=60, help="seconds of a training (default: 60)")
    parser.add_argument("--minutes", type=float, default=60, help="stop after this time (default: 60)")
    parser.add_argument("--dry", action="store_true", help="at the cpu scale, 4 s a training, one experiment")
    args = parser.parse_args()
    for path in filter(None, (args.recipe, Path(args.source) if args.source else None)):
        if not path.exists():
            sys.exit(f"error: {path} is not there")
    return args


def trainings(recipe):
    """{name: text} of every train.py that is trained here."""
    source = (ROOT / "train.py").read_text()
    assert source.count(FA4) == 1
    sources = {"shipped": source}
    if any(importlib.metadata.distributions(name="flash-attn-4")):
        sources["without_fa4"] = source.replace(FA4, "()")
    return sources | ({"recipe": recipe.read_text()} if recipe else {})


def steps(args, clone):
    """(name, command) of every step, in order."""
    python, loop = sys.executable, [sys.executable, "agent_loop.py"]
    if args.source or args.dry:
        scale = "cpu" if args.dry else "h100"
        yield "data", [python, "prepare_data.py", "--scale", scale, *(["--source", args.source] if args.source else [])]
    for name in ("check_cold", "check"):
        yield name, [*loop, "check", "--proposer", "constants", "--json", "--budget", str(args.budget)]
    for name, source in trainings(args.recipe).items():
        (clone / f"train_{name}.py").write_text(source)
        yield f"train_{name}", [python, f"train_{name}.py"]
    third = str(max(2, args.budget // 3))
    search = ["--tag", TAG, "--proposer", "constants", "--budget", third]
    yield "search", [*loop, *search, "--experiments", "1" if args.dry else "3"]
    yield "report", [*loop, "report", "--tag", TAG]
    yield "profile", [*loop, "profile", "--tag", TAG]


def execute(name, command, clone, out, environment, seconds):
    """Run a step with its output in a file. Returns (exit code, seconds)."""
    started = time.monotonic()
    with open(out / f"{name}.txt", "w") as file:
        try:
            code = subprocess.run(
                command, cwd=clone, env=environment, stdout=file, stderr=subprocess.STDOUT, timeout=seconds
            ).returncode
        except subprocess.TimeoutExpired:
            code = 124
    return code, time.monotonic() - started


def figures(out):
    """Lines of what was measured, read from the output of the steps."""
    for path in sorted(out.glob("train_*.txt")):
        printed = dict(re.findall(r"^(\w+): +(\S+)$", path.read_text(), re.M))
        speed = float(printed.get("total_tokens_M", "nan")) / float(printed.get("training_seconds", "nan"))
        yield f"{path.stem}: {speed:.3f} M tokens/s, " + ", ".join(f"{key} {printed.get(key)}" for key in FIGURES)
    if (journal := out / "journal.jsonl").exists():
        runs = [json.loads(line) for line in journal.read_text().splitlines()]
        scored = [run["measured"]["scoring_seconds"] for run in runs if "scoring_seconds" in run.get("measured", {})]
        yield f"scorer: median {statistics.median(scored):.1f} s of {len(scored)} runs" if scored else "scorer: no run"


def main():
    args = parse()
    args.budget = 4 if args.dry else args.budget
    ends = time.monotonic() + 60 * args.minutes
    out = args.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(clone := out / "checkout", ignore_errors=True)
    subprocess.run(["git", "clone", "-q", str(ROOT), str(clone)], check=True)
    environment = os.environ | {"PYTHONPATH": str(clone), "AUTORESEARCH_SCALE": "cpu" if args.dry else "h100"}
    environment["AUTORESEARCH_BUDGET"] = str(args.budget)
    lines = [f"{datetime.datetime.now():%Y-%m-%d %H:%M}, {' '.join(sys.argv[1:])}"]
    for name, command in steps(args, clone):
        left = ends - time.monotonic()
        code, seconds = execute(name, command, clone, out, environment, left) if left > 0 else (None, 0)
        lines.append(f"{name:20} {'no time was left' if code is None else f'exit code {code} after {seconds:.0f} s'}")
        print(lines[-1], flush=True)
        for path in ("results.tsv", f"runs/{TAG}/report.html", f"runs/{TAG}/journal.jsonl"):
            if (clone / path).exists():
                shutil.copy(clone / path, out)
        (out / "summary.txt").write_text("\n".join([*lines, *figures(out)]) + "\n")
    print("\n".join(figures(out)), f"\nall of it is in {out}", sep="\n")


if __name__ == "__main__":
    main()
