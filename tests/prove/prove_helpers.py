"""A search whose kept changes are worth what the test says: its train.py computes its own number."""

import json
import subprocess
import time
from pathlib import Path

from loop_helpers import LEAVE_RECORD, PRINTED_LOOP, STUB, git, make_repository, make_row, start_loop

from autoresearch.row import HEADER, Row, row_line, row_message, runs_text

# LEVEL is computed from switches, one a line and each with lines of its own around it. A run has noise of its own.
HEAD = """
import random
SEED = int(os.environ.get("AUTORESEARCH_SEED") or 42)
BUDGET = float(os.environ.get("AUTORESEARCH_BUDGET") or 20)
random.seed(f"{SEED} {BUDGET} {open('train.py').read()}")
noise = random.gauss(0, NOISE)
"""
SWITCH = "# {0}\n{0} = 0\n# end of {0}\n"


def make_stub(switches: str, formula: str, noise: float = 0.002) -> str:
    """A train.py with these switches (a letter each, all 0), whose val_bpb is `formula` plus noise."""
    body = HEAD.replace("NOISE", str(noise)) + "".join(SWITCH.format(letter) for letter in switches)
    leave_record = LEAVE_RECORD.rstrip()[:-1] + '.replace("20.0", str(BUDGET)))\n'
    stub = STUB.replace(LEAVE_RECORD, leave_record).replace("training_seconds: 20.0", "training_seconds: {BUDGET}")
    return stub.replace("LEVEL = 2.0", f"{body}LEVEL = {formula} + noise")


def switched(source: str, *letters: str) -> str:
    for letter in letters:
        source = source.replace(f"\n{letter} = 0\n", f"\n{letter} = 1\n")
    return source


def write_kept(folder: Path, sources: list[str], titles: list[str], noise: float = 0.002, tag: str = "t") -> list[Row]:
    """Commits, refs, branch and journal of a search that kept these train.py texts, the baseline first."""
    rows: list[Row] = []
    parent = git(folder, "rev-parse", "HEAD")
    for number, (source, title) in enumerate(zip(sources, titles, strict=True)):
        value = 2.0 - 0.01 * number
        runs = {42: value + noise, 43: value - noise, 44: value} if number in (0, len(sources) - 1) else {42: value}
        row = make_row(
            number=number, description=title, val_bpb=value, noise=noise, runs=runs_text(runs), parent=parent[:7],
            gain=0.01, best=max(number - 1, 0), seconds=21.0,
            started=time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(1.79e9 + number)),
        )  # fmt: skip
        (folder / "train.py").write_text(source)
        git(folder, "add", "train.py")
        at = f"{1_790_000_000 + number} +0000"
        message = row_message(f"{number:04d}: {title}", "note", row)
        git(folder, "-c", "gc.auto=0", "commit", "-q", "--allow-empty", "-m", message, "--date", at)
        parent = git(folder, "rev-parse", "HEAD")
        rows.append(make_row(**{**vars(row), "commit": parent[:7]}))
        git(folder, "update-ref", f"refs/autoresearch/{tag}/{number:04d}", parent)
    git(folder, "branch", "-f", f"autoresearch/{tag}")
    home = folder / "runs" / tag
    home.mkdir(parents=True)
    session = {"event": "session", "at": 1.79e9, "proposer": "constants", "scale": "cpu", "slots": 1, "process": 1}
    events = [session | {"deadline": None, "experiments": None}]
    facts = {"printed": {"training_seconds": 20.0, "num_params_M": 0.5}, "measured": {"total_tokens_M": 0.2}}
    for row in (rows[0], rows[-1]):
        for part in row.runs.split():
            seed, value = part.split(":")
            run = {"event": "run", "at": 1.79e9 + 60, "number": row.number, "seed": int(seed), "purpose": "judge"}
            events.append(run | {"attempt": 0, "status": "ok", "seconds": 21.0, "val_bpb": float(value)} | facts)
    (home / "journal.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    (folder / "results.tsv").write_text(HEADER + "".join(map(row_line, rows)))
    return rows


def make_search(folder: Path, switches: str, formula: str, changes: list[str], noise: float = 0.002) -> list[str]:
    """A repository with a search of the tag t: its n-th kept change turns these switches on. Returns the sources."""
    sources = [make_stub(switches, formula, noise)]
    for letters in changes:
        sources.append(switched(sources[-1], *letters))
    make_repository(folder, sources[0])
    write_kept(folder, sources, ["baseline", *(f"{letters} on" for letters in changes)], noise)
    return sources


def start_verb(folder: Path, verb: str, *args) -> subprocess.Popen:
    return start_loop(folder, *args, program=(PRINTED_LOOP, verb))


def run_verb(folder: Path, verb: str, *args, timeout: float = 300) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of `agent_loop.py VERB`."""
    process = start_verb(folder, verb, *args)
    out, err = process.communicate(timeout=timeout)
    return process.returncode, out, err


def runs_in(folder: Path, name: str) -> list[dict]:
    """The runs that the journal of an ablation or a promotion holds."""
    journal = folder / "runs" / "t" / name / "journal.jsonl"
    lines = journal.read_text().splitlines() if journal.exists() else []
    return [event for event in map(json.loads, lines) if event["event"] == "run"]


def report_in(folder: Path, name: str) -> dict:
    return json.loads((folder / "runs" / "t" / name).read_text())
