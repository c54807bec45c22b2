"""
The ledger: what a search has found out, so that no kill, lost line or deleted folder can make it forget.

    refs/autoresearch/<tag>/NNNN     one commit per experiment; its message holds the whole row. The dates are the order
    results.tsv                      these rows, printed: nothing reads it
    autoresearch/<tag>               the branch: the baseline and every kept change
    runs/<tag>/journal.jsonl         every run that ended, every proposal that failed, every session's start and end,
                                     in the order in which they happened
"""

import dataclasses
import functools
import itertools
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from autoresearch.files import ROOT, append_event, read_events, replace_file
from autoresearch.judge.knowledge import Knowledge, knowledge
from autoresearch.nouns import FRESH, Json, Run, Runs, Usage, result_of
from autoresearch.record.repository import (
    Repository,
    commit_file,
    commit_of,
    current_branch,
    experiment_ref,
    file_at,
    repair_ref,
    run_git,
    same_file,
)
from autoresearch.row import HEADER, Row, row_line, row_message
from autoresearch.source import code_of


@dataclass(frozen=True)
class Failure:
    """A proposal that came to nothing."""

    after: int  # rows that there were before it
    reason: str
    cost: float
    tokens: int
    told: bool = True  # to later proposers: not where nobody's edit was to blame
    kind: str = "failed"  # or refused by the model, or stopped with the session


@dataclass(frozen=True)
class Sitting:
    """One session of the loop, as the journal tells of it."""

    start: float  # time.time()
    process: int
    proposer: str
    scale: str
    slots: int
    deadline: float | None  # time.time(), with --hours
    experiments: int | None  # --experiments
    last: float  # time.time() of the last that is known of it
    reason: str = ""  # why it ended; "" while it runs, and for ever where it was killed
    cut_short: bool = True  # by a kill, a stop or a fault; not by its hours, its experiments or its cost


@dataclass(eq=False)
class Ledger:
    """All that one search has written, in memory and on disk."""

    repo: Repository
    tag: str
    in_checkout: bool = True  # train.py, results.tsv and progress.png of the checkout are the search's; not of a demo
    rows: list[Row] = field(default_factory=list)  # in the order of decision
    runs: list[Run] = field(default_factory=list)  # every training that ended, oldest first
    runs_by_number: dict[int, list[Run]] = field(default_factory=dict)  # the same by experiment
    failures: list[Failure] = field(default_factory=list)
    taken: set[int] = field(default_factory=set)  # numbers of experiments, decided or not
    sittings: list[Sitting] = field(default_factory=list)
    sources: dict[int, str] = field(default_factory=dict)  # the train.py of kept experiments, which never changes
    codes: dict[int, str] = field(default_factory=dict)  # code_of() the train.py of experiments that have a row

    @property
    def branch(self) -> str:
        return f"autoresearch/{self.tag}"

    @property
    def folder(self) -> Path:
        return ROOT / "runs" / self.tag

    @property
    def results(self) -> Path:
        return (ROOT if self.in_checkout else self.folder) / "results.tsv"

    @property
    def head(self) -> str:
        """The commit of the branch, wherever the user's HEAD is."""
        return commit_of(self.repo, f"refs/heads/{self.branch}")

    @property
    def kept(self) -> list[Row]:
        return [row for row in self.rows if row.status == "keep"]

    @property
    def best(self) -> Row:
        """The last that was kept."""
        return next(row for row in reversed(self.rows) if row.status == "keep")

    @property
    def tried(self) -> int:
        """Rows of the search, its baseline not counted."""
        first = next((row.number for row in self.rows if row.status == "keep"), None)
        return 0 if first is None else sum(row.number > first for row in self.rows)

    @property
    def next_number(self) -> int:
        """Of the next experiment: the first that is free."""
        return next(number for number in itertools.count() if number not in self.taken)

    @property
    def spent(self) -> float:
        """US dollars on the experiments that have a row, and on proposals that failed."""
        return sum(row.cost for row in self.rows) + sum(failure.cost for failure in self.failures)

    @property
    def tokens(self) -> int:
        """Tokens, likewise."""
        return sum(row.tokens for row in self.rows) + sum(failure.tokens for failure in self.failures)

    @property
    def scale(self) -> str:
        """The scale of a search; in a clone without its journal: runs of the h100 scale take five minutes."""
        if self.sittings:
            return self.sittings[-1].scale
        return "h100" if max((row.seconds for row in self.rows), default=0) > 150 else "cpu"

    @property
    def known(self) -> Knowledge:
        """Return what all its runs say together."""
        return known_after(self, len(self.rows), sum(map(len, self.later.values())))

    def has_row(self, number: int) -> bool:
        return any(row.number == number for row in reversed(self.rows))

    def row(self, number: int) -> Row:
        """The row of an experiment that has one."""
        return next(row for row in reversed(self.rows) if row.number == number)

    def experiment_folder(self, number: int) -> Path:
        return self.folder / f"{number:04d}"

    def run_folder(self, number: int, seed: int) -> Path:
        """A folder of its own for every run, so that nothing else is in a run's reach."""
        return self.experiment_folder(number) / f"seed{seed}"

    def ref(self, number: int) -> str:
        return experiment_ref(self.tag, number)

    def source_of(self, number: int) -> str:
        """The train.py of an experiment."""
        source = self.sources.get(number) or file_at(self.repo, self.ref(number), "train.py")
        if any(row.number == number for row in self.kept):
            self.sources[number] = source
        return source

    def same_source(self, source: str, rows: list[Row]) -> list[Row]:
        """Of these rows, those of the same train.py but for comments and white space."""
        for row in rows:
            if row.number not in self.codes:
                self.codes[row.number] = code_of(self.source_of(row.number))
        return [row for row in rows if self.codes[row.number] == code_of(source)]

    def message_of(self, number: int) -> tuple[str, str]:
        """(commit, message) of an experiment."""
        text = run_git(self.repo, "log", "-1", "--format=%H%n%B", self.ref(number))
        commit, _, message = text.partition("\n")
        return commit, message

    def runs_for(self, number: int, purpose: str, attempt: int = 0) -> list[Run]:
        """The runs of an experiment that ended, oldest first."""
        return [run for run in self.runs_by_number.get(number, []) if (run.purpose, run.attempt) == (purpose, attempt)]

    def good_runs(self, number: int, purpose: str) -> Runs:
        """val_bpb by seed, of those that ended well."""
        return {run.seed: run.result.val_bpb for run in self.runs_for(number, purpose) if run.result.status == "ok"}

    @property
    def confirming(self) -> Runs:
        """The best's runs on fresh seeds."""
        return self.good_runs(self.best.number, "confirm") if self.kept else {}

    @property
    def tested(self) -> tuple[Runs, Runs] | None:
        """The test rows' val_bpb of baseline and best, on the seeds that both were scored on; None: on none."""
        if not self.kept:
            return None
        first, best = (self.test_runs(row.number) for row in (self.kept[0], self.best))
        both = sorted(first.keys() & best.keys())
        return ({seed: first[seed] for seed in both}, {seed: best[seed] for seed in both}) if both else None

    def test_runs(self, number: int) -> Runs:
        """Return the test rows' val_bpb, by seed, of an experiment's runs on the best's fresh seeds."""
        runs = [run for run in self.fresh_runs(number) if run.seed in self.confirming]
        return {run.seed: run.result.measured["test_bpb"] for run in runs if "test_bpb" in run.result.measured}

    def fresh_runs(self, number: int) -> list[Run]:
        """The runs of an experiment on fresh seeds that ended well."""
        return [run for purpose in FRESH for run in self.runs_for(number, purpose) if run.result.status == "ok"]

    @property
    def later(self) -> dict[int, Runs]:
        """The runs on fresh seeds of whatever was kept, by its number; the baseline's next to a best, once that is."""
        runs = {row.number: self.good_runs(row.number, "confirm") for row in self.kept}
        if runs:
            first, seeds = self.kept[0].number, set().union(*runs.values())
            beside = self.good_runs(first, "beside").items()
            runs[first] |= {seed: val_bpb for seed, val_bpb in beside if seed in seeds}
        return runs


@functools.lru_cache(2)  # the loop's ledger, and the one that the page is drawn from
def known_after(ledger: Ledger, rows: int, later: int) -> Knowledge:
    """Made again only when there is something new: more rows, or more runs on fresh seeds."""
    return knowledge(ledger.rows, ledger.later, ledger.scale)


# -----------------------------------------------------------------------------
# Journal


def read_journal(ledger: Ledger) -> None:
    """Take in all events."""
    for event in read_events(ledger.folder / "journal.jsonl"):
        take_in(ledger, event)


def take_in(ledger: Ledger, event: Json) -> None:
    kind, at = event.pop("event"), event.pop("at")
    if kind == "failed":
        event.pop("exchange", None)  # for a person to read; it can be long
        ledger.failures.append(Failure(**event))
    elif kind == "run":
        own = {name: event.pop(name) for name in ("number", "seed", "purpose", "attempt")}
        run = Run(result=result_of(event), **own, ended=at)
        ledger.runs.append(run)
        ledger.runs_by_number.setdefault(run.number, []).append(run)
    elif kind == "session":
        ledger.sittings.append(Sitting(**event, start=at, last=at))
    elif kind == "limits" and ledger.sittings:
        ledger.sittings[-1] = dataclasses.replace(ledger.sittings[-1], **event)
    if ledger.sittings:
        reason, cut_short = (event["reason"], event.get("cut_short", False)) if kind == "ended" else ("", True)
        ledger.sittings[-1] = dataclasses.replace(ledger.sittings[-1], last=at, reason=reason, cut_short=cut_short)


def note(ledger: Ledger, event: str, values: Json) -> None:
    """Add an event to the journal, and take it in as it will be read again."""
    ledger.folder.mkdir(parents=True, exist_ok=True)
    take_in(ledger, json.loads(append_event(ledger.folder / "journal.jsonl", event, values)))


def note_run(ledger: Ledger, run: Run) -> None:
    """A run that ended; of a log only the end of a failed run's is kept here."""
    own = {name: getattr(run, name) for name in ("number", "seed", "purpose", "attempt")}
    tail = "" if run.result.status == "ok" else run.result.tail
    note(ledger, "run", own | dataclasses.asdict(run.result) | {"tail": tail})


def note_failure(ledger: Ledger, reason: str, usage: Usage, **others: Any) -> None:
    """A proposal that came to nothing: what it cost; `others`: exchange, told, kind."""
    values = {"after": len(ledger.rows), "reason": reason, "cost": usage.cost, "tokens": usage.tokens}
    note(ledger, "failed", values | others)


# -----------------------------------------------------------------------------
# Table


def print_table(ledger: Ledger) -> bool:
    """Write results.tsv, whole or not at all. Returns whether it was another one."""
    text = HEADER + "".join(map(row_line, ledger.rows))
    if ledger.results.exists() and ledger.results.read_text(errors="replace") == text:
        return False
    replace_file(ledger.results, text)
    return True


def commit_results(ledger: Ledger, message: str) -> None:
    """results.tsv as it is on disk, as a commit on top of the branch."""
    head, text = ledger.head, ledger.results.read_text()
    if file_at(ledger.repo, head, "results.tsv") != text:
        commit_file(ledger.repo, head, "results.tsv", text, message, f"refs/heads/{ledger.branch}")
    if current_branch(ledger.repo) == ledger.branch:
        run_git(ledger.repo, "add", "-f", "results.tsv")  # a global gitignore may name it


# -----------------------------------------------------------------------------
# Experiments


def parent_of(ledger: Ledger, base: int) -> str:
    """The commit below an experiment made for the best `base`: the branch, or that best if there is another by now."""
    if not ledger.kept or base == ledger.best.number:
        return ledger.head
    return commit_of(ledger.repo, ledger.ref(base))


def write_experiment(ledger: Ledger, number: int, base: int, subject: str, source: str) -> None:
    """Commit an experiment that has no result yet, and let its ref point there."""
    message = f"{number:04d}: {subject}"
    commit_file(ledger.repo, parent_of(ledger, base), "train.py", source, message, ledger.ref(number))


def keep_crashed(ledger: Ledger, number: int, attempt: int) -> None:
    """Give the commit of an attempt that crashed a ref of its own, before a repair takes its place."""
    run_git(ledger.repo, "update-ref", repair_ref(ledger.tag, number, attempt), ledger.ref(number))


def write_result(ledger: Ledger, row: Row, base: int, source: str, subject: str, facts: str) -> Row:
    """The commit of an experiment again, with its row in the message; then the row. Returns it, with its commit.

    The order of the rows is that of the commits' dates, so each is later than the one before.
    """
    message, ref = row_message(f"{row.number:04d}: {subject}", facts, row), ledger.ref(row.number)
    before = ledger.ref(ledger.rows[-1].number) if ledger.rows else ""
    commit = commit_file(ledger.repo, parent_of(ledger, base), "train.py", source, message, ref, after=before)
    row = dataclasses.replace(row, commit=commit[:7])
    ledger.rows.append(row)
    print_table(ledger)
    return row


def branch_source(ledger: Ledger) -> str:
    """The train.py of the branch."""
    return file_at(ledger.repo, ledger.head, "train.py")


def move_branch(ledger: Ledger, number: int) -> str:
    """Let the branch point at an experiment that is kept. Returns the train.py of the best before."""
    run_git(ledger.repo, "update-ref", f"refs/heads/{ledger.branch}", ledger.ref(number))
    return file_at(ledger.repo, f"{ledger.ref(number)}^", "train.py")


def follow_best(ledger: Ledger, before: str) -> str:
    """train.py becomes the branch's, also where it is gone; a user's edit is never overwritten.

    Returns "", or a line that says that it was left alone.
    """
    if not ledger.in_checkout:
        return ""
    path = ROOT / "train.py"
    on_disk = path.read_text() if path.exists() else before
    if current_branch(ledger.repo) != ledger.branch or on_disk not in (before, branch_source(ledger)):
        return (
            f"train.py was changed by hand and is left alone; the best is: git show {ledger.branch}:train.py; "
            "to have your edit measured, commit it on a branch of your own and begin a search there with another --tag"
        )
    run_git(ledger.repo, "checkout", "HEAD", "--", "train.py")
    return ""


def changed_by_hand(ledger: Ledger) -> str:
    """A line that says that a commit of the user's gave the branch another train.py than the best's, or ""."""
    number = ledger.best.number
    if same_file(ledger.repo, f"refs/heads/{ledger.branch}", ledger.ref(number), "train.py"):
        return ""
    return (
        f"train.py of {ledger.branch} is not that of its best, experiment {number}: a commit by hand changed it; "
        f"undo that with git revert, or begin another search from it: --tag ANOTHER --from {ledger.branch}"
    )
