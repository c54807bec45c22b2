"""
Coming back to a search: branch, rows, journal and train.py as the last session left them, however it ended.
"""

import math

from autoresearch.files import ROOT
from autoresearch.record.ledger import Ledger, commit_results, follow_best, read_journal, read_rows, write_rows
from autoresearch.record.log import Log
from autoresearch.record.repository import (
    GitError,
    Repository,
    changed,
    commit_file,
    commit_of,
    current_branch,
    experiment_refs,
    file_at,
    home_ref,
    is_within,
    run_git,
    same_file,
)
from autoresearch.row import HEADER, Row, row_of_message
from autoresearch.text import fail, one_line, plural


def open_ledger(repo: Repository, tag: str, log: Log) -> Ledger:
    """Check out autoresearch/<tag>, new from HEAD or as it was left, and bring everything on disk together."""
    ledger = Ledger(repo, tag)
    rescue_results(ledger)
    fresh = not ledger.head
    try:
        run_git(repo, "switch", *(["-c", ledger.branch] if fresh else [ledger.branch]))
    except GitError as error:
        fail(f"git cannot switch to {ledger.branch}: {error}")
    run_git(repo, "update-ref", home_ref(tag), ledger.head)
    ledger.folder.mkdir(parents=True, exist_ok=True)
    read_journal(ledger)
    restore_rows(ledger, fresh, log)
    if ledger.kept:
        restore_branch(ledger)
    restore_train(ledger, log)
    return ledger


def rescue_results(ledger: Ledger) -> None:
    """Commit rows that a killed loop left uncommitted on the branch of another tag, before leaving that branch."""
    branch = current_branch(ledger.repo)
    if branch.startswith("autoresearch/") and branch != ledger.branch and ledger.results.exists():
        commit_results(ledger.repo, branch, f"Results of {branch}")


def restore_rows(ledger: Ledger, fresh: bool, log: Log) -> None:
    """The rows of results.tsv that are of this search, and from their commits those that are missing or damaged there.

    A branch made from another search's, and that of a clone without its refs, hold rows whose experiments are not here.
    """
    found, broken = ([], []) if fresh else read_rows(ledger.results)
    refs = experiment_refs(ledger.repo, ledger.tag)
    rows = [row for row in found if row.number in refs]
    present, foreign = {row.number for row in rows}, len(found) - len(rows)
    messages = [ledger.message_of(number) for number in refs if number not in present]
    lost = [row for message in messages if (row := row_of_message(*message))]
    if lost:
        log.say(f"results.tsv: {plural(len(lost), 'row')} missing there, and back from the commits")
        rows = in_order(ledger, rows, lost, refs)
    if foreign:
        where = f"refs/autoresearch/{ledger.tag}/ does not hold"
        log.say(f"results.tsv: {plural(foreign, 'row')} left out, of experiments that {where}")
    if broken:
        gone = f"{plural(len(broken), 'line')} removed, no row or there twice"
        log.say(f"results.tsv: {gone}: {one_line(broken[0])[:80]}")
    good = ledger.results.exists() and ledger.results.read_text().startswith(HEADER)
    if fresh or lost or foreign or broken or not good:
        write_rows(ledger.results, rows)
    ledger.rows = rows
    ledger.taken = set(refs)


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
