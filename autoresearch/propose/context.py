"""
What a proposer may know, and how it says that it has no edit. There are three proposers with one interface:

    propose(context) -> Proposal(description, source, usage)

    anthropic   anthropic.py: Claude through the Messages API edits train.py with a tool, and submits
    command     command.py: any coding agent's command line, run in a scratch folder that holds train.py
    constants   constants.py: no LLM, changes numeric constants of train.py; the baseline that an LLM has to beat

The first two are told the same, by brief.py. A proposal always differs from the best train.py and parses. Without one,
ProposalFailed is raised, or a kind of it that says what follows.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from autoresearch.nouns import RunResult, Usage
from autoresearch.row import Row
from autoresearch.settings import Options, Settings
from autoresearch.source import edit_problem

PLATEAU = 12  # experiments without a keep after which a search is on a plateau


@dataclass(frozen=True)
class Training:
    """How a run went, for a proposer to look at. nan: not known, or not of this device."""

    number: int  # of the experiment
    losses: list[tuple[float, float]]  # (percent of the budget, mean training loss since the point before)
    steps: int
    tokens_per_second: float
    memory_gb: float
    mfu_percent: float


@dataclass(frozen=True)
class Crash:
    """A run that ended with an exception, for its proposer to fix."""

    number: int
    source: str  # the train.py that crashed
    tail: str  # the end of its log
    attempt: int  # 1 for the first repair


@dataclass
class Context:
    """All that a proposer may know, and what it may call. Rows and failures only ever grow at their end."""

    number: int  # of the experiment that it is to make
    options: Options  # of the session: tag, command, scale, seed, budget, deadline
    settings: Settings
    instructions: str  # the prose of program.md
    best_source: str  # train.py as it is best so far
    rows: list[Row]  # every experiment, in the order of decision; row.parent is the commit of the best it was tried on
    folder: Path  # of this proposal: scratch, kept; becomes runs/<tag>/NNNN
    notebook: Path  # the proposer's own notes, runs/<tag>/notebook.md
    deadline: float  # time.monotonic() after which nobody waits for the proposal
    noise: float = math.nan  # standard deviation of a gain's run
    keep_gain: float = math.nan  # a measured gain in val_bpb that is kept after one run; nan if it is not known
    experiments_left: float = math.inf  # that still fit, by --hours and --experiments
    failures: list[tuple[int, str]] = field(default_factory=list)  # (rows before it, why there was no proposal)
    under_way: list[str] = field(default_factory=list)  # what runs, waits or is being written, in words
    trainings: list[Training] = field(default_factory=list)  # of the best, then of the last few
    note: str = ""  # what happened to the proposal before: failed, crashed, does not fit the new best
    crash: Crash | None = None  # to be fixed: the proposal is then a repaired train.py

    read: Callable[[int, str], str] = lambda number, what: ""  # "diff", "log", "notes", "profile"; ValueError
    forbidden: Callable[[str], str] = lambda source: ""  # why a train.py may not run, or ""
    check: Callable[[str], RunResult] | None = None  # the dry check of a train.py
    should_stop: Callable[[], bool] = lambda: False
    spent: Callable[[], float] = lambda: 0.0  # US dollars so far, on all but this proposal; asked in its thread
    log: Callable[[str], None] = lambda line: None  # shown, and written to loop.log
    begun: Callable[[], object] = lambda: None  # called when the answer begins to come

    used: Usage = field(default_factory=Usage)  # by this proposal so far: set by the proposer while it is at work
    doing: str = "begun"  # what it is at, in words for the other proposers: likewise

    @property
    def best(self) -> Row:
        """The row of the best: the last that was kept."""
        return [row for row in self.rows if row.status == "keep"][-1]

    @property
    def start(self) -> str:
        """The train.py that is to be edited."""
        return self.crash.source if self.crash else self.best_source

    def problem(self, source: str) -> str:
        """Why a train.py is no answer, or "": it is the best again, the one that crashed again, or no Python."""
        before = [self.best_source] + ([self.crash.source] if self.crash else [])
        return next(filter(None, (edit_problem(text, source) for text in before)), "")

    @property
    def hours_left(self) -> float:
        """Of this session."""
        return (self.options.deadline - time.monotonic()) / 3600

    @property
    def streak(self) -> int:
        """How many experiments brought no gain since the best. Of one at a busy moment nothing is known."""
        return sum(row.status != "busy" for row in self.rows[self.rows.index(self.best) + 1 :])

    @property
    def on_plateau(self) -> bool:
        return self.streak >= PLATEAU

    @property
    def tried(self) -> list[str]:
        """The descriptions of what was tried on this very best, or is about to be."""
        here = [row for row in self.rows if row.parent == self.best.commit and row.status != "busy"]
        return [row.description for row in here] + self.under_way


class ProposalFailed(Exception):
    """No usable edit this time."""

    def __init__(self, message: str, usage: Usage | None = None):
        super().__init__(message)
        self.usage = usage or Usage()


class Refused(ProposalFailed):
    """The model declined: an answer, not a fault. Several in a row end the session."""


class NothingLeft(ProposalFailed):
    """The proposer has tried all that it can change on this best."""


class Fault(ProposalFailed):
    """Nothing that a proposer could learn from: the API, the network, the time or the money. No later one is told."""


class CannotPropose(Fault):
    """No edit until a person changes something: a rejected key, an unknown model, a spend limit."""
