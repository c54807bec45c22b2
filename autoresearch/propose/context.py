"""
What a proposer is told, and how it says that it has no edit. There are three proposers with one interface:

    propose(context) -> Proposal(description, source, usage)

    anthropic   claude.py: Claude through the Messages API reads the history, edits train.py with a tool, submits
    command     command.py: any coding agent's command line, run in a scratch folder that holds train.py
    constants   constants.py: no LLM, changes numeric constants of train.py; the baseline that an LLM has to beat

A proposal always differs from the best train.py and parses. What cannot be made into one raises ProposalFailed (try
again later), NothingLeft (there is no other edit for this best) or CannotPropose (a person has to mend something).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from autoresearch.nouns import RunResult, Usage
from autoresearch.row import Row
from autoresearch.settings import Settings
from autoresearch.source import edit_problem

PLATEAU = 12  # experiments without a keep after which a search is on a plateau


@dataclass
class Training:
    """How a run went, for a proposer to look at."""

    number: int  # of the experiment
    losses: list[tuple[float, float]]  # (percent of the budget, training loss), about a dozen
    facts: dict[str, float]  # what its run printed and what was measured: num_steps, mfu_percent, peak_vram_mb, ...


@dataclass
class Crash:
    """A run that ended with an exception, for its proposer to mend."""

    number: int
    source: str  # the train.py that crashed
    tail: str  # the end of its log
    attempt: int  # 1 for the first repair


@dataclass
class Context:
    """All that a proposer may know. Rows and failures only ever grow at their end while a search runs."""

    number: int  # the next free number: that of the experiment, if nothing else takes it meanwhile
    seed: int
    scale: str  # h100 or cpu
    max_seq_len: int  # tokens
    time_budget: int  # seconds of training
    vocab_size: int
    settings: Settings
    instructions: str  # the prose of program.md
    best_source: str  # train.py as it is best so far
    rows: list[Row]  # every experiment, in the order of decision; row.parent is the commit of the best it was tried on
    failures: list[tuple[int, str]] = field(default_factory=list)  # (rows before it, why there was no proposal)
    noise: float = math.nan  # standard deviation of a gain's run
    waiting: list[str] = field(default_factory=list)  # descriptions of what runs or waits to run
    trainings: list[Training] = field(default_factory=list)  # of the best, then of the last few
    note: str = ""  # what happened to the proposal before: failed, crashed, does not fit the new best
    crash: Crash | None = None  # to be mended: the proposal is then a repaired train.py
    folder: Path = Path()  # of this proposal: scratch, kept; becomes runs/<tag>/NNNN
    notebook: Path = Path()  # the proposer's own notes, runs/<tag>/notebook.md
    spent: Callable[[], float] = lambda: 0.0  # US dollars so far, on all but this proposal; asked in its thread
    deadline: float = math.inf  # time.monotonic() after which nobody waits for a proposal
    command: str = ""
    read: Callable[[int, str], str] = lambda number, what: ""  # "diff", "log", "notes", "profile"; ValueError
    forbidden: Callable[[str], str] = lambda source: ""  # why a train.py may not run, or ""
    should_stop: Callable[[], bool] = lambda: False
    log: Callable[[str], None] = lambda line: None  # shown, and written to loop.log
    others: int = 0  # proposers that are at work on experiments of their own at this moment
    begun: Callable[[], object] = lambda: None  # called when the answer begins to come
    machine: str = ""  # what the trainings run on: device, memory, versions; some lines
    keep_gain: float = math.nan  # a measured gain in val_bpb that is kept after one run; nan if it is not known
    time_left: float = math.inf  # seconds of this session
    experiments_left: float = math.inf  # that still fit, by --hours and --experiments
    check: Callable[[str], RunResult] | None = None  # a few steps of a train.py at tiny size, on the CPU
    used: Usage = field(default_factory=Usage)  # by this proposal so far: set by the proposer while it is at work
    tag: str = ""  # of the search
    diffs: Callable[[list[int]], dict[int, str]] = lambda numbers: {}  # of several experiments, by number: one git call

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
    def streak(self) -> int:
        """How many experiments brought no gain since the best."""
        return len(self.rows) - 1 - self.rows.index(self.best)

    @property
    def on_plateau(self) -> bool:
        return self.streak >= PLATEAU

    @property
    def tried(self) -> list[str]:
        """The descriptions of what was tried on this very best, or is about to be."""
        return [row.description for row in self.rows if row.parent == self.best.commit] + self.waiting


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
