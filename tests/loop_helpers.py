"""A repository to search in, as a user has one, and short train.py texts that end in every way a training can."""

import contextlib
import csv
import dataclasses
import json
import math
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console

from autoresearch.loop.bench import Slot
from autoresearch.loop.briefing import make_context as loop_context
from autoresearch.loop.inflight import Queue, bench_of
from autoresearch.loop.session import Session
from autoresearch.propose.context import Context
from autoresearch.record.ledger import Ledger
from autoresearch.record.lines import Log
from autoresearch.record.repository import Repository
from autoresearch.row import HEADER, Row, parse_row
from autoresearch.settings import Options, Settings

ROOT = Path(__file__).resolve().parent.parent
FILES = [path.relative_to(ROOT) for path in [*ROOT.glob("*.py"), *ROOT.glob("autoresearch/**/*.py")]]
FILES = [path for path in FILES if path.name != "train.py"] + [
    Path("program.md"),
    Path(".gitignore"),
    Path("autoresearch/record/page.html"),
]

PRINTED_LOOP = str(ROOT / "tests/printed_loop.py")

# Trains nothing, but ends as a training does, with a record as prepare_data writes it: the loop is about the number.
MOMENT = {"cpu": 0.0, "paced": 0.0, "wall": 0.0, "batches": 0}
STUB_RECORD = dict.fromkeys(("imported", "first_batch", "clock_started"), MOMENT) | {"batches": 100}
STUB_RECORD |= dict.fromkeys(("evaluated", "finished"), MOMENT | {"paced": 20.0})
LEAVE_RECORD = f"""open("record.json", "w").write({json.dumps(STUB_RECORD)!r})\n"""
STUB = f"""
import json, math, os, sys
LEVEL = 2.0
print("\\rstep 1 | 50.0 % | loss 3.0000 | 1 s left", end="")
sys.stdout.write(f"\\n---\\nval_bpb:          {{LEVEL:.6f}}\\ntraining_seconds: 20.0\\npeak_vram_mb:     512.0\\n")
{LEAVE_RECORD}"""


def git(folder, *args) -> str:
    return subprocess.run(["git", *args], cwd=folder, check=True, capture_output=True, text=True).stdout.strip()


def commit_all(folder: Path, message: str) -> None:
    """Commit all there is, as a user that git knows."""
    git(folder, "config", "user.email", "test@localhost")
    git(folder, "config", "user.name", "test")
    git(folder, "add", "-A")
    git(folder, "commit", "-qm", message)


def make_repository(folder: Path, train: str = STUB, serial: bool = True) -> Path:
    """A fresh git repository with the project's files and `train` as train.py.

    A session ends with one fresh seed in place of three: runs are what takes the time of these tests.
    `serial`: nothing is proposed ahead and nothing repaired, so that an edit sees the row of the one before it.
    """
    folder.mkdir(parents=True)
    for name in [*FILES, *(path.relative_to(ROOT) for path in ROOT.glob("autoresearch/**/__pycache__/*.pyc"))]:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):  # a .pyc that is written anew at this moment
            shutil.copy2(ROOT / name, folder / name)
    (folder / "results.tsv").write_text(HEADER)
    (folder / "train.py").write_text(train)
    program = (folder / "program.md").read_text().replace("confirm_runs: 3", "confirm_runs: 1")
    git(folder, "init", "-q", "-b", "main")
    if serial:
        program = program.replace("repairs: 2", "repairs: 0")
        (folder / ".git/serial").touch()  # for printed_loop.py
    (folder / "program.md").write_text(program)
    commit_all(folder, "start")
    return folder


def proposer_script(folder: Path, edits: list[str]) -> str:
    """A --command whose n-th call runs the n-th shell line of `edits` (the last one for ever) and names it.

    It is told the number of the experiment by how many rows results.tsv has, like any agent that reads the history.
    """
    script = folder.parent / f"{folder.name}_proposer.sh"
    cases = "".join(f"{n}) {edit} ;;\n" for n, edit in enumerate(edits, 1))
    script.write_text(
        f"n=$(($(wc -l < results.tsv) - 1))\n[ $n -gt {len(edits)} ] && n={len(edits)}\ncase $n in\n{cases}esac\n"
    )
    return f"sh {script}"


def set_level(level) -> str:
    """A shell line that makes the stub's val_bpb `level`, and says so."""
    return f"sed -i.old 's/^LEVEL = .*/LEVEL = {level}/' train.py; echo 'level to {level}'"


def append(line: str, name: str) -> str:
    """A shell line that puts a Python line before all others of train.py."""
    return f"(echo {shlex.quote(line)}; cat train.py) > new; mv new train.py; echo {shlex.quote(name)}"


def start_loop(
    folder: Path, *args, env: dict | None = None, program: Sequence[str] = (PRINTED_LOOP,)
) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, *program, "--tag", "t", *args],
        cwd=folder,
        env=os.environ | (env or {}),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def press_ctrl_c(process: subprocess.Popen) -> None:
    """What a terminal does: SIGINT to the loop and to every other process of its group, git included."""
    os.killpg(process.pid, signal.SIGINT)


def wait_for(condition: Callable[[], bool], seconds: float = 900) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


def run_loop(folder: Path, *args, env: dict | None = None, timeout: float = 900) -> subprocess.CompletedProcess:
    """Run agent_loop.py to its end. Its stdout, stderr and exit code."""
    process = start_loop(folder, *args, env=env)
    out, err = process.communicate(timeout=timeout)
    return subprocess.CompletedProcess(args, process.returncode, out, err)


def rows_of(folder: Path) -> list[Row]:
    """The rows of results.tsv, every line of which has to be one."""
    with open(folder / "results.tsv", newline="") as file:
        return [parse_row(cells) for cells in csv.DictReader(file, delimiter="\t", strict=True)]


def check_invariants(folder: Path) -> None:
    """Rows, refs and experiments agree; branch and train.py are the best kept one; the tree is clean."""
    rows = rows_of(folder)
    refs = git(folder, "for-each-ref", "--format=%(refname:lstrip=3)", "refs/autoresearch/t/").split()
    assert sorted(f"{row.number:04d}" for row in rows) == refs
    # A number is given when a proposal begins: one that came to nothing leaves a gap.
    failed = (folder / "runs/t/journal.jsonl").read_text().count('"event": "failed"')
    assert int(refs[-1]) + 1 - len(rows) <= failed
    for row in rows:
        assert git(folder, "rev-parse", f"refs/autoresearch/t/{row.number:04d}").startswith(row.commit)
    kept = [row for row in rows if row.status == "keep"]
    best = git(folder, "show", f"refs/autoresearch/t/{kept[-1].number:04d}:train.py")
    assert kept[-1].val_bpb == min(row.val_bpb for row in kept)
    assert (folder / "train.py").read_text().strip() == best == git(folder, "show", "autoresearch/t:train.py")
    assert git(folder, "status", "--porcelain") == ""
    assert git(folder, "rev-parse", "--abbrev-ref", "HEAD") == "autoresearch/t"


def processes_in(folder: Path) -> list[str]:
    """The processes that work in a folder (Linux), seen from outside any sandbox."""
    found = []
    for link in Path("/proc").glob("[0-9]*/cwd"):
        with contextlib.suppress(OSError):  # it ended just now
            if os.readlink(link) == str(folder):
                found.append(link.parent.name)
    return found


def make_session(log: Path, proposer: str = "constants", settings: Settings | None = None) -> Session:
    """A session of the search t without end, at the cpu scale, that says nothing."""
    options = Options("t", proposer, "", None, None, math.inf, "cpu", 42, 20, 0, 128, 1024)
    return Session(options, Log(Console(quiet=True), log), settings or Settings(), "", 0.0)


def make_context(folder: Path, **changes) -> Context:
    """What a proposer is told after a baseline and nothing else, or with these `changes`, by the loop's own maker."""
    rows, source = changes.pop("rows", [make_row()]), changes.pop("best_source", STUB)
    names = {item.name for item in dataclasses.fields(Options)}
    options = {name: changes.pop(name) for name in list(changes) if name in names and name != "deadline"}
    session = make_session(folder / "loop.log", settings=changes.pop("settings", None))
    session.options, session.instructions = dataclasses.replace(session.options, **options), "Make it better."
    ledger = Ledger(Repository(folder), "t", rows=rows, sources={row.number: source for row in rows})
    context = loop_context(session, ledger, Queue(bench_of(session, ledger, [Slot()])), folder / "0001")
    usual = {"notebook": folder / "notebook.md", "noise": 0.01, "read": lambda number, what: "", "check": None}
    return dataclasses.replace(context, **usual | {"forbidden": lambda source: "", "number": len(rows)} | changes)


def make_row(**changes) -> Row:
    """The row of a baseline, or of what `changes` makes of it."""
    values = {
        "commit": "abc1234",
        "val_bpb": 2.0,
        "memory_gb": 0.5,
        "status": "keep",
        "description": "baseline",
        "number": 0,
        "gain": math.nan,
        "parent": "abc1234",
        "seconds": 20.0,
        "tokens": 0,
        "cost": 0.0,
        "started": "2026-11-23T00:00:00",
        "noise": 0.01,
        "runs": "42:2.000000",
        "tokens_per_second": 10000.0,
    }
    return Row(**(values | changes))
