"""
agent_loop.py with faults of its own: what it calls raises, at random or at its n-th call. Started by test_faults.py.

    python faulty_loop.py SEED CHANCE STAGE[:N] ... -- ARGUMENTS OF agent_loop.py
"""

import itertools
import os
import random
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # where printed_loop is
sys.path.insert(0, os.getcwd())  # the repository of the test

from printed_loop import believe_what_is_printed

from autoresearch.judge import knowledge
from autoresearch.loop import bench, decide, inflight, live, proposers, verdicts
from autoresearch.record import ledger, page

STAGES = {  # stage: the places by which the engine calls it
    "ask": [(proposers, "make_context")],
    "propose": [(proposers.PROPOSERS, "command"), (proposers.PROPOSERS, "constants")],
    "queue": [(inflight, "store")],
    "merge": [(inflight, "on_best")],
    "check": [(verdicts, "forbidden")],
    "commit": [(inflight, "write_experiment")],
    "start": [(bench, "options_of")],
    "run": [(bench, "believed")],
    "journal": [(inflight, "note_run")],
    "judge": [(verdicts, "judge"), (knowledge, "pooled_noise")],
    "record": [(decide, "write_result")],
    "table": [(ledger, "print_table")],
    "branch": [(decide, "move_branch")],
    "train.py": [(decide, "follow_best")],
    "draw": [(page, "write_page")],
}


def faulty(function, stage: str, rng: random.Random, chance: float, only: int | None):
    count = itertools.count(1)

    def called(*arguments, **options):
        number = next(count)
        if number == only or (only is None and rng.random() < chance):
            raise rng.choice([SystemError, ValueError, RuntimeError, OSError])(f"injected into {stage}")
        return function(*arguments, **options)

    return called


def main() -> None:
    at = sys.argv.index("--")
    seed, chance, *stages = sys.argv[1:at]
    rng = random.Random(seed)
    for stage in stages:
        name, _, only = stage.partition(":")
        for place, attribute in STAGES[name]:
            names = place if isinstance(place, dict) else vars(place)
            names[attribute] = faulty(names[attribute], name, rng, float(chance), int(only) if only else None)
    believe_what_is_printed()
    if not any(stage.startswith("draw") for stage in stages):
        live.Drawing.draw = lambda *_: None
    sys.argv = ["agent_loop.py", *sys.argv[at + 1 :]]
    import agent_loop

    agent_loop.main()


if __name__ == "__main__":
    main()
