"""
A search as it is on disk, read without a lock and without a change: also while a loop runs, on any branch.
"""

import fcntl
import json
import re
from dataclasses import dataclass, field
from pathlib import Path

from autoresearch.files import MAP, ROOT
from autoresearch.nouns import Json
from autoresearch.record.ledger import Ledger, read_journal
from autoresearch.record.repository import Repository, commit_of, experiment_refs, file_at, home_ref, run_git
from autoresearch.row import row_of_message, subject_of
from autoresearch.text import fail, last_lines


@dataclass(frozen=True)
class Now:
    """The present state of a search."""

    alive: bool = False  # a loop runs
    running: list[Json] = field(default_factory=list)  # number, seed, description, progress
    waiting: list[str] = field(default_factory=list)  # descriptions


def read_ledger(repo: Repository, tag: str) -> tuple[Ledger, dict[int, str]]:
    """A search: its rows from the commits of the experiments, in the order of decision, its runs from the journal.

    And the descriptions of the experiments that have no verdict yet, by number.
    """
    ledger, undecided = Ledger(repo, tag), {}
    read_journal(ledger)
    options = ["--sort=committerdate", "--format=%(refname)%00%(objectname)%00%(contents)%00"]
    fields = run_git(repo, "for-each-ref", *options, f"refs/autoresearch/{tag}/").split("\0")
    for ref, commit, message in zip(fields[::3], fields[1::3], fields[2::3], strict=False):
        if row := row_of_message(commit, message):
            ledger.rows.append(row)
        else:
            undecided[int(ref.rpartition("/")[2])] = subject_of(message)
    ledger.taken = {row.number for row in ledger.rows} | undecided.keys()
    return ledger, undecided


def read_search(repo: Repository, tag: str) -> tuple[Ledger, Now]:
    """A search, and what goes on in it at this moment."""
    ledger, undecided = read_ledger(repo, tag)
    return ledger, read_now(ledger, undecided)


def read_now(ledger: Ledger, undecided: dict[int, str]) -> Now:
    """Return what runs: logs that grew since the run before them ended. `undecided`: descriptions, by number."""
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
    """Return whether the last session goes on: it has not ended, and its process holds the lock."""
    lock = ROOT / "runs" / "lock"
    if not ledger.sittings or ledger.sittings[-1].reason or not lock.exists():
        return False
    with open(lock) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return file.read().partition(" on ")[0] == str(ledger.sittings[-1].process)
        except OSError:  # this file system has no locks
            return False
    return False


def search_tags(repo: Repository) -> list[str]:
    """The tags of all searches that are there; first that of the one that was last at work."""
    refs = ["refs/heads/autoresearch/", "refs/autoresearch/"]
    found = run_git(repo, "for-each-ref", "--sort=-committerdate", "--format=%(refname)", *refs).splitlines()
    names = [ref.removeprefix("refs/").removeprefix("heads/").split("/")[1] for ref in found]
    searched = {ref.split("/")[2] for ref in found if ref.startswith("refs/autoresearch/")}
    offered = {f"{name}-pruned" for name in names} - searched  # by an ablation: a branch, but no search
    return [name for name in dict.fromkeys(names) if name not in offered]


def find_tag(repo: Repository, tag: str | None) -> str:
    """The tag of a search that is there; without a tag that of the search that was last at work."""
    tags = search_tags(repo)
    if not tags:
        remote = run_git(repo, "for-each-ref", "--format=%(refname)", "refs/remotes/*/autoresearch/*").split()
        tags = [ref.rpartition("/")[2] for ref in remote]
    if not tags:
        fail("there is no search here yet; begin one: python agent_loop.py --demo")
    if problem := left_elsewhere(repo, tag or tags[0]):
        fail(problem)
    if tag and tag not in tags:
        fail(f"there is no search {tag}; there are: {', '.join(tags)}")
    return tag or tags[0]


def left_elsewhere(repo: Repository, tag: str) -> str:
    """Return which parts of a search are in another clone only, with the commands that bring them, or "".

    A clone of git's lacks the refs of the experiments, and runs/. home_ref(), which no clone takes
    over, tells such a clone from a working tree whose runs/ was deleted: there the search goes on without it.
    """
    branch, refs = f"autoresearch/{tag}", experiment_refs(repo, tag)
    here, begun_here = commit_of(repo, f"refs/heads/{branch}"), commit_of(repo, home_ref(tag))
    remote = run_git(repo, "for-each-ref", "--format=%(objectname)", f"refs/remotes/*/{branch}").split()
    has_runs = (ROOT / "runs" / tag / "journal.jsonl").exists()
    known = {line[:7] for line in run_git(repo, "for-each-ref", "--format=%(objectname)", "refs/autoresearch/").split()}
    rows = re.findall(r"^([0-9a-f]{7})\t", file_at(repo, branch, "results.tsv") if here else "", re.MULTILINE)
    lacking = [
        (f"the branch {branch}", not here and not begun_here and (remote or refs or has_runs)),
        (f"refs/autoresearch/{tag}/", not known.issuperset(rows) or (has_runs and not refs and not begun_here)),
        (f"runs/{tag}", refs and not has_runs and not begun_here),
    ]
    if not (names := [name for name, is_lacking in lacking if is_lacking]):
        return ""
    fetch = "git fetch origin 'refs/autoresearch/*:refs/autoresearch/*'"
    bring = [f"git switch {branch}"] * (not here) + [fetch, f"rsync -a MACHINE:FOLDER/runs/{tag} runs/"]
    what = f"the search {tag} was made in another clone, and {' and '.join(names)} are not in this one"
    return f"{what}; bring them, or take another --tag: {' && '.join(bring)}"


# -----------------------------------------------------------------------------
# One experiment


def profile_path(ledger: Ledger, number: int) -> Path:
    """Return where the profile of an experiment is kept: its train.py does not change any more, so it is made once."""
    return ledger.experiment_folder(number) / "profile.txt"


def read_experiment(ledger: Ledger, number: int, what: str) -> str:
    """The "diff", end of the "log", "notes", "map" or "profile" of an experiment. ValueError if there is none."""
    if not commit_of(ledger.repo, ledger.ref(number)):
        raise ValueError(f"there is no experiment {number}")
    if what == "diff":
        return run_git(ledger.repo, "show", "--format=", ledger.ref(number), "--", "train.py")
    if what == "notes":
        return ledger.message_of(number)[1]
    if what == "log":
        logs = sorted(ledger.experiment_folder(number).glob("*/run.log"))
        return logs[-1].read_text(errors="replace")[-20_000:] if logs else "its log is gone"
    if what == "profile":
        path = profile_path(ledger, number)
        if not path.is_file():
            raise ValueError(f"experiment {number} was not profiled")
        return path.read_text()
    if what == "map":
        maps = sorted(ledger.experiment_folder(number).glob(f"*/{MAP}"))  # by the run: a link leads where it could not
        return next((path.read_text(errors="replace") for path in maps if path.is_file() and not path.is_symlink()), "")
    raise ValueError(f"{what!r} is not diff, log, notes, map or profile")


def read_diffs(ledger: Ledger, numbers: list[int]) -> dict[int, str]:
    """Return the diffs of these experiments by number, as far as their refs are there; one git call for all."""
    there = experiment_refs(ledger.repo, ledger.tag)
    refs = [ledger.ref(number) for number in numbers if number in there]
    if not refs:
        return {}
    text = run_git(ledger.repo, "show", "--format=%x00%s", *refs, "--", "train.py", strip=False)
    parts = [part.partition("\n") for part in text.split("\0")[1:]]
    return {int(subject.partition(":")[0]): diff.lstrip("\n") for subject, _, diff in parts}
