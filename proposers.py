"""
Proposers: from all that is known so far to the next train.py. Three of them, one interface:

    propose(context) -> Proposal(description, source, usage)

    mutate      no LLM: changes one or two numeric constants of train.py; the baseline that an LLM has to beat
    command     any coding agent's command line, run in a scratch folder that holds train.py
    anthropic   Claude through the Messages API: reads the history, edits train.py with the text-editor tool, submits

A proposal always differs from the best train.py and parses. What cannot be made into one raises ProposalFailed (try
again later) or CannotPropose (a person has to mend something first).
"""

import ast
import math
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from ledger import HEADER, Row
from run_experiment import last_lines, run_process
from settings import Settings


@dataclass
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


@dataclass
class Training:
    """How a run went, for a proposer to look at."""

    number: int  # of the experiment
    losses: list[tuple[float, float]]  # (percent of the budget, training loss), about a dozen
    summary: dict[str, float]  # what train.py printed after ---: num_steps, mfu_percent, peak_vram_mb, ...


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
    spent: float = 0.0  # US dollars so far
    deadline: float = math.inf  # time.time() after which nobody waits for a proposal
    command: str = ""
    read: Callable[[int, str], str] = lambda number, what: ""  # "diff", "log" or "notes" of an experiment; ValueError
    forbidden: Callable[[str], str] = lambda source: ""  # why a train.py may not run, or ""
    should_stop: Callable[[], bool] = lambda: False
    log: Callable[[str], None] = lambda line: None  # shown, and written to loop.log

    @property
    def best(self) -> Row:
        """The row of the best: the last that was kept."""
        return [row for row in self.rows if row.status == "keep"][-1]

    @property
    def tried(self) -> list[str]:
        """The descriptions of what was tried on this very best, or is about to be."""
        return [row.description for row in self.rows if row.parent == self.best.commit] + self.waiting


@dataclass
class Proposal:
    """The next experiment, and what its proposer thinks of it."""

    description: str  # one line
    source: str
    hypothesis: str = ""
    expected: float = math.nan  # gain in val_bpb, positive is better
    category: str = ""
    usage: Usage = field(default_factory=Usage)


class ProposalFailed(Exception):
    """No usable edit this time."""

    def __init__(self, message: str, usage: Usage | None = None):
        super().__init__(message)
        self.usage = usage or Usage()


class Refused(ProposalFailed):
    """The model declined: an answer, not a fault. Several in a row end the session."""


class CannotPropose(ProposalFailed):
    """No edit until a person changes something: a rejected key, an unknown model."""


def edit_problem(before: str, after: str) -> str:
    """Why `after` cannot be an experiment on `before`, or "" if it can."""
    if after == before:
        return "train.py is unchanged"
    if not after.strip():
        return "train.py is empty"
    try:
        before_tree, after_tree = ast.parse(before), ast.parse(after)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:  # null bytes, nesting without end
        return f"train.py does not parse: {error}"
    if ast.dump(before_tree) == ast.dump(after_tree):
        return "only comments or layout of train.py changed; the run would be the same"
    return ""


# -----------------------------------------------------------------------------
# Command


def propose_by_command(context: Context) -> Proposal:
    """Run the user's command in a folder with train.py and all that there is to know, and take train.py back.

    After a crash it runs again on the train.py that crashed, with the end of the log in note.txt. The command sees the
    user's whole environment (coding agents need their keys). Its description is the first line of description.txt, if
    it wrote one, else the last line that it printed.
    """
    before = context.crash.source if context.crash else context.best_source
    work, given = lay_out(context, before)
    limit = min(context.settings.proposal_timeout, context.deadline - time.time())
    command, log = ["/bin/sh", "-c", context.command], context.folder / "proposal.log"
    ended = run_process(command, work, dict(os.environ), log, limit, context.should_stop)
    if ended.how != "exit":
        raise ProposalFailed(f"the command took too long: {ended.how} after {ended.seconds:.0f} s")
    printed = last_lines(ended.tail, 1)
    if ended.code != 0:
        raise ProposalFailed(f"the command ended with code {ended.code}: {printed}")
    if not (work / "train.py").is_file():
        raise ProposalFailed("the command removed train.py")
    if touched := sorted(other_changes(work, given)):
        context.log(f"      the command also touched {', '.join(touched[:5])}: dropped")
    source = (work / "train.py").read_text(errors="replace")
    if problem := edit_problem(before, source) or edit_problem(context.best_source, source):
        raise ProposalFailed(f"the command left no edit to run: {problem}")
    described = work / "description.txt"
    text = described.read_text(errors="replace").strip() if described.is_file() else printed
    return Proposal(text.partition("\n")[0] or "edited by command", source)


def lay_out(context: Context, source: str) -> tuple[Path, dict[str, str]]:
    """The folder that a command works in, and the texts that it is given there, by file name."""
    work = context.folder / "work"
    shutil.rmtree(work, ignore_errors=True)  # of an attempt that failed
    work.mkdir(parents=True)
    crash = context.crash and f"train.py crashed; mend it. The end of its log:\n{context.crash.tail}"
    given = {
        "train.py": source,
        "program.md": context.instructions,
        "prepare_data.py": (Path(__file__).parent / "prepare_data.py").read_text(),
        "results.tsv": HEADER + "".join(row.line() for row in context.rows),
        "note.txt": crash or context.note,
    }
    for name, text in given.items():
        (work / name).write_text(text)
    return work, given


def other_changes(work: Path, given: dict[str, str]) -> set[str]:
    """What a command changed, added or removed in its folder besides train.py and description.txt."""
    there = {str(path.relative_to(work)): path for path in work.rglob("*") if path.is_file() and not path.is_symlink()}
    changed = {name for name, text in given.items() if name in there and there[name].read_bytes() != text.encode()}
    touched = changed | (there.keys() - given.keys()) | (given.keys() - there.keys())
    return {name for name in touched if name not in ("train.py", "description.txt") and "__pycache__" not in name}
