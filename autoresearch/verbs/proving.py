"""
The beginning and the end of `ablate` and `promote`: a search, a bench for runs of their own, a report and its picture.
"""

import contextlib
import json
import time
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rich.live import Live

from autoresearch.files import ROOT, replace_file
from autoresearch.judge.trust import load_measure
from autoresearch.loop import limits
from autoresearch.loop.bench import Bench, close, make_slots, run_all
from autoresearch.loop.live import draw, slot_lines
from autoresearch.loop.session import Session
from autoresearch.loop.start import check_data, check_session_arguments, locked, new_session
from autoresearch.nouns import Json, Task
from autoresearch.process import stop_on_signals
from autoresearch.prove.trials import Stopped, Trials, duration, key_of, note_run, read_journal, runs_before, seconds_of
from autoresearch.record.ledger import Ledger
from autoresearch.record.lines import live_view
from autoresearch.record.page import write_page
from autoresearch.record.reading import find_tag, read_search
from autoresearch.record.repository import open_repository
from autoresearch.text import fail


@contextlib.contextmanager
def open_trials(args: Namespace, verb: str) -> Iterator[tuple[Trials, Session]]:
    """Everything that the runs of a proof need, checked first. What stops them ends the program in one line."""
    started = time.monotonic()
    check_session_arguments(args)
    repo = open_repository(ROOT)
    args.tag = find_tag(repo, args.tag)
    with locked(ROOT / "runs", print):
        check_data(args.tag, args.ray)
        session = new_session(args, started, f"{verb}.log")
        ledger, _ = read_search(repo, args.tag)
        check_search(ledger, session.options.scale)
        session.measure = load_measure(ledger.folder, session.options.scale, session.options.measured_budget)
        trials = make_trials(session, ledger, ledger.folder / verb)
        slots = make_slots(args, session.options.scale, session.log)
        bench = Bench(session, slots, trials.folder_of, partial(runs_before, trials), partial(note_run, trials))
        trials.slots, trials.run = len(slots), partial(make_runs, bench, trials)
        stop_on_signals(session.stop)
        try:
            yield trials, session
        except Stopped as stopped:
            session.log.say(f"{stopped}; the same command goes on")
        finally:
            close(bench)
    if session.blocked:
        fail(session.blocked)


def check_search(ledger: Ledger, scale: str) -> None:
    if len(ledger.kept) < 2:
        fail(f"the search {ledger.tag} has kept no change yet: there is nothing to prove")
    if ledger.scale != scale:
        fail(f"the search {ledger.tag} is of scale {ledger.scale}; use AUTORESEARCH_SCALE={ledger.scale}")


def make_trials(session: Session, ledger: Ledger, folder: Path) -> Trials:
    """Return the trials, with what earlier calls left and what the search knows."""
    options, budget = session.options, session.options.time_budget
    overhead = max(limits.run_seconds(ledger, budget) - budget, 0.2 * budget, 5.0)
    trials = Trials(ledger, session.log, folder, options.scale, options.seed, budget, overhead)
    trials.deadline, start = options.deadline, session.measure and session.measure.expected["before_clock"]
    scored = [run.result.extra_seconds for run in ledger.runs if run.result.status == "ok"][-5:]
    trials.short = (start or 5.0) + max(scored, default=5.0)
    folder.mkdir(parents=True, exist_ok=True)
    read_journal(trials)
    return trials


def make_runs(bench: Bench, trials: Trials, tasks: Sequence[Task]) -> None:
    """Make runs on all slots. Raises Stopped where time or patience ended first."""
    session = bench.session
    view = Live(
        get_renderable=lambda: live_view(lines(bench, trials, len(tasks))),
        console=session.log.console,
        transient=True,
    )
    with view:
        run_all(bench, tasks, partial(seconds_of, trials))
    if any(key_of(task) not in trials.done for task in tasks):
        why = "stopped on request" if session.stop.is_set() else "no time is left for another run"
        raise Stopped(session.blocked or why)


def lines(bench: Bench, trials: Trials, total: int) -> list[str]:
    """Return what runs now, and how much is to come."""
    seconds = sum(seconds_of(trials, task) for task in bench.tasks) / len(bench.slots)
    done = total - len(bench.tasks) - len(bench.running)
    return [f"{done} of {total} runs done, {duration(seconds)} to go after these", *slot_lines(bench)]


def publish(
    trials: Trials,
    name: str,
    report: dict[str, Any],
    picture: Callable[[Json, Path], None],
    text: Callable[[Json], str],
    note: str = "",
) -> None:
    """NAME.json with its picture in the search's folder, the page again, and the same at the terminal."""
    log, ledger = trials.log, trials.ledger
    report = json.loads(json.dumps(report), parse_constant=lambda _: None)  # null for every number that is none
    replace_file(ledger.folder / f"{name}.json", json.dumps(report, indent=1))
    draw(f"{name}.png", log, lambda: picture(report, ledger.folder / f"{name}.png"))
    draw("report.html", log, lambda: write_page(ledger.repo, ledger.tag))
    log.say(text(report))
    log.show(f"\n{ledger.folder / name}.json, {name}.png{note}")
