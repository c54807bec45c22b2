"""
Room on the disk: the loop waits for it, and a run that failed for lack of it is not judged.
"""

import os
import shutil
import time
from pathlib import Path

from autoresearch.files import ROOT, data_root
from autoresearch.loop.session import Session, notify
from autoresearch.nouns import RunResult
from autoresearch.run import sandbox


def cannot_write(session: Session, folder: Path) -> bool:
    """Return whether disk or permissions forbid to write. It is said once, and the loop waits until that is fixed."""
    problem = ""
    for place in (ROOT, ROOT / "runs", folder, data_root()):
        if place.exists() and not os.access(place, os.W_OK):
            problem = f"{place} cannot be written to"
        elif place.exists():
            problem = sandbox.lack_of_room(place) or problem
    if problem and problem != session.complaint:
        session.log.show(f"waiting: {problem}")
        notify(session, f"a person is needed: {problem}")
    elif session.complaint and not problem:
        session.log.say(f"going on; solved: {session.complaint}")
    session.complaint = problem
    return bool(problem)


def wait_for_room(session: Session, folder: Path) -> None:
    while cannot_write(session, folder) and not session.stop.is_set() and time.monotonic() < session.options.deadline:
        session.stop.wait(2)


def was_lost(session: Session, run_folder: Path, outcome: RunResult | BaseException) -> bool:
    """Return whether a run's end says nothing of its train.py: its folder or log was deleted, or the disk was full."""
    if isinstance(outcome, BaseException) and not isinstance(outcome, OSError):
        return False
    if not run_folder.exists() or (isinstance(outcome, FileNotFoundError) and f"{run_folder}/" in str(outcome)):
        return True
    if isinstance(outcome, OSError):
        return cannot_write(session, run_folder)
    return outcome.status != "ok" and disk_was_full(session, run_folder)


def disk_was_full(session: Session, run_folder: Path) -> bool:
    """Return whether a run may have failed for lack of space. What it wrote itself is deleted first."""
    if not cannot_write(session, run_folder):
        return False
    for path in run_folder.iterdir():
        if path.name not in ("train.py", "run.log"):
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
    return cannot_write(session, run_folder)
