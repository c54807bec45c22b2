"""
The session: its wishes, by command line and program.md, and what may end it.
"""

import dataclasses
import os
import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from autoresearch.files import ROOT
from autoresearch.judge.trust import Measure
from autoresearch.notify import send
from autoresearch.propose.api import check_model
from autoresearch.propose.context import Fault
from autoresearch.record.ledger import Ledger, note
from autoresearch.record.lines import Log
from autoresearch.run import sandbox
from autoresearch.run.training import RunOptions
from autoresearch.settings import Options, Settings, flat, parse_program
from autoresearch.text import one_line, read_text

FAULT = "a fault of the loop"
MOST_FAULTS = 3  # of the loop itself, in a row, with nothing recorded in between


@dataclass
class Session:
    """One start of the loop."""

    options: Options
    log: Log
    settings: Settings
    instructions: str
    program_stamp: float  # when program.md was last written
    started: float = 0.0  # time.monotonic() that its hours begin at
    asked: Options | None = None  # the command line, where program.md's hours and experiments go before it
    measure: Measure | None = None  # once the search is entered
    stop: threading.Event = field(default_factory=threading.Event)
    blocked: str = ""  # what only a person can fix: the session ends with it
    spent_up: bool = False  # max_cost is reached: said once
    complaint: str = ""  # why nothing can be written at present
    faults: int = 0  # of the loop itself, since something was recorded last

    @property
    def ending(self) -> bool:
        return self.stop.is_set() or bool(self.blocked)


def run_options(session: Session, **own: Any) -> RunOptions:
    """The options of a run in this session; `own`: what this run has of its own."""
    options, settings = session.options, session.settings
    shared = RunOptions(
        scale=options.scale,
        seed=options.seed,
        kill_after=settings.seconds_of_run(options.time_budget),
        sandbox=settings.sandbox,
        budget=options.time_budget,
        steps=options.steps,
        memory_gb=settings.memory_gb,
    )
    return dataclasses.replace(shared, **own)


def note_fault(session: Session, error: Exception) -> str:
    """Write down a fault of the loop itself, and return it in one line. The third in a row ends the session."""
    reason = f"{FAULT}: {type(error).__name__}: {one_line(str(error))[:200]}"
    session.log.say(f"   !  {reason} (traceback in {session.log.path.name})")
    session.log.write("".join(traceback.format_exception(error)))
    session.faults += 1
    if session.faults >= MOST_FAULTS:
        session.blocked = f"three faults in a row, the last: {reason}"
    return reason


def note_start(session: Session, ledger: Ledger, slots: int) -> None:
    """Tell the journal of this session; `status` reads from it what runs now, and how its hours were spent."""
    options = session.options
    values = {name: getattr(options, name) for name in ("proposer", "scale", "experiments")}
    note(ledger, "session", values | {"process": os.getpid(), "slots": slots, "deadline": options.ends})


def read_program(path: Path, max_cost: float | None, warn: Callable[[str], object] = str) -> tuple[Settings, str]:
    """(settings, instructions) of program.md, with --max-cost in them. Raises ValueError with one line."""
    settings, instructions = parse_program(read_text(path), warn)
    if problem := sandbox.mode_problem(settings.sandbox):
        raise ValueError(problem)
    return settings if max_cost is None else settings.model_copy(update={"max_cost": max_cost}), instructions


def set_limits(session: Session) -> bool:
    """Let program.md's hours and experiments go before the command line's. Returns whether that changed anything."""
    asked, settings, before = session.asked or session.options, session.settings, session.options
    deadline = asked.deadline if settings.hours is None else session.started + 3600 * settings.hours
    experiments = asked.experiments if settings.experiments is None else settings.experiments
    session.options = dataclasses.replace(before, deadline=deadline, experiments=experiments)
    return session.options != before


def notify(session: Session, line: str) -> None:
    """Tell a person who does not look, if program.md says how."""
    if not session.settings.notify:
        return
    try:
        send(session.settings.notify, f"{session.options.tag}: {one_line(line)}", str(session.log.path))
    except OSError as error:
        session.log.write(f"notify: the command cannot be started: {error}")


def reload_program(session: Session, ledger: Ledger) -> None:
    """Read program.md again if it was written. A change is said; a broken file keeps the last good settings."""
    path = ROOT / "program.md"
    stamp = path.stat().st_mtime_ns if path.exists() else 0
    if stamp == session.program_stamp:
        return
    session.program_stamp = stamp
    try:
        settings, instructions = read_program(path, session.options.max_cost, session.log.say)
    except (ValueError, OSError) as error:
        session.log.say(f"program.md is not valid ({error}); going on with the last good one")
        return
    if instructions != session.instructions:
        session.log.say("program.md: new instructions")
    settings = with_working_model(session, settings)
    before, after = flat(session.settings), flat(settings)
    for name in before:
        if before[name] != after[name]:
            session.log.say(f"program.md: {name} {before[name]} -> {after[name]}")
    session.settings, session.instructions = settings, instructions
    if set_limits(session):
        note(ledger, "limits", {"deadline": session.options.ends, "experiments": session.options.experiments})
        session.log.say(f"program.md: until {session.options.until}")


def with_working_model(session: Session, settings: Settings) -> Settings:
    """The new settings; with the old model and all that belongs to it where the new one does not work."""
    names = ("model", "effort", "max_tokens", "prices", "max_cost")
    before = {name: getattr(session.settings, name) for name in names}
    changed = before != {name: getattr(settings, name) for name in names}
    if session.options.proposer != "anthropic" or not changed:
        return settings
    try:
        for line in check_model(settings):
            session.log.say(f"program.md: {line}")
        return settings
    except Fault as fault:
        session.log.say(f"program.md: {fault}")
    session.log.say(f"program.md: going on with model {before['model']}, effort {before['effort']}")
    return settings.model_copy(update=before)
