"""
The runs of an ablation or a promotion, with a journal of their own, so that the same command goes on after any kill.

    runs/<tag>/<verb>/journal.jsonl      every run that ended, by what was run: source, seed, budget
    runs/<tag>/<verb>/<name>/            train.py and run.log of each

They are made on the bench, which is handed in.
"""

import dataclasses
import hashlib
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from autoresearch.files import append_event, read_events
from autoresearch.nouns import Json, Run, RunResult, Task, result_of
from autoresearch.record.ledger import Ledger
from autoresearch.record.lines import Log
from autoresearch.text import one_line, plural


class Stopped(Exception):
    """The reason why not all runs were made: the same command goes on."""


def key_of(task: Task) -> str:
    """Return what decides a run's number: whoever wants the same again has it already."""
    length = f"{task.steps}steps" if task.steps else f"{task.budget}s"
    return f"{hashlib.sha256(task.source.encode()).hexdigest()[:12]}-seed{task.seed}-{length}"


@dataclass
class Trials:
    """The basis of a proof, and the results of its runs."""

    ledger: Ledger
    log: Log
    folder: Path
    scale: str
    seed: int  # of first runs in the search
    budget: int  # seconds of training in the search
    overhead: float  # seconds that a run takes besides
    slots: int = 1
    short: float = 10.0  # seconds of a run of a few steps: its start and its scoring
    deadline: float = math.inf  # time.monotonic(), by --hours
    run: Callable[[Sequence[Task]], None] = lambda tasks: None  # on the bench; raises Stopped
    done: dict[str, RunResult] = field(default_factory=dict)  # by key
    slow: dict[str, RunResult] = field(default_factory=dict)  # made again, likewise
    plans: list[Json] = field(default_factory=list)  # as they were noted, oldest first

    @property
    def journal(self) -> Path:
        return self.folder / "journal.jsonl"

    def folder_of(self, task: Task) -> Path:
        return self.folder / key_of(task)

    def make(self, tasks: Sequence[Task]) -> None:
        """Make the runs that have no result yet. Raises Stopped where time or patience ended first."""
        self.run(list({key_of(task): task for task in tasks if key_of(task) not in self.done}.values()))

    def value(self, task: Task) -> float:
        """The val_bpb of a run; nan if it has none, or none yet."""
        result = self.done.get(key_of(task))
        return result.val_bpb if result and result.status == "ok" else math.nan

    def tested_mean(self, tasks: Sequence[Task]) -> float:
        """The mean over runs of what the test rows gave; nan where some were not scored on them."""
        values = [self.done[key_of(task)].measured.get("test_bpb", math.nan) for task in tasks]
        return math.fsum(values) / len(values) if values else math.nan

    @property
    def first_seed(self) -> int:
        """A seed that no run of the search was made on: none of the changes was kept for its luck there."""
        return max([run.seed for run in self.ledger.runs] + [self.seed]) + 1


# -----------------------------------------------------------------------------
# Journal


def read_journal(trials: Trials) -> None:
    """Take in what earlier calls ran."""
    for event in read_events(trials.journal):
        if event["event"] == "plan":
            trials.plans.append(event["plan"])
        else:
            results = trials.done if event["event"] == "run" else trials.slow
            results[event["key"]] = result_of(event["result"])


def note_plan(trials: Trials, plan: Json) -> Json:
    """The plan of an earlier call for the same best, or this one, noted: what it says must not change halfway."""
    same = [each for each in trials.plans if each["for"] == plan["for"]]
    if not same:
        append_event(trials.journal, "plan", {"plan": plan})
        trials.plans.append(plan)
    return same[-1] if same else plan


def note_run(trials: Trials, task: Task, run: Run) -> None:
    """A run that ended, in the journal and as a line. A fault is no result: the next call runs it again."""
    result, slow = run.result, run.purpose == "slow"
    result = dataclasses.replace(result, tail="" if result.status == "ok" else result.tail[-3000:])
    (trials.slow if slow else trials.done)[key_of(task)] = result
    if result.status != "fault":
        values = {"key": key_of(task), "what": task.title, "result": dataclasses.asdict(result)}
        append_event(trials.journal, "slow" if slow else "run", values)
    said = f"{result.val_bpb:.6f}" if result.status == "ok" and not task.steps else result.status
    why = f"  ({result.error})" if result.status != "ok" else ""
    trials.log.say(f"  {said:>9}  seed {task.seed}  {one_line(task.title)}{why}")


def runs_before(trials: Trials, task: Task) -> list[Run]:
    """The ended runs of the same train.py for the same length."""
    source, _, length = key_of(task).split("-")
    found = []
    for purpose, results in (("prove", trials.done), ("slow", trials.slow)):
        for key, result in results.items():
            same, seed, as_long = key.split("-")
            if (same, as_long) == (source, length) and not task.steps:
                found.append(Run(-1, int(seed.removeprefix("seed")), result, purpose))
    return found


# -----------------------------------------------------------------------------
# Time


def seconds_of(trials: Trials, task: Task) -> float:
    """Wall-clock seconds that a run is expected to take: as the longest of the last five alike."""
    length = key_of(task).rpartition("-")[2]
    alike = [each for key, each in trials.done.items() if key.endswith(f"-{length}") and each.status == "ok"]
    if alike:
        return 1.05 * max(each.seconds_if_tested for each in alike[-5:])
    return trials.short if task.steps else trials.overhead + (task.budget or trials.budget)


def time_text(trials: Trials, tasks: Sequence[Task]) -> str:
    """Return how long runs take on all slots, those that are done left out."""
    keys = {key_of(task) for task in tasks}
    done = len(keys & trials.done.keys())
    there = f", {done} of them done" if done else ""
    return f"{plural(len(tasks), 'run')}{there}: about {duration(seconds_to_go(trials, tasks))}"


def seconds_to_go(trials: Trials, tasks: Sequence[Task]) -> float:
    """Return how long the runs take on all slots that are not done yet."""
    missing = {key_of(task): task for task in tasks if key_of(task) not in trials.done}
    return sum(seconds_of(trials, task) for task in missing.values()) / trials.slots


def say_if_too_long(trials: Trials, tasks: Sequence[Task], instead: str = "") -> None:
    """Say at the start that --hours cannot suffice, and what would. `instead`: something shorter."""
    needed, left = seconds_to_go(trials, tasks), trials.deadline - time.monotonic()
    if needed > left:
        hours = math.ceil(11 * needed / 3600) / 10  # a tenth more
        told = (
            f"--hours cannot suffice for these runs: {duration(max(left, 0))} are left, {duration(needed)} are needed"
        )
        then = "When the time ends, what is known is shown, and the same command goes on"
        trials.log.say(f"{told}; --hours {hours:.1f} would do{instead}. {then}")


def duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
