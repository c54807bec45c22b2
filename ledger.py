"""
The ledger: one row per experiment in results.tsv, one line per finished run in runs/<tag>/runs.jsonl.
"""

import dataclasses
import json
import math
import os
import typing
from dataclasses import dataclass
from pathlib import Path

from judge import Runs
from run_experiment import fail


@dataclass
class Row:
    """One experiment. The first five columns are those of the public recipe; val_bpb is 0 where there is none."""

    commit: str
    val_bpb: float  # the mean of its runs
    memory_gb: float
    status: str  # keep, discard, crash, timeout, invalid, interrupted
    description: str
    number: int
    gain: float  # over the best it was tried on; nan where there is none
    parent: str  # the commit of that best
    seconds: float  # wall-clock of the run
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

    def line(self) -> str:
        values = dataclasses.asdict(self) | {
            "val_bpb": f"{self.val_bpb:.6f}",
            "memory_gb": f"{self.memory_gb:.1f}",
            "description": one_line(self.description)[:300],
            "gain": f"{self.gain:+.6f}" if math.isfinite(self.gain) else "",
            "seconds": f"{self.seconds:.1f}",
            "cost": f"{self.cost:.4f}",
            "noise": f"{self.noise:.6f}",
            "reason": one_line(self.reason)[:300],
            "category": one_line(self.category)[:30],
            "expected": f"{self.expected:+.6f}" if math.isfinite(self.expected) else "",
            "hypothesis": one_line(self.hypothesis)[:500],
        }
        return "\t".join(str(value) for value in values.values()) + "\n"


def one_line(text: str) -> str:
    """No newline, tab or control character: safe in a table, a commit subject and a terminal."""
    return "".join(character for character in " ".join(text.split()) if character.isprintable())


HEADER = "\t".join(name.name for name in dataclasses.fields(Row)) + "\n"


def read_rows(path: Path) -> list[Row]:
    """The rows of results.tsv. A last line that a kill cut short is dropped; its experiment runs again."""
    text = path.read_text() if path.exists() else ""
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        path.write_text(whole)
    types = list(typing.get_type_hints(Row).values())
    rows = []
    for number, line in enumerate(whole.splitlines()[1:], 2):
        cells = line.split("\t")
        try:
            cells = [(cell or "nan") if kind is float else cell for kind, cell in zip(types, cells, strict=True)]
            rows.append(Row(*(kind(cell) for kind, cell in zip(types, cells, strict=True))))
        except ValueError:
            fail(f"{path.name}: line {number} is not a row of {len(types)} columns; restore it with git or delete it")
    return rows


def append_row(path: Path, row: Row) -> None:
    """Add a row in one write that is on disk when this returns."""
    with open(path, "a") as file:
        file.write(row.line())
        file.flush()
        os.fsync(file.fileno())


def append_run(path: Path, number: int, purpose: str, seed: int, val_bpb: float, memory_gb: float) -> None:
    """Add one finished run to runs.jsonl: what a kill in the middle of an experiment must not lose."""
    with open(path, "a") as file:
        record = {"number": number, "purpose": purpose, "seed": seed, "val_bpb": val_bpb, "memory_gb": memory_gb}
        file.write(json.dumps(record) + "\n")


def read_runs(path: Path, number: int, purpose: str) -> Runs:
    """The finished runs of an experiment that were made to `judge` or to `confirm` it."""
    lines = path.read_text().splitlines() if path.exists() else []
    runs = [json.loads(line) for line in lines if line.endswith("}")]  # a kill may have cut the last line
    return {run["seed"]: run["val_bpb"] for run in runs if (run["number"], run["purpose"]) == (number, purpose)}


def runs_text(runs: Runs) -> str:
    return " ".join(f"{seed}:{val_bpb:.6f}" for seed, val_bpb in runs.items())


def runs_of(row: Row) -> Runs:
    return {int(seed): float(val_bpb) for seed, val_bpb in (run.split(":") for run in row.runs.split())}
