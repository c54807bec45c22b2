"""
What is in flight: proposals that wait for a slot, experiments without a verdict, runs that wait, slots that train.

A proposal in flight lies on disk too, in a folder of its own with proposal.json and train.py: so it outlives a kill.
"""

import dataclasses
import functools
import json
import shutil
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from autoresearch.files import replace_file
from autoresearch.loop.mergeable import on_best
from autoresearch.nouns import Proposal, RunResult, Usage
from autoresearch.propose.context import Context
from autoresearch.record.ledger import Ledger, note_failure, write_experiment
from autoresearch.record.log import Log
from autoresearch.record.repository import commit_of, experiment_refs, repair_ref
from autoresearch.row import subject_of
from autoresearch.run.scoring import Scorer, train_and_score
from autoresearch.run.training import RunOptions
from autoresearch.text import one_line

EXCHANGE = 100_000  # characters of the exchange of a failed proposal that the journal keeps

# -----------------------------------------------------------------------------
# State

# (source, folder, options, should_stop, on_progress) -> what came of one training
Train = Callable[[str, Path, RunOptions, Callable[[], bool], Callable[[str], None]], RunResult]


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
        return one_line(self.proposal.description)


@dataclass
class Task:
    """One run: to `judge`, `confirm` (or `beside` it), `prove` or `test` an experiment."""

    candidate: Candidate
    seed: int
    purpose: str = "judge"


def train_here() -> Train:
    """How a run is made on this machine, with a scorer that stays warm from one to the next."""
    return functools.partial(train_and_score, scorer=Scorer())


@dataclass
class Slot:
    """A place for one run at a time."""

    name: str = ""
    environment: dict[str, str] = field(default_factory=dict)
    train: Train = field(default_factory=train_here)  # here, or on a cluster
    task: Task | None = None
    thread: threading.Thread | None = None
    line: str = ""  # the progress of its run
    since: float = 0.0  # time.monotonic() at which it began


@dataclass
class Waiting:
    """A proposal that has no slot yet."""

    proposal: Proposal
    base: int  # the number of the best that it was made for
    folder: Path


@dataclass(eq=False)
class Ask:
    """A proposer at work, in a thread of its own."""

    context: Context
    since: float = field(default_factory=time.monotonic)
    begun: threading.Event = field(default_factory=threading.Event)  # its answer has begun: the API's cache is filled


@dataclass
class Asking:
    """The proposer: what it is at work on, and how its last answers went."""

    at_work: list[Ask] = field(default_factory=list)
    seconds: deque[float] = field(default_factory=lambda: deque(maxlen=5))  # that its last answers took
    not_before: float = 0.0  # time.monotonic() before which it is left alone
    notes: list[str] = field(default_factory=list)  # for the next proposal: what became of those before
    failures: int = 0  # in a row
    failing_since: float = 0.0  # time.monotonic() of the first of these
    refusals: int = 0  # of these, declined by the model, in a row
    nothing_left: str = ""  # why it has no edit left for the present best


@dataclass
class Queue:
    """All that is under way."""

    slots: list[Slot]
    waiting: deque[Waiting] = field(default_factory=deque)
    candidates: dict[int, Candidate] = field(default_factory=dict)  # by number
    tasks: deque[Task] = field(default_factory=deque)  # runs that wait for a slot
    crashed: deque[Candidate] = field(default_factory=deque)  # to be repaired by the proposer
    asking: Asking = field(default_factory=Asking)
    undecided: deque[Candidate] = field(default_factory=deque)  # their runs may give a verdict already
    at_hand: Candidate | Waiting | Proposal | None = None  # what the loop works on: a fault costs that, and no more

    @property
    def running(self) -> list[Task]:
        return [slot.task for slot in self.slots if slot.task]

    @property
    def busy(self) -> bool:
        """Whether something runs or is being written."""
        return bool(self.asking.at_work or self.running)

    @property
    def descriptions(self) -> list[str]:
        """Of what runs or waits to run."""
        running = [candidate.proposal.description for candidate in self.candidates.values()]
        return running + [waiting.proposal.description for waiting in self.waiting]

    @property
    def spent(self) -> float:
        """US dollars on proposals that have no row yet; a proposer's thread may ask, so both are copied first."""
        there: list[Waiting | Candidate] = [*self.waiting, *self.candidates.values()]
        return sum(each.proposal.usage.cost for each in there)

    def idle_slot(self) -> Slot | None:
        return next((slot for slot in self.slots if slot.task is None), None)


# -----------------------------------------------------------------------------
# On disk


def store_proposal(folder: Path, proposal: Proposal, base: int, repairs: int = 0) -> None:
    """proposal.json and train.py in a folder; the former last, as it makes the proposal count."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "train.py").write_text(proposal.source)
    values = dataclasses.asdict(proposal) | {"base": base, "repairs": repairs}
    del values["source"]
    replace_file(folder / "proposal.json", json.dumps(values, indent=1))


def stored_proposal(values: dict, source: str) -> Proposal:
    names = ("description", "hypothesis", "expected", "category")
    return Proposal(source=source, usage=Usage(**values["usage"]), **{name: values[name] for name in names})


def new_proposal_folder(ledger: Ledger) -> Path:
    """A folder of runs/<tag>/proposals for a proposal in flight; it becomes its experiment's, or goes.

    Its number is one that none had before in this session: who gave up late may still write into an older one.
    """
    folder = ledger.folder / "proposals"
    folder.mkdir(parents=True, exist_ok=True)
    there = [int(path.name) for path in folder.iterdir() if path.name.isdecimal()]
    number = max(ledger.next_number + len(ledger.failures) + len(there), max(there, default=0) + 1)
    new = folder / f"{number:04d}"
    new.mkdir()
    return new


def exchange_of(folder: Path) -> str:
    """What was said while a proposal was made, for the journal: the model's answers, or what the command printed."""
    answers, printed = folder / "exchange.json", folder / "proposal.log"
    if answers.is_file():
        messages = json.loads(answers.read_text())["messages"]
        return json.dumps(messages[1:])[-EXCHANGE:]  # the first is the prompt, which the journal tells anyway
    return printed.read_text(errors="replace")[-EXCHANGE:] if printed.is_file() else ""


def note_dropped(ledger: Ledger, folder: Path, reason: str, usage: Usage, **others: Any) -> None:
    """A proposal came to nothing: the journal says why and how, and its folder goes."""
    note_failure(ledger, reason, usage, exchange=exchange_of(folder), **others)
    shutil.rmtree(folder, ignore_errors=True)


def restore_queue(ledger: Ledger, queue: Queue, log: Log) -> None:
    """Experiments without a row run on, proposals without a number wait on."""
    decided = {row.number for row in ledger.rows}
    for number in experiment_refs(ledger.repo, ledger.tag):
        if number not in decided:
            queue.candidates[number] = restore_candidate(ledger, number)
            log.say(f"{number:4d}  was left without a verdict and goes on")
    order = {run.number: index for index, run in enumerate(ledger.runs)}  # as they would have been decided
    queue.undecided.extend(sorted(queue.candidates.values(), key=lambda each: order.get(each.number, len(order))))
    begun = sorted(ledger.folder.glob("[0-9]*/proposal.json"))  # killed before it got its commit
    left = [path for path in begun if int(path.parent.name) not in ledger.taken]
    for folder in (ledger.folder / "proposals").glob("*"):
        if not (folder / "proposal.json").exists():  # a kill came while it was being made
            shutil.rmtree(folder, ignore_errors=True)
    for path in [*left, *sorted((ledger.folder / "proposals").glob("*/proposal.json"))]:
        values = json.loads(path.read_text())
        proposal = stored_proposal(values, (path.parent / "train.py").read_text())
        if values["base"] >= 0:  # the baseline begins by itself
            queue.waiting.append(Waiting(proposal, values["base"], path.parent))


def restore_candidate(ledger: Ledger, number: int) -> Candidate:
    """An experiment from its commit and, where it is still there, its folder: a repair may have no commit yet."""
    path, source = ledger.experiment_folder(number) / "proposal.json", ledger.source_of(number)
    commit, message = ledger.message_of(number)
    if path.exists():
        values = json.loads(path.read_text())
        crashed = commit_of(ledger.repo, repair_ref(ledger.tag, number, values["repairs"] - 1))
        if commit == crashed:
            source = (path.parent / "train.py").read_text()
        candidate = Candidate(number, stored_proposal(values, source), values["base"], values["repairs"])
        if commit == crashed:
            commit_candidate(ledger, candidate)
        return candidate
    parent = commit_of(ledger.repo, f"{commit}^")[:7]
    bases = [row.number for row in ledger.kept if row.commit == parent] or [row.number for row in ledger.kept]
    return Candidate(number, Proposal(subject_of(message), source), bases[-1] if bases else -1)


# -----------------------------------------------------------------------------
# From a proposal to an experiment


def add_proposal(queue: Queue, proposal: Proposal, base: int, folder: Path, first: bool = False) -> None:
    """Let a proposal wait for a slot; `first`: before all others."""
    store_proposal(folder, proposal, base)
    waiting = Waiting(proposal, base, folder)
    queue.waiting.appendleft(waiting) if first else queue.waiting.append(waiting)


def begin(ledger: Ledger, queue: Queue, proposal: Proposal, folder: Path | None = None) -> Candidate:
    """Give a proposal its number, its commit and its ref: from here on it is an experiment."""
    numbered = folder and folder.parent == ledger.folder  # in an earlier session, that was killed then
    number = int(folder.name) if folder and numbered else ledger.next_number
    candidate = Candidate(number, proposal, ledger.best.number if ledger.kept else -1)
    ledger.taken.add(number)
    queue.candidates[number] = queue.at_hand = candidate
    home = ledger.experiment_folder(candidate.number)
    if folder and folder != home:
        folder.rename(home)
    commit_candidate(ledger, candidate)
    return candidate


def commit_candidate(ledger: Ledger, candidate: Candidate) -> None:
    """The folder and the commit of an experiment, as its proposal stands now."""
    proposal = candidate.proposal
    store_proposal(ledger.experiment_folder(candidate.number), proposal, candidate.base, candidate.repairs)
    write_experiment(ledger, candidate.number, candidate.base, one_line(proposal.description), proposal.source)


def next_waiting(ledger: Ledger, queue: Queue, log: Log) -> Candidate | None:
    """The oldest proposal that fits the present best, as an experiment."""
    while queue.waiting:
        queue.at_hand = waiting = queue.waiting.popleft()
        if source := on_best(ledger, waiting.proposal.source, waiting.base):
            if waiting.base != ledger.best.number:
                queue.asking.notes.append(moved_note(waiting, ledger.best.number))
            proposal = dataclasses.replace(waiting.proposal, source=source)
            return begin(ledger, queue, proposal, waiting.folder)
        set_aside(ledger, queue, waiting, "it was written for an older best, and does not fit the new one", log)
        queue.asking.notes[-1] += " Propose it again for the new best if it is still worth it."
    return None


def moved_note(waiting: Waiting, best: int) -> str:
    """What is said of an edit that runs on another best than it was written for."""
    title, base = one_line(waiting.proposal.description), waiting.base
    return f"Written for best {base}, but {best} was kept meanwhile, so it runs on top of {best}: {title}"


def set_aside(ledger: Ledger, queue: Queue, waiting: Waiting, why: str, log: Log) -> None:
    """A proposal that is not run goes back to its proposer, as a note."""
    text = f"{why}: {one_line(waiting.proposal.description)}"
    note_dropped(ledger, waiting.folder, text, waiting.proposal.usage)
    queue.asking.notes.append(f"A proposal was not run: {text}.")
    log.say(f"   -  not run: {text}")


def finish(queue: Queue, candidate: Candidate) -> None:
    """An experiment has its verdict: nothing of it runs any more."""
    del queue.candidates[candidate.number]
    queue.tasks = deque(task for task in queue.tasks if task.candidate is not candidate)
