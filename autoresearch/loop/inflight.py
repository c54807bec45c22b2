"""
All that is in flight: proposals that wait for a slot, experiments without a verdict, proposers at work, the bench.

A proposal in flight lies on disk too, in a folder of its own with proposal.json and train.py: so it outlives a kill.
"""

import dataclasses
import functools
import json
import shutil
import threading
import time
from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from autoresearch.files import replace_file
from autoresearch.loop.bench import Bench, Slot
from autoresearch.loop.session import Session
from autoresearch.loop.verdicts import on_best
from autoresearch.nouns import FRESH, Experiment, Json, Proposal, Run, Task, Usage
from autoresearch.propose.context import Context
from autoresearch.record.ledger import Ledger, note_failure, note_run, write_experiment
from autoresearch.record.lines import Log
from autoresearch.record.repository import commit_of, experiment_refs, repair_ref
from autoresearch.row import subject_of

EXCHANGE = 100_000  # characters of the exchange of a failed proposal that the journal keeps

# -----------------------------------------------------------------------------
# State


@dataclass(eq=False)
class Ask:
    """A proposer at work, in a thread of its own."""

    context: Context
    crashed: Experiment | None = None  # that it repairs
    answer: Future[Proposal] = field(default_factory=Future)
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

    bench: Bench
    waiting: deque[Experiment] = field(default_factory=deque)  # for a slot, and their number
    experiments: dict[int, Experiment] = field(default_factory=dict)  # that have their number and commit
    crashed: deque[Experiment] = field(default_factory=deque)  # to be repaired by the proposer
    asking: Asking = field(default_factory=Asking)
    undecided: deque[Experiment] = field(default_factory=deque)  # their runs may give a verdict already

    @property
    def slots(self) -> int:
        return len(self.bench.slots)

    @property
    def descriptions(self) -> list[str]:
        """Of what runs or waits to run."""
        return [each.proposal.description for each in [*self.experiments.values(), *self.waiting]]

    @property
    def spent(self) -> float:
        """US dollars on proposals that have no row yet; a proposer's thread may ask, so both are copied first."""
        return sum(each.proposal.usage.cost for each in [*self.waiting, *self.experiments.values()])


def bench_of(session: Session, ledger: Ledger, slots: list[Slot]) -> Bench:
    """The bench of a search, whose results go into the search's journal."""

    def folder_of(task: Task) -> Path:
        assert task.experiment
        return ledger.run_folder(task.experiment.number, task.seed)

    def before(task: Task) -> list[Run]:
        assert task.experiment
        runs = ledger.runs_by_number.get(task.experiment.number, [])
        return [run for run in runs if run.attempt == task.experiment.repairs]

    return Bench(session, slots, folder_of, before, functools.partial(note_result, session.log, ledger))


def note_result(log: Log, ledger: Ledger, task: Task, run: Run) -> None:
    """A run's result in the journal; of one that confirms the best, a line. A fault is nothing that was measured."""
    if run.result.status != "fault":
        note_run(ledger, run)
    if run.purpose in FRESH:
        good = run.result.status == "ok"
        said = f"{run.result.val_bpb:.6f}  seed {run.seed}, a fresh one" if good else run.result.error
        word = "baseline" if run.purpose == "beside" else "confirmed" if good else "not confirmed"
        log.say(f"{run.number:4d}  {word:11}  {said}")


# -----------------------------------------------------------------------------
# On disk


def store(experiment: Experiment) -> None:
    """proposal.json and train.py in its folder; the former last, as it makes the proposal count."""
    folder, proposal = experiment.folder, experiment.proposal
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "train.py").write_text(proposal.source)
    values = dataclasses.asdict(proposal) | {name: getattr(experiment, name) for name in ("base", "repairs", "number")}
    del values["source"]
    replace_file(folder / "proposal.json", json.dumps(values, indent=1))


def stored_proposal(values: Json, source: str) -> Proposal:
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
    """Return the exchange of a proposal for the journal: the model's answers, or what the command printed."""
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
            queue.experiments[number] = restore_experiment(ledger, number)
            log.say(f"{number:4d}  resumed      it has no verdict yet")
    order = {run.number: index for index, run in enumerate(ledger.runs)}  # as they would have been decided
    queue.undecided.extend(sorted(queue.experiments.values(), key=lambda each: order.get(each.number, len(order))))
    begun = sorted(ledger.folder.glob("[0-9]*/proposal.json"))  # killed before it got its commit
    left = [path for path in begun if int(path.parent.name) not in ledger.taken]
    for folder in (ledger.folder / "proposals").glob("*"):
        if not (folder / "proposal.json").exists():  # a kill came while it was being made
            shutil.rmtree(folder, ignore_errors=True)
    for path in [*left, *sorted((ledger.folder / "proposals").glob("*/proposal.json"))]:
        values = json.loads(path.read_text())
        proposal = stored_proposal(values, (path.parent / "train.py").read_text())
        if values["base"] >= 0:  # the baseline begins by itself
            number = -1 if values.get("number") in ledger.taken else values.get("number", -1)
            queue.waiting.append(Experiment(proposal, values["base"], path.parent, number))
            ledger.taken.add(number)


def restore_experiment(ledger: Ledger, number: int) -> Experiment:
    """An experiment from its commit and, where it is still there, its folder: a repair may have no commit yet."""
    path, source = ledger.experiment_folder(number) / "proposal.json", ledger.source_of(number)
    commit, message = ledger.message_of(number)
    if path.exists():
        values = json.loads(path.read_text())
        crashed = commit_of(ledger.repo, repair_ref(ledger.tag, number, values["repairs"] - 1))
        if commit == crashed:
            source = (path.parent / "train.py").read_text()
        proposal = stored_proposal(values, source)
        experiment = Experiment(proposal, values["base"], path.parent, number, values["repairs"])
        if commit == crashed:
            commit_experiment(ledger, experiment)
        return experiment
    parent = commit_of(ledger.repo, f"{commit}^")[:7]
    bases = [row.number for row in ledger.kept if row.commit == parent] or [row.number for row in ledger.kept]
    return Experiment(Proposal(subject_of(message), source), bases[-1] if bases else -1, path.parent, number)


# -----------------------------------------------------------------------------
# From a proposal to an experiment


def let_wait(queue: Queue, experiment: Experiment, first: bool = False) -> None:
    """Let a proposal wait for a slot; `first`: before all others."""
    store(experiment)
    queue.waiting.appendleft(experiment) if first else queue.waiting.append(experiment)


def begin(ledger: Ledger, queue: Queue, experiment: Experiment) -> None:
    """Give a proposal its number, its commit and its ref, on the present best."""
    numbered = experiment.folder.parent == ledger.folder  # by an earlier session that was killed before the commit
    if numbered or experiment.number < 0:
        experiment.number = int(experiment.folder.name) if numbered else ledger.next_number
    experiment.base, experiment.started = ledger.best.number if ledger.kept else -1, time.time()
    ledger.taken.add(experiment.number)
    queue.experiments[experiment.number] = experiment
    home = ledger.experiment_folder(experiment.number)
    if experiment.folder != home and experiment.folder.exists():
        experiment.folder.rename(home)
    experiment.folder = home
    commit_experiment(ledger, experiment)


def commit_experiment(ledger: Ledger, experiment: Experiment) -> None:
    """The folder and the commit of an experiment, as its proposal stands now."""
    store(experiment)
    write_experiment(ledger, experiment.number, experiment.base, experiment.title, experiment.proposal.source)


def fits(ledger: Ledger, queue: Queue, experiment: Experiment, log: Log) -> bool:
    """Return whether a proposal can run on the present best; set it aside if not, note it if it was moved."""
    source = on_best(ledger, experiment.proposal.source, experiment.base) if ledger.kept else experiment.proposal.source
    if not source:
        set_aside(ledger, queue, experiment, "it was written for an older best, and does not fit the new one", log)
        queue.asking.notes[-1] += " Propose it again for the new best if it is still worth it."
        return False
    if ledger.kept and experiment.base != (best := ledger.best.number):
        moved = f"Written for best {experiment.base}, but {best} was kept meanwhile, so it runs on top of {best}"
        queue.asking.notes.append(f"{moved}: {experiment.title}")
    experiment.proposal = dataclasses.replace(experiment.proposal, source=source)
    return True


def set_aside(ledger: Ledger, queue: Queue, experiment: Experiment, why: str, log: Log) -> None:
    """A proposal that is not run goes back to its proposer, as a note."""
    text = f"{why}: {experiment.title}"
    note_dropped(ledger, experiment.folder, text, experiment.proposal.usage)
    ledger.taken.discard(experiment.number)
    queue.asking.notes.append(f"A proposal was not run: {text}.")
    log.say(f"   -  not run: {text}")


def finish(queue: Queue, experiment: Experiment) -> None:
    """An experiment has its verdict: nothing of it runs any more."""
    del queue.experiments[experiment.number]
    queue.bench.tasks = deque(task for task in queue.bench.tasks if task.experiment is not experiment)
