"""
`python agent_loop.py report`: runs/<tag>/report.html, what a search found as one page. The loop draws it too.
"""

import argparse
import webbrowser
from pathlib import Path

import git

from autoresearch.files import ROOT, replace_file
from autoresearch.record.ledger import Ledger
from autoresearch.record.page import render_page
from autoresearch.record.reading import Now, find_tag, read_diffs, read_patches, read_search, read_table
from autoresearch.record.repository import open_repository
from autoresearch.record.status import make_status
from autoresearch.verbs.status import beliefs_of


def report_of_search(repo: git.Git, tag: str) -> Path:
    """Write the page of a search, from what is on disk. Returns its path."""
    ledger, now = read_search(repo, tag)
    return write_page(ledger, now, ledger.branch, ledger.folder / "report.html", read_diffs(ledger))


def report_of_table(table: Path) -> Path:
    """Write the page of a results.tsv, beside it. A journal.jsonl and NNNN.patch files that lie there count, too."""
    ledger, name = read_table(table), f"{table.resolve().parent.name}/{table.name}"
    return write_page(ledger, Now(), name, table.with_name("report.html"), read_patches(ledger, table.parent))


def write_page(ledger: Ledger, now: Now, name: str, path: Path, diffs: dict[str, str]) -> Path:
    """Write the page, whole or not at all."""
    beliefs = beliefs_of(ledger)
    replace_file(path, render_page(ledger, beliefs, make_status(ledger, beliefs, now, name), diffs))
    return path


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="agent_loop.py report", description="What a search found, as one page.")
    parser.add_argument("--tag", help="of the search (default: the one that was last at work)")
    parser.add_argument("--results", type=Path, metavar="FILE", help="a results.tsv by itself, the public recipe's too")
    parser.add_argument("--open", action="store_true", help="show it in a browser")
    args = parser.parse_args(arguments)
    if args.results:
        path = report_of_table(args.results)
    else:
        repo = open_repository(ROOT)
        path = report_of_search(repo, find_tag(repo, args.tag))
    print(path)
    if args.open:
        webbrowser.open(path.resolve().as_uri())
