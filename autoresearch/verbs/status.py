"""
`python agent_loop.py status`: where a search stands, in one look or as JSON. It reads, and changes nothing.
"""

import json
import shutil
import sys

from autoresearch.files import ROOT
from autoresearch.record.reading import find_tag, read_search
from autoresearch.record.repository import open_repository
from autoresearch.record.status import make_status, status_text
from autoresearch.text import cut
from autoresearch.verbs import make_parser


def main(arguments: list[str]) -> None:
    parser = make_parser("status", "Where a search stands.")
    parser.add_argument("--json", action="store_true", help="as JSON: docs/status.md says what the keys mean")
    args = parser.parse_args(arguments)
    repo = open_repository(ROOT)
    ledger, now = read_search(repo, find_tag(repo, args.tag))
    status = make_status(ledger, now)
    if args.json:
        print(json.dumps(status, indent=1))
        return
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else 10_000
    print("\n".join(cut(line, width) for line in status_text(status).splitlines()))
