"""
`python agent_loop.py report`: runs/<tag>/report.html, what a search found as one page. The loop draws it too.
"""

import webbrowser

from autoresearch.files import ROOT
from autoresearch.record.reading import find_tag
from autoresearch.record.repository import open_repository
from autoresearch.verbs import make_parser


def main(arguments: list[str]) -> None:
    parser = make_parser("report", "What a search found, as one page.")
    parser.add_argument("--open", action="store_true", help="show it in a browser")
    args = parser.parse_args(arguments)
    from autoresearch.record.page import write_page  # which imports numpy and matplotlib

    repo = open_repository(ROOT)
    path = write_page(repo, find_tag(repo, args.tag))
    print(path)
    if args.open:
        webbrowser.open(path.resolve().as_uri())
