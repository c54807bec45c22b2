"""
Where does a step's time go: a profile of an experiment, made in a slot between two runs and kept beside its runs.

    python agent_loop.py profile                     # of the best
    python agent_loop.py profile --experiment 12

In the loop a proposer asks for one (profile_experiment) and waits, while the loop gives it a slot as it does a run.
Where no loop runs, the verb makes it at once.
"""

import argparse
import re
import shutil
import sys
import time
from concurrent.futures import Future
from pathlib import Path

import git

from autoresearch.files import ROOT, replace_file
from autoresearch.loop.inflight import Candidate, Queue, Slot, Task
from autoresearch.loop.session import Session
from autoresearch.loop.start import check_data, check_program, locked
from autoresearch.nouns import Proposal, RunResult
from autoresearch.record.ledger import Ledger, profile_path, read_experiment
from autoresearch.record.reading import find_tag
from autoresearch.record.repository import commit_of, open_repository, run_git
from autoresearch.run.profile_steps import profile_source, read_profile
from autoresearch.run.training import RunOptions
from autoresearch.text import fail, one_line

# -----------------------------------------------------------------------------
# In the loop


def profile_experiment(session: Session, ledger: Ledger, queue: Queue, deadline: float, number: int) -> str:
    """The profile of an experiment, waited for in a proposer's thread until `deadline`. ValueError if there is none."""
    try:
        return read_experiment(ledger, number, "profile")
    except ValueError:  # not made yet
        answer: Future[str] = Future()
    session.events.put(lambda: queue_profile(session, ledger, queue, number, answer))
    while not answer.done():
        if session.ending or time.time() > deadline:
            raise ValueError("the session ended, or no slot was free in time")
        time.sleep(0.2)
    return answer.result()


def queue_profile(session: Session, ledger: Ledger, queue: Queue, number: int, answer: Future[str]) -> None:
    """Let a profile wait for a slot, before the runs that wait. In the loop's thread."""
    if not ledger.has_row(number):  # what has no verdict may still be repaired
        answer.set_exception(ValueError(f"there is no experiment {number} that has its result"))
        return
    under_way = [task for task in [*queue.tasks, *queue.running] if task.purpose == "profile"]
    if not any(task.candidate.number == number for task in under_way):
        wrapped = Proposal(f"profile of experiment {number}", profile_source(ledger.source_of(number)))
        queue.tasks.appendleft(Task(Candidate(number, wrapped, number), session.options.seed, "profile"))
    queue.profiles.setdefault(number, []).append(answer)


def take_profile(ledger: Ledger, queue: Queue, number: int, outcome: RunResult | Exception) -> None:
    """Keep a profile that was made, and answer those who asked for it."""
    text, problem = kept_profile(ledger, number, outcome)
    for answer in queue.profiles.pop(number, []):
        answer.set_exception(ValueError(problem)) if problem else answer.set_result(text)


def kept_profile(ledger: Ledger, number: int, outcome: RunResult | Exception) -> tuple[str, str]:
    """(the profile, "") or ("", why there is none); of the run that made it nothing is left."""
    folder = profile_folder(ledger, number)
    log = folder / "run.log"
    text = read_profile(log.read_text(errors="replace")) if log.is_file() else ""
    if text:
        replace_file(profile_path(ledger, number), text)
    shutil.rmtree(folder, ignore_errors=True)
    error = str(outcome) if isinstance(outcome, Exception) else outcome.error
    return text, "" if text else f"experiment {number} cannot be profiled: {one_line(error)}"


def profile_folder(ledger: Ledger, number: int) -> Path:
    """Where it runs: beside the experiment's runs."""
    return ledger.experiment_folder(number) / "profile"


# -----------------------------------------------------------------------------
# The verb


def best_number(repo: git.Git, tag: str) -> int:
    """The number of the best: the last commit of the branch that is an experiment's."""
    if not commit_of(repo, f"refs/heads/autoresearch/{tag}"):
        fail(f"there is no search {tag}: no branch autoresearch/{tag}; give --tag")
    subjects = run_git(repo, "log", "--format=%s", f"refs/heads/autoresearch/{tag}").splitlines()
    numbers = [int(match[1]) for subject in subjects if (match := re.match(r"(\d{4,}): ", subject))]
    return numbers[0] if numbers else fail(f"the search {tag} has no baseline yet")


def make_profile(ledger: Ledger, number: int) -> str:
    """Run the steps here and now. Ends the program with one line if they cannot be profiled."""
    import prepare_data

    settings, _ = check_program(None)
    options = RunOptions(
        scale=prepare_data.SCALE,
        seed=prepare_data.SEED,
        kill_after=settings.seconds_of_run(prepare_data.TIME_BUDGET),
        sandbox=settings.sandbox,
        memory_gb=settings.memory_gb,
    )
    source = profile_source(ledger.source_of(number))
    outcome = Slot().train(source, profile_folder(ledger, number), options, lambda: False, lambda line: None)
    text, problem = kept_profile(ledger, number, outcome)
    return text or fail(problem)


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="agent_loop.py profile", description="Where the time of a step goes.")
    parser.add_argument("--tag", help="of the search (default: the one that was last at work)")
    parser.add_argument("--experiment", type=int, metavar="N", help="of this one (default: the best)")
    args = parser.parse_args(arguments)
    repo = open_repository(ROOT)
    tag = find_tag(repo, args.tag)
    ledger = Ledger(repo, tag)
    number = best_number(repo, tag) if args.experiment is None else args.experiment
    if not commit_of(repo, ledger.ref(number)):
        fail(f"there is no experiment {number} of the search {tag}")
    path = profile_path(ledger, number)
    if not path.is_file():
        with locked(ROOT / "runs", print):
            check_data(tag, None)
            print(f"profiling experiment {number}: some steps of its train.py", file=sys.stderr)
            make_profile(ledger, number)
    print(f"experiment {number} of {ledger.branch}, kept in {path.relative_to(ROOT)}\n\n{path.read_text()}", end="")
