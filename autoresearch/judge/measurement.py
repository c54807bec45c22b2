"""
After a run, is its number worth believing? And before it: are evaluator and data still what they were?

    check_result(...)                  do the summary, the evaluator's record and the clocks of a run agree?
    check_integrity(paths, expected)   are prepare_data.py and the prepared files the same as when the search began?

Each returns "" or one line that says why not.
"""

import json
import lzma
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy

from autoresearch.files import DATA_FILES, RECORD, ROOT, file_hash, fingerprint, stamp

if TYPE_CHECKING:  # prepare_data is imported where it is used: it reads the environment then
    from prepare_data import Tokenizer

# -----------------------------------------------------------------------------
# The result of a run


@dataclass(frozen=True)
class Limits:
    """How far the clocks of a run may be apart, in seconds where nothing else is said."""

    tolerance: float  # share of the budget
    slack: float  # of the training, besides one step: what happens between the last step and the evaluation
    overhead: float  # before the clock starts, beyond what the baseline needed: another import, more to compile
    optimizer_steps: int = 64  # before the clock starts: a warm-up, which is undone
    batches: int = 64  # likewise


# Compiling takes 70 s on two slow cores (benchmarks/train_bench.txt), and twice that for a model of twice the depth.
LIMITS = {"cpu": Limits(tolerance=0.03, slack=1, overhead=5), "h100": Limits(tolerance=0.02, slack=5, overhead=140)}
SQUEEZE = 0.25  # a model may be so much better than lzma, and no more: the best public one is at 0.4


def measure_expected() -> dict:
    """What the evaluator of every honest run on this machine's data will record. The scale is prepare_data's."""
    import prepare_data

    rows = prepare_data.load_rows("val")
    tokenizer = prepare_data.Tokenizer.from_directory()
    token_bytes = tokenizer.token_bytes()
    return {
        "fingerprint": prepare_data.scored_fingerprint(rows, token_bytes),
        "bytes": int(token_bytes[rows[:, 1:]].sum()),
        "tokens": rows[:, 1:].size,
        "lowest_bpb": lowest_believable(rows, tokenizer),
        "time_budget": 0 if prepare_data.STEPS else prepare_data.TIME_BUDGET,  # 0: by steps, whatever they take
        "clock": "paced" if prepare_data.SCALE == "cpu" else "wall",
        "before_clock": None,  # the baseline's, from before_clock(), once it has run
    }


def lowest_believable(rows: numpy.ndarray, tokenizer: "Tokenizer", size: int = 1_000_000) -> float:
    """A val_bpb that no model of this text gets below: a part of what lzma makes of a megabyte of it."""
    row_length = rows.shape[1]
    tokens = rows[: size // row_length].flatten().tolist()
    text = b"".join(tokenizer.ranks[token] for token in tokens if token < tokenizer.bos)
    return SQUEEZE * 8 * len(lzma.compress(text)) / len(text)


def read_record(folder: Path) -> dict | None:
    """What evaluate_bpb wrote in a run's folder: the last evaluation, and how many there were. None: none or broken."""
    path = Path(folder) / RECORD
    if not path.is_file() or path.stat().st_size > 1_000_000:
        return None
    try:
        evaluations = [json.loads(line) for line in path.read_text().splitlines()]
        numbers = [float(evaluations[-1][name]) for name in ("val_bpb", "nats", "bytes", "tokens", "batches")]
        moments = [float(evaluations[-1][name][kind]) for name in MOMENTS for kind in ("cpu", "paced", "wall")]
    except (ValueError, KeyError, TypeError, IndexError):
        return None
    return evaluations[-1] | {"evaluations": len(evaluations)} if all(map(math.isfinite, numbers + moments)) else None


MOMENTS = ("imported", "first_batch", "clock_started", "evaluated", "finished")


def elapsed(record: dict, first: str, last: str, kind: str) -> float:
    """Seconds between two moments of a run: of CPU time ("cpu"), at a fixed pace ("paced"), or by the wall ("wall")."""
    return record[last][kind] - record[first][kind]


def before_clock(record: dict, seconds: float, kind: str) -> float:
    """Seconds that a run took besides its training and its evaluation. "wall" goes by the loop's own clock."""
    return (
        record["clock_started"]["cpu"]
        if kind != "wall"
        else seconds - elapsed(record, "clock_started", "finished", kind)
    )


def check_result(summary: dict, record: dict | None, expected: dict, limits: Limits, seconds: float) -> str:
    """ "" or why the number of a run is invalid.

    `summary`: the printed lines; `record`: read_record(); `expected`: measure_expected(), with the baseline's
    before_clock; `seconds`: how long the run took by the loop's clock.
    """
    if record is None:
        return "it printed a val_bpb, but there is no record of evaluate_bpb"
    return next(wrong_numbers(summary, record, expected), "") or next(
        wrong_times(summary, record, expected, limits, seconds), ""
    )


def wrong_numbers(summary: dict, record: dict, expected: dict) -> Iterator[str]:
    """Where the printed number, the record and the data do not agree."""
    val_bpb, evaluations = record["val_bpb"], record["evaluations"]
    if evaluations != 1:
        yield f"val_bpb was measured {evaluations} times; once is allowed"
    if any(record[name] != expected[name] for name in ("fingerprint", "bytes", "tokens")):
        yield "what was scored is not the validation set"
    if not math.isclose(val_bpb, record["nats"] / record["bytes"] / math.log(2), rel_tol=1e-9):
        yield "the record of evaluate_bpb does not add up"
    if not abs(summary.get("val_bpb", math.nan) - val_bpb) < 1e-5:
        yield f"it printed val_bpb {summary.get('val_bpb')}, but evaluate_bpb measured {val_bpb:.6f}"
    if val_bpb < expected["lowest_bpb"]:
        yield f"val_bpb {val_bpb:.4f} is below {expected['lowest_bpb']:.2f}, which no model of this text can reach"
    if record["val_reads"] != evaluations:
        yield "validation rows were read outside evaluate_bpb"
    if not record["batches"]:
        yield "no training batch came from make_dataloader"


def wrong_times(summary: dict, record: dict, expected: dict, limits: Limits, seconds: float) -> Iterator[str]:
    """Where more was trained than the budget allows, by the evaluator's clocks and the loop's own."""
    start, kind, budget = record["clock_started"], expected["clock"], expected["time_budget"]
    if elapsed(record, "clock_started", "evaluated", "wall") < 0:
        yield "training_clock() was not read before the evaluation"
    training = elapsed(record, "clock_started", "evaluated", kind)
    step = min(training / max(summary.get("num_steps", 0), 1), 0.1 * budget)
    if budget and training > budget * (1 + limits.tolerance) + limits.slack + step:
        yield f"it trained for {training:.1f} s; the budget is {budget} s"
    if (
        budget
        and abs(summary.get("training_seconds", 0) - training) > training * limits.tolerance + limits.slack + step
    ):
        yield f"it printed {summary.get('training_seconds')} training_seconds, but they were {training:.1f}"
    if start["optimizer_steps"] > limits.optimizer_steps or start["batches"] > limits.batches:
        count = f"{start['optimizer_steps']} optimizer steps on {start['batches']} batches"
        yield f"training before the clock started: {count}"
    if elapsed(record, "imported", "finished", "wall") > seconds + 1:
        yield "the clocks of the run are ahead of the loop's"
    usual, needed = expected["before_clock"], before_clock(record, seconds, kind)
    if usual is not None and needed > 1.5 * usual + limits.overhead:
        yield f"{needed:.0f} s of work before the clock started; the baseline needed {usual:.0f} s"


# -----------------------------------------------------------------------------
# The evaluator and the data


def protected_files(data: Path) -> list[Path]:
    """What no run and nobody else may change while a search goes on."""
    return [ROOT / "prepare_data.py", *(Path(data) / name for name in DATA_FILES)]


def measure_files(paths: list[Path]) -> dict[str, list]:
    """{path: [stamp, sha256]}: what check_integrity() compares with. Can be kept as JSON between sessions."""
    return {str(path): [stamp(path), file_hash(path)] for path in paths}


def check_integrity(paths: list[Path], expected: dict[str, list]) -> str:
    """ "" or which files are not what they were. A file is hashed again only where its stamp differs."""
    changed = []
    for path in paths:
        now, known = stamp(path), expected[str(path)]
        if now != known[0] and file_hash(path) != known[1]:
            changed.append(path.name + (" is missing" if not now else " has changed"))
        else:
            known[0] = now
    return f"{', '.join(changed)} since this search began; restore it, or begin a new search" if changed else ""


def check_fingerprint(data: Path) -> str:
    """ "" or that the prepared files are not those that meta.json was written for. Hashes them all: once a session."""
    import prepare_data

    stored, found = prepare_data.read_meta(data)["fingerprint"], fingerprint(data, prepare_data.FORMAT)
    problem = f"tokenizer.json, train.bin or val.bin in {data} is not what meta.json says"
    return (
        "" if stored == found else f"{problem} (fingerprint {found}, not {stored}); delete meta.json and prepare again"
    )
