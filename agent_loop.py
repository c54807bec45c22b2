"""
The loop: propose an edit of train.py, train it, judge the number, let git keep or drop it. Again, until time is up.

    python agent_loop.py --demo                       # no GPU, no key, no download: about five minutes
    python agent_loop.py --hours 48                   # the real thing; needs ANTHROPIC_API_KEY and prepared data
    python agent_loop.py --hours 48 --gpus all        # one experiment per GPU at a time; or --gpus 0,1,3
    python agent_loop.py --hours 48 --ray auto        # one per GPU of a Ray cluster
    python agent_loop.py --hours 8 --proposer mutate  # no LLM: random changes of constants, the baseline to beat
    python agent_loop.py --hours 8 --proposer command --command 'claude -p "improve train.py as program.md says"'

The same command again goes on where the last one stopped, however it stopped. Steer by editing program.md at any time.

One engine for every size: a queue of proposals and N slots. The proposer writes ahead while the slots train. Threads
only wait for a training or for the proposer; all decisions are made one after the other, in the order of the journal.

What is written, and in which order, so that a kill at any point loses nothing:
  1. a proposal, in runs/<tag>/proposals/NNNN/, where it waits for a slot
  2. the experiment as a commit object, parent = the best so far, and refs/autoresearch/<tag>/NNNN on it
  3. each run that ended, as a line of runs/<tag>/journal.jsonl: the verdict follows from these alone
  4. the commit again, with the whole row in its message, and the ref on that: from here on the experiment counts
  5. the row in results.tsv
  6. for a keep: the branch autoresearch/<tag> moves to the commit, train.py follows
What a kill left out is caught up with from what was written before it: a row from its commit, a verdict from the
journal; a commit without a verdict trains again, a proposal without a commit waits on.
"""

import argparse
import dataclasses
import fcntl
import functools
import json
import math
import os
import queue
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

import git
from rich.console import Console
from rich.live import Live

import audit
import sandbox
from judge import (
    Verdict,
    fresh_seeds,
    judge,
    mean,
    plausible,
    reconsider,
    without_seed,
)
from ledger import (
    Row,
    append_line,
    one_line,
    replace_file,
    row_message,
    runs_of,
    runs_text,
)
from mutate import propose_mutation
from proposers import (
    CannotPropose,
    Context,
    Crash,
    Proposal,
    ProposalFailed,
    Refused,
    Training,
    Usage,
    edit_problem,
    propose_by_command,
)
from report import draw_progress, gain_text, live_view, result_line, summary
from repository import (
    STOP_SIGNALS,
    changed,
    clear_stale_locks,
    commit_file,
    commit_of,
    current_branch,
    experiment_ref,
    file_at,
    merge_texts,
    open_repository,
    repair_ref,
    run_git,
    same_file,
)
from researcher import check_key, propose_by_claude
from run_experiment import GRACE, ROOT, RunResult, fail, run_experiment
from search import (
    ON_TOP,
    SECOND_LOOK,
    Candidate,
    Search,
    Slot,
    Task,
    Waiting,
    commit_results,
    confirming,
    enter_branch,
    follow_best,
    good_runs,
    judged,
    knowledge,
    message_of,
    run_events,
    store_proposal,
)
from settings import Settings, flat, parse_program

PROPOSERS = {"anthropic": propose_by_claude, "command": propose_by_command, "mutate": propose_mutation}
FREE_BYTES = int(1.25 * sandbox.FREE_GB * sandbox.GB)  # of disk before anything is begun; a run ends at FREE_GB
DRAW_EVERY = 30.0  # seconds between two drawings of progress.png
LOCK_STALE = 120.0  # seconds without a sign of life, after which another machine's lock counts as left behind
POLL = 0.2  # seconds between two looks at whether the user wants to stop

# -----------------------------------------------------------------------------
# Propose


def keep_proposing(search: Search, reason: str) -> None:
    """Have the proposer write what is missing: first repairs, then an edit per idle slot and those to look ahead.

    With a reason to stop, repairs only.
    """
    if search.asking or time.time() < search.ask_after or not search.kept or cannot_write(search):
        return
    if search.crashed:
        ask(search, search.crashed.popleft())
    if search.asking or reason:
        return
    ahead = search.settings.look_ahead
    idle = sum(slot.task is None for slot in search.slots) - len(search.tasks)
    missing = idle + (len(search.slots) if ahead is None else ahead) - len(search.waiting)
    if missing > 0:
        ask(search, None)


def ask(search: Search, crashed: Candidate | None) -> None:
    """Ask the proposer in a thread; proposal_came() is called with what it says."""
    search.asking = context = make_context(search, crashed)

    def work():
        try:
            outcome = PROPOSERS[search.proposer](context)
        except ProposalFailed as failure:
            outcome = failure
        except Exception as error:  # a fault of ours or of a library costs one proposal, not the night
            search.log(traceback.format_exc())
            outcome = ProposalFailed(f"{type(error).__name__}: {error} (traceback in loop.log)")
        search.events.put(functools.partial(proposal_came, search, context, outcome, crashed))

    threading.Thread(target=work, daemon=True).start()


def make_context(search: Search, crashed: Candidate | None) -> Context:
    """All that the proposer may know at this moment."""
    number = search.next_number + len(search.waiting)
    running = [each.proposal.description for each in search.candidates.values()]
    return Context(
        number=number,
        seed=search.seed,
        scale=search.scale,
        settings=search.settings,
        instructions=search.instructions,
        best_source=search.source_of(search.kept[-1].number),
        rows=list(search.rows),
        failures=[(event["after"], event["reason"]) for event in search.journal if event["event"] == "failed"],
        noise=knowledge(search).paired_noise.sigma,
        waiting=running + [waiting.proposal.description for waiting in search.waiting],
        trainings=recent_trainings(search),
        note=search.note,
        crash=crashed and crash_of(search, crashed),
        folder=search.experiment_folder(crashed.number) if crashed else new_proposal_folder(search),
        notebook=search.folder / "notebook.md",
        spent=search.spent,
        deadline=min(search.deadline - run_seconds(search), time.time() + search.settings.proposal_timeout),
        command=search.command,
        read=functools.partial(read_experiment, search),
        forbidden=functools.partial(forbidden, search),
        should_stop=lambda: search.stop.is_set() or bool(search.blocked),
        log=search.say,
    )


def new_proposal_folder(search: Search) -> Path:
    """The next free folder of runs/<tag>/proposals; what a kill left unfinished in it is overwritten."""
    folder = search.folder / "proposals"
    folder.mkdir(parents=True, exist_ok=True)
    last = max([int(path.name) for path in folder.iterdir() if path.name.isdecimal()], default=0)
    new = folder / f"{last + 1:04d}"
    new.mkdir()
    return new


def recent_trainings(search: Search, count: int = 3) -> list[Training]:
    """How training went: the best's first run, then the last experiments'."""
    best = search.kept[-1].number
    last = [row.number for row in search.rows if row.number != best and search.runs.get(row.number)][-count:]
    runs = [search.runs[number][0] for number in [best, *last] if search.runs.get(number)]
    return [Training(run["number"], run["losses"], run["summary"]) for run in runs if run["losses"]]


def crash_of(search: Search, crashed: Candidate) -> Crash:
    (*_, run) = run_events(search, crashed.number, "judge", crashed.repairs)
    return Crash(crashed.number, crashed.proposal.source, run["tail"], crashed.repairs + 1)


def read_experiment(search: Search, number: int, what: str) -> str:
    """The "diff", the end of the "log" or the "notes" of an experiment. Raises ValueError if there is none."""
    if not commit_of(search.repo, experiment_ref(search.tag, number)):
        raise ValueError(f"there is no experiment {number}")
    if what == "diff":
        return run_git(search.repo, "show", "--format=", experiment_ref(search.tag, number), "--", "train.py")
    if what == "notes":
        return message_of(search, number)[1]
    if what == "log":
        logs = sorted(search.experiment_folder(number).glob("*/run.log"))
        return logs[-1].read_text(errors="replace")[-20_000:] if logs else "its log is gone"
    raise ValueError(f"{what!r} is not diff, log or notes")


def proposal_came(search: Search, context: Context, outcome, crashed: Candidate | None) -> None:
    """Queue a new proposal, start a repaired experiment again, or note that there was none."""
    if search.asking is not context:  # it came after all, when nobody waited for it any more
        return
    search.asking = None
    if isinstance(outcome, ProposalFailed):
        proposal_failed(search, outcome, crashed)
        return
    search.failures, search.refusals, search.note = 0, 0, ""
    if crashed:
        restart_repaired(search, crashed, outcome)
        return
    waiting = Waiting(outcome, context.best.commit, context.folder)
    store_proposal(waiting.folder, outcome, waiting.base)
    search.waiting.append(waiting)


def proposal_failed(search: Search, failure: ProposalFailed, crashed: Candidate | None) -> None:
    """Say it, remember it for the next proposal, wait a little longer each time. CannotPropose ends the session."""
    if search.stop.is_set() and not failure.usage.tokens:
        return
    usage, search.refusals = failure.usage, search.refusals + 1 if isinstance(failure, Refused) else 0
    search.note_event("failed", after=len(search.rows), reason=str(failure), cost=usage.cost, tokens=usage.tokens)
    search.say(f"   -  no {'repair' if crashed else 'proposal'}: {failure}")
    if crashed:
        record(search, crashed, verdict_of_failed(search, crashed))
    else:
        search.failures += 1
        search.note = f"The last proposal failed: {failure}"
        search.ask_after = time.time() + (min(2 ** (search.failures - 2), 300) if search.failures > 1 else 0)
    if isinstance(failure, CannotPropose):
        search.blocked = str(failure)
    elif search.refusals >= search.settings.max_refusals:
        search.blocked = (
            f"{search.refusals} proposals in a row were declined ({failure}); whether and how to go on is for a person "
            "to decide: see Refusals in README.md"
        )


def give_up_waiting(search: Search) -> None:
    """Go on without a proposer that does not come back: a request in flight is left behind."""
    context = search.asking
    patience = 2 * GRACE  # a command is being killed
    if not context:
        return
    if time.time() > context.deadline + patience:
        proposal_came(search, context, ProposalFailed("it took too long"), None)
    elif search.stop.is_set():
        search.asking.deadline = min(context.deadline, time.time())


def restart_repaired(search: Search, crashed: Candidate, repaired: Proposal) -> None:
    """The same experiment with the mended train.py; the one that crashed stays reachable by a ref of its own."""
    ref = experiment_ref(search.tag, crashed.number)
    run_git(search.repo, "update-ref", repair_ref(search.tag, crashed.number, crashed.repairs), ref)
    repaired.usage = crashed.proposal.usage + repaired.usage
    crashed.proposal = dataclasses.replace(crashed.proposal, source=repaired.source, usage=repaired.usage)
    crashed.repairs += 1
    search.say(f"{crashed.number:4d}  repaired     attempt {crashed.repairs}: {one_line(repaired.description)[:80]}")
    commit_candidate(search, crashed)
    decide(search, crashed)


# -----------------------------------------------------------------------------
# From the queue to an experiment


def next_candidate(search: Search) -> Candidate | None:
    """The next experiment: the baseline first, then what a kill left, a second look, the oldest proposal."""
    if not search.kept:
        return None if search.candidates else begin_baseline(search)
    if base_changed_by_hand(search):
        return None
    if experiments_left(search) > 0 and (candidate := second_look(search)):
        return candidate
    while search.waiting:
        waiting = search.waiting.popleft()
        if source := on_new_best(search, waiting.proposal.source, waiting.base):
            waiting.proposal.source = source
            return begin(search, waiting.proposal, waiting.folder)
        set_aside(search, waiting)
    return None


def begin_baseline(search: Search) -> Candidate:
    source = file_at(search.repo, search.head, "train.py")
    return begin(search, Proposal("baseline", source))


def begin(search: Search, proposal: Proposal, folder: Path | None = None) -> Candidate:
    """Give a proposal its number, its commit and its ref: from here on it is an experiment."""
    base = search.kept[-1].commit if search.kept else search.head[:7]
    candidate = Candidate(search.next_number, proposal, base)
    search.next_number += 1
    home = search.experiment_folder(candidate.number)
    if folder and folder != home:
        folder.rename(home)
    commit_candidate(search, candidate)
    search.candidates[candidate.number] = candidate
    return candidate


def commit_candidate(search: Search, candidate: Candidate) -> None:
    number, proposal = candidate.number, candidate.proposal
    store_proposal(search.experiment_folder(number), proposal, candidate.base, candidate.repairs)
    message = f"{number:04d}: {one_line(proposal.description)}"
    ref = experiment_ref(search.tag, number)
    commit_file(search.repo, parent_of(search, candidate), "train.py", proposal.source, message, ref)


def parent_of(search: Search, candidate: Candidate) -> str:
    """The commit below an experiment: the branch, or the best that it was made for if there is another by now."""
    if not search.kept or candidate.base == search.kept[-1].commit:
        return search.head
    return commit_of(search.repo, experiment_ref(search.tag, number_of(search, candidate.base)))


def number_of(search: Search, commit: str) -> int:
    """The experiment that a commit of the rows is."""
    return next(row.number for row in search.rows if row.commit == commit)


def base_changed_by_hand(search: Search) -> bool:
    """Whether a commit of the user's gave the branch another train.py than the best; the search is then blocked."""
    number = search.kept[-1].number
    if not same_file(search.repo, f"refs/heads/{search.branch}", experiment_ref(search.tag, number), "train.py"):
        search.blocked = (
            f"train.py of {search.branch} is not that of its best, experiment {number}: a commit by hand changed it; "
            f"undo that with git revert, or begin another --tag from it"
        )
    return bool(search.blocked)


def on_new_best(search: Search, source: str, base: str) -> str | None:
    """`source` with its edit on top of the present best; None if it does not fit there or changes nothing any more."""
    best = search.kept[-1]
    if base == best.commit:
        return source
    best_source = search.source_of(best.number)
    merged = merge_texts(search.repo, best_source, search.source_of(number_of(search, base)), source)
    return None if merged is None or edit_problem(best_source, merged) else merged


def set_aside(search: Search, waiting: Waiting) -> None:
    """A proposal that does not fit the new best goes back to its proposer, as a note."""
    (waiting.folder / "proposal.json").rename(waiting.folder / "set_aside.json")
    text = f"it was written for an older best, and does not fit the new one: {one_line(waiting.proposal.description)}"
    usage = waiting.proposal.usage
    search.note_event("failed", after=len(search.rows), reason=text, cost=usage.cost, tokens=usage.tokens)
    search.note = f"A proposal was not run: {text}. Propose it again for the new best if it is still worth it."
    search.say(f"   -  not run: {text}")


def second_look(search: Search) -> Candidate | None:
    """A near miss on the present best, if what came after has shown that best to be a lucky one. Its runs count on."""
    known, best = knowledge(search), search.kept[-1]
    limit = search.settings.memory_limit_gb or math.inf
    under_way = [each.proposal.description for each in search.candidates.values()]
    looked_at = {int(match[1]) for text in under_way if (match := SECOND_LOOK.match(text))}
    near = [row for row in judged(search) if row.parent == best.commit and row.status == "discard"]
    near = [row for row in near if row.memory_gb <= limit and row.number not in looked_at]
    runs = [without_seed(runs_of(row), known.offsets) for row in near]
    chosen = reconsider(runs, known.beliefs[best.commit], known.paired_noise, search.settings.keep)
    if not chosen:
        return None
    row = near[chosen[0]]
    description = f"second look at {row.number:04d}: {SECOND_LOOK.sub('', row.description)}"
    candidate = begin(
        search, Proposal(description, search.source_of(row.number), row.hypothesis, category=row.category)
    )
    for seed, val_bpb in runs_of(row).items():
        result = RunResult("ok", row.seconds, val_bpb, row.memory_gb)
        note_run(search, Task(candidate, seed), result)
    return candidate


# -----------------------------------------------------------------------------
# Run


def fill_slots(search: Search, confirming: bool = False) -> None:
    """Give every idle slot its next run; while `confirming` the best, nothing new begins."""
    for slot in search.slots:
        if slot.task is None and (task := next_task(search, confirming)):
            slot.task = task
            slot.thread = threading.Thread(target=work_on, args=(search, slot, task), daemon=True)
            slot.thread.start()


def next_task(search: Search, confirming: bool) -> Task | None:
    """The next run: of the experiments under way, or of a new one."""
    while may_run(search):
        if search.tasks:
            return search.tasks.popleft()
        candidate = next_candidate(search) if not confirming and time_for_more(search) else None
        if not candidate:
            return None
        decide(search, candidate)  # queues its first run, unless no run is needed to judge it
    return None


def may_run(search: Search) -> bool:
    """Whether a run may start now: it may go on, evaluator and data are what they were, there is a place to write."""
    return may_go_on(search) and measure_intact(search) and not cannot_write(search)


def may_go_on(search: Search) -> bool:
    """Whether nobody wants to stop, and a run would end in time."""
    return not (search.stop.is_set() or search.blocked or time.time() + run_seconds(search) > search.deadline)


def time_for_more(search: Search) -> bool:
    """Whether there is time for another experiment, and then for running the best on fresh seeds."""
    return time.time() + run_seconds(search) + confirming_seconds(search) <= search.deadline


def cannot_write(search: Search) -> bool:
    """Whether disk or permissions forbid to write; said once, and the loop waits until that is mended."""
    problem = ""
    for place in (ROOT, ROOT / "runs", search.folder, sandbox.data_root()):
        if place.exists() and not os.access(place, os.W_OK):
            problem = f"{place} cannot be written to"
        elif place.exists() and shutil.disk_usage(place).free < FREE_BYTES:
            problem = f"less than {FREE_BYTES / sandbox.GB:.2f} GB of disk are left at {place}"
    if problem and problem != search.complaint:
        search.console.print(f"waiting: {problem}", markup=False, highlight=False, soft_wrap=True)
    elif search.complaint and not problem:
        search.say(f"going on: {search.complaint} no longer")
    search.complaint = problem
    return bool(problem)


def disk_was_full(search: Search, folder: Path) -> bool:
    """Whether a run may have failed for want of room, by another's fault: what it wrote itself is deleted first."""
    if not cannot_write(search):
        return False
    for path in folder.iterdir():
        if path.name not in ("train.py", "run.log"):
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
    return cannot_write(search)


def repeat(search: Search, task: Task) -> None:
    """A run whose result was lost is made again, once there is a place for it."""
    wait_for_room(search)
    search.say(f"{task.candidate.number:4d}  runs again: its folder is gone or the disk was full")
    search.tasks.appendleft(task)


def wait_for_room(search: Search) -> None:
    while cannot_write(search) and not search.stop.is_set():
        search.stop.wait(2)


def run_folder(search: Search, task: Task) -> Path:
    """A folder of its own for every run, so that nothing else is in a run's reach."""
    return search.experiment_folder(task.candidate.number) / f"seed{task.seed}"


def work_on(search: Search, slot: Slot, task: Task) -> None:
    """In a slot's thread: train once, then have run_ended() called; a fault of ours is raised there."""
    folder = run_folder(search, task)
    try:
        (folder / audit.RECORD).unlink(missing_ok=True)  # of a run that was stopped
        result = search.train(
            search,
            slot,
            task.candidate.proposal.source,
            task.seed,
            search.scale,
            folder,
            search.kill_after,
            lambda: search.stop.is_set() or time.time() > search.deadline,
            lambda line: setattr(slot, "line", line),
        )
    except Exception as error:
        search.events.put(functools.partial(run_broke, search, slot, task, error))
        return
    search.events.put(functools.partial(run_ended, search, slot, task, result))


def train_here(search: Search, slot: Slot, *arguments) -> RunResult:
    """run_experiment() on this machine."""
    limits = sandbox.make_limits(search.scale, search.settings.memory_gb, len(search.slots))
    options = {"sandbox_mode": search.settings.sandbox, "limits": limits, "environment": slot.environment}
    return run_experiment(*arguments, **options)


def train_on_cluster(search: Search, slot: Slot, *arguments) -> RunResult:
    """The same on whichever node of the Ray cluster has room. Raises Blocked if a node is not fit for it."""
    import cluster
    import prepare_data

    options = {"sandbox_mode": search.settings.sandbox, "memory_gb": search.settings.memory_gb}
    fingerprint = prepare_data.read_meta()["fingerprint"]
    try:
        return cluster.run_on_cluster(*arguments, say=search.say, expected_fingerprint=fingerprint, **options)
    except cluster.ClusterError as error:
        raise Blocked(str(error)) from error


class Blocked(Exception):
    """What only a person can mend, in one line."""


def run_broke(search: Search, slot: Slot, task: Task, error: Exception) -> None:
    """No result, and not the candidate's fault: again once the disk has room, else the session ends with the error."""
    slot.task, slot.line = None, ""
    if isinstance(error, Blocked):
        search.blocked = str(error)
        return
    gone = not run_folder(search, task).exists()
    if not (isinstance(error, OSError) and (gone or cannot_write(search))):
        raise error
    repeat(search, task)


def run_ended(search: Search, slot: Slot, task: Task, result: RunResult) -> None:
    """Put a run into the journal, and decide what follows from it."""
    slot.task, slot.line = None, ""
    candidate, folder = task.candidate, run_folder(search, task)
    if result.status == "interrupted":
        return  # the experiment goes on in the next session
    lost = not (folder / "run.log").exists() or (result.status != "ok" and disk_was_full(search, folder))
    if lost:
        repeat(search, task)
        return
    wait_for_room(search)
    result = believe(search, result, folder) if result.status == "ok" else result
    note_run(search, task, result)
    if task.purpose == "confirm":
        said = f"{result.val_bpb:.6f}  seed {task.seed}, a fresh one" if result.status == "ok" else result.error
        search.say(f"{candidate.number:4d}  {'confirmed' if result.status == 'ok' else 'not confirmed':11}  {said}")
    elif candidate.number in search.candidates:
        decide(search, candidate)


def note_run(search: Search, task: Task, result: RunResult) -> None:
    values = dataclasses.asdict(result) | {"tail": "" if result.status == "ok" else result.tail[-4000:]}
    number, attempt = task.candidate.number, task.candidate.repairs
    search.note_event("run", number=number, purpose=task.purpose, seed=task.seed, attempt=attempt, **values)


def believe(search: Search, result: RunResult, folder: Path) -> RunResult:
    """A result with the evaluator's own number, or as invalid with the reason why it is not believed."""
    record, expected = audit.read_record(folder), search.measure["expected"]
    limits = audit.LIMITS[search.scale]
    if reason := audit.check_result(result.summary, record, expected, limits, result.seconds):
        return dataclasses.replace(result, status="invalid", error=reason)
    if not plausible(record["val_bpb"]):
        return dataclasses.replace(result, status="invalid", error=f"val_bpb {record['val_bpb']} is not plausible")
    if expected["before_clock"] is None:  # the baseline's: what start and compilation take here
        expected["before_clock"] = audit.before_clock(record, result.seconds, expected["clock"])
        write_measure(search)
    return dataclasses.replace(result, val_bpb=record["val_bpb"])


def load_measure(search: Search) -> None:
    """What this search is measured with, from its first session on: evaluator and data, and what their record says."""
    data = sandbox.data_root() / search.scale
    if problem := audit.check_fingerprint(data):
        fail(problem)
    stored = search.folder / "measure.json"
    if stored.exists():
        search.measure = json.loads(stored.read_text())
        return
    search.measure = {"expected": audit.measure_expected(), "files": audit.measure_files(audit.protected_files(data))}
    write_measure(search)


def write_measure(search: Search) -> None:
    replace_file(search.folder / "measure.json", json.dumps(search.measure, indent=1))


def measure_intact(search: Search) -> bool:
    """Whether evaluator and data are what they were; if not, the search is blocked: its numbers would not compare."""
    paths = [Path(path) for path in search.measure["files"]]
    if problem := audit.check_integrity(paths, search.measure["files"]):
        search.blocked = f"{problem}; undo that, or start another --tag"
    return not search.blocked


# -----------------------------------------------------------------------------
# Judge


def decide(search: Search, candidate: Candidate) -> None:
    """What follows from an experiment's runs so far: another run, a repair, or its verdict."""
    runs = run_events(search, candidate.number, "judge", candidate.repairs)
    failed = any(run["status"] != "ok" for run in runs)
    if not runs and (reason := forbidden(search, candidate.proposal.source)):
        record(search, candidate, Verdict("invalid", reason))
    elif failed and may_repair(search, candidate, runs[-1]):
        search.crashed.append(candidate)
    elif failed:
        record(search, candidate, verdict_of_failed(search, candidate))
    elif (verdict := verdict_of(search, candidate)).status == "again":
        run_again(search, candidate, verdict)
    elif verdict.status == "keep" and search.kept and candidate.base != search.kept[-1].commit:
        run_on_top(search, candidate, verdict)
    else:
        record(search, candidate, verdict)


def run_again(search: Search, candidate: Candidate, verdict: Verdict) -> None:
    """Queue the run that the verdict asks for; of the baseline all that the noise takes, for all slots to work on."""
    tasks = [*search.tasks, *(slot.task for slot in search.slots if slot.task)]
    under_way = {task.seed for task in tasks if task.candidate is candidate}
    done = good_runs(search, candidate.number, "judge", candidate.repairs)
    repeats = 0 if search.kept else search.settings.keep.baseline_repeats
    seeds = [search.seed + step for step in range(1 + repeats)] if not search.kept else [verdict.next_seed]
    if done and not under_way:
        seed, val_bpb = list(done.items())[-1]
        search.say(f"{candidate.number:4d}  measured     {val_bpb:.6f}  seed {seed}; again, {verdict.reason}")
    search.tasks.extend(Task(candidate, seed) for seed in seeds if seed not in done and seed not in under_way)


def may_repair(search: Search, candidate: Candidate, run: dict) -> bool:
    """Whether a failed run looks like a slip that its proposer can mend: an exception, but not for want of memory."""
    slip = run["status"] == "crash" and "Traceback (most recent call last)" in run["tail"]
    for_memory = re.search(r"OutOfMemoryError|MemoryError|out of memory", run["tail"])
    left = candidate.repairs < search.settings.repairs and search.kept and search.proposer != "mutate"
    return bool(slip and not for_memory and left and not over_budget(search))


def forbidden(search: Search, source: str) -> str:
    """What a train.py does that the search's first one does not do and no training has to do, or ""."""
    return audit.audit_source(source, search.source_of(search.kept[0].number)) if search.kept else ""


def verdict_of_failed(search: Search, candidate: Candidate) -> Verdict:
    (*_, run) = [run for run in run_events(search, candidate.number, "judge", candidate.repairs) if run["error"]]
    return Verdict(run["status"], run["error"])


def verdict_of(search: Search, candidate: Candidate) -> Verdict:
    """judge() with what this search knows, against the best that the edit was made for."""
    events = run_events(search, candidate.number, "judge", candidate.repairs)
    if not events:
        return Verdict("again", "its first run", next_seed=search.seed)
    known, rule = knowledge(search), search.settings.keep
    runs = without_seed({run["seed"]: run["val_bpb"] for run in events}, known.offsets)
    if not search.kept:
        return judge(runs, None, known.paired_noise, rule)
    base = search.source_of(number_of(search, candidate.base))
    return judge(
        runs,
        known.beliefs[candidate.base],
        known.paired_noise,
        rule,
        memory_gb=max(run["memory_gb"] for run in events),
        memory_limit_gb=search.settings.memory_limit_gb or math.inf,
        lines_removed=code_lines(base) - code_lines(candidate.proposal.source),
    )


def code_lines(source: str) -> int:
    """Lines that are neither empty nor comments."""
    return sum(bool(line.strip()) and not line.strip().startswith("#") for line in source.splitlines())


def run_on_top(search: Search, candidate: Candidate, verdict: Verdict) -> None:
    """It beat the best that it was made for, but another was kept meanwhile: it has to beat that one, too."""
    best, proposal = search.kept[-1].number, candidate.proposal
    source = on_new_best(search, proposal.source, candidate.base)
    description = f"{candidate.number:04d} on top of {best:04d}: {ON_TOP.sub('', proposal.description)}"
    if not source:
        search.note = f"{description}: its gain was {verdict.gain:+.6f}, but its edit does not fit. Write it anew."
    elif description not in [waiting.proposal.description for waiting in search.waiting]:  # a kill came just after this
        again = dataclasses.replace(proposal, description=description, source=source, usage=Usage())
        waiting = Waiting(again, search.kept[-1].commit, new_proposal_folder(search))
        store_proposal(waiting.folder, again, waiting.base)
        search.waiting.appendleft(waiting)
    then = "runs again on top of it" if source else "does not fit on top of it"
    reason = f"{verdict.reason}; but {best:04d} was kept meanwhile, and it {then}"
    record(search, candidate, dataclasses.replace(verdict, status="discard", reason=reason))


# -----------------------------------------------------------------------------
# Record


def record(search: Search, candidate: Candidate, verdict: Verdict) -> None:
    """Commit, ref, row, branch, train.py: in the order that the module's docstring gives."""
    row = row_of(search, candidate, verdict)
    ref = experiment_ref(search.tag, candidate.number)
    source = candidate.proposal.source
    message = result_message(search, candidate, verdict, row)
    commit = commit_file(search.repo, parent_of(search, candidate), "train.py", source, message, ref)
    row.commit = commit[:7]
    append_line(search.results, row.line())
    search.rows.append(row)
    if verdict.status == "keep":
        before = file_at(search.repo, search.head, "train.py")
        run_git(search.repo, "update-ref", f"refs/heads/{search.branch}", commit)
        follow_best(search, before)
    del search.candidates[candidate.number]
    search.tasks = deque(task for task in search.tasks if task.candidate is not candidate)
    if verdict.status in ("crash", "timeout", "invalid"):
        search.note = f"{row.description}\n{verdict.status}: {verdict.reason}\n{tail_of(search, candidate)}"
        if not search.kept:
            search.note = ""
            search.blocked = f"the baseline does not train; see {search.experiment_folder(candidate.number)}"
    search.say(result_line(row))


def row_of(search: Search, candidate: Candidate, verdict: Verdict) -> Row:
    """The row of a decided experiment, but for its commit."""
    events = run_events(search, candidate.number, "judge", candidate.repairs)
    runs = {run["seed"]: run["val_bpb"] for run in events if run["status"] == "ok"}
    proposal, usage = candidate.proposal, candidate.proposal.usage
    return Row(
        commit="",
        val_bpb=mean(runs) if verdict.status in ("keep", "discard") else 0.0,
        memory_gb=max([run["memory_gb"] for run in events], default=0.0),
        status=verdict.status,
        description=proposal.description + (" [suspiciously good]" if verdict.suspicious else ""),
        number=candidate.number,
        gain=verdict.gain,
        parent=candidate.base,
        seconds=events[-1]["seconds"] if events else 0.0,
        tokens=usage.tokens,
        cost=usage.cost,
        started=time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(candidate.started)),
        noise=knowledge(search).paired_noise.sigma,
        runs=runs_text(runs),
        reason=verdict.reason,
        category=proposal.category,
        expected=proposal.expected,
        repairs=candidate.repairs,
        hypothesis=proposal.hypothesis,
    )


def tail_of(search: Search, candidate: Candidate) -> str:
    events = run_events(search, candidate.number, "judge", candidate.repairs)
    return events[-1]["tail"] if events else ""


def result_message(search: Search, candidate: Candidate, verdict: Verdict, row: Row) -> str:
    """The commit message of a finished experiment: its number in the subject, what was measured and why below."""
    subject = f"{candidate.number:04d}: {one_line(candidate.proposal.description)}"
    if verdict.status not in ("keep", "discard"):
        return row_message(f"{subject} ({verdict.status})", verdict.reason, row)
    gain = f", {gain_text(verdict.gain, row.noise)}" if math.isfinite(verdict.gain) else ""
    values = run_events(search, candidate.number, "judge", candidate.repairs)[-1]["summary"]
    facts = ", ".join(f"{name} {value:g}" for name, value in values.items() if name != "val_bpb")
    before = f"; best before {search.best:.6f}" if search.kept else ""
    note = f"{verdict.status}: {verdict.reason}{before}\n{facts}"
    return row_message(f"{subject} (val_bpb {row.val_bpb:.6f}{gain})", note, row)


# -----------------------------------------------------------------------------
# The loop


def loop(search: Search) -> str:
    """Propose, run, judge, record, until there is a reason to stop, which is returned."""
    decide_what_was_left(search)
    while True:
        reload_program(search)
        reason = reason_to_stop(search)
        keep_proposing(search, reason)
        fill_slots(search)
        if not under_way(search) and (reason := reason_to_stop(search)):
            return reason
        draw_if_due(search)
        handle_event(search)


def decide_what_was_left(search: Search) -> None:
    """Experiments that a kill left without a verdict: in the order of their last runs, as they would have been."""
    order = {event["number"]: index for index, event in enumerate(search.journal) if event["event"] == "run"}
    for candidate in sorted(search.candidates.values(), key=lambda each: order.get(each.number, math.inf)):
        decide(search, candidate)


def under_way(search: Search) -> bool:
    """Whether something runs, is being written, or could go on."""
    more = (search.crashed or search.waiting) and time_for_more(search)
    return busy(search) or bool((search.tasks or more) and may_go_on(search))


def busy(search: Search) -> bool:
    return search.asking is not None or any(slot.task for slot in search.slots)


def reload_program(search: Search) -> None:
    """Read program.md again if it was written. A change is said; a broken file keeps the last good settings."""
    path = ROOT / "program.md"
    stamp = path.stat().st_mtime_ns if path.exists() else 0
    if stamp == search.program_stamp:
        return
    search.program_stamp = stamp
    try:
        settings, instructions = parse_program(path.read_text())
    except (ValueError, OSError) as error:
        search.say(f"program.md is not valid ({error}); going on with the last good one")
        return
    if instructions != search.instructions:
        search.say("program.md: new instructions")
    before, after = flat(search.settings), flat(settings)
    for name in before:
        if before[name] != after[name]:
            search.say(f"program.md: {name} {before[name]} -> {after[name]}")
    search.settings, search.instructions = settings, instructions


def handle_event(search: Search) -> None:
    """Wait a moment for a run or a proposal to come back, and do what follows from it."""
    give_up_waiting(search)
    if search.lock:
        os.utime(search.lock.fileno())
    try:
        event = search.events.get(timeout=POLL)
    except queue.Empty:
        return
    event()


def run_seconds(search: Search) -> float:
    """Wall-clock seconds that a run is expected to take: the longest of the last five that ended by themselves."""
    ended = [row.seconds for row in search.rows[-50:] if row.status in ("keep", "discard")]
    return 1.05 * max(ended[-5:]) if ended else 1.2 * search.time_budget + 10


def reason_to_stop(search: Search) -> str:
    """Why no further experiment may be proposed, or ""."""
    if search.stop.is_set():
        return "stopped on request"
    if search.blocked:
        return search.blocked
    if search.kept and experiments_left(search) <= 0:
        return f"{done_experiments(search)} experiments are done"
    if not time_for_more(search):
        return "no time is left for another run"
    if search.kept and over_budget(search):
        return f"the next proposal could pass max_cost ${search.settings.max_cost:.2f}: ${search.spent:.2f} are spent"
    if search.failures >= 8 and math.isinf(search.deadline):  # with --hours it goes on trying, ever more slowly
        return f"{search.failures} proposals in a row failed"
    return ""


def done_experiments(search: Search) -> int:
    """Rows of the search, its baseline not counted."""
    first = next((row.number for row in search.rows if row.status == "keep"), math.inf)
    return sum(row.number > first for row in search.rows)


def experiments_left(search: Search) -> float:
    """How many may still be begun or proposed under --experiments."""
    begun = done_experiments(search) + len(search.candidates) + len(search.waiting)
    return math.inf if search.experiments is None else search.experiments - begun


def over_budget(search: Search) -> bool:
    """Whether another proposal, as dear as the dearest of the last five, would pass max_cost."""
    next_cost = max([row.cost for row in search.rows[-5:]], default=0.0)
    return search.settings.max_cost is not None and search.spent + next_cost > search.settings.max_cost


def confirming_seconds(search: Search) -> float:
    """What it takes to run the best on the fresh seeds that are missing, on all slots."""
    missing = search.settings.keep.confirm_runs - len(confirming(search)) if search.kept else 0
    return math.ceil(max(missing, 0) / len(search.slots)) * run_seconds(search)


def confirm_best(search: Search) -> None:
    """Run the best on fresh seeds, none of which it was chosen for, as far as time allows."""
    if not search.kept or search.stop.is_set() or search.blocked:
        return
    best, done = search.kept[-1], confirming(search)
    candidate = Candidate(best.number, Proposal("confirming the best", search.source_of(best.number)), best.commit)
    missing = max(0, search.settings.keep.confirm_runs - len(done))
    search.tasks = deque(Task(candidate, seed, "confirm") for seed in fresh_seeds(runs_of(best) | done, missing))
    while busy(search) or (search.tasks and may_go_on(search)):
        fill_slots(search, confirming=True)
        handle_event(search)


def draw_if_due(search: Search) -> None:
    """progress.png anew, beside everything else, when there are new rows; but not again and again."""
    if len(search.rows) == search.drawn or time.time() < search.draw_after:
        return
    if search.drawing and search.drawing.is_alive():
        return
    search.drawn, search.draw_after = len(search.rows), time.time() + DRAW_EVERY
    search.drawing = threading.Thread(
        target=draw_progress, args=(list(search.rows), ROOT / "progress.png"), daemon=True
    )
    search.drawing.start()


# -----------------------------------------------------------------------------
# Command line


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hours", type=float, help="stop in time: no run starts that cannot finish within this")
    parser.add_argument("--experiments", type=int, help="stop when the tag has this many, earlier sessions included")
    parser.add_argument(
        "--tag", help="name of the search and of its branch autoresearch/TAG (default: today, like nov22)"
    )
    parser.add_argument("--proposer", choices=PROPOSERS, help="who proposes the edits (default: anthropic)")
    parser.add_argument("--command", default="", help="with --proposer command: the shell command that edits train.py")
    parser.add_argument("--gpus", help="one slot per GPU: all, or a list like 0,1,3 (default: one slot)")
    parser.add_argument("--slots", type=int, help="at the cpu scale: so many experiments at once (default: 1)")
    parser.add_argument("--ray", metavar="ADDRESS", help="one slot per GPU of a Ray cluster: auto, or HOST:6379")
    parser.add_argument("--demo", action="store_true", help="5 experiments at the cpu scale: no GPU, key or download")
    args = parser.parse_args()
    os.environ["AUTORESEARCH_RECORD"] = audit.RECORD  # before prepare_data is imported, like the next
    if args.demo:
        os.environ["AUTORESEARCH_SCALE"] = "cpu"
        args.experiments = args.experiments or 5
    args.tag = args.tag or ("demo" if args.demo else time.strftime("%b%d").lower())
    args.proposer = args.proposer or ("mutate" if args.demo else "command" if args.command else "anthropic")
    return args


def check_arguments(args: argparse.Namespace) -> None:
    if args.hours is None and args.experiments is None:
        fail("how long? give --hours H or --experiments N (or --demo to try it)")
    if args.hours is not None and not args.hours > 0:
        fail(f"--hours {args.hours} is not more than 0")
    if args.experiments is not None and args.experiments < 1:
        fail(f"--experiments {args.experiments} is not 1 or more")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", args.tag):
        fail(f"--tag {args.tag} should be letters, digits, - and _")
    if args.proposer == "command" and not args.command:
        fail("--proposer command needs --command '...'")
    if sum(option is not None for option in (args.gpus, args.slots, args.ray)) > 1:
        fail("--gpus, --slots and --ray exclude each other: give one of them")
    if args.slots is not None and args.slots < 1:
        fail(f"--slots {args.slots} is not 1 or more")


def check_start(args: argparse.Namespace, repo: git.Git) -> tuple[Settings, str]:
    """Everything that a search needs, checked before anything is touched; each missing thing is one line.

    Returns program.md's settings and instructions.
    """
    import prepare_data

    for name in ("train.py", "prepare_data.py", "program.md"):
        if not (ROOT / name).exists():
            fail(f"{ROOT / name} is missing; restore it with: git restore {name}")
    current = current_branch(repo)
    must_be_clean = ["prepare_data.py"]
    if current != f"autoresearch/{args.tag}":  # there, enter_branch looks closer
        must_be_clean += ["train.py"] if current.startswith("autoresearch/") else ["train.py", "results.tsv"]
    for name in must_be_clean:
        if changed(repo, name):
            fail(f"{name} has uncommitted changes; commit them first: git add {name} && git commit")
    try:
        settings, instructions = parse_program((ROOT / "program.md").read_text())
    except ValueError as error:
        fail(f"program.md: {error}")
    if prepare_data.SCALE == "h100" and prepare_data.default_device() != "cuda" and not args.ray:
        fail("scale h100 needs an NVIDIA GPU and there is none; use AUTORESEARCH_SCALE=cpu")
    if args.demo and not (prepare_data.DATA_DIR / "meta.json").exists():
        print("preparing data from this Python's own standard library, once")
        subprocess.run([sys.executable, ROOT / "prepare_data.py"], check=True)
    prepare_data.read_meta()
    if args.proposer == "anthropic":
        if not (os.environ.get("ANTHROPIC_API_KEY") or os.environ.get("ANTHROPIC_AUTH_TOKEN")):
            fail(
                "ANTHROPIC_API_KEY is not set; set it, or use --proposer mutate, or --proposer command --command '...'"
            )
        if problem := check_key(settings.model):
            fail(problem)
    return settings, instructions


@contextmanager
def lock(folder: Path, say: Callable[[str], None]):
    """One loop per working tree: an open file that is locked until this process is gone, however it goes.

    It names process and machine. Where the file system does not pass locks on to other machines, a loop on one of them
    is known by the time of the file, which it keeps fresh.
    """
    folder.mkdir(exist_ok=True)
    with open(folder / "lock", "a+") as file:
        file.seek(0)
        holder = file.read().strip()
        fresh = time.time() - (folder / "lock").stat().st_mtime < LOCK_STALE
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            taken = holder and not holder.endswith(f" on {socket.gethostname()}") and fresh
        except BlockingIOError:
            taken = True
        if taken:
            fail(f"another loop runs in this folder (process {holder}); wait for it, or clone to another folder")
        if holder:
            say(f"the last loop in this folder (process {holder}) ended without a word; its lock is taken over")
        file.truncate(0)
        file.write(f"{os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield file
        file.truncate(0)


def make_slots(args: argparse.Namespace, scale: str) -> list[Slot]:
    """One slot, one per GPU, or as many as were asked for; the CPU's threads are divided between them."""
    if args.ray:
        import cluster

        return [Slot(f"ray {number}") for number in range(cluster.connect(args.ray, scale))]
    names = visible_gpus(args.gpus) if args.gpus else [str(number) for number in range(args.slots or 1)]
    if args.gpus and scale == "cpu":
        fail("--gpus is for the h100 scale; at the cpu scale give --slots N")
    if args.slots and scale != "cpu":
        fail("--slots is for the cpu scale; on GPUs give --gpus all, or a list like --gpus 0,1")
    threads = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // len(names)))} if len(names) > 1 else {}
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


def make_search(args: argparse.Namespace, repo: git.Git, started: float) -> Search:
    """Check everything, then put the search together; nothing is touched yet."""
    settings, instructions = check_start(args, repo)
    import prepare_data

    return Search(
        repo=repo,
        tag=args.tag,
        scale=prepare_data.SCALE,
        seed=prepare_data.SEED,
        time_budget=prepare_data.TIME_BUDGET,
        proposer=args.proposer,
        command=args.command,
        experiments=args.experiments,
        deadline=started + args.hours * 3600 if args.hours else math.inf,
        console=Console(),
        slots=make_slots(args, prepare_data.SCALE),
        train=train_on_cluster if args.ray else train_here,
        settings=settings,
        instructions=instructions,
    )


def announce(search: Search) -> None:
    """What this session is, and what is there already."""
    ends = [f"{search.experiments} experiments"] if search.experiments else []
    ends += [time.strftime("%a %H:%M", time.localtime(search.deadline))] if math.isfinite(search.deadline) else []
    slots = f" | {len(search.slots)} slots" if len(search.slots) > 1 else ""
    until = " and ".join(ends)
    search.say(f"{search.branch} | scale {search.scale}{slots} | proposer {search.proposer} | until {until}")
    for row in search.rows:
        search.console.print(result_line(row), markup=False, highlight=False, soft_wrap=True)
    for line in sandbox.describe(search.settings.sandbox, search.scale, search.settings.memory_gb, len(search.slots)):
        search.say(line)


def session(search: Search) -> None:
    """One session of a search, from coming back to the summary."""
    enter_branch(search)
    load_measure(search)
    for number in STOP_SIGNALS:
        signal.signal(number, lambda *_: search.stop.set())
    announce(search)
    try:
        with Live(get_renderable=lambda: live_view(search), console=search.console, transient=True):
            reason = loop(search)
            confirm_best(search)
    finally:  # also when something unforeseen ends it: no training is left behind
        search.stop.set()
        for slot in search.slots:
            if slot.thread:
                slot.thread.join(8 * GRACE)
    if search.drawing:
        search.drawing.join()
    draw_progress(search.rows, ROOT / "progress.png")
    commit_results(search.repo, search.branch, results_message(search))
    search.say(summary(search, reason, knowledge(search).noise, confirming(search)))


def results_message(search: Search) -> str:
    numbers = f": val_bpb {search.kept[0].val_bpb:.6f} -> {search.best:.6f}" if search.kept else ""
    return f"Results of {search.branch}: {done_experiments(search)} experiments{numbers}"


def main() -> None:
    started = time.time()
    args = parse_arguments()
    check_arguments(args)
    repo = open_repository(ROOT)
    with lock(ROOT / "runs", print) as file:
        clear_stale_locks(repo, print)
        search = make_search(args, repo, started)
        search.lock = file
        try:
            session(search)
        except (OSError, git.GitCommandError) as error:  # a full disk, a lost permission: nothing was recorded wrongly
            reason = getattr(error, "stderr", "") or str(error)
            fail(f"{one_line(reason)}; mend that, and the same command goes on")
    if search.blocked:
        sys.exit(1)


if __name__ == "__main__":
    main()
