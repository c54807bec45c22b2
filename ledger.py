"""
The ledger: what a search has found out, so that no kill, lost line or deleted folder can make it forget.

    results.tsv                one row per experiment, in the order of decision
    refs/autoresearch/...      one commit per experiment; its message holds the whole row, so the table can be rebuilt
    runs/<tag>/journal.jsonl   every run that ended and every proposal that failed, in the order in which they did
"""

import dataclasses
import json
import math
import os
import re
import typing
from dataclasses import dataclass
from pathlib import Path

from judge import Runs

# -----------------------------------------------------------------------------
# Rows


@dataclass
class Row:
    """One experiment. The first five columns are those of the public recipe; val_bpb is 0 where there is none."""

    commit: str
    val_bpb: float  # the mean of its runs
    memory_gb: float
    status: str  # keep, discard, crash, timeout, invalid
    description: str
    number: int
    gain: float  # over the best it was tried on; nan where there is none
    parent: str  # the commit of that best
    seconds: float  # wall-clock of its last run
    tokens: int
    cost: float  # US dollars
    started: str
    noise: float  # standard deviation of val_bpb from run to run, as known then
    runs: str  # every run that was judged, seed:val_bpb
    reason: str = ""  # why it was decided so: the probability, or how it crashed
    category: str = ""  # what kind of change the proposer says it is
    expected: float = math.nan  # the gain that the proposer expected
    repairs: int = 0  # attempts to mend a crash
    hypothesis: str = ""  # why the proposer thought that it would help

    def cells(self) -> dict[str, str]:
        """The columns as text: one line each, numbers with as many digits as they deserve."""
        signed = {name: getattr(self, name) for name in ("gain", "expected")}
        texts = {
            "val_bpb": f"{self.val_bpb:.6f}",
            "memory_gb": f"{self.memory_gb:.1f}",
            "description": one_line(self.description)[:300],
            "seconds": f"{self.seconds:.1f}",
            "cost": f"{self.cost:.4f}",
            "noise": f"{self.noise:.6f}",
            "reason": one_line(self.reason)[:300],
            "category": one_line(self.category)[:30],
            "hypothesis": one_line(self.hypothesis)[:500],
        }
        texts |= {name: f"{value:+.6f}" if math.isfinite(value) else "" for name, value in signed.items()}
        return {name: str(value) for name, value in (dataclasses.asdict(self) | texts).items()}

    def line(self) -> str:
        return "\t".join(self.cells().values()) + "\n"


TYPES = typing.get_type_hints(Row)
HEADER = "\t".join(TYPES) + "\n"


def one_line(text: str) -> str:
    """No newline, tab or control character: safe in a table, a commit subject and a terminal."""
    return "".join(character for character in " ".join(text.split()) if character.isprintable())


def parse_row(cells: dict[str, str]) -> Row:
    """A row from its columns. Raises ValueError if one is missing or no number where there should be one."""
    if cells.keys() != TYPES.keys():
        raise ValueError(f"a row has {len(TYPES)} columns")
    return Row(**{name: kind((cells[name] or "nan") if kind is float else cells[name]) for name, kind in TYPES.items()})


def read_rows(path: Path) -> tuple[list[Row], list[str]]:
    """(the rows of results.tsv, the lines in it that are none: cut short by a kill, or edited)."""
    lines = path.read_text(errors="replace").splitlines()[1:] if path.exists() else []
    rows, broken = {}, []
    for line in lines:
        try:
            row = parse_row(dict(zip(TYPES, line.split("\t"), strict=True)))
            rows[row.number] = row  # a number that is there twice counts once
        except ValueError:
            broken.append(line)
    return list(rows.values()), broken


def write_rows(path: Path, rows: list[Row]) -> None:
    """The whole table, written whole or not at all."""
    replace_file(path, HEADER + "".join(row.line() for row in rows))


def row_message(subject: str, note: str, row: Row) -> str:
    """A commit message that says all: subject, note, and the row as `column: value` lines."""
    cells = "\n".join(f"{name}: {cell}" for name, cell in row.cells().items() if name != "commit")
    return f"{subject}\n\n{note}\n\n{cells}\n"


def row_of_message(commit: str, message: str) -> Row | None:
    """The row that a commit's message holds, None if it has no result."""
    cells = dict(re.findall(r"^(\w+): ?(.*)$", message.strip().rpartition("\n\n")[2], re.MULTILINE))
    try:
        return parse_row({"commit": commit[:7], **cells})
    except ValueError:
        return None


# -----------------------------------------------------------------------------
# Files


def append_line(path: Path, line: str) -> None:
    """Add a line that is on disk when this returns. After a line that a kill cut short it begins a new one."""
    with open(path, "ab+") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            line = line if file.read(1) == b"\n" else "\n" + line
        file.write(line.encode())
        file.flush()
        os.fsync(file.fileno())


def replace_file(path: Path, text: str) -> None:
    """A text file, written whole or not at all."""
    scratch = path.with_name(path.name + ".tmp")
    with open(scratch, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    scratch.replace(path)


# -----------------------------------------------------------------------------
# Journal


def read_journal(path: Path) -> list[dict]:
    """All events, oldest first; what a kill cut short is left out."""
    lines = path.read_text(errors="replace").splitlines() if path.exists() else []
    return [event for line in lines if (event := parse_event(line))]


def parse_event(line: str) -> dict | None:
    try:
        return json.loads(line)
    except ValueError:
        return None


def append_event(path: Path, event: str, **values) -> dict:
    """Add an event and return it as it will be read."""
    line = json.dumps({"event": event} | values)
    path.parent.mkdir(parents=True, exist_ok=True)
    append_line(path, line + "\n")
    return json.loads(line)


def runs_text(runs: Runs) -> str:
    return " ".join(f"{seed}:{val_bpb:.6f}" for seed, val_bpb in runs.items())


def runs_of(row: Row) -> Runs:
    return {int(seed): float(val_bpb) for seed, val_bpb in (run.split(":") for run in row.runs.split())}
