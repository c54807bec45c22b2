"""
Show where the time of a step goes: a profile of an experiment, made in a slot between two runs and kept with its runs.

    python agent_loop.py profile                     # of the best
    python agent_loop.py profile --experiment 12

A profile that is there is shown to whoever proposes the next experiment.
"""

import shutil
import sys
import time

from autoresearch.files import ROOT, replace_file
from autoresearch.loop.bench import Bench, Slot, run_all
from autoresearch.loop.session import Session
from autoresearch.loop.start import check_data, locked, new_session
from autoresearch.nouns import Task
from autoresearch.record.ledger import Ledger
from autoresearch.record.reading import find_tag, profile_path, read_ledger
from autoresearch.record.repository import commit_of, open_repository
from autoresearch.run.profile_steps import STEPS, profile_source, read_profile
from autoresearch.text import fail, one_line
from autoresearch.verbs import make_parser


def make_profile(session: Session, ledger: Ledger, number: int) -> None:
    """Run the steps here and now. Ends the program with one line if they cannot be profiled."""
    folder = ledger.experiment_folder(number) / "profile"  # next to the experiment's runs
    source = profile_source(ledger.source_of(number))
    task = Task(f"profile of experiment {number}", source, session.options.seed, "profile", steps=STEPS)
    results = run_all(Bench(session, [Slot()], lambda task: folder), [task])
    log = folder / "run.log"
    text = read_profile(log.read_text(errors="replace")) if log.is_file() else ""
    shutil.rmtree(folder, ignore_errors=True)
    if not text:
        why = results[0][1].error if results else session.blocked or "it was stopped"
        fail(f"experiment {number} cannot be profiled: {one_line(why)}")
    replace_file(profile_path(ledger, number), text)


def main(arguments: list[str]) -> None:
    parser = make_parser("profile", "Where the time of a step goes.")
    parser.add_argument("--experiment", type=int, metavar="N", help="of this one (default: the best)")
    args = parser.parse_args(arguments)
    repo = open_repository(ROOT)
    args.tag = tag = find_tag(repo, args.tag)
    ledger, _ = read_ledger(repo, tag)
    if args.experiment is None and not ledger.kept:
        fail(f"the search {tag} has no baseline yet")
    number = ledger.best.number if args.experiment is None else args.experiment
    if not commit_of(repo, ledger.ref(number)):
        fail(f"there is no experiment {number} of the search {tag}")
    path = profile_path(ledger, number)
    if not path.is_file():
        with locked(ROOT / "runs", print):
            check_data(tag, None)
            print(f"profiling experiment {number}: some steps of its train.py", file=sys.stderr)
            make_profile(new_session(args, time.monotonic(), "profile.log"), ledger, number)
    print(f"experiment {number} of {ledger.branch}, kept in {path.relative_to(ROOT)}\n\n{path.read_text()}", end="")
