"""
What a search is measured with, and is the number of a run worth believing?

    load_measure(...), believe(...)    what the runs of a search are held against, and a result as far as it is believed
    check_result(...)                  do the record of a run and the clocks outside it say that the budget was kept?
    check_integrity(paths, expected)   are prepare_data.py and the prepared files the same as when the search began?

Each check returns "" or one line that says why not. The number itself comes from the scorer (scorer.py).
"""

import json
import lzma
import math
import statistics
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autoresearch.files import (
    DATA_FILES,
    EVALUATOR,
    RECORD,
    ROOT,
    data_root,
    file_hash,
    fingerprint,
    replace_file,
    stamp,
)
from autoresearch.judge.noise import plausible
from autoresearch.nouns import Json, Run, RunResult, Runs
from autoresearch.text import fail

if TYPE_CHECKING:  # imported where they are used: prepare_data reads the environment then
    import numpy

    from prepare_data import Tokenizer

# -----------------------------------------------------------------------------
# Of a search


@dataclass
class Measure:
    """measure.json of a search."""

    path: Path
    scale: str
    expected: dict[str, Any]  # of every honest run
    files: dict[str, list[Any]]  # evaluator and data, and what they were when the search began


def load_measure(folder: Path, scale: str, budget: int) -> Measure:
    """What the first session of a search wrote down, or wrote down now. Ends the program if the data are damaged.

    `budget`: seconds of training of this session's runs; 0: by steps, whatever they take.
    """
    data, path = data_root() / scale, folder / "measure.json"
    if problem := check_fingerprint(data):
        fail(problem)
    if path.exists():
        known = json.loads(path.read_text())
        files = {known_name(name): value for name, value in known["files"].items()}
        files |= measure_files([path for path in protected_files(data) if own_name(path) not in files])
        measure = Measure(path, scale, known["expected"], files)
        check_budget(measure, folder.name, budget)
        return measure
    files = measure_files(protected_files(data))
    measure = Measure(path, scale, measure_expected(budget), files)
    save_measure(measure)
    return measure


def expected_of(folder: Path) -> dict[str, Any]:
    """What the search in a folder expects of its runs; {} where none was begun."""
    path = folder / "measure.json"
    return json.loads(path.read_text())["expected"] if path.exists() else {}


def scale_of_search(folder: Path) -> str:
    """The scale of the search in a folder, "" where it is not known."""
    return {"paced": "cpu", "wall": "h100"}.get(expected_of(folder).get("clock", ""), "")


def check_scale(folder: Path, scale: str) -> None:
    """End the program where the search in a folder is of another scale: no numbers would compare."""
    before = scale_of_search(folder) or scale
    if before != scale:
        mend = f"set AUTORESEARCH_SCALE={before}, or start another --tag"
        fail(f"the search {folder.name} is of scale {before}, not {scale}; {mend}")


def check_budget(measure: Measure, tag: str, now: int) -> None:
    """End the program where this session would train for another time than the search did: no numbers would compare."""
    before = measure.expected["time_budget"]
    if before and now and before != now:
        mend = f"--budget {before} or AUTORESEARCH_BUDGET={before}, or start another --tag"
        fail(f"the runs of search {tag} train for {before} s, not {now} s; {mend}")


def save_measure(measure: Measure) -> None:
    replace_file(measure.path, json.dumps({"expected": measure.expected, "files": measure.files}, indent=1))


def changed_measure(measure: Measure) -> str:
    """Why numbers would not compare any more with those before, or "": evaluator or data are not what they were."""
    problem = check_integrity(protected_files(data_root() / measure.scale), measure.files)
    return f"{problem}; undo that, or start another --tag" if problem else ""


def start_limit(measure: Measure) -> float:
    """Seconds before the clock starts, after which a run is to begin again on the compile cache that it filled."""
    return longest_start(measure.expected, LIMITS[measure.scale])


def longest_scoring(measure: Measure) -> float:
    """Seconds that the scorer may take for one model: ten times what it took for the baseline, and a minute."""
    usual = measure.expected.get("scoring")
    return 600.0 if usual is None else 60 + 10 * usual


def believe(measure: Measure, result: RunResult, folder: Path, budget: int | None = None) -> RunResult:
    """A good result as it is, or with the reason why it is not believed: as invalid, or as busy if its clocks
    contradict each other, which may be the machine's fault. `budget`: of a run that is not of the search's length."""
    record, expected = read_record(folder), measure.expected | ({} if budget is None else {"time_budget": budget})
    if record and (tokens := trained_tokens(record)):  # what is printed has one decimal of a million
        result = replace(result, measured=result.measured | {"total_tokens_M": tokens / 1e6})
    reason = check_result(result, record, expected, LIMITS[measure.scale])
    if record is None or reason:
        return replace(result, status="invalid", error=reason)
    if reason := contradiction(result, record, expected, LIMITS[measure.scale]):
        return replace(result, status="busy", error=reason)
    learn(measure, before_clock(record, result.seconds, expected["clock"]), result, expected["time_budget"])
    return result


def learn(measure: Measure, start: float, result: RunResult, budget: int) -> None:
    """Take in what an honest run took: the first one tells of the start, each one of its work."""
    known = measure.expected
    if known["before_clock"] is None:
        known["before_clock"], known["pace"] = start, result.measured.get("pace_seconds")
        known["scoring"] = result.measured.get("scoring_seconds")
    new = cost(result, known | {"time_budget": budget}) if budget else math.nan
    if known["clock"] == "paced" and math.isfinite(new):
        known["costs"] = [*known.get("costs", []), round(new, 3)]
    save_measure(measure)


def same_training(result: RunResult, seed: int, before: list[Run]) -> RunResult:
    """A good result as it is; as invalid where another seed gave the same losses, and so nothing is known of noise."""
    first = result.first_losses
    same = [run.seed for run in before if run.seed != seed and run.result.first_losses == first]
    if result.status != "ok" or len(first) < ENOUGH_LOSSES or not same:
        return result
    error = f"seeds {same[0]} and {seed} give the same losses from the first step on: draw what is random by SEED"
    return replace(result, status="invalid", error=error)


def reason_to_repeat(result: RunResult) -> str:
    """The reason to make a run once more on its seed before anything is decided, or "": its clocks contradict."""
    return f"busy: {result.error}" if result.status == "busy" else ""


def busy_text(error: str, good: Runs) -> str:
    """The reason of a verdict where the second run on the seed was busy, too: that is no failure of the idea."""
    numbers = ", ".join(f"seed {seed} gave {val_bpb:.6f}" for seed, val_bpb in good.items())
    return f"the machine was busy: {numbers or 'nothing is known of this edit'} ({error})"


# -----------------------------------------------------------------------------
# The result of a run


@dataclass(frozen=True)
class Limits:
    """What a run may take beside its budget, in seconds where nothing else is said."""

    tolerance: float  # share of the budget
    slack: float  # of the training, besides one step: what happens between the last step and the evaluation
    start: float  # before the clock starts, beyond half as much again as the baseline needed: another import
    cold_start: float  # the same for the baseline, of which nothing is known yet: more is a cache to be filled
    hand_over: float


LIMITS = {
    "cpu": Limits(tolerance=0.01, slack=0.5, start=5, cold_start=15, hand_over=3),
    "h100": Limits(tolerance=0.02, slack=5, start=40, cold_start=60, hand_over=20),
}
MORE_WORK = 1.4  # times the usual cost of a run: a clock that was slowed down makes more of it
FAR = 5.0  # median deviations from the usual cost, where honest runs differ by so much that this is more
ENOUGH_LOSSES = 10  # of two seeds: the first ones may be those of guessing, whatever the seed
SQUEEZE = 0.25  # a model may be so much better than lzma, and no more: the best public one is at 0.4


def measure_expected(budget: int) -> Json:
    """What holds for every honest run on this machine's data. The scale is prepare_data's.

    `budget`: seconds of training; 0: by steps, whatever they take.
    """
    import prepare_data

    return {
        "lowest_bpb": lowest_believable(prepare_data.load_rows("val"), prepare_data.Tokenizer.from_directory()),
        "time_budget": budget,
        "clock": "paced" if prepare_data.SCALE == "cpu" else "wall",
        "before_clock": None,  # the baseline's, once it has run
        "costs": [],  # cost() of each run that was believed
    }


def lowest_believable(rows: "numpy.ndarray", tokenizer: "Tokenizer", size: int = 1_000_000) -> float:
    """A val_bpb that no model of this text gets below: a part of what lzma makes of a megabyte of it."""
    row_length = rows.shape[1]
    tokens = rows[: size // row_length].flatten().tolist()
    text = b"".join(tokenizer.ranks[token] for token in tokens if token < tokenizer.bos)
    return SQUEEZE * 8 * len(lzma.compress(text)) / len(text)


def read_record(folder: Path) -> Json | None:
    """What prepare_data noted of a run, in the run's folder. None: there is none, or it is broken."""
    path = Path(folder) / RECORD
    if not path.is_file() or path.stat().st_size > 1_000_000:
        return None
    try:
        record = json.loads(path.read_text())
        kinds = ("cpu", "paced", "wall", "batches")
        numbers = [float(record[name][kind]) for name in MOMENTS for kind in kinds]
        counts = (record["batches"], record.get("training_tokens", 0), record.get("clock_reads", 0))
        numbers += map(float, counts)
    except (ValueError, KeyError, TypeError):
        return None
    return record if all(map(math.isfinite, numbers)) else None


MOMENTS = ("imported", "first_batch", "clock_started", "evaluated", "finished")


def elapsed(record: Json, first: str, last: str, kind: str) -> float:
    """Seconds between two moments of a run: of CPU time ("cpu"), at a fixed pace ("paced"), or by the wall ("wall")."""
    return record[last][kind] - record[first][kind]


def before_clock(record: Json, seconds: float, kind: str) -> float:
    """Seconds that a run took besides its training and its evaluation. "wall" goes by the loop's own clock."""
    return (
        record["clock_started"]["cpu"]
        if kind != "wall"
        else seconds - elapsed(record, "clock_started", "finished", kind)
    )


def trained_tokens(record: Json) -> float:
    """Tokens of the batches that were taken after the clock started; 0 where the record does not tell."""
    share = 1 - record["clock_started"]["batches"] / max(record["batches"], 1)
    return share * float(record.get("training_tokens", 0))


def longest_start(expected: Json, limits: Limits) -> float:
    """Seconds that a run may take before its clock starts: what is more was compiled, and a second start tells."""
    usual = expected["before_clock"]
    return limits.cold_start if usual is None else 1.5 * usual + limits.start


def late(result: RunResult, record: Json, expected: Json, limits: Limits, slower: float = 1.0) -> str:
    """ "" or that a run took longer than an honest one before its clock started, or to hand its model over.

    `slower`: the time that a piece of work takes on this machine now, in times of what it took for the baseline.
    """
    kind, usual = expected["clock"], expected["before_clock"]
    needed, handing_over = before_clock(record, result.seconds, kind), elapsed(record, "evaluated", "finished", kind)
    if usual is not None and needed > longest_start(expected, limits) * slower:
        return f"{needed:.0f} s of work before the clock started; the baseline needed {usual:.0f} s"
    if handing_over > limits.hand_over * slower:
        return f"evaluate_bpb took {handing_over:.1f} s to hand the model over; {limits.hand_over:g} s are allowed"
    return ""


def cost(result: RunResult, expected: Json) -> float:
    """What a run took, by what no run can touch: the guard's CPU seconds, in looks at the pace that the scorer took
    meanwhile, for each second of its start and its budget. So it is the same on a busy machine and for any budget."""
    looks = result.measured.get("cpu_seconds", math.inf) / result.measured.get("pace_seconds", math.nan)
    return looks / (expected["before_clock"] + expected["time_budget"])


def contradiction(result: RunResult, record: Json, expected: Json, limits: Limits) -> str:
    """ "" or that CPU time was spent on far more work than a run has: by the run, or by a machine that was busy.

    What is usual is the median of all runs that were believed, and how far a run may be from it grows with theirs.
    """
    if expected["clock"] == "wall":
        return ""
    then, now = expected.get("pace") or math.nan, result.measured.get("pace_seconds", math.nan)
    if reason := late(result, record, expected, limits, slower=max(1.0, now / then)):
        return reason
    if not (known := expected.get("costs")) or not expected["time_budget"]:
        return ""
    usual, now = statistics.median(known), cost(result, expected)
    spread = statistics.median(abs(each - usual) for each in known) / usual
    allowed = max(MORE_WORK, 1 + FAR * spread) + limits.slack / expected["time_budget"]
    if not now > allowed * usual:
        return ""
    worked, pace = result.measured.get("cpu_seconds", math.inf), result.measured["pace_seconds"]
    normal = usual * pace * (expected["before_clock"] + expected["time_budget"])
    return f"it took {worked:.1f} s of CPU time where {normal:.1f} s are usual"


def check_result(result: RunResult, record: Json | None, expected: Json, limits: Limits) -> str:
    """ "" or why the number of a run is invalid.

    `record`: read_record(); `expected`: measure_expected(), with what the baseline's run took. Of the result only what
    the scorer and the loop have measured is taken: the number and the seconds.
    """
    if record is None:
        return "it left no record of its training"
    if not plausible(result.val_bpb):
        return f"val_bpb {result.val_bpb} is not plausible"
    if result.val_bpb < expected["lowest_bpb"]:
        return (
            f"val_bpb {result.val_bpb:.4f} is below {expected['lowest_bpb']:.2f}, which no model of this text can reach"
        )
    return next(wrong_times(result, record, expected, limits), "")


def wrong_times(result: RunResult, record: Json, expected: Json, limits: Limits) -> Iterator[str]:
    """Where more was trained than the budget allows: by the run's own clocks and the loop's."""
    kind, budget = expected["clock"], expected["time_budget"]
    if elapsed(record, "clock_started", "evaluated", "wall") < 0 or not record["batches"]:
        yield "no training batch came from make_dataloader, or training_clock() was not read before the evaluation"
    training = elapsed(record, "clock_started", "evaluated", kind)
    step = min(training / max(float(record.get("clock_reads", 0)), 1), 0.05 * budget)
    if budget and training > budget * (1 + limits.tolerance) + limits.slack + step:
        yield f"it trained for {training:.1f} s; the budget is {budget} s"
    if elapsed(record, "imported", "finished", "wall") > result.seconds + 1:
        yield "the clocks of the run are ahead of the loop's"
    if kind == "wall" and (reason := late(result, record, expected, limits)):
        yield reason
    most = budget * (1 + limits.tolerance) + longest_start(expected, limits) + limits.slack + limits.hand_over
    if budget and kind == "wall" and result.seconds > most:
        yield f"it took {result.seconds:.0f} s by the loop's clock; {most:.0f} are allowed"


# -----------------------------------------------------------------------------
# The evaluator and the data


def protected_files(data: Path) -> list[Path]:
    """What no run and nobody else may change while a search goes on."""
    return [*(ROOT / name for name in EVALUATOR), *(Path(data) / name for name in DATA_FILES)]


def measure_files(paths: list[Path]) -> dict[str, list[Any]]:
    """{name: [stamp, sha256]}: what check_integrity() compares with. Another machine has the files at other paths."""
    return {own_name(path): [stamp(path), file_hash(path)] for path in paths}


def own_name(path: Path) -> str:
    """The name of a protected file on every machine: below the checkout, where several folders have an __init__.py."""
    return str(path.relative_to(ROOT)) if path in [ROOT / name for name in EVALUATOR] else path.name


def known_name(name: str) -> str:
    """own_name() for what measure.json says: the version before noted whole paths, and protected fewer files."""
    return Path(name).name if Path(name).is_absolute() else name


def check_integrity(paths: list[Path], expected: dict[str, list[Any]]) -> str:
    """ "" or which files are not what they were. A file is hashed again only where its stamp differs."""
    changed = []
    for path in paths:
        now, known = stamp(path), expected[own_name(path)]
        if now != known[0] and file_hash(path) != known[1]:
            changed.append(own_name(path) + (" is missing" if not now else " has changed"))
        else:
            known[0] = now
    return f"{', '.join(changed)} since this search began" if changed else ""


def check_fingerprint(data: Path) -> str:
    """ "" or that the prepared files are not those that meta.json was written for. Hashes them all: once a session."""
    import prepare_data

    stored, found = prepare_data.read_meta(data)["fingerprint"], fingerprint(data, prepare_data.FORMAT)
    problem = f"tokenizer.json, train.bin or val.bin in {data} is not what meta.json says"
    return (
        "" if stored == found else f"{problem} (fingerprint {found}, not {stored}); delete meta.json and prepare again"
    )
