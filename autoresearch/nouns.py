"""
The nouns that pass between the wings. Plain values: whoever makes one hands it on, and nobody changes it.
"""

import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from autoresearch.text import one_line

Runs = dict[int, float]  # seed -> val_bpb of one source
Json = dict[str, Any]  # an object as a JSON file holds it


@dataclass(frozen=True)
class Usage:
    """Tokens by kind, as the API bills them, and US dollars."""

    input: int = 0
    output: int = 0
    cache_read: int = 0
    cache_write: int = 0
    cost: float = 0.0

    @property
    def tokens(self) -> int:
        return self.input + self.output + self.cache_read + self.cache_write

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(*(getattr(self, name) + getattr(other, name) for name in self.__dataclass_fields__))


@dataclass(frozen=True)
class Proposal:
    """The next experiment, and what its proposer thinks of it."""

    description: str  # one line
    source: str  # the whole train.py
    hypothesis: str = ""
    expected: float = math.nan  # gain in val_bpb, positive is better
    category: str = ""
    usage: Usage = Usage()


@dataclass(frozen=True)
class RunResult:
    """The outcome of one training. `status`: ok, crash, timeout, interrupted; invalid if it is not believed, busy if
    that may be the machine's fault."""

    status: str
    seconds: float  # wall-clock, of the whole training process
    val_bpb: float = math.nan
    memory_gb: float = 0.0
    printed: dict[str, float] = field(default_factory=dict)  # by the run: the lines after its final ---
    measured: dict[str, float] = field(default_factory=dict)  # by the guard, the scorer and the loop
    error: str = ""  # one line: why there is no number
    tail: str = ""  # the last lines of the log
    losses: list[tuple[float, float]] = field(default_factory=list)  # (percent of the budget, mean of the tenth before)
    first_losses: list[float] = field(default_factory=list)  # of the first steps, as they were printed
    extra_seconds: float = 0.0  # for which its slot was taken besides: by a first start, by the scoring

    @property
    def slot_seconds(self) -> float:
        return self.seconds + self.extra_seconds

    @property
    def seconds_if_tested(self) -> float:
        """The same, if the test rows were scored, too: there are as many of them."""
        return self.slot_seconds + (0.0 if "test_bpb" in self.measured else self.extra_seconds)

    @property
    def tokens_per_second(self) -> float:
        """Of its training: the tokens that were counted, over the seconds that it printed; nan where one is missing."""
        seconds = self.printed.get("training_seconds", math.nan)
        return 1e6 * self.measured.get("total_tokens_M", math.nan) / seconds if seconds else math.nan

    @property
    def facts(self) -> dict[str, float]:
        """All that there is to show of it. No decision rests on what is in `printed` alone."""
        return self.printed | self.measured


def result_of(values: Json) -> RunResult:
    """A result as a journal holds it; the version before had what was printed and what was measured in one."""
    old = values.pop("summary", {})
    return RunResult(**{"printed": old, "measured": old} | values)


@dataclass(eq=False)
class Experiment:
    """A proposal on its way to a verdict: first it waits, then it has a number, a commit and runs."""

    proposal: Proposal
    base: int  # the number of the best that its edit was made for; -1 for the baseline
    folder: Path  # where the proposal lies
    number: int = -1  # as its proposer was told; -1: it gets one when it begins
    repairs: int = 0
    started: float = field(default_factory=time.time)

    @property
    def title(self) -> str:
        return one_line(self.proposal.description)[:300]  # an agent may have printed megabytes


FRESH = ("confirm", "beside")  # purposes of runs on fresh seeds: of the best, and of the baseline on the same ones


@dataclass(frozen=True)
class Run:
    """One training that ended, as the journal holds it."""

    number: int  # of its experiment
    seed: int
    result: RunResult
    purpose: str = "judge"  # or one of FRESH; "slow": made again, as the machine was slow or busy
    attempt: int = 0  # how often the experiment had been repaired by then
    ended: float = math.nan  # time.time()


@dataclass(frozen=True)
class Task:
    """One run that is wanted."""

    title: str  # for a person
    source: str
    seed: int
    purpose: str = "judge"  # a Run's, or: prove, profile, check
    experiment: Experiment | None = None  # of a search, that it is a run of
    budget: int | None = None  # seconds of training; None: the search's
    steps: int = 0  # instead of the budget: a short run, to see whether it runs at all
    tested: bool = False  # the test rows are scored, too


@dataclass(frozen=True)
class Noise:
    """The standard deviation of val_bpb from run to run of one source, and how well it is known."""

    sigma: float
    degrees_of_freedom: float


@dataclass(frozen=True)
class Verdict:
    """The decision on an experiment."""

    status: str  # keep, discard, crash, timeout, invalid, busy; again: one more run, on next_seed
    reason: str
    gain: float = math.nan  # measured: from the best's believed value; nan without a number
    better: float = math.nan  # P(true gain > 0)
    next_seed: int | None = None  # for `again`
    suspicious: bool = False  # too good for one change


@dataclass(frozen=True)
class Estimate:
    """A mean over runs, with its standard error."""

    val_bpb: float
    standard_error: float
    runs: int
