"""
Replay the recorded search of docs/example: its kept edits in order, handed in by a scripted command, judged anew.

    python benchmarks/replay.py                  # some seven minutes; needs the repository's history
    python benchmarks/replay.py --patches 3      # the first three only

The search was made at the cpu scale on the train.py of BASE. Every patch is handed in once, in the recorded order, on
whatever is the best by then; the loop, its runs and its judge are the real ones. Printed is a table of then and now,
and for each edit that ends otherwise, why: it does not apply without an edit that was not kept, it lost, it crashed.
"""

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from autoresearch.record.ledger import read_rows
from autoresearch.row import Row

ROOT = Path(__file__).resolve().parents[1]
EXAMPLE = ROOT / "docs" / "example"
BASE = "b2141b3"  # the commit whose train.py the recorded search began with

# What a coding agent's place is taken by: the next patch, or a plain word why not.
SCRIPT = """
import pathlib, subprocess, sys
state = pathlib.Path({state!r})
done = state.read_text().split() if state.exists() else []
left = [path for path in {patches!r} if path not in done]
if not left:
    pathlib.Path({end!r}).touch()
    sys.exit("all patches are handed in")
state.write_text(" ".join([*done, left[0]]))
text = pathlib.Path(left[0]).read_text()
applied = subprocess.run(["patch", "-p1", "--forward"], input=text, capture_output=True, text=True)
for name in ("train.py.orig", "train.py.rej"):
    pathlib.Path(name).unlink(missing_ok=True)
if applied.returncode:
    sys.exit(text[:4] + " does not apply on this best: " + applied.stdout.splitlines()[-1])
pathlib.Path("description.txt").write_text(text.partition("\\n")[0])
"""


def make_repository(folder: Path) -> Path:
    """This checkout as it is committed, with the train.py that the recorded search began with."""
    subprocess.run(["git", "clone", "-q", ROOT, folder], check=True)
    source = subprocess.run(["git", "show", f"{BASE}:train.py"], cwd=ROOT, capture_output=True, text=True)
    if source.returncode:
        sys.exit(f"error: commit {BASE} is not here; get the whole history: git fetch --unshallow")
    (folder / "train.py").write_text(source.stdout)
    program = (folder / "program.md").read_text()
    program = re.sub(r"look_ahead: null", "look_ahead: 0", program)  # each edit on the verdict before
    (folder / "program.md").write_text(re.sub(r"confirm_runs: \d", "confirm_runs: 0", program))
    subprocess.run(["git", "config", "user.email", "replay@localhost"], cwd=folder, check=True)
    subprocess.run(["git", "config", "user.name", "replay"], cwd=folder, check=True)
    subprocess.run(["git", "commit", "-qam", "the recorded search's train.py"], cwd=folder, check=True)
    return folder


def replay(folder: Path, patches: list[Path]) -> str:
    """Run the loop until all patches were handed in. Returns what it printed."""
    repository, end = make_repository(folder / "repository"), folder / "end"
    values = {"state": str(folder / "state"), "end": str(end), "patches": [str(path) for path in patches]}
    (folder / "proposer.py").write_text(SCRIPT.format(**values))
    command = [sys.executable, "agent_loop.py", "--tag", "replay", "--experiments", str(len(patches))]
    command += ["--command", f"{sys.executable} {folder}/proposer.py"]
    env = os.environ | {"AUTORESEARCH_SCALE": "cpu", "PYTHONPATH": str(repository)}
    with open(folder / "printed", "w+") as printed:
        process = subprocess.Popen(command, cwd=repository, env=env, stdout=printed, stderr=subprocess.STDOUT)
        while process.poll() is None:
            time.sleep(1)
            if end.exists():
                process.send_signal(signal.SIGINT)
                process.wait()
        printed.seek(0)
        return printed.read()


def compare(then: dict[int, Row], rows: list[Row], printed: str, patches: list[Path]) -> list[str]:
    """One line per patch: then and now; and why, where it is not the same."""
    now = {int(row.description[:4]): row for row in rows if re.match(r"\d{4}:", row.description)}
    lines = [f"{'edit':>4}  {'then':8} {'val_bpb':>8}  {'now':8} {'val_bpb':>8}  why it is not the same"]
    for path in patches:
        number = int(path.stem)
        before, after = then[number], now.get(number)
        failed = re.search(rf"{number:04d} does not apply[^\n]*", printed)
        status, value = (after.status, f"{after.val_bpb:.6f}") if after else ("not run", "")
        why = "" if status == before.status else after.reason if after else failed[0] if failed else "not reached"
        lines.append(f"{number:4d}  {before.status:8} {before.val_bpb:8.6f}  {status:8} {value:>8}  {why}")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--patches", type=int, help="only the first so many")
    patches = sorted(EXAMPLE.glob("[0-9]*.patch"))[: parser.parse_args().patches]
    then = {row.number: row for row in read_rows(EXAMPLE / "results.tsv")[0]}
    folder = Path(tempfile.mkdtemp(prefix="replay-"))
    printed = replay(folder, patches)
    rows = read_rows(folder / "repository" / "results.tsv")[0]
    if not rows:
        sys.exit(printed)
    print("\n".join(compare(then, rows, printed, patches)))
    kept = [row for row in rows if row.status == "keep"]
    print(f"\nbaseline {then[0].val_bpb:.6f} then, {kept[0].val_bpb:.6f} now; best {kept[-1].val_bpb:.6f} now")
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
