"""
Coming back to a search: branch, rows, journal and train.py as the last session left them, however it ended.
"""

import git

from autoresearch.files import ROOT
from autoresearch.record.ledger import Ledger, commit_results, follow_best, read_journal, read_rows, write_rows
from autoresearch.record.log import Log
from autoresearch.record.repository import changed, commit_of, current_branch, experiment_refs, file_at, run_git
from autoresearch.row import HEADER, row_of_message
from autoresearch.text import fail, one_line


def open_ledger(repo: git.Git, tag: str, log: Log) -> Ledger:
    """Check out autoresearch/<tag>, new from HEAD or as it was left, and bring everything on disk together."""
    ledger = Ledger(repo, tag)
    rescue_results(ledger)
    fresh = not ledger.head
    try:
        run_git(repo, "switch", *(["-c", ledger.branch] if fresh else [ledger.branch]))
    except git.GitCommandError as error:
        fail(f"git cannot switch to {ledger.branch}: {' '.join(error.stderr.split())}")
    ledger.folder.mkdir(parents=True, exist_ok=True)
    read_journal(ledger)
    restore_rows(ledger, fresh, log)
    if ledger.kept:
        ref = ledger.ref(ledger.best.number)
        if commit_of(repo, f"{ref}^") == ledger.head:  # killed between row and branch
            run_git(repo, "update-ref", f"refs/heads/{ledger.branch}", ref)
    restore_train(ledger, log)
    return ledger


def rescue_results(ledger: Ledger) -> None:
    """Commit rows that a killed loop left uncommitted on the branch of another tag, before leaving that branch."""
    branch = current_branch(ledger.repo)
    if branch.startswith("autoresearch/") and branch != ledger.branch:
        commit_results(ledger.repo, branch, f"Results of {branch}")


def restore_rows(ledger: Ledger, fresh: bool, log: Log) -> None:
    """The rows of results.tsv, and from their commits those that are missing or damaged there."""
    rows, broken = ([], []) if fresh else read_rows(ledger.results)
    present, refs = {row.number for row in rows}, experiment_refs(ledger.repo, ledger.tag)
    messages = [ledger.message_of(number) for number in refs if number not in present]
    lost = [row for message in messages if (row := row_of_message(*message))]
    if lost:
        log.say(f"results.tsv: {len(lost)} rows were missing and are back from their commits")
        decided = experiment_refs(ledger.repo, ledger.tag, "committerdate")
        when = {number: index for index, number in enumerate(decided)}
        rows = sorted([*rows, *lost], key=lambda row: when.get(row.number, row.number))
    if broken:
        gone = f"{len(broken)} lines were no rows, or there twice, and are gone"
        log.say(f"results.tsv: {gone}: {one_line(broken[0])[:80]}")
    if fresh or lost or broken or not ledger.results.exists() or not ledger.results.read_text().startswith(HEADER):
        write_rows(ledger.results, rows)
    ledger.rows = rows
    ledger.taken = {row.number for row in rows} | set(refs)


def restore_train(ledger: Ledger, log: Log) -> None:
    """train.py is the branch's. A kill between the branch's move and the file's leaves the parent's text: caught up."""
    if not changed(ledger.repo, "train.py"):
        return
    on_disk = (ROOT / "train.py").read_text()
    if on_disk != file_at(ledger.repo, "HEAD^", "train.py"):
        fail(f"train.py differs from the best of {ledger.branch}; commit your edit or undo it: git restore train.py")
    if problem := follow_best(ledger, on_disk):
        log.say(problem)
