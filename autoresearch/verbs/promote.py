"""
Does it hold at twice the depth, and how much sooner is the baseline's val_bpb reached there?

    python agent_loop.py promote --tag nov22                       # twice the depth
    python agent_loop.py promote --tag nov22 --depth 24 --budget 7200 --hours 40
    python agent_loop.py promote --tag nov22 --times 2             # each at twice its own depth

Both models are shown first. Baseline and best are trained at the larger depth, nothing else of them changed. Whole
shorter runs of the best find the time at which it reaches what the baseline reaches in --budget seconds. It writes
runs/<tag>/promotion.json and promotion.png and touches nothing else. The same command again goes on where it stopped.
docs/prove.md says how.
"""

import dataclasses
from pathlib import Path

from autoresearch.judge.trust import Measure, expected_of
from autoresearch.loop.start import add_slots, check_least
from autoresearch.record.proof import promotion_text
from autoresearch.record.proof_pictures import draw_promotion
from autoresearch.text import fail
from autoresearch.verbs import make_parser
from autoresearch.verbs.proving import open_trials, publish


def promotion_measure(searched: Measure, folder: Path) -> Measure:
    """The search's, but that the first run here tells what start and compilation take at this depth."""
    stored = expected_of(folder) or {"before_clock": None, "costs": []}
    return dataclasses.replace(searched, path=folder / "measure.json", expected=searched.expected | stored)


def main(arguments: list[str]) -> None:
    parser = make_parser("promote", __doc__)
    parser.add_argument("--depth", type=int, help="of both (default: twice the best's, or --times 2)")
    parser.add_argument(
        "--times",
        type=int,
        help="instead of --depth: this many times each one's own (default where a kept change moved depth or width: 2)",
    )
    parser.add_argument("--force", action="store_true", help="--depth also where the models differ much in size")
    parser.add_argument(
        "--budget", type=int, help="seconds of a run (default: as many tokens per parameter as searched)"
    )
    parser.add_argument("--seeds", type=int, default=3, help="runs of each arm at each budget (default: 3)")
    parser.add_argument("--hours", type=float, help="stop in time; the same command goes on later")
    add_slots(parser)
    args = parser.parse_args(arguments)
    check_least(args, depth=1, times=1, budget=4, seeds=2)
    if args.depth and args.times:
        fail("--depth and --times exclude each other")
    from autoresearch.prove.promote import promote  # scipy takes seconds to import

    with open_trials(args, "promotion") as (trials, session):
        assert session.measure
        session.measure = promotion_measure(session.measure, trials.folder)
        report = promote(trials, args.depth, args.times, args.budget, args.seeds, args.force)
        publish(trials, "promotion", report, draw_promotion, promotion_text)
