"""
agent_loop.py, but that a stub of loop_helpers gets the number that it prints: it has no model for the scorer.

    python printed_loop.py ARGUMENTS OF agent_loop.py

What hands a model over is scored as ever. Tests that start this are about what the loop makes of a number. Picture and
page, most of a short session's own time, are drawn where PICTURES is set.
"""

import dataclasses
import functools
import os
import sys

sys.path.insert(0, os.getcwd())  # the repository of the test

from autoresearch.loop import bench, live, proposers
from autoresearch.nouns import RunResult
from autoresearch.propose import dry_check
from autoresearch.run import cluster
from autoresearch.run.scoring import train_and_score
from autoresearch.verbs import run_verb


def taking_the_printed(train):
    """`train`, which makes a run, but for stubs."""

    @functools.wraps(train)
    def train_and_take(*arguments, **options) -> RunResult:
        result = train(*arguments, **options)
        if result.error != "it ended without evaluate_bpb()" or "val_bpb" not in result.printed:
            return result
        return dataclasses.replace(result, status="ok", error="", val_bpb=result.printed["val_bpb"])

    return train_and_take


def believe_what_is_printed() -> None:
    dry_check.train_and_score = bench.train_and_score = taking_the_printed(train_and_score)
    cluster.run_on_cluster = taking_the_printed(cluster.run_on_cluster)
    if os.path.exists(".git/serial"):  # see make_repository()
        proposers.seconds_to_slot = lambda queue, others, _: (
            0.0 if queue.slots - len(queue.bench.running) > others else 1e9
        )


def main() -> None:
    believe_what_is_printed()
    if not os.environ.get("PICTURES"):
        live.Drawing.draw = lambda *_: None
    sys.argv[0] = "agent_loop.py"
    run_verb(sys.argv[1:])
    import agent_loop

    agent_loop.main()


if __name__ == "__main__":
    main()
