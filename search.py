"""
One search: its state in memory, how it comes back from disk whatever ended it, and what all its runs say together.
"""

import dataclasses
import json
import math
import queue
import re
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import git
from rich.console import Console

from judge import (
    Belief,
    Noise,
    Runs,
    after_best_run,
    after_candidate,
    paired,
    pooled_noise,
    seed_offsets,
    seed_share,
    start,
    without_seed,
)
from ledger import (
    Row,
    append_event,
    one_line,
    read_journal,
    read_rows,
    replace_file,
    row_of_message,
    runs_of,
    write_rows,
)
from proposers import Context, Proposal, Usage
from repository import (
    changed,
    commit_file,
    commit_of,
    current_branch,
    experiment_ref,
    experiment_refs,
    file_at,
    run_git,
)
from run_experiment import ROOT, RunResult, fail
from settings import Settings

# What val_bpb differs by from run to run, until this search has measured it: the published figure for the h100 scale
# (seven degrees of freedom), benchmarks/cpu_noise.txt for the cpu scale.
USUAL_NOISE = {"h100": Noise(0.00032, 2), "cpu": Noise(0.0085, 2)}
USUAL_SHARE = {"h100": 0.3, "cpu": 0.5}  # of its variance that the seed explains, likewise

# -----------------------------------------------------------------------------
# The search and its state


@dataclass
class Candidate:
    """An experiment that has its number and its commit, and no verdict yet."""

    number: int
    proposal: Proposal
    base: int  # the number of the best that its edit was made for; -1 for the baseline
    repairs: int = 0
    started: float = field(default_factory=time.time)

    @property
    def title(self) -> str:
        return f"{self.number:4d}  {one_line(self.proposal.description)[:60]}"


@dataclass
class Task:
    """One run that is to be made: to `judge` an experiment, or to `confirm` the best."""

    candidate: Candidate
    seed: int
    purpose: str = "judge"


@dataclass
class Slot:
    """A place for one run at a time."""

    name: str = ""
    environment: dict[str, str] = field(default_factory=dict)
    task: Task | None = None
    thread: threading.Thread | None = None
    line: str = ""  # the progress of its run


@dataclass
class Waiting:
    """A proposal that has no slot yet."""

    proposal: Proposal
    base: int  # the number of the best that it was made for
    folder: Path


@dataclass
class Search:
    """One tag's search: what is on disk, and what this session was asked for."""

    repo: git.Git
    tag: str
    scale: str
    seed: int
    time_budget: int
    proposer: str
    command: str
    experiments: int | None
    max_cost: float | None  # in place of program.md's
    deadline: float  # time.time() at which everything has to be over
    console: Console
    slots: list[Slot]
    train: Callable[..., RunResult]  # (search, slot, what run_experiment takes) -> RunResult
    stop: threading.Event = field(default_factory=threading.Event)
    events: queue.Queue = field(default_factory=queue.Queue)  # functions to call: what a thread has come back with
    settings: Settings = field(default_factory=Settings)
    instructions: str = ""
    program_stamp: float = 0.0  # when program.md was last written
    measure: dict = field(default_factory=dict)  # load_measure()
    rows: list[Row] = field(default_factory=list)
    journal: list[dict] = field(default_factory=list)
    runs: dict[int, list[dict]] = field(default_factory=dict)  # the journal's runs, by experiment
    sources: dict[int, str] = field(default_factory=dict)  # the train.py of kept experiments
    known: tuple = ()  # knowledge(), and what it was made from
    next_number: int = 0
    waiting: deque[Waiting] = field(default_factory=deque)
    candidates: dict[int, Candidate] = field(default_factory=dict)  # without a verdict, by number
    tasks: deque[Task] = field(default_factory=deque)  # runs that wait for a slot
    crashed: deque[Candidate] = field(default_factory=deque)  # to be repaired by the proposer
    asking: Context | None = None  # the proposer is at work on this
    asked: float = 0.0  # time.time() at which it was last asked
    proposal_seconds: float = 0.0  # that its last answer took
    ask_after: float = 0.0  # time.time() before which it is left alone
    note: str = ""  # for the next proposal: how the last one failed
    failures: int = 0  # proposals failed in a row
    refusals: int = 0  # of these, declined by the model, in a row
    blocked: str = ""  # what only a person can mend
    complaint: str = ""  # why nothing can be written at present
    lock: object = None  # the open file that tells other loops of this one
    drawn: int = 0  # rows on progress.png
    drawing: threading.Thread | None = None
    draw_after: float = 0.0  # time.time() before which it is not drawn again

    @property
    def branch(self) -> str:
        return f"autoresearch/{self.tag}"

    @property
    def results(self) -> Path:
        return ROOT / "results.tsv"

    @property
    def folder(self) -> Path:
        return ROOT / "runs" / self.tag

    def experiment_folder(self, number: int) -> Path:
        return self.folder / f"{number:04d}"

    @property
    def head(self) -> str:
        """The commit of the branch, wherever the user's HEAD is."""
        return commit_of(self.repo, f"refs/heads/{self.branch}")

    @property
    def kept(self) -> list[Row]:
        return [row for row in self.rows if row.status == "keep"]

    def row(self, number: int) -> Row:
        """The row of an experiment that has one."""
        return next(row for row in reversed(self.rows) if row.number == number)

    @property
    def best(self) -> float:
        """The best seen: chosen for its number, so a little too good."""
        return self.kept[-1].val_bpb if self.kept else math.inf

    @property
    def spent(self) -> float:
        """US dollars so far: on what was proposed, and on proposals that failed."""
        pending = [waiting.proposal for waiting in self.waiting] + [each.proposal for each in self.candidates.values()]
        failed = sum(event["cost"] for event in self.journal if event["event"] == "failed")
        return sum(row.cost for row in self.rows) + sum(proposal.usage.cost for proposal in pending) + failed

    @property
    def tokens(self) -> int:
        """Tokens that the experiments' proposals took, and those that failed."""
        failed = sum(event["tokens"] for event in self.journal if event["event"] == "failed")
        return sum(row.tokens for row in self.rows) + failed

    @property
    def kill_after(self) -> float:
        return self.settings.kill_after or max(2 * self.time_budget, self.time_budget + 180)

    def source_of(self, number: int) -> str:
        """The train.py of an experiment; those of kept ones, which never change, are remembered."""
        source = self.sources.get(number) or file_at(self.repo, experiment_ref(self.tag, number), "train.py")
        if self.rows and any(row.number == number for row in self.kept):
            self.sources[number] = source
        return source

    def note_event(self, event: str, **values) -> None:
        """Add to the journal."""
        self.remember([append_event(self.folder / "journal.jsonl", event, **values)])

    def remember(self, events: list[dict]) -> None:
        self.journal += events
        for event in events:
            if event["event"] == "run":
                self.runs.setdefault(event["number"], []).append(event)

    def say(self, text: str) -> None:
        """Show a line and add it to the log."""
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)
        self.log(text)

    def log(self, text: str) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        with open(self.folder / "loop.log", "a") as file:
            file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")


# -----------------------------------------------------------------------------
# Coming back: branch, train.py, ledger and queue as the last session left them


def enter_branch(search: Search) -> None:
    """Check out autoresearch/<tag>, new from HEAD or as it was left, and bring everything on disk together."""
    repo, branch = search.repo, search.branch
    rescue_results(search)
    fresh = not search.head
    try:
        run_git(repo, "switch", *(["-c", branch] if fresh else [branch]))
    except git.GitCommandError as error:
        fail(f"git cannot switch to {branch}: {' '.join(error.stderr.split())}")
    search.folder.mkdir(parents=True, exist_ok=True)
    search.remember(read_journal(search.folder / "journal.jsonl"))
    restore_rows(search, fresh)
    if search.kept:
        ref = experiment_ref(search.tag, search.kept[-1].number)
        if commit_of(repo, f"{ref}^") == search.head:  # killed between row and branch
            run_git(repo, "update-ref", f"refs/heads/{branch}", ref)
    restore_train(search)
    restore_queue(search)


def rescue_results(search: Search) -> None:
    """Commit rows that a killed loop left uncommitted on the branch of another tag, before leaving that branch."""
    branch = current_branch(search.repo)
    if branch.startswith("autoresearch/") and branch != search.branch:
        commit_results(search.repo, branch, f"Results of {branch}")


def restore_rows(search: Search, fresh: bool) -> None:
    """The rows of results.tsv, and from their commits those that are missing or damaged there."""
    rows, broken = ([], []) if fresh else read_rows(search.results)
    present, refs = {row.number for row in rows}, experiment_refs(search.repo, search.tag)
    messages = {number: message_of(search, number) for number in refs if number not in present}
    lost = [row for number, text in messages.items() if (row := row_of_message(*text))]
    if lost:
        search.say(f"results.tsv: {len(lost)} rows were missing and are back from their commits")
        when = {number: index for index, number in enumerate(experiment_refs(search.repo, search.tag, "committerdate"))}
        rows = sorted([*rows, *lost], key=lambda row: when.get(row.number, row.number))
    if broken:
        search.say(f"results.tsv: {len(broken)} lines were no rows and are gone: {one_line(broken[0])[:80]}")
    if fresh or lost or broken or not search.results.exists():
        write_rows(search.results, rows)
    search.rows = rows
    search.next_number = max([row.number for row in rows] + refs, default=-1) + 1


def message_of(search: Search, number: int) -> tuple[str, str]:
    """(commit, message) of an experiment."""
    text = run_git(search.repo, "log", "-1", "--format=%H%n%B", experiment_ref(search.tag, number))
    commit, _, message = text.partition("\n")
    return commit, message


def restore_train(search: Search) -> None:
    """train.py is the branch's. A kill between the branch's move and the file's leaves the parent's text: caught up."""
    if not changed(search.repo, "train.py"):
        return
    on_disk = (ROOT / "train.py").read_text()
    if on_disk != file_at(search.repo, "HEAD^", "train.py"):
        fail(f"train.py differs from the best of {search.branch}; commit your edit or undo it: git restore train.py")
    follow_best(search, on_disk)


def restore_queue(search: Search) -> None:
    """Experiments without a row run on, proposals without a number wait on."""
    decided = {row.number for row in search.rows}
    for number in experiment_refs(search.repo, search.tag):
        if number not in decided:
            search.candidates[number] = restore_candidate(search, number)
    begun = search.experiment_folder(search.next_number) / "proposal.json"  # killed before it got its commit
    for path in [*([begun] if begun.exists() else []), *sorted((search.folder / "proposals").glob("*/proposal.json"))]:
        values = json.loads(path.read_text())
        waiting = Waiting(stored_proposal(values, (path.parent / "train.py").read_text()), values["base"], path.parent)
        search.waiting.append(waiting)


def restore_candidate(search: Search, number: int) -> Candidate:
    """An experiment from its commit and, where it is still there, its folder."""
    commit, message = message_of(search, number)
    path, source = search.experiment_folder(number) / "proposal.json", search.source_of(number)
    search.say(f"{number:4d}  was left without a verdict and goes on")
    if path.exists():
        values = json.loads(path.read_text())
        return Candidate(number, stored_proposal(values, source), values["base"], values["repairs"])
    subject = re.sub(r"^\d+: ", "", message.partition("\n")[0])
    parent = commit_of(search.repo, f"{commit}^")[:7]
    bases = [row.number for row in search.kept if row.commit == parent] or [row.number for row in search.kept]
    return Candidate(number, Proposal(subject, source), bases[-1] if bases else -1)


def stored_proposal(values: dict, source: str) -> Proposal:
    names = ("description", "hypothesis", "expected", "category")
    return Proposal(source=source, usage=Usage(**values["usage"]), **{name: values[name] for name in names})


def store_proposal(folder: Path, proposal: Proposal, base: int, repairs: int = 0) -> None:
    """proposal.json and train.py in a folder; the former last, as it makes the proposal count."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "train.py").write_text(proposal.source)
    values = dataclasses.asdict(proposal) | {"base": base, "repairs": repairs}
    del values["source"]
    replace_file(folder / "proposal.json", json.dumps(values, indent=1))


def new_proposal_folder(search: Search) -> Path:
    """The next free folder of runs/<tag>/proposals; what a kill left unfinished in it is overwritten."""
    folder = search.folder / "proposals"
    folder.mkdir(parents=True, exist_ok=True)
    last = max([int(path.name) for path in folder.iterdir() if path.name.isdecimal()], default=0)
    new = folder / f"{last + 1:04d}"
    new.mkdir()
    return new


def follow_best(search: Search, before: str) -> None:
    """train.py becomes the branch's, unless someone edited it meanwhile: a user's edit is never overwritten."""
    if current_branch(search.repo) != search.branch or (ROOT / "train.py").read_text() != before:
        search.say(
            f"train.py was changed by hand and is left alone; the best is: git show {search.branch}:train.py; "
            "to have your edit measured, undo it here (git stash) and begin a search from it with another --tag"
        )
        return
    run_git(search.repo, "checkout", "HEAD", "--", "train.py")


def commit_results(repo: git.Git, branch: str, message: str) -> None:
    """results.tsv as it is on disk, as a commit on top of `branch`."""
    head, text = commit_of(repo, f"refs/heads/{branch}"), (ROOT / "results.tsv").read_text()
    if file_at(repo, head, "results.tsv") == text:
        return
    commit_file(repo, head, "results.tsv", text, message, f"refs/heads/{branch}")
    if current_branch(repo) == branch:
        run_git(repo, "add", "results.tsv")


# -----------------------------------------------------------------------------
# What is known: from the ledger alone

SECOND_LOOK = re.compile(r"second look at (\d{4}): ")  # what the description of such an experiment begins with
ON_TOP = re.compile(r"(\d{4}) on top of \d{4}: ")


@dataclass(frozen=True)
class Knowledge:
    """What all runs so far say together."""

    noise: Noise  # of a run on any seed
    paired_noise: Noise  # of a run whose seed's offset is taken off: what a gain is measured against
    offsets: dict[int, float]  # what each seed is known to add
    beliefs: dict[str, Belief]  # of every best that there was, by its commit; {} before the baseline


def judged(search: Search) -> list[Row]:
    """The experiments that have a number, each change once: where it was judged last."""
    rows = [row for row in search.rows if row.status in ("keep", "discard") and row.runs]
    replaced = {int(match[1]) for row in rows if (match := SECOND_LOOK.match(row.description))}
    return [row for row in rows if row.number not in replaced]


def confirming(search: Search) -> Runs:
    """The best's runs on fresh seeds."""
    return good_runs(search, search.kept[-1].number, "confirm") if search.kept else {}


def knowledge(search: Search) -> Knowledge:
    """Made anew only when there is something new."""
    fresh = confirming(search)
    key = (len(search.rows), len(fresh))
    if not search.known or search.known[0] != key:
        rows = judged(search)
        best = search.kept[-1].number if search.kept else None
        sources = [runs_of(row) | (fresh if row.number == best else {}) for row in rows]
        noise, share = pooled_noise(sources, USUAL_NOISE[search.scale]), seed_share(sources, USUAL_SHARE[search.scale])
        left, offsets = paired(noise, sources, share), seed_offsets(sources, share)
        search.known = (key, Knowledge(noise, left, offsets, replay(rows, fresh, offsets, left)))
    return search.known[1]


def replay(rows: list[Row], fresh: Runs, offsets: dict[int, float], noise: Noise) -> dict[str, Belief]:
    """The belief in every best after all that was tried on it, in the order of decision. `fresh`: of the last best."""
    beliefs: dict[str, Belief] = {}
    for row in rows:
        runs = without_seed(runs_of(row), offsets)
        if not beliefs:
            beliefs[row.commit] = newest = start(runs, noise)
            continue
        before = dataclasses.replace(beliefs.get(row.parent, newest), usual=newest.usual)  # what is usual is shared
        newest = after_candidate(before, runs, row.status == "keep", noise)
        beliefs[row.commit if row.status == "keep" else row.parent] = newest
    for seed, val_bpb in without_seed(fresh, offsets).items() if beliefs else ():
        last = [row.commit for row in rows if row.status == "keep"][-1]
        beliefs[last] = after_best_run(beliefs[last], seed, val_bpb, noise)
    return beliefs


def run_events(search: Search, number: int, purpose: str, attempt: int = 0) -> list[dict]:
    """The runs of an experiment that ended, oldest first."""
    runs = search.runs.get(number, [])
    return [run for run in runs if run["purpose"] == purpose and run["attempt"] == attempt]


def good_runs(search: Search, number: int, purpose: str, attempt: int = 0) -> Runs:
    """val_bpb by seed, of those that ended well."""
    runs = run_events(search, number, purpose, attempt)
    return {run["seed"]: run["val_bpb"] for run in runs if run["status"] == "ok"}


# -----------------------------------------------------------------------------
# What is left: time, experiments, money


def may_go_on(search: Search) -> bool:
    """Whether nobody wants to stop, and a run would end in time."""
    return not (search.stop.is_set() or search.blocked or time.time() + run_seconds(search) > search.deadline)


def time_for_more(search: Search) -> bool:
    """Whether there is time for another experiment, and then for running the best on fresh seeds."""
    return time.time() + run_seconds(search) + confirming_seconds(search) <= search.deadline


def run_seconds(search: Search) -> float:
    """Wall-clock seconds that a run is expected to take: the longest of the last five that ended by themselves."""
    ended = [row.seconds for row in search.rows[-50:] if row.status in ("keep", "discard")]
    return 1.05 * max(ended[-5:]) if ended else 1.2 * search.time_budget + 10


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
