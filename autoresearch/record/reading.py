"""
A search as it lies on disk, read without a lock and without touching anything: beside a running loop, on any branch.
"""

import json
import math
import os
import socket
import time
from dataclasses import dataclass, field
from pathlib import Path

import git

from autoresearch.files import ROOT
from autoresearch.record.ledger import Ledger, read_journal, read_rows
from autoresearch.record.repository import run_git
from autoresearch.row import Row, row_of_message, subject_of
from autoresearch.text import fail, last_lines

FRESH = 120.0  # seconds since a loop gave its last sign of life; it gives several a second


@dataclass(frozen=True)
class Now:
    """What goes on at this moment."""

    alive: bool = False  # a loop runs
    running: list[dict] = field(default_factory=list)  # number, seed, description, progress
    waiting: list[str] = field(default_factory=list)  # descriptions


# -----------------------------------------------------------------------------
# A search of this repository


def read_search(repo: git.Git, tag: str) -> tuple[Ledger, Now]:
    """Rows from the commits of the experiments, in the order of decision; runs and failures from the journal."""
    ledger, undecided = Ledger(repo, tag), {}
    read_journal(ledger)
    options = ["--sort=committerdate", "--format=%(refname)%00%(objectname)%00%(contents)%00"]
    fields = run_git(repo, "for-each-ref", *options, f"refs/autoresearch/{tag}/").split("\0")
    for ref, commit, message in zip(fields[::3], fields[1::3], fields[2::3], strict=False):
        if row := row_of_message(commit, message):
            ledger.rows.append(row)
        else:
            undecided[int(ref.rpartition("/")[2])] = subject_of(message)
    return ledger, read_now(ledger, undecided)


def read_now(ledger: Ledger, undecided: dict[int, str]) -> Now:
    """What runs: logs that grew since the run before them ended. `undecided`: descriptions, by number."""
    if not is_alive(ledger):
        return Now()
    titles = undecided | ({ledger.best.number: f"confirming: {ledger.best.description}"} if ledger.kept else {})
    running = []
    for log in [log for number in titles for log in ledger.experiment_folder(number).glob("seed*/run.log")]:
        number, seed = int(log.parts[-3]), int(log.parts[-2].removeprefix("seed"))
        ended = [run.ended for run in ledger.runs_by_number.get(number, []) if run.seed == seed]
        if modified(log) > max([*ended, ledger.sittings[-1].start]):
            progress = last_lines(read_if_there(log)[-4000:], 1)
            running.append({"number": number, "seed": seed, "description": titles[number], "progress": progress})
    begun = [title for number, title in undecided.items() if number not in [run["number"] for run in running]]
    proposals = map(read_if_there, sorted((ledger.folder / "proposals").glob("*/proposal.json")))
    return Now(True, running, begun + [json.loads(text)["description"] for text in proposals if text])


def read_if_there(path: Path) -> str:
    """The text of a file that the loop may move or delete at any moment."""
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def modified(path: Path) -> float:
    """When such a file was last written, 0 for one that is gone."""
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def is_alive(ledger: Ledger) -> bool:
    """Whether the last session goes on: it has not ended, its process is there, and it keeps the lock file fresh."""
    lock = ROOT / "runs" / "lock"
    if not ledger.sittings or ledger.sittings[-1].reason:
        return False
    process, _, host = read_if_there(lock).partition(" on ")
    gone = host == socket.gethostname() and not process_is_there(int(process))
    return process == str(ledger.sittings[-1].process) and time.time() - modified(lock) < FRESH and not gone


def process_is_there(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it is another user's
        return True
    return True


def search_tags(repo: git.Git) -> list[str]:
    """The tags of all searches that are there; first that of the one that was last at work."""
    refs = ["refs/heads/autoresearch/", "refs/autoresearch/"]
    found = run_git(repo, "for-each-ref", "--sort=-committerdate", "--format=%(refname)", *refs).splitlines()
    names = [ref.removeprefix("refs/").removeprefix("heads/").split("/")[1] for ref in found]
    searched = {ref.split("/")[2] for ref in found if ref.startswith("refs/autoresearch/")}
    offered = {f"{name}-pruned" for name in names} - searched  # by an ablation: a branch, but no search
    return [name for name in dict.fromkeys(names) if name not in offered]


def find_tag(repo: git.Git, tag: str | None) -> str:
    """The tag of a search that is there; without a tag that of the search that was last at work."""
    tags = search_tags(repo)
    if not tags:
        fail("there is no search here yet; begin one: python agent_loop.py --demo")
    if tag and tag not in tags:
        fail(f"there is no search {tag}; there are: {', '.join(tags)}")
    return tag or tags[0]


def read_diffs(ledger: Ledger) -> dict[str, str]:
    """What every kept change changed, by its commit."""
    if len(ledger.kept) < 2:
        return {}
    commits = f"{ledger.kept[0].commit}..refs/heads/{ledger.branch}"
    text = run_git(ledger.repo, "log", "-p", "--no-color", "--format=%x00%H", commits, "--", "train.py", check=False)
    return {part[:7]: part.partition("\n")[2].strip() for part in text.split("\0")[1:]}


# -----------------------------------------------------------------------------
# A table by itself


def read_table(path: Path) -> Ledger:
    """The rows of a results.tsv, the public recipe's five columns too, and what lies beside it of a journal."""
    if not path.is_file():
        fail(f"{path} is not there; give --results a results.tsv")
    ledger = Ledger(git.Git(path.parent), "")
    header, *lines = path.read_text(errors="replace").splitlines() or [""]
    if header.split("\t")[:5] != ["commit", "val_bpb", "memory_gb", "status", "description"]:
        fail(f"{path} is no results.tsv: its first columns are not commit, val_bpb, memory_gb, status, description")
    ledger.rows = public_rows(path, lines) if header.count("\t") == 4 else read_rows(path)[0]
    read_journal(ledger, path.with_name("journal.jsonl"))
    return ledger


def public_rows(path: Path, lines: list[str]) -> list[Row]:
    """Rows of five columns: a row's place is its number, its gain is over the best that was kept before it."""
    rows: list[Row] = []
    best: Row | None = None
    for number, line in enumerate(line for line in lines if line.strip()):
        try:
            commit, value, memory, status, description = line.split("\t", 4)
            val_bpb = float(value) if value and math.isfinite(float(value)) else 0.0
            gain = best.val_bpb - val_bpb if best and val_bpb else math.nan
            parent, base = (best.commit, best.number) if best else ("", -1)
            row = Row(
                commit, val_bpb, float(memory or 0), status.strip().lower(), description, number, gain, parent,
                seconds=0.0, tokens=0, cost=0.0, started="", noise=math.nan, runs="", best=base,
            )  # fmt: skip
        except ValueError:
            fail(f"{path}, line {number + 2}: five columns are expected, with numbers in the second and the third")
        best = row if row.status == "keep" else best
        rows.append(row)
    return rows


def read_patches(ledger: Ledger, folder: Path) -> dict[str, str]:
    """The same as read_diffs(), from NNNN.patch files in a folder."""
    paths = {row.commit: folder / f"{row.number:04d}.patch" for row in ledger.kept}
    texts = {commit: path.read_text(errors="replace") for commit, path in paths.items() if path.is_file()}
    return {commit: text[text.find("diff --git") :] for commit, text in texts.items()}
