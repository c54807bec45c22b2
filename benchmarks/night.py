"""
A night in short: a search of 700 experiments on four slots, killed five times with kill -9, and what it took.

    python benchmarks/night.py | tee benchmarks/night.txt    # about twenty minutes on two quiet cores; no GPU, no key

Loop, git, sandbox, guard and journal are the real ones. Each training is a real process that trains nothing and prints
a number; a shell command proposes. The table is of the loop's own process: neither its memory and open files nor the
seconds for an experiment should grow much with the search. At the end every row has its commit, every experiment its
row and every judged run its line in the journal, or this fails.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from loop_helpers import (  # noqa: E402
    LEAVE_RECORD,
    check_invariants,
    make_repository,
    rows_of,
    start_loop,
)

PARTS = 60  # constants that a proposal can change
TRAIN = "import random, os\n" + "".join(f"PART_{n} = 5\n# apart\n# from\n# the next\n" for n in range(PARTS))
TRAIN += f'LEVEL = 2 + sum(globals()[f"PART_{{n}}"] for n in range({PARTS})) / 1000 + random.gauss(0, 0.002)\n'
TRAIN += (
    'print(f"---\\nval_bpb:          {LEVEL:.6f}\\ntraining_seconds: 20.0\\npeak_vram_mb:     512.0")\n' + LEAVE_RECORD
)
PROPOSE = """n=$(od -An -N2 -tu2 /dev/urandom | tr -d ' '); part=$((n % 60)); value=$((n / 60 % 12))
sed -i "s/^PART_$part = .*/PART_$part = $value.$n/" train.py; echo "part $part to $value.$n" """


def look(process: int) -> str:
    """Memory and open files of a process."""
    status = Path(f"/proc/{process}/status").read_text()
    memory = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS"))
    return f"{memory / 1000:10.0f}{len(os.listdir(f'/proc/{process}/fd')):13}"


def count_rows(folder: Path) -> int:
    return (folder / "results.tsv").read_text().count("\n") - 1


def search(folder: Path, experiments: int, marks: list[int], kills: list[int]) -> None:
    """Run the search to its end, killed and started again at these numbers of rows; print a line at each mark."""
    options = ["--experiments", str(experiments), "--slots", "4", "--command", PROPOSE]
    loop, started, marked, at = start_loop(folder, *options), time.monotonic(), time.monotonic(), 0
    while loop.poll() is None:
        time.sleep(0.1)
        rows = count_rows(folder)
        if marks and rows >= marks[0]:
            seconds = (time.monotonic() - marked) / (rows - at)
            print(f"{rows:4}{look(loop.pid)}{seconds:24.2f}", flush=True)
            marked, at = time.monotonic(), rows
            marks.pop(0)
        if kills and rows >= kills[0]:
            kills.pop(0)
            os.kill(loop.pid, signal.SIGKILL)
            loop.wait()
            loop = start_loop(folder, *options)
    out, err = loop.communicate()
    assert loop.returncode == 0 and not kills, out + err
    print(f"\n{count_rows(folder)} rows in {(time.monotonic() - started) / 60:.1f} minutes")


def check(folder: Path, experiments: int) -> None:
    """Nothing is lost: rows, refs and commits agree, and each row's runs are in the journal."""
    check_invariants(folder)
    rows, journal = rows_of(folder), (folder / "runs/t/journal.jsonl").read_text().splitlines()
    events = [json.loads(line) for line in journal if line.endswith("}")]
    ran = {(event["number"], event["seed"]) for event in events if event["event"] == "run"}
    judged = {(row.number, int(run.split(":")[0])) for row in rows for run in row.runs.split()}
    assert sorted(row.number for row in rows) == list(range(len(rows))) and len(rows) > experiments
    assert judged <= ran, judged - ran
    kept, cut = sum(row.status == "keep" for row in rows), len(journal) - len(events)
    print(f"{kept} kept, {len(ran)} runs; nothing lost; {cut} lines of the journal were cut short by a kill")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experiments", type=int, default=700)
    experiments = parser.parse_args().experiments
    os.environ["AUTORESEARCH_SCALE"] = "cpu"
    subprocess.run([sys.executable, ROOT / "prepare_data.py"], check=True, stdout=subprocess.DEVNULL)
    rng = random.Random(1)
    kills = [experiments * part // 6 + rng.randrange(experiments // 12) for part in range(1, 6)]
    load = os.getloadavg()[0]
    print(f"{time.strftime('%Y-%m-%d')} | {os.cpu_count()} cores, load {load:.0f} | killed at rows {kills}\n")
    print("rows  memory MB  descriptors  seconds per experiment")
    with tempfile.TemporaryDirectory() as folder:
        repo = make_repository(Path(folder) / "repo", TRAIN, serial=False)
        search(repo, experiments, [experiments // 7, experiments * 4 // 7, experiments], kills)
        check(repo, experiments)


if __name__ == "__main__":
    main()
