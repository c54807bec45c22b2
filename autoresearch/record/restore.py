"""
Coming back to a search: branch, rows, journal and train.py as the last session left them, however it ended.
"""

from autoresearch.files import ROOT
from autoresearch.record.ledger import Ledger, commit_results, follow_best, print_table
from autoresearch.record.lines import Log
from autoresearch.record.repository import (
    GitError,
    changed,
    commit_file,
    commit_of,
    current_branch,
    file_at,
    home_ref,
    is_within,
    run_git,
    same_file,
)
from autoresearch.text import fail, plural


def open_ledger(ledger: Ledger, origin: str, log: Log) -> None:
    """Enter a search, new from the commit `origin` or as it was left, and bring everything on disk together."""
    fresh = not ledger.head
    if ledger.in_checkout:
        check_out(ledger, ["-c", ledger.branch, origin] if fresh else [ledger.branch])
    elif fresh:
        run_git(ledger.repo, "branch", ledger.branch, origin)
    run_git(ledger.repo, "update-ref", home_ref(ledger.tag), ledger.head)
    ledger.folder.mkdir(parents=True, exist_ok=True)
    if print_table(ledger) and not fresh:
        log.say(f"results.tsv is written again from the commits of the experiments: {plural(len(ledger.rows), 'row')}")
    if ledger.kept:
        restore_branch(ledger)
    if ledger.in_checkout:
        restore_train(ledger, log)


def check_out(ledger: Ledger, branch: list[str]) -> None:
    """Switch to the branch of a search; the table of another search that is left is committed first."""
    rescue_results(ledger)
    try:
        run_git(ledger.repo, "switch", *branch)
    except GitError as error:
        fail(f"git cannot switch to {ledger.branch}: {error}")


def rescue_results(ledger: Ledger) -> None:
    """Commit rows that a killed loop left uncommitted on the branch of another tag, before leaving that branch."""
    branch = current_branch(ledger.repo)
    if branch.startswith("autoresearch/") and branch != ledger.branch and ledger.results.exists():
        commit_results(Ledger(ledger.repo, branch.removeprefix("autoresearch/")), f"Results of {branch}")


def restore_branch(ledger: Ledger) -> None:
    """The branch has the best: a kill between row and branch is caught up with, by a merge where it went on since."""
    repo, number, branch = ledger.repo, ledger.best.number, f"refs/heads/{ledger.branch}"
    best, before = commit_of(repo, ledger.ref(number)), commit_of(repo, f"{ledger.ref(number)}^")
    if ledger.head == before:
        run_git(repo, "update-ref", branch, best)
    elif same_file(repo, branch, before, "train.py") and not is_within(repo, best, branch):
        message = f"Merge experiment {number}, the best"
        commit_file(repo, ledger.head, "train.py", ledger.source_of(number), message, branch, merged=best)


def restore_train(ledger: Ledger, log: Log) -> None:
    """train.py is the branch's. A kill between the branch's move and the file's leaves the parent's text: caught up."""
    if not changed(ledger.repo, "train.py"):
        return
    on_disk = (ROOT / "train.py").read_text()
    if on_disk != file_at(ledger.repo, "HEAD^", "train.py"):
        fail(f"train.py differs from the best of {ledger.branch}; commit your edit or undo it: git restore train.py")
    if problem := follow_best(ledger, on_disk):
        log.say(problem)
