"""
Coming back to a search: branch, rows, journal and train.py as the last session left them, however it ended.
"""

import math

import git

from autoresearch.files import ROOT
from autoresearch.record.ledger import Ledger, commit_results, follow_best, read_journal, read_rows, write_rows
from autoresearch.record.log import Log
from autoresearch.record.repository import changed, commit_of, current_branch, experiment_refs, file_at, run_git
from autoresearch.row import HEADER, Row, row_of_message
from autoresearch.text import fail, one_line, plural


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
        log.say(f"results.tsv: {plural(len(lost), 'row')} missing there, and back from the commits")
        rows = in_order(ledger, rows, lost, refs)
    if broken:
        gone = f"{plural(len(broken), 'line')} removed, no row or there twice"
        log.say(f"results.tsv: {gone}: {one_line(broken[0])[:80]}")
    if fresh or lost or broken or not ledger.results.exists() or not ledger.results.read_text().startswith(HEADER):
        write_rows(ledger.results, rows)
    ledger.rows = rows
    ledger.taken = {row.number for row in rows} | set(refs)


def in_order(ledger: Ledger, rows: list[Row], lost: list[Row], seconds: dict[int, int]) -> list[Row]:
    """The rows that are there as they stand, and the lost ones between them, by when they were decided.

    That is the second of the commit and, within it, when the last run ended. What has no run comes last.
    """

    def decided(row: Row) -> tuple:
        ended = [run.ended for run in ledger.runs_for(row.number, "judge", row.repairs)]
        return seconds.get(row.number, 0), ended[-1] if ended else math.inf, row.number

    rows = list(rows)
    for row in sorted(lost, key=decided):
        place = next((at for at, other in enumerate(rows) if decided(other) > decided(row)), len(rows))
        rows.insert(place, row)
    return rows


def restore_train(ledger: Ledger, log: Log) -> None:
    """train.py is the branch's. A kill between the branch's move and the file's leaves the parent's text: caught up."""
    if not changed(ledger.repo, "train.py"):
        return
    on_disk = (ROOT / "train.py").read_text()
    if on_disk != file_at(ledger.repo, "HEAD^", "train.py"):
        fail(f"train.py differs from the best of {ledger.branch}; commit your edit or undo it: git restore train.py")
    if problem := follow_best(ledger, on_disk):
        log.say(problem)
