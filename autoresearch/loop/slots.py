"""
One run in a slot: the places where runs are made, and the thread that waits for one.
"""

import functools
import os
import threading
import time
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

from autoresearch.judge.trust import start_limit
from autoresearch.loop.inflight import Slot, Task, Train
from autoresearch.loop.session import Session, run_options
from autoresearch.machine import cores
from autoresearch.nouns import FRESH, Run, RunResult
from autoresearch.record.log import Log
from autoresearch.run import cluster
from autoresearch.text import fail

# -----------------------------------------------------------------------------
# The slots


def make_slots(args: Namespace, scale: str, log: Log) -> list[Slot]:
    """One slot, one per GPU, or as many as were asked for; the CPU's threads are divided between them."""
    if args.ray:
        train = ray_training(log)
        return [Slot(f"ray {number}", train=train) for number in range(cluster.connect(args.ray, scale))]
    if args.gpus and scale == "cpu":
        fail("--gpus is for the h100 scale; at the cpu scale give --slots N")
    if args.slots and scale != "cpu":
        fail("--slots is for the cpu scale; on GPUs give --gpus all, or a list like --gpus 0,1")
    names = visible_gpus(args.gpus) if args.gpus else [str(number) for number in range(args.slots or 1)]
    threads = {"OMP_NUM_THREADS": str(max(1, cores() // len(names)))} if len(names) > 1 else {}
    if args.gpus:
        return [Slot(f"gpu {name}", threads | {"CUDA_VISIBLE_DEVICES": name}) for name in names]
    return [Slot(f"slot {name}" if len(names) > 1 else "", threads) for name in names]


def visible_gpus(wanted: str) -> list[str]:
    """The GPUs of a --gpus option, as CUDA_VISIBLE_DEVICES names them."""
    import torch

    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    there = visible.split(",") if visible else [str(number) for number in range(torch.cuda.device_count())]
    chosen = there if wanted == "all" else wanted.split(",")
    if not chosen or not set(chosen) <= set(there):
        fail(f"--gpus {wanted}: there is no such GPU here; there are: {', '.join(there) or 'none'}")
    return chosen


def ray_training(log: Log) -> Train:
    """run_on_cluster() for this machine's prepared data."""
    import prepare_data

    fingerprint = prepare_data.read_meta()["fingerprint"]
    return functools.partial(cluster.run_on_cluster, say=log.say, expected_fingerprint=fingerprint)


# -----------------------------------------------------------------------------
# A run


def run_of(task: Task, result: RunResult) -> Run:
    """A run that ended, for the journal."""
    return Run(task.candidate.number, task.seed, result, task.purpose, task.candidate.repairs)


def start_run(
    session: Session, slot: Slot, task: Task, folder: Path, slots: int, ended: Callable[[RunResult | Exception], None]
) -> None:
    """Train once in a thread, then have ended() called in the loop's, with the result or with what was raised."""
    options = run_options(
        session,
        seed=task.seed,
        runs_at_once=slots,
        environment=slot.environment,
        test=task.purpose in (*FRESH, "test"),
        start_limit=start_limit(session.measure) if session.measure else 0.0,
    )

    def work() -> None:
        outcome: RunResult | Exception
        try:
            outcome = slot.train(
                task.candidate.proposal.source,
                folder,
                options,
                lambda: session.stop.is_set() or time.monotonic() > session.options.deadline,
                lambda line: setattr(slot, "line", line),
            )
        except Exception as error:  # whose fault it is, is for the loop to say
            outcome = error
        session.events.put(functools.partial(ended, outcome))

    slot.thread, slot.since = threading.Thread(target=work, daemon=True), time.monotonic()
    slot.thread.start()
    slot.task = task
