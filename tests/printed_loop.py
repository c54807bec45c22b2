"""
agent_loop.py, but that a stub of loop_helpers gets the number that it prints: it has no model for the scorer.

    python printed_loop.py ARGUMENTS OF agent_loop.py

What hands a model over is scored as ever. Tests that start this are about what the loop makes of a number.
"""

import dataclasses
import os
import sys

sys.path.insert(0, os.getcwd())  # the repository of the test

from autoresearch.engine import briefing, queue
from autoresearch.nouns import RunResult
from autoresearch.run.scoring import train_and_score


def train_and_take_the_printed(*arguments, **options) -> RunResult:
    result = train_and_score(*arguments, **options)
    if result.error != "it ended without evaluate_bpb()" or "val_bpb" not in result.summary:
        return result
    return dataclasses.replace(result, status="ok", error="", val_bpb=result.summary["val_bpb"])


def believe_what_is_printed() -> None:
    briefing.train_and_score = queue.train_and_score = train_and_take_the_printed


def main() -> None:
    believe_what_is_printed()
    sys.argv[0] = "agent_loop.py"
    import agent_loop

    agent_loop.main()


if __name__ == "__main__":
    main()
