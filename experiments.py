"""
One experiment at a time of its life: begun from a proposal, run, judged, recorded. The loop itself is agent_loop.py.
"""

import dataclasses
import functools
import json
import math
import os
import re
import shutil
import time
from collections import deque
from pathlib import Path

import audit
import sandbox
from judge import Verdict, judge, mean, plausible, reconsider, without_seed
from ledger import Row, append_line, one_line, replace_file, row_message, runs_of, runs_text
from proposers import Proposal, Usage, edit_problem
from report import gain_text, result_line
from repository import commit_file, commit_of, experiment_ref, file_at, merge_texts, run_git, same_file
from run_experiment import ROOT, RunResult, fail, run_experiment
from search import (
    ON_TOP,
    SECOND_LOOK,
    Candidate,
    Search,
    Slot,
    Task,
    Waiting,
    experiments_left,
    follow_best,
    good_runs,
    judged,
    knowledge,
    may_go_on,
    new_proposal_folder,
    over_budget,
    run_events,
    store_proposal,
)

FREE_BYTES = int(1.25 * sandbox.FREE_GB * sandbox.GB)  # of disk before anything is begun; a run ends at FREE_GB

# -----------------------------------------------------------------------------
# From the queue to an experiment


def next_candidate(search: Search) -> Candidate | None:
    """The next experiment: the baseline first; a second look, if there is reason for one; the oldest proposal."""
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
    candidate = Candidate(search.next_number, proposal, search.kept[-1].number if search.kept else -1)
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
    if not search.kept or candidate.base == search.kept[-1].number:
        return search.head
    return commit_of(search.repo, experiment_ref(search.tag, candidate.base))


def base_changed_by_hand(search: Search) -> bool:
    """Whether a commit of the user's gave the branch another train.py than the best; the search is then blocked."""
    number = search.kept[-1].number
    if not same_file(search.repo, f"refs/heads/{search.branch}", experiment_ref(search.tag, number), "train.py"):
        search.blocked = (
            f"train.py of {search.branch} is not that of its best, experiment {number}: a commit by hand changed it; "
            f"undo that with git revert, or begin another --tag from it"
        )
    return bool(search.blocked)


def on_new_best(search: Search, source: str, base: int) -> str | None:
    """`source` with its edit on top of the present best; None if it does not fit there or changes nothing any more."""
    best = search.kept[-1].number
    if base == best:
        return source
    best_source = search.source_of(best)
    merged = merge_texts(search.repo, best_source, search.source_of(base), source)
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


def may_run(search: Search) -> bool:
    """Whether a run may start now: it may go on, evaluator and data are what they were, there is a place to write."""
    return may_go_on(search) and measure_intact(search) and not cannot_write(search)


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
    while cannot_write(search) and not search.stop.is_set() and time.time() < search.deadline:
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
    runs = runs_so_far(search, candidate)
    failed = any(run["status"] != "ok" for run in runs)
    if not runs and (reason := forbidden(search, candidate.proposal.source)):
        record(search, candidate, Verdict("invalid", reason))
    elif failed and may_repair(search, candidate, runs[-1]):
        search.crashed.append(candidate)
    elif failed:
        record(search, candidate, verdict_of_failed(search, candidate))
    elif (verdict := verdict_of(search, candidate)).status == "again":
        run_again(search, candidate, verdict)
    elif verdict.status == "keep" and search.kept and base_changed_by_hand(search):
        return  # it waits, until a person has said which train.py shall go on
    elif verdict.status == "keep" and search.kept and candidate.base != search.kept[-1].number:
        run_on_top(search, candidate, verdict)
    else:
        record(search, candidate, verdict)


def runs_so_far(search: Search, candidate: Candidate) -> list[dict]:
    """The ended runs of the present attempt at an experiment, oldest first."""
    return run_events(search, candidate.number, "judge", candidate.repairs)


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
    (*_, run) = [run for run in runs_so_far(search, candidate) if run["error"]]
    return Verdict(run["status"], run["error"])


def verdict_of(search: Search, candidate: Candidate) -> Verdict:
    """judge() with what this search knows, against the best that the edit was made for."""
    events = runs_so_far(search, candidate)
    if not events:
        return Verdict("again", "its first run", next_seed=search.seed)
    known, rule = knowledge(search), search.settings.keep
    runs = without_seed({run["seed"]: run["val_bpb"] for run in events}, known.offsets)
    if not search.kept:
        return judge(runs, None, known.paired_noise, rule)
    base = search.source_of(candidate.base)
    return judge(
        runs,
        known.beliefs[search.row(candidate.base).commit],
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
        waiting = Waiting(again, best, new_proposal_folder(search))
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
    events = runs_so_far(search, candidate)
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
        parent=search.row(candidate.base).commit if search.kept else search.head[:7],
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
    events = runs_so_far(search, candidate)
    return events[-1]["tail"] if events else ""


def result_message(search: Search, candidate: Candidate, verdict: Verdict, row: Row) -> str:
    """The commit message of a finished experiment: its number in the subject, what was measured and why below."""
    subject = f"{candidate.number:04d}: {one_line(candidate.proposal.description)}"
    if verdict.status not in ("keep", "discard"):
        return row_message(f"{subject} ({verdict.status})", verdict.reason, row)
    gain = f", {gain_text(verdict.gain, row.noise)}" if math.isfinite(verdict.gain) else ""
    values = runs_so_far(search, candidate)[-1]["summary"]
    facts = ", ".join(f"{name} {value:g}" for name, value in values.items() if name != "val_bpb")
    before = f"; best before {search.best:.6f}" if search.kept else ""
    note = f"{verdict.status}: {verdict.reason}{before}\n{facts}"
    return row_message(f"{subject} (val_bpb {row.val_bpb:.6f}{gain})", note, row)
