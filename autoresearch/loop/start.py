"""
The start of a session: everything that a search needs is checked before anything is touched. Each missing thing is one
line with the way out, and exit code 2.
"""

import contextlib
import fcntl
import math
import os
import re
import socket
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TextIO

from rich.console import Console

from autoresearch.files import ROOT
from autoresearch.judge.trust import check_scale, expected_of
from autoresearch.loop.session import Session, read_program, set_limits
from autoresearch.propose.api import check_model
from autoresearch.propose.context import Fault
from autoresearch.propose.dry_check import prepare_cpu_data
from autoresearch.record.ledger import Ledger, read_journal
from autoresearch.record.lines import Log
from autoresearch.record.reading import left_elsewhere, search_tags
from autoresearch.record.repository import (
    Repository,
    changed,
    current_branch,
    experiment_ref,
    home_ref,
    in_the_way,
    unfinished,
)
from autoresearch.run import gpu
from autoresearch.settings import Options, Settings
from autoresearch.text import fail, one_line
from autoresearch.view import listen

TAKEN = ("lock", "check", "propose")  # names in runs/ that are no search's
NOT_ASKED = {"proposer": "constants", "command": "", "experiments": None, "max_cost": None, "hours": None}
LIMITS = ("hours", "experiments")  # of a session: on the command line or in program.md
CUT_SHORT = 4 * 86400.0  # seconds for which a search that was cut short goes on by itself: over a long weekend

# -----------------------------------------------------------------------------
# Checks


def check_arguments(args: Namespace) -> None:
    """The command line by itself."""
    if args.hours is None and args.experiments is None and not any(map(vars(check_program(None)[0]).get, LIMITS)):
        fail("how long? give --hours H or --experiments N (or --demo to try it)")
    check_tag(args.tag)
    check_session_arguments(args)
    if args.proposer == "command" and not args.command:
        fail("--proposer command needs --command '...'")
    check_least(args, experiments=1, max_cost=0, budget=1)


def check_least(args: Namespace, **least: int) -> None:
    """The smallest value that each of these options may have, if it is given."""
    for name, smallest in least.items():
        value = getattr(args, name)
        if value is not None and not value >= smallest:
            fail(f"--{name.replace('_', '-')} {value} is not {smallest} or more")


def check_tag(tag: str | None) -> None:
    """A tag is a part of the names of files and of refs."""
    if tag and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}", tag):
        fail(f"--tag {one_line(tag)[:200]} should be letters, digits, - and _, 100 at most")
    if tag in TAKEN:
        fail(f"--tag {tag} cannot be: runs/{tag} is not a search's; take another name")


def check_session_arguments(args: Namespace) -> None:
    """Check what a search, `ablate` and `promote` all take: how long, and where."""
    if args.hours is not None and not args.hours > 0:
        fail(f"--hours {args.hours} is not more than 0")
    if sum(option is not None for option in (args.gpus, args.slots, args.ray)) > 1:
        fail("--gpus, --slots and --ray exclude each other: give one of them")
    check_least(args, slots=1)


def add_slots(parser: ArgumentParser) -> None:
    """Add the options for where the runs are made."""
    parser.add_argument("--gpus", help="one slot per GPU: all, or a list like 0,1,3 (default: one slot)")
    parser.add_argument("--slots", type=int, help="at the cpu scale: this many runs at once (default: 1)")
    parser.add_argument("--ray", metavar="ADDRESS", help="one slot per GPU of a Ray cluster: auto, or HOST:6379")


def check_files(repo: Repository, tag: str, in_checkout: bool) -> str:
    """The user's files: they are there, and nothing of theirs that a search would write over is uncommitted."""
    for name in ("train.py", "prepare_data.py", "program.md"):
        if not (ROOT / name).exists():
            fail(f"{ROOT / name} is missing; restore it with: git restore {name}")
    refs = (f"refs/heads/autoresearch/{tag}", experiment_ref(tag, 0), home_ref(tag))
    problems = [unfinished(repo), *(in_the_way(repo, ref) for ref in refs), left_elsewhere(repo, tag)]
    if problem := next(filter(None, problems), ""):
        fail(problem)
    current = current_branch(repo)
    must_be_clean = ["prepare_data.py"]
    if in_checkout and current != f"autoresearch/{tag}":  # there, open_ledger() looks closer
        must_be_clean += ["train.py"] if current.startswith("autoresearch/") else ["train.py", "results.tsv"]
    for name in must_be_clean:
        if changed(repo, name):
            fail(f"{name} has uncommitted changes; commit them first: git add -f {name} && git commit -m edit")
    return f"on {current or 'a detached HEAD'}, nothing that a search would write over is uncommitted"


def default_tag(repo: Repository) -> str:
    """Today's date; but a search that has its tag from there, too, and was cut short these days, goes on."""
    dated = [tag for tag in search_tags(repo) if re.fullmatch(r"[a-z]{3}\d\d", tag)]
    if dated:
        ledger = Ledger(repo, dated[0])
        read_journal(ledger)
        if ledger.sittings and ledger.sittings[-1].cut_short and time.time() - ledger.sittings[-1].last < CUT_SHORT:
            return ledger.tag
    return time.strftime("%b%d").lower()


def check_program(max_cost: float | None, warn: Callable[[str], object] = str) -> tuple[Settings, str]:
    """program.md's settings and instructions."""
    try:
        return read_program(ROOT / "program.md", max_cost, warn)
    except (ValueError, OSError) as error:
        fail(f"program.md: {error}")


def check_device(tag: str, ray: str | None) -> str:
    """The search's scale, and a device for it."""
    import prepare_data

    check_scale(ROOT / "runs" / tag, prepare_data.SCALE)
    if prepare_data.SCALE == "cpu":
        why = "AUTORESEARCH_SCALE says so" if os.environ.get("AUTORESEARCH_SCALE") else "this machine has none"
        return f"cpu, the small one: no GPU is used, as {why}"
    if prepare_data.default_device() != "cuda" and not ray:
        fail(gpu.unusable_gpu() or "scale h100 needs an NVIDIA GPU and there is none; use AUTORESEARCH_SCALE=cpu")
    return "h100, on an NVIDIA GPU"


def check_data(tag: str, ray: str | None) -> str:
    """The prepared data of the search's scale. The cpu scale's are made here: it takes seconds."""
    import prepare_data

    check_device(tag, ray)
    if prepare_data.SCALE == "cpu" and not (prepare_data.DATA_DIR / "meta.json").exists():
        print("preparing data from this Python's own standard library, once")
        if problem := prepare_cpu_data():
            fail(problem)
    meta = prepare_data.read_meta()
    return f"{meta['source']}, scale {prepare_data.SCALE}, fingerprint {meta['fingerprint']}"


def check_proposer(proposer: str, settings: Settings) -> str:
    """A key that works and a model that is there and takes these settings, where one is needed."""
    if proposer != "anthropic":
        return f"{proposer}, for which no key is checked"
    try:
        for warning in check_model(settings):
            print(f"warning: {warning}")
    except Fault as fault:
        fail(str(fault))
    return f"the key works, and {settings.model} is there"


def needs(args: Namespace, repo: Repository) -> dict[str, Callable[[], str]]:
    """Return the checks before a search, the cheapest first: each returns what it found, or ends the program."""

    tag = args.tag or default_tag(repo)

    def settings(warn: Callable[[str], object] = str) -> Settings:
        return check_program(args.max_cost, warn)[0]

    return {
        "files and git": lambda: check_files(repo, tag, in_checkout=not args.demo),
        "program.md": lambda: "model {0.model}, effort {0.effort}, sandbox {0.sandbox}".format(settings(print)),
        "scale": lambda: check_device(tag, args.ray),
        "prepared data": lambda: check_data(tag, args.ray),
        "proposer": lambda: check_proposer(args.proposer, settings()),
    }


# -----------------------------------------------------------------------------
# The session


def make_session(args: Namespace, repo: Repository, started: float) -> Session:
    """Check everything, then put the session together; nothing is touched yet."""
    for check in needs(args, repo).values():
        check()
    session = new_session(args, started, "loop.log", args.budget)
    session.asked, session.started = session.options, started
    set_limits(session)
    return session


def new_session(args: Namespace, started: float, log_name: str, budget: int | None = None) -> Session:
    """The session of a command line that was checked. `budget`: of its runs, else the search's or the scale's."""
    import prepare_data

    args = Namespace(**NOT_ASKED | vars(args))
    settings, instructions = check_program(args.max_cost)
    before = None if os.environ.get("AUTORESEARCH_BUDGET") else expected_of(ROOT / "runs" / args.tag).get("time_budget")
    options = Options(
        tag=args.tag,
        proposer=args.proposer,
        command=args.command,
        experiments=args.experiments,
        max_cost=args.max_cost,
        deadline=started + args.hours * 3600 if args.hours else math.inf,
        scale=prepare_data.SCALE,
        seed=prepare_data.SEED,
        time_budget=budget or before or prepare_data.TIME_BUDGET,
        steps=prepare_data.STEPS,
        max_seq_len=prepare_data.MAX_SEQ_LEN,
        vocab_size=prepare_data.SCALES[prepare_data.SCALE].vocab_size,
    )
    log = Log(Console(), ROOT / "runs" / args.tag / log_name)
    listen(log.write)
    stamp = (ROOT / "program.md").stat().st_mtime_ns
    return Session(options, log, settings, instructions, stamp)


@contextlib.contextmanager
def locked(folder: Path, say: Callable[[str], None]) -> Iterator[None]:
    """One loop per working tree: an open file that is locked until this process is gone, however it goes.

    It names process and machine until the session ends, also by an error: only a kill leaves the name there.
    """
    folder.mkdir(exist_ok=True)
    with open(folder / "lock", "r+", opener=lambda path, flags: os.open(path, flags | os.O_CREAT, 0o666)) as file:
        holder = file.read().strip()
        try:
            take(file)
        except BlockingIOError:
            fail(f"another loop runs in this folder (process {holder}); wait for it, or clone to another folder")
        except OSError as error:
            say(f"runs/lock cannot be locked ({error.strerror}): nothing keeps a second loop out, so start none here")
        else:
            if holder:
                say(f"the previous loop in this folder (process {holder}) was killed; taking over its lock")
        file.truncate(0)
        file.seek(0)
        file.write(f"{os.getpid()} on {socket.gethostname()}")
        file.flush()
        try:
            yield
        finally:
            file.truncate(0)


def take(file: TextIO) -> None:
    """Lock a file; `status` holds it for a moment to see whether it can be locked."""
    for last in (False, False, False, True):
        try:
            return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if last:
                raise
        time.sleep(0.1)
