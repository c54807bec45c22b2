"""
`python agent_loop.py report`: runs/<tag>/report.html, what a search found as one page. The loop draws it too.
"""

import argparse
import webbrowser
from pathlib import Path

from autoresearch.files import ROOT, replace_file
from autoresearch.record.page import render_page
from autoresearch.record.reading import find_tag, read_diffs, read_search
from autoresearch.record.repository import Repository, open_repository
from autoresearch.record.status import make_status
from autoresearch.verbs.status import beliefs_of


def report_of_search(repo: Repository, tag: str) -> Path:
    """Write the page of a search from what is on disk, whole or not at all. Returns its path."""
    ledger, now = read_search(repo, tag)
    beliefs, path = beliefs_of(ledger), ledger.folder / "report.html"
    replace_file(path, render_page(ledger, beliefs, make_status(ledger, beliefs, now), read_diffs(ledger)))
    return path


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="agent_loop.py report", description="What a search found, as one page.")
    parser.add_argument("--tag", help="of the search (default: the one that was last at work)")
    parser.add_argument("--open", action="store_true", help="show it in a browser")
    args = parser.parse_args(arguments)
    repo = open_repository(ROOT)
    path = report_of_search(repo, find_tag(repo, args.tag))
    print(path)
    if args.open:
        webbrowser.open(path.resolve().as_uri())
