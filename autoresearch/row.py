"""
A row of results.tsv: what it holds, and how it is written as a line of the table and in a commit message.
"""

import dataclasses
import math
import re
import typing
from dataclasses import dataclass

from autoresearch.nouns import Runs
from autoresearch.text import one_line


@dataclass(frozen=True)
class Row:
    """One experiment. The first five columns are those of the public recipe; val_bpb is 0 where there is none."""

    commit: str
    val_bpb: float  # the mean of its runs
    memory_gb: float
    status: str  # keep, discard, crash, timeout, invalid, busy
    description: str
    number: int
    gain: float  # over the best it was tried on; nan where there is none
    parent: str  # the commit of that best
    seconds: float  # wall-clock of its last training, the scoring not included
    tokens: int
    cost: float  # US dollars
    started: str
    noise: float  # standard deviation of val_bpb from run to run, as known then
    runs: str  # every run that was judged, seed:val_bpb
    reason: str = ""  # why it was decided so: the probability, or how it crashed
    category: str = ""  # what kind of change the proposer says it is
    expected: float = math.nan  # the gain that the proposer expected
    repairs: int = 0  # attempts to fix a crash
    hypothesis: str = ""  # why the proposer thought that it would help
    best: int = -1  # the number of the best that it was tried on; -1 for the baseline
    steps: int = 0  # optimizer steps of its last run
    tokens_per_second: float = math.nan  # of training, in its last run


TYPES = typing.get_type_hints(Row)
NEEDED = {item.name for item in dataclasses.fields(Row) if item.default is dataclasses.MISSING}
HEADER = "\t".join(TYPES) + "\n"
# What the description of an experiment begins with that goes on from another one's runs, or merges its edit into a
# newer best.
SECOND_LOOK = re.compile(r"(?:second look at|same source as) (\d{4,}): ")
ON_TOP = re.compile(r"(\d{4,}) on top of \d{4,}: ")

# -----------------------------------------------------------------------------
# As text


def row_cells(row: Row) -> dict[str, str]:
    """The columns as text: one line each, numbers with as many digits as they deserve."""
    signed = {name: getattr(row, name) for name in ("gain", "expected")}
    texts = {
        "val_bpb": f"{row.val_bpb:.6f}",
        "memory_gb": f"{row.memory_gb:.1f}",
        "description": one_line(row.description)[:300],
        "seconds": f"{row.seconds:.1f}",
        "cost": f"{row.cost:.4f}",
        "noise": f"{row.noise:.6f}",
        "reason": one_line(row.reason)[:300],
        "category": one_line(row.category)[:30],
        "hypothesis": one_line(row.hypothesis)[:500],
        "tokens_per_second": f"{row.tokens_per_second:.0f}" if math.isfinite(row.tokens_per_second) else "",
    }
    texts |= {name: f"{value:+.6f}" if math.isfinite(value) else "" for name, value in signed.items()}
    return {name: str(value) for name, value in (dataclasses.asdict(row) | texts).items()}


def row_line(row: Row) -> str:
    """The row as a line of results.tsv: a cell that begins with a quote is quoted, for readers of tables."""
    quoted = ['"' + cell.replace('"', '""') + '"' if cell.startswith('"') else cell for cell in row_cells(row).values()]
    return "\t".join(quoted) + "\n"


def row_message(subject: str, note: str, row: Row) -> str:
    """A commit message that says all: subject, note, and the row as `column: value` lines."""
    cells = "\n".join(f"{name}: {cell}" for name, cell in row_cells(row).items() if name != "commit")
    return f"{subject}\n\n{note}\n\n{cells}\n"


def runs_text(runs: Runs) -> str:
    return " ".join(f"{seed}:{val_bpb:.6f}" for seed, val_bpb in runs.items())


# -----------------------------------------------------------------------------
# From text


def parse_row(cells: dict[str, str]) -> Row:
    """A row from its columns; those of a newer version may be missing. Raises ValueError if it is none."""
    if not NEEDED <= cells.keys() <= TYPES.keys():
        raise ValueError(f"a row has the columns {', '.join(TYPES)}")
    values = {name: (cell or "nan") if TYPES[name] is float else cell for name, cell in cells.items()}
    return Row(**{name: TYPES[name](value) for name, value in values.items()})


def row_of_message(commit: str, message: str) -> Row | None:
    """The row that a commit's message holds, None if it has no result."""
    cells = dict(re.findall(r"^(\w+): ?(.*)$", message.strip().rpartition("\n\n")[2], re.MULTILINE))
    try:
        return parse_row({"commit": commit[:7], **cells})
    except ValueError:
        return None


def subject_of(message: str) -> str:
    """The description of an experiment, from its commit message."""
    return re.sub(r"^\d+: ", "", message.partition("\n")[0])


def title_of(description: str) -> str:
    """Return what was changed, without what the loop put in front of it."""
    return ON_TOP.sub("", SECOND_LOOK.sub("", one_line(description)))


def runs_of(row: Row) -> Runs:
    """The runs that a row was judged by."""
    return {int(seed): float(val_bpb) for seed, val_bpb in (run.split(":") for run in row.runs.split())}
