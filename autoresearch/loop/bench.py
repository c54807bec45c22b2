"""
The bench: the slots, and every run that is made in them. Of a search, its confirmation, `ablate`, `promote`, `profile`
and `check`: tasks in, results out, one set of rules.

    start(bench, task)       a run begins in an idle slot
    collect(bench)           what came of the runs that have ended
    run_all(bench, tasks)    both, until there is nothing left to do

A run whose result was lost is made again. So is, once, a run on a GPU that was slower than the same train.py before,
and one whose clocks contradict each other. A number is believed or not, and put into the journal, before anyone sees
it. A fault costs the run that it happened to.
"""

import dataclasses
import functools
import math
import os
import threading
import time
from argparse import Namespace
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future
from concurrent.futures import wait as wait_for_any
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from autoresearch.judge.trust import (
    believe,
    changed_measure,
    longest_scoring,
    reason_to_repeat,
    same_training,
    start_limit,
)
from autoresearch.loop.disk import cannot_write, wait_for_room, was_lost
from autoresearch.loop.session import Session, note_fault, run_options
from autoresearch.machine import cores
from autoresearch.nouns import FRESH, Run, RunResult, Task
from autoresearch.process import GRACE
from autoresearch.record.lines import Log
from autoresearch.run import cluster
from autoresearch.run.scoring import Scorer, train_and_score
from autoresearch.run.training import RunOptions
from autoresearch.text import fail, one_line

SLOWER = 0.03  # of its tokens per second that a run may lack, and still be compared with others
POLL = 0.2  # seconds between two looks at whether the user wants to stop
T = TypeVar("T")

# (source, folder, options, should_stop, on_progress) -> what came of one training
Train = Callable[[str, Path, RunOptions, Callable[[], bool], Callable[[str], None]], RunResult]


def train_here() -> Train:
    """Return how a run is made on this machine, with a scorer that stays warm from one to the next."""
    return functools.partial(train_and_score, scorer=Scorer())


@dataclass
class Slot:
    """A place for one run at a time."""

    name: str = ""
    environment: dict[str, str] = field(default_factory=dict)
    train: Train = field(default_factory=train_here)  # here, or on a cluster
    task: Task | None = None
    run: Future[RunResult] = field(default_factory=Future)  # of the task
    line: str = ""  # the progress of its run
    since: float = 0.0  # time.monotonic() at which it began


@dataclass
class Bench:
    """The slots, the runs that wait for one, and where results are written down."""

    session: Session
    slots: list[Slot]
    folder_of: Callable[[Task], Path]  # a folder of its own for every run, so that nothing else is in its reach
    before: Callable[[Task], list[Run]] = lambda task: []  # the ended runs of the same train.py for the same length
    note: Callable[[Task, Run], None] = lambda task, run: None  # into the journal; a line for the user
    tasks: deque[Task] = field(default_factory=deque)  # runs that wait for a slot

    @property
    def running(self) -> list[Task]:
        return [slot.task for slot in self.slots if slot.task]

    @property
    def idle(self) -> Slot | None:
        return next((slot for slot in self.slots if not slot.task), None)


# -----------------------------------------------------------------------------
# The slots


def make_slots(args: Namespace, scale: str, log: Log) -> list[Slot]:
    """One slot, one per GPU, or as many as were asked for; the CPU's threads are divided between them."""
    if args.ray:
        import prepare_data

        nodes = cluster.connect(args.ray, scale, prepare_data.read_meta()["fingerprint"], log.say)
        train = functools.partial(cluster.run_on_cluster, say=log.say, nodes=nodes)
        return [Slot(f"ray {number}", train=train) for number in range(nodes.slots)]
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


# -----------------------------------------------------------------------------
# Start


def in_time(session: Session, seconds: float) -> bool:
    """Return whether a run that takes these seconds would end in time, and nobody wants to stop."""
    return not session.ending and time.monotonic() + seconds <= session.options.deadline


def may_run(session: Session, folder: Path, seconds: float) -> bool:
    """Return whether such a run may start now: there is room, too, and evaluator and data are what they were."""
    if session.measure and (problem := changed_measure(session.measure)):
        session.blocked = problem
    return in_time(session, seconds) and not cannot_write(session, folder)


def start(bench: Bench, task: Task) -> None:
    """Let a run begin in an idle slot, in a thread that only waits for its end."""
    slot, session, folder = bench.idle, bench.session, bench.folder_of(task)
    assert slot, "start() is called where a slot is idle"
    options = options_of(bench, slot, task)

    def train() -> RunResult:
        should_stop = lambda: session.stop.is_set() or time.monotonic() > session.options.deadline  # noqa: E731
        return slot.train(task.source, folder, options, should_stop, lambda line: setattr(slot, "line", line))

    slot.run, slot.since = in_thread(train), time.monotonic()
    slot.task = task


def options_of(bench: Bench, slot: Slot, task: Task) -> RunOptions:
    """The session's options, and what this run has of its own."""
    session, searched = bench.session, bench.session.options.time_budget
    budget = task.budget or searched
    settings = session.settings
    if budget > searched:  # the setting was made for runs of the search
        settings = settings.model_copy(update={"kill_after": None})
    return run_options(
        session,
        seed=task.seed,
        budget=budget,
        steps=task.steps or session.options.steps,
        kill_after=settings.seconds_of_run(budget),
        runs_at_once=len(bench.slots),
        environment=slot.environment,
        test=task.tested or task.purpose in FRESH,
        start_limit=start_limit(session.measure) if session.measure else 0.0,
        score_seconds=longest_scoring(session.measure) if session.measure else 600.0,
    )


def in_thread(work: Callable[[], T]) -> Future[T]:
    """Return what work will return or raise, in a thread that does not keep the program from ending."""
    future: Future[T] = Future()

    def finish() -> None:
        try:
            result = work()
        except BaseException as error:  # whose fault it is, is for the loop to say
            future.set_exception(error)
        else:
            future.set_result(result)

    threading.Thread(target=finish, daemon=True).start()
    return future


# -----------------------------------------------------------------------------
# Collect


def wait(bench: Bench, others: Sequence[Future[Any]] = ()) -> None:
    """Wait a moment, or until a run has ended or one of the other futures is there."""
    futures = [slot.run for slot in bench.slots if slot.task] + list(others)
    if futures:
        wait_for_any(futures, timeout=POLL, return_when=FIRST_COMPLETED)
    else:
        bench.session.stop.wait(POLL)


def collect(bench: Bench) -> list[tuple[Task, RunResult]]:
    """Return the believed results of the runs that have ended; a run that has to be made again waits again."""
    ended = []
    for slot in bench.slots:
        if slot.task and slot.run.done():
            task, slot.task, slot.line = slot.task, None, ""
            try:
                result = take(bench, task, slot.run)
            except Exception as error:  # of the scorer, the journal, the disk: it costs this run
                wait_for_room(bench.session, bench.folder_of(task))
                result = RunResult("fault", 0.0, error=note_fault(bench.session, error))
                bench.note(task, run_of(task, result))
            ended += [(task, result)] if result else []
    return ended


def take(bench: Bench, task: Task, run: Future[RunResult]) -> RunResult | None:
    """A result, believed and in the journal; None where the run is made again, in this session or in the next."""
    session, folder, error = bench.session, bench.folder_of(task), run.exception()
    if not error and run.result().status == "interrupted":
        return None
    if was_lost(session, folder, error or run.result()):
        make_again(bench, task, "its folder is gone or the disk was full")
        return None
    result = believed(session, task, run.result(), folder)
    wait_for_room(session, folder)
    before = bench.before(task)
    result = same_training(result, task.seed, before)
    why = slower_than_before(session.options.scale, before, result) or reason_to_repeat(result)
    if why and not any((each.purpose, each.seed) == ("slow", task.seed) for each in before):
        bench.note(task, dataclasses.replace(run_of(task, result), purpose="slow"))  # kept for the record
        make_again(bench, task, f"seed {task.seed}, {why}")
        return None
    bench.note(task, run_of(task, result))
    return result


def make_again(bench: Bench, task: Task, why: str) -> None:
    """Let the same run wait once more, before all others."""
    wait_for_room(bench.session, bench.folder_of(task))
    name = f"{task.experiment.number:4d}" if task.experiment else f"  {one_line(task.title)}"
    bench.session.log.say(f"{name}  runs again   {why}")
    bench.tasks.appendleft(task)


def run_of(task: Task, result: RunResult) -> Run:
    """A run that ended, for the journal."""
    number, attempt = (task.experiment.number, task.experiment.repairs) if task.experiment else (-1, 0)
    return Run(number, task.seed, result, task.purpose, attempt)


def slower_than_before(scale: str, before: list[Run], result: RunResult) -> str:
    """Return that a throttled GPU slowed a run: the same train.py had more tokens per second before. Or ""."""
    same = [run.result for run in before if run.result.status == "ok"]
    if scale == "cpu" or result.status != "ok" or not same:
        return ""
    fastest, now = max(each.tokens_per_second for each in same), result.tokens_per_second
    clock = result.measured.get("sm_clock_mhz", math.nan)
    said = f"slow: {now / 1e3:,.0f} k tokens/s after {fastest / 1e3:,.0f}, SM clock {clock:.0f} MHz"
    return said if now < (1 - SLOWER) * fastest else ""


def believed(session: Session, task: Task, result: RunResult, folder: Path) -> RunResult:
    """A good result as far as it is believed; a short run has no number to believe."""
    if result.status != "ok" or not session.measure or task.steps:
        return result
    by_time = session.measure.expected["time_budget"]
    return believe(session.measure, result, folder, task.budget if by_time else None)


# -----------------------------------------------------------------------------
# Both


def run_all(
    bench: Bench, tasks: Sequence[Task], seconds: Callable[[Task], float] = lambda task: 0.0
) -> list[tuple[Task, RunResult]]:
    """Make these runs, as far as there is time. `seconds`: that a run is expected to take."""
    session, ended = bench.session, []
    bench.tasks = deque(tasks)
    while bench.running or (bench.tasks and in_time(session, seconds(bench.tasks[0]))):
        while bench.tasks and bench.idle and may_run(session, bench.folder_of(bench.tasks[0]), seconds(bench.tasks[0])):
            start(bench, bench.tasks.popleft())
        wait(bench)
        for task, result in collect(bench):
            session.faults = session.faults if result.status == "fault" else 0
            ended.append((task, result))
    return ended


def close(bench: Bench) -> None:
    """Stop what still runs, and wait for its end: no training is left behind."""
    bench.session.stop.set()
    wait_for_any([slot.run for slot in bench.slots if slot.task], timeout=8 * GRACE)
