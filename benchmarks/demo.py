"""
The demo, ten times with different seeds: does it find something, and how long does it take?

    python benchmarks/demo.py | tee benchmarks/demo.txt        # about 20 minutes on two cores with nothing else to do

Each is `python agent_loop.py --demo` in a fresh clone of this repository as it is committed, with AUTORESEARCH_SEED
set; the data are those of the first. A line each: seconds to the first line of output and to the end, the longest
silence of a pipe (a terminal has a live line), how many changes were kept, and the gain over the baseline, both on the
same fresh seeds.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def run_demo(folder: Path, seed: int) -> dict[str, str]:
    """The figures of one demo, as texts. Exits with its output if it failed."""
    repository = folder / f"seed{seed}"
    subprocess.run(["git", "clone", "-q", ROOT, repository], check=True)
    environment = os.environ | {"AUTORESEARCH_SEED": str(seed), "PYTHONPATH": str(repository), "PYTHONUNBUFFERED": "1"}
    environment["AUTORESEARCH_DATA_DIR"] = str(folder / "data")
    started = last = time.monotonic()
    command = [sys.executable, "agent_loop.py", "--demo"]
    process = subprocess.Popen(
        command, cwd=repository, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert process.stdout
    text, first, silence = "", 0.0, 0.0
    for line in process.stdout:
        now = time.monotonic()
        first = first or now - started
        silence, last, text = max(silence, now - last), now, text + line
    end = time.monotonic() - started
    if process.wait():
        sys.exit(text)
    command = [sys.executable, "agent_loop.py", "status", "--tag", "demo", "--json"]
    status = json.loads(
        subprocess.run(command, cwd=repository, env=environment, check=True, capture_output=True).stdout
    )
    count, gain = status["experiments"], status["gain"]
    return {
        "first": f"{first:.1f}",
        "end": f"{end:.0f}",
        "silence": f"{silence:.0f}",
        "kept": f"{count['kept']} of {count['tried']}",
        "failed": str(count["invalid"] + count["busy"] + count["crashed"] + count["timed_out"]),
        "gain": f"{gain['value']:+.6f} ± {(gain['high'] - gain['value']) / 1.96:.6f}  {gain['percent']:.1f} %"
        if gain
        else "",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=10)
    repeats = parser.parse_args().repeats
    command = ["git", "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True).stdout.strip()
    print(f"{time.strftime('%Y-%m-%d')} | commit {commit} | {os.cpu_count()} cores | Python {sys.version.split()[0]}\n")
    print("seed   first line   end   longest silence of a pipe   kept     failed   gain")
    kept = 0
    with tempfile.TemporaryDirectory() as name:
        for seed in range(1, repeats + 1):
            found = run_demo(Path(name), seed)
            kept += not found["kept"].startswith("0")
            line = f"{seed:4}{found['first']:>11} s{found['end']:>5} s{found['silence']:>26} s   {found['kept']:8} "
            print(f"{line}{found['failed']:6}   {found['gain']}", flush=True)
    print(f"\n{kept} of {repeats} kept at least one change")


if __name__ == "__main__":
    main()
