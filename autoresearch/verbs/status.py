"""
`python agent_loop.py status`: where a search stands, in one look or as JSON. It reads, and changes nothing.
"""

import argparse
import json
import shutil
import sys

from autoresearch.files import ROOT
from autoresearch.judge.belief import measured_gain, posterior
from autoresearch.judge.noise import without_seed
from autoresearch.loop.knowledge import judged, knowledge
from autoresearch.nouns import Estimate
from autoresearch.record.ledger import Ledger
from autoresearch.record.reading import find_tag, read_search
from autoresearch.record.repository import open_repository
from autoresearch.record.status import Beliefs, make_status, status_text
from autoresearch.row import runs_of


def scale_of(ledger: Ledger) -> str:
    """The scale of a search; where no session is noted: runs of the h100 scale take five minutes."""
    if ledger.sittings:
        return ledger.sittings[-1].scale
    return "h100" if max(row.seconds for row in ledger.rows) > 150 else "cpu"


def beliefs_of(ledger: Ledger) -> Beliefs | None:
    """What the judge makes of a search; None as long as it has no baseline."""
    if not ledger.kept:
        return None
    known, gains = knowledge(ledger, scale_of(ledger)), {}
    usual = max((belief.usual for belief in known.beliefs.values()), key=lambda usual: usual.candidates)
    for row in judged(ledger):
        if row is not ledger.kept[0] and (belief := known.beliefs.get(row.parent)):
            measured = measured_gain(without_seed(runs_of(row), known.offsets), belief, known.paired_noise)
            true_gain = posterior(*measured, usual, known.paired_noise.sigma)
            gains[row.number] = (true_gain.better, true_gain.mean)
    best = known.beliefs[ledger.best.commit]
    believed = Estimate(best.best, best.variance**0.5, len(best.runs))
    return Beliefs(known.noise, known.paired_noise.sigma, believed, known.confirmed, known.gain, gains)


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="agent_loop.py status", description="Where a search stands.")
    parser.add_argument("--tag", help="of the search (default: the one that was last at work)")
    parser.add_argument("--json", action="store_true", help="as JSON: docs/status.md says what the keys mean")
    args = parser.parse_args(arguments)
    repo = open_repository(ROOT)
    ledger, now = read_search(repo, find_tag(repo, args.tag))
    status = make_status(ledger, beliefs_of(ledger), now)
    if args.json:
        print(json.dumps(status, indent=1))
        return
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else 10_000
    print(
        "\n".join(line if len(line) <= width else f"{line[: width - 1]}…" for line in status_text(status).splitlines())
    )
