"""
Is this machine fit for a night? Everything that a search stands on is tried once, for real, in about a minute:

    python agent_loop.py check
    python agent_loop.py check --hours 48 --json
    python agent_loop.py check --budget 900             # how many tokens a parameter would see in 900 s
    AUTORESEARCH_SCALE=cpu python agent_loop.py check --proposer constants

Exit code 0: fit; 1: it works, but not as well as it could; 2: it does not work. Each search begins with the cheap part
of this.
"""

import argparse
import contextlib
import dataclasses
import io
import json
import os
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from autoresearch.files import ROOT, data_root
from autoresearch.guard import GB
from autoresearch.loop import start
from autoresearch.loop.proposers import PROPOSERS
from autoresearch.record.reading import read_ledger, search_tags
from autoresearch.record.repository import open_repository
from autoresearch.settings import Settings
from autoresearch.text import plural
from autoresearch.verbs import make_parser
from autoresearch.verbs.short_run import Line, short_run

STEPS = 20  # of train.py
CODES = {"ok": 0, "slow": 1, "wrong": 2}  # slow: it works, but not as well as it could
ROOMY = 20 * GB  # of free disk: compile caches and a night's logs and models with room to spare

# -----------------------------------------------------------------------------
# The cheap part


def said(check: Callable[[], Any]) -> tuple[Any, str]:
    """(what a check returns, the line that it ends the program with or "")."""
    with contextlib.redirect_stderr(io.StringIO()) as error:
        try:
            return check(), ""
        except SystemExit:
            return None, error.getvalue().strip().removeprefix("error: ")


def cheap_lines(args: argparse.Namespace) -> Iterator[Line]:
    """Check what a search checks before it starts, and the disk."""
    repo, problem = said(lambda: open_repository(ROOT))
    if problem:
        yield Line("git", "wrong", *split(problem))
        return
    told = set()
    for name, check in start.needs(args, repo).items():
        good, problem = said(check)
        if problem in told:
            continue
        told |= {problem} if problem else set()
        yield Line(name, "wrong", *split(problem)) if problem else Line(name, "ok", good)
    yield disk_line()


def split(problem: str) -> tuple[str, str]:
    """A problem and its fix, which stands behind a semicolon."""
    what, _, fix = problem.partition("; ")
    return what, fix


def disk_line() -> Line:
    places = [place for place in (ROOT, data_root()) if place.exists()]
    free = {place: shutil.disk_usage(place).free for place in places}
    place = min(places, key=lambda each: free[each])
    text = f"{free[place] / GB:.0f} GB are free at {place}"
    if not all(os.access(each, os.W_OK) for each in places):
        return Line("disk", "wrong", f"{ROOT} or {data_root()} cannot be written to", "change its owner or permissions")
    state = "ok" if free[place] > ROOMY else "slow" if free[place] > ROOMY / 10 else "wrong"
    fix = "" if state == "ok" else f"make room: {ROOMY / GB:.0f} GB are plenty, {ROOMY / 10 / GB:.0f} GB the least"
    return Line("disk", state, text, fix, {"free_gb": free[place] / GB})


# -----------------------------------------------------------------------------
# What the hours will give


def cost_of_a_proposal() -> float | None:
    """US dollars, the mean of the last that were paid in the search that was last at work, or None."""
    repo = open_repository(ROOT)
    rows = read_ledger(repo, tags[0])[0].rows if (tags := search_tags(repo)) else []
    paid = [row.cost for row in rows[-100:] if row.cost > 0]
    return statistics.mean(paid) if paid else None


def estimate_line(hours: float, seconds: float, settings: Settings, proposer: str) -> Line:
    """Estimate how many experiments the hours have room for, and their cost if it is known. `seconds`: of a run."""
    runs = int(hours * 3600 / seconds)
    experiments = max(0, runs - 1 - settings.keep.baseline_repeats - 2 * settings.keep.confirm_runs)
    text = f"{hours:g} h have room for {plural(runs, 'run')} of {seconds:.0f} s: "
    text += f"at most {plural(experiments, 'experiment')} on one slot"
    facts = {"hours": hours, "run_seconds": seconds, "experiments": experiments}
    cost = cost_of_a_proposal() if proposer == "anthropic" else None
    if cost is not None:
        text += f", ${cost * experiments:.2f} at ${cost:.2f} for a proposal"
        facts["dollars"] = cost * experiments
    elif proposer == "anthropic":
        text += "; what a proposal costs is known once one is paid"
    if not experiments:
        fix = f"give more hours: {(7 + settings.keep.confirm_runs) * seconds / 3600:.1f} are little"
        return Line("estimate", "slow", text, fix, facts)
    return Line("estimate", "ok", text, "", facts)


# -----------------------------------------------------------------------------
# Command line


def all_lines(args: argparse.Namespace) -> Iterator[Line]:
    """Every line, as soon as it is known."""
    wrong = set()
    for line in cheap_lines(args):
        wrong |= {line.name} if line.state == "wrong" else set()
        yield line
    if wrong & {"git", "program.md", "scale", "prepared data", "disk"}:
        yield Line("short run", "wrong", "train.py was not tried", "fix what is wrong above first")
        return
    asked = argparse.Namespace(**vars(args) | {"tag": "check"})
    session = start.new_session(asked, time.monotonic(), "check.log", args.budget)
    session.options = dataclasses.replace(session.options, steps=STEPS)
    for line in short_run(session):
        yield line
    if seconds := line.facts.get("run_seconds"):
        yield estimate_line(args.hours, seconds, session.settings, args.proposer)


def show(line: Line) -> None:
    print(f"{line.state:6}{line.name:20}{line.text}", flush=True)
    if line.fix:
        print(f"{'':6}{'':20}fix: {line.fix}", flush=True)


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = make_parser("check", __doc__, "the search that is meant (default: the one that would go on or begin)")
    parser.add_argument("--hours", type=float, default=8.0, help="estimate for this many hours (default: 8)")
    parser.add_argument(
        "--proposer", choices=PROPOSERS, default="anthropic", help="who will propose (default: anthropic)"
    )
    parser.add_argument("--max-cost", type=float, help="US dollars of API use in all")
    parser.add_argument("--budget", type=int, metavar="SECONDS", help="of training for a run (default: the scale's)")
    parser.add_argument("--json", action="store_true", help="print one JSON object, with the numbers of each line")
    args = parser.parse_args(arguments)
    args.ray, args.demo = None, False
    start.check_tag(args.tag)
    start.check_least(args, budget=1)
    if not args.hours > 0:
        start.fail(f"--hours {args.hours} is not more than 0")
    return args


def main(arguments: list[str]) -> None:
    args, started = parse(arguments), time.monotonic()
    out = sys.stdout
    if args.json:
        sys.stdout = sys.stderr  # what else is printed is not part of the JSON
    lines = []
    with start.locked(ROOT / "runs", print):
        for line in all_lines(args):
            lines.append(line)
            if not args.json:
                show(line)
    code, seconds = max(CODES[line.state] for line in lines), time.monotonic() - started
    if args.json:
        told = {"exit_code": code, "seconds": seconds, "lines": [dataclasses.asdict(line) for line in lines]}
        print(json.dumps(told, indent=1), file=out, flush=True)
    else:
        verdicts = ["fit for a night", "it works, but see what is slow", "not fit: fix what is wrong"]
        print(f"\n{verdicts[code]} ({seconds:.0f} s)")
    sys.exit(code)
