"""Coming back to a search: what a kill left half done, and what another search or a clone left on its branch."""

import shutil

import pytest
from loop_helpers import (
    STUB,
    check_invariants,
    git,
    make_repository,
    make_row,
    proposer_script,
    rows_of,
    run_loop,
    set_level,
)
from rich.console import Console

from autoresearch.files import ROOT
from autoresearch.record.ledger import Ledger, changed_by_hand, follow_best, move_branch, read_journal, write_result
from autoresearch.record.lines import Log
from autoresearch.record.reading import read_ledger, read_search
from autoresearch.record.repository import Repository, open_repository
from autoresearch.record.restore import open_ledger
from autoresearch.row import HEADER, row_line


@pytest.fixture
def search(tmp_path, monkeypatch):
    """A function that opens the search of a tag, in a repository with nothing but its baseline."""
    folder = make_repository(tmp_path / "repo")
    for module in ("ledger", "restore"):
        monkeypatch.setattr(f"autoresearch.record.{module}.ROOT", folder)

    def open_search(tag: str = "t") -> Ledger:
        ledger, _ = read_ledger(open_repository(folder), tag)
        open_ledger(ledger, "HEAD", Log(Console(), tmp_path / "log"))
        return ledger

    ledger = open_search()
    write_result(ledger, make_row(), -1, STUB, "baseline", "keep")
    move_branch(ledger, 0)
    return open_search


@pytest.mark.slow
def test_a_branch_with_the_rows_of_another_search_begins_with_a_baseline(tmp_path, prepared):
    """Such a branch is what an ablation offers."""
    repo = make_repository(tmp_path / "repo")
    for number in (0, 1):
        git(repo, "update-ref", f"refs/autoresearch/another/{number:04d}", "HEAD")
    commit = git(repo, "rev-parse", "HEAD")[:7]
    rows = [make_row(commit=commit), make_row(number=1, commit=commit, val_bpb=1.5)]
    (repo / "results.tsv").write_text(HEADER + "".join(map(row_line, rows)))
    git(repo, "commit", "-qam", "another's results")
    git(repo, "branch", "autoresearch/t")
    done = run_loop(repo, "--experiments", "1", "--command", proposer_script(repo, [set_level(1.9)]))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "results.tsv is written again from the commits of the experiments: 0 rows" in done.stdout
    assert [row.val_bpb for row in rows_of(repo)] == [2.0, 1.9]
    check_invariants(repo)


def test_a_best_that_a_kill_kept_from_the_branch_gets_there_whatever_was_committed_meanwhile(search):
    ledger, better = search(), STUB.replace("LEVEL = 2.0", "LEVEL = 1.9")
    folder = ledger.results.parent
    write_result(ledger, make_row(number=1, val_bpb=1.9, best=0), 0, better, "better", "keep")  # then it was killed
    search("other")  # commits the row to the other branch, and leaves it
    git(folder, "switch", "-q", ledger.branch)
    (folder / "mine.txt").write_text("mine")
    git(folder, "add", "mine.txt")
    git(folder, "commit", "-qm", "mine")
    ledger = search()
    assert changed_by_hand(ledger) == "" and (folder / "train.py").read_text() == better
    assert git(folder, "status", "--porcelain") == "" and (folder / "mine.txt").exists()
    assert git(folder, "log", "--format=%s", "--", "train.py").splitlines()[0] == "0001: better"
    head = ledger.head
    assert search().head == head, "once"
    git(folder, "revert", "--no-edit", "-m", "1", "HEAD")
    assert "a commit by hand changed it" in changed_by_hand(search())


def test_the_best_is_what_was_kept_last_whatever_the_clock_said(search, monkeypatch):
    ledger = search()
    monkeypatch.setattr("time.time", lambda: 1.5e9)  # it was set back for years
    for number in (1, 2):
        row = make_row(number=number, val_bpb=2 - number / 10, best=number - 1)
        write_result(ledger, row, number - 1, f"LEVEL = {row.val_bpb}", "better", "keep")
        assert follow_best(ledger, move_branch(ledger, number)) == ""
    found, _ = read_search(ledger.repo, "t")
    assert [row.number for row in found.rows] == [0, 1, 2]
    ledger.results.unlink()
    assert [row.number for row in search().rows] == [0, 1, 2]


def test_two_verdicts_within_one_second_have_one_order(search, monkeypatch):
    """With several slots a later number may be decided first: the loop, status and a loop that comes back agree."""
    ledger = search()
    monkeypatch.setattr("time.time", lambda: 1.9e9)
    for number in (2, 1):
        write_result(ledger, make_row(number=number, status="discard", best=0), 0, f"LEVEL = {number}", "worse", "")
    there = [ledger.rows, read_search(ledger.repo, "t")[0].rows, search().rows, rows_of(ledger.results.parent)]
    assert [[row.number for row in rows] for rows in there] == [[0, 2, 1]] * 4


def test_a_journal_of_the_version_before_is_read(tmp_path, monkeypatch):
    """It had what was printed and what was measured in one, `summary`."""
    monkeypatch.setattr("autoresearch.record.ledger.ROOT", tmp_path)
    ledger = Ledger(Repository(tmp_path), "t")
    ledger.folder.mkdir(parents=True)
    shutil.copy(ROOT / "docs/example/journal.jsonl", ledger.folder)
    read_journal(ledger)
    scored = [run.result for run in ledger.runs if run.purpose == "confirm" and run.result.status == "ok"]
    assert scored and all(run.measured["test_bpb"] > 1 and run.printed["num_steps"] > 100 for run in scored)
