"""
Runs outside a search, for `ablate` and `promote`: on its slots, in its sandbox, under its judge, with a journal of
their own, so that the same command goes on after any kill.

    runs/<tag>/<verb>/journal.jsonl      every run that ended, by what was run: source, seed, budget
    runs/<tag>/<verb>/<name>/            train.py and run.log of each
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
import math
import time
from argparse import Namespace
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty
from typing import Any

from rich.live import Live

from autoresearch.files import ROOT, append_line, replace_file
from autoresearch.judge.trust import Measure, believe, changed_measure, load_measure
from autoresearch.loop import limits
from autoresearch.loop.inflight import Candidate, Slot, Task
from autoresearch.loop.live import draw
from autoresearch.loop.session import Session
from autoresearch.loop.slots import make_slots, start_run
from autoresearch.loop.start import check_data, check_session_arguments, locked, new_session
from autoresearch.nouns import Proposal, RunResult, result_of
from autoresearch.process import GRACE, stop_on_signals
from autoresearch.record.ledger import Ledger
from autoresearch.record.lines import live_view, progress_parts
from autoresearch.record.page import write_page
from autoresearch.record.reading import find_tag, read_search
from autoresearch.record.repository import open_repository
from autoresearch.run.cluster import ClusterError
from autoresearch.text import fail, one_line, plural

POLL = 0.2  # seconds between two looks at whether the user wants to stop

# -----------------------------------------------------------------------------
# What is run


@dataclass(frozen=True)
class Trial:
    """One run that is wanted."""

    what: str  # for a person
    source: str
    seed: int
    budget: int  # seconds of training
    steps: int = 0  # in place of the budget: a short run, to see whether it runs at all
    tested: bool = False  # the test rows are scored too

    @property
    def key(self) -> str:
        """What decides its number: whoever wants the same again has it already."""
        length = f"{self.steps}steps" if self.steps else f"{self.budget}s"
        return f"{hashlib.sha256(self.source.encode()).hexdigest()[:12]}-seed{self.seed}-{length}"


@dataclass
class Bench:
    """Where trials are run, and what has come of them."""

    session: Session
    ledger: Ledger
    slots: list[Slot]
    measure: Measure
    folder: Path
    done: dict[str, RunResult] = field(default_factory=dict)  # by key
    plans: list[dict] = field(default_factory=list)  # as they were noted, oldest first

    @property
    def journal(self) -> Path:
        return self.folder / "journal.jsonl"

    @property
    def budget(self) -> int:
        """Seconds of training in the search."""
        return self.session.options.time_budget

    def value(self, trial: Trial) -> float:
        """The val_bpb of a trial that ended; nan if it has none."""
        result = self.done[trial.key]
        return result.val_bpb if result.status == "ok" else math.nan


def tested_mean(bench: Bench, trials: list[Trial]) -> float:
    """The mean over trials of what the test rows gave; nan where some were not scored on them."""
    values = [bench.done[trial.key].measured.get("test_bpb", math.nan) for trial in trials]
    return math.fsum(values) / len(values) if values else math.nan


class Stopped(Exception):
    """Why not all trials were run: the same command goes on."""


# -----------------------------------------------------------------------------
# The bench


@contextlib.contextmanager
def open_bench(args: Namespace, verb: str) -> Iterator[Bench]:
    """Everything that trials need, checked first. What stops them ends the program in one line."""
    started = time.monotonic()
    check_session_arguments(args)
    repo = open_repository(ROOT)
    args.tag = find_tag(repo, args.tag)
    with locked(ROOT / "runs", print):
        check_data(args.tag, args.ray)
        session = new_session(args, started, f"{verb}.log")
        ledger, _ = read_search(repo, args.tag)
        check_search(ledger, session.options.scale)
        measure = load_measure(ledger.folder, session.options.scale, session.options.measured_budget)
        slots = make_slots(args, session.options.scale, session.log)
        bench = Bench(session, ledger, slots, measure, ledger.folder / verb)
        bench.folder.mkdir(parents=True, exist_ok=True)
        read_journal(bench)
        stop_on_signals(session.stop)
        try:
            yield bench
        except Stopped as stopped:
            session.log.say(f"{stopped}; the same command goes on")
        except (OSError, ClusterError) as error:
            fail(f"{one_line(str(error))}; fix that and run the same command again")
        finally:
            session.stop.set()
            for slot in bench.slots:
                if slot.thread:
                    slot.thread.join(8 * GRACE)


def check_search(ledger: Ledger, scale: str) -> None:
    if len(ledger.kept) < 2:
        fail(f"the search {ledger.tag} has kept no change yet: there is nothing to prove")
    if ledger.scale != scale:
        fail(f"the search {ledger.tag} is of scale {ledger.scale}; use AUTORESEARCH_SCALE={ledger.scale}")


def read_journal(bench: Bench) -> None:
    """Take in what earlier calls ran; what a kill cut short is left out."""
    lines = bench.journal.read_text(errors="replace").splitlines() if bench.journal.exists() else []
    for line in lines:
        with contextlib.suppress(ValueError):
            event = json.loads(line)
            if event["event"] == "run":
                bench.done[event["key"]] = result_of(event["result"])
            else:
                bench.plans.append(event["plan"])


def note_plan(bench: Bench, plan: dict) -> dict:
    """The plan of an earlier call for the same best, or this one, noted: what it says must not change halfway."""
    same = [each for each in bench.plans if each["for"] == plan["for"]]
    if not same:
        append_line(bench.journal, json.dumps({"event": "plan", "at": round(time.time(), 2), "plan": plan}) + "\n")
        bench.plans.append(plan)
    return same[-1] if same else plan


def first_seed(bench: Bench) -> int:
    """A seed that no run of the search was made on: none of the changes was kept for its luck there."""
    return max([run.seed for run in bench.ledger.runs] + [bench.session.options.seed]) + 1


def publish(
    bench: Bench,
    name: str,
    report: dict[str, Any],
    picture: Callable[[dict, Path], None],
    text: Callable[[dict], str],
    note: str = "",
) -> None:
    """NAME.json with its picture in the search's folder, the page anew, and the same at the terminal."""
    log, ledger = bench.session.log, bench.ledger
    report = json.loads(json.dumps(report), parse_constant=lambda _: None)  # null for every number that is none
    replace_file(ledger.folder / f"{name}.json", json.dumps(report, indent=1))
    draw(f"{name}.png", log, lambda: picture(report, ledger.folder / f"{name}.png"))
    draw("report.html", log, lambda: write_page(ledger.repo, ledger.tag))
    log.say(text(report))
    log.show(f"\n{ledger.folder / name}.json, {name}.png{note}")


# -----------------------------------------------------------------------------
# Running


def run_trials(bench: Bench, trials: list[Trial]) -> None:
    """Run what has no result yet, on all slots. Raises Stopped where time or patience ended first."""
    wanted = list({trial.key: trial for trial in trials if trial.key not in bench.done}.values())
    waiting, total = deque(wanted), len(wanted)
    view = Live(
        get_renderable=lambda: live_view(lines(bench, total, waiting)),
        console=bench.session.log.console,
        transient=True,
    )
    with view:
        while busy(bench) or (waiting and not why_stop(bench, waiting[0])):
            fill(bench, waiting)
            with contextlib.suppress(Empty):
                bench.session.events.get(timeout=POLL)()
    if missing := [trial for trial in wanted if trial.key not in bench.done]:
        raise Stopped(why_stop(bench, missing[0]))


def busy(bench: Bench) -> bool:
    return any(slot.task for slot in bench.slots)


def why_stop(bench: Bench, trial: Trial) -> str:
    """Why no further run may begin, or ""."""
    if bench.session.stop.is_set():
        return "stopped on request"
    if time.monotonic() + seconds_of(bench, trial) > bench.session.options.deadline:
        return "no time is left for another run"
    return ""


def seconds_of(bench: Bench, trial: Trial) -> float:
    """Wall-clock seconds that a trial is expected to take: as the longest of the last five alike."""
    length = trial.key.rpartition("-")[2]
    alike = [each for key, each in bench.done.items() if key.endswith(f"-{length}") and each.status == "ok"]
    if alike:
        return 1.05 * max(map(limits.seconds_if_tested, alike[-5:]))
    overhead = max([limits.run_seconds(bench.ledger, bench.budget) - bench.budget, 0.2 * bench.budget, 5.0])
    return overhead if trial.steps else trial.budget + overhead


def time_text(bench: Bench, trials: list[Trial]) -> str:
    """How long trials take on all slots, those that are done left out."""
    missing = {trial.key: seconds_of(bench, trial) for trial in trials if trial.key not in bench.done}
    seconds = sum(missing.values()) / len(bench.slots)
    there = (
        f", {len({trial.key for trial in trials}) - len(missing)} of them done" if len(missing) < len(trials) else ""
    )
    return f"{plural(len(trials), 'run')}{there}: about {duration(seconds)}"


def duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def fill(bench: Bench, waiting: deque[Trial]) -> None:
    """Give every idle slot its next trial."""
    for slot in bench.slots:
        if slot.task or not waiting or why_stop(bench, waiting[0]):
            continue
        if problem := changed_measure(bench.measure):
            fail(problem)
        limits.wait_for_room(bench.session, bench.folder)
        trial = waiting.popleft()
        options = dataclasses.replace(bench.session.options, time_budget=trial.budget, steps=trial.steps)
        settings = bench.session.settings
        if trial.budget > bench.budget:  # the setting was made for runs of the search
            settings = settings.model_copy(update={"kill_after": None})
        session = dataclasses.replace(bench.session, options=options, settings=settings, measure=bench.measure)
        task = Task(
            Candidate(0, Proposal(trial.what, trial.source), 0), trial.seed, "test" if trial.tested else "prove"
        )
        ended = functools.partial(trial_ended, bench, slot, trial, waiting)
        start_run(session, slot, task, folder_of(bench, trial), len(bench.slots), ended)


def folder_of(bench: Bench, trial: Trial) -> Path:
    return bench.folder / trial.key


def trial_ended(bench: Bench, slot: Slot, trial: Trial, waiting: deque[Trial], outcome: RunResult | Exception) -> None:
    """Put a result into the journal, with the number that is believed; a run that was lost is made again."""
    slot.task, slot.line = None, ""
    if isinstance(outcome, RunResult) and outcome.status == "interrupted":
        return
    if limits.was_lost(bench.session, folder_of(bench, trial), outcome):
        bench.session.log.say(f"  runs again: its folder is gone or the disk was full  {one_line(trial.what)}")
        waiting.appendleft(trial)
        return
    if isinstance(outcome, Exception):
        raise outcome
    if outcome.status == "ok" and not trial.steps:
        outcome = believe(bench.measure, outcome, folder_of(bench, trial), trial.budget)
    outcome = dataclasses.replace(outcome, tail="" if outcome.status == "ok" else outcome.tail[-3000:])
    bench.done[trial.key] = outcome
    event = {"event": "run", "at": round(time.time(), 2), "key": trial.key, "what": trial.what}
    append_line(bench.journal, json.dumps(event | {"result": dataclasses.asdict(outcome)}) + "\n")
    said = f"{outcome.val_bpb:.6f}" if outcome.status == "ok" and not trial.steps else outcome.status
    why = f"  ({outcome.error})" if outcome.status != "ok" else ""
    bench.session.log.say(f"  {said:>9}  seed {trial.seed}  {one_line(trial.what)}{why}")


def lines(bench: Bench, total: int, waiting: deque[Trial]) -> list[str]:
    """What runs now, and how much is to come."""
    seconds = sum(seconds_of(bench, trial) for trial in waiting) / len(bench.slots)
    running = sum(bool(slot.task) for slot in bench.slots)
    head = f"{total - len(waiting) - running} of {total} runs done, {duration(seconds)} to go after these"
    shown = [head]
    for slot in bench.slots:
        if task := slot.task:
            parts = progress_parts(slot.line, time.monotonic() - slot.since, bench.session.options.scale)
            name = f"{slot.name}  " if slot.name else ""
            shown.append(" | ".join([f"  {name}seed {task.seed}", *parts, task.candidate.title]))
    return shown
