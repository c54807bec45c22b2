"""
Find out which of the kept changes still help. Every one is taken out and put in again, in a designed set of runs:

    python agent_loop.py ablate --tag nov22
    python agent_loop.py ablate --tag nov22 --hours 4 --gpus all
    python agent_loop.py ablate --tag nov22 --fixed 4,9        # these stay in
    python agent_loop.py ablate --tag nov22 --quick            # only: is any of them harmful in the best?

It writes runs/<tag>/ablation.json and ablation.png. The train.py without useless changes is measured next to the best
and, if it is no worse, offered as a commit on autoresearch/<tag>-pruned; nothing else is touched. The same command
again goes on where it stopped. docs/prove.md says how it is done.
"""

from autoresearch.loop.start import add_slots
from autoresearch.record.proof import ablation_text
from autoresearch.record.proof_pictures import draw_ablation
from autoresearch.text import fail
from autoresearch.verbs import make_parser
from autoresearch.verbs.proving import open_trials, publish


def numbers(text: str) -> set[int]:
    try:
        return {int(part) for part in text.split(",") if part}
    except ValueError:
        fail(f"--fixed {text}: give numbers of experiments, like 4,9")


def main(arguments: list[str]) -> None:
    parser = make_parser("ablate", __doc__)
    parser.add_argument("--hours", type=float, help="stop in time; the same command goes on later")
    parser.add_argument("--fixed", default="", metavar="N,N", help="kept changes that are not to be taken out")
    parser.add_argument(
        "--quick", action="store_true", help="the best without each change, on two seeds: is any of them harmful?"
    )
    add_slots(parser)
    args = parser.parse_args(arguments)
    marked = numbers(args.fixed)
    from autoresearch.prove.ablate import measure_factors  # scipy and pydoe take seconds to import
    from autoresearch.prove.pruning import prune
    from autoresearch.prove.quick import measure_each

    with open_trials(args, "ablation") as (trials, _):
        if args.quick:
            measure_each(trials, marked)
            return
        report, pruning = measure_factors(trials, marked)
        try:
            report["pruned"] = prune(pruning, report["factors"])
        finally:  # what is known without it, where time or patience ended
            note = "; each removal's diff is in the former"
            publish(trials, "ablation", report, draw_ablation, ablation_text, note)
