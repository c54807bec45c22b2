"""
A search as it lies on disk, read without a lock and without touching anything: beside a running loop, on any branch.
"""

import json
import os
import socket
import time
from dataclasses import dataclass, field
from pathlib import Path

import git

from autoresearch.files import ROOT
from autoresearch.record.ledger import Ledger, read_journal
from autoresearch.record.repository import run_git
from autoresearch.row import row_of_message, subject_of
from autoresearch.text import fail, last_lines

FRESH = 120.0  # seconds since a loop gave its last sign of life; it gives several a second


@dataclass(frozen=True)
class Now:
    """What goes on at this moment."""

    alive: bool = False  # a loop runs
    running: list[dict] = field(default_factory=list)  # number, seed, description, progress
    waiting: list[str] = field(default_factory=list)  # descriptions


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
