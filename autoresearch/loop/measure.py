"""
What a search is measured with, from its first session on: evaluator and data, and what an honest run takes.
"""

import dataclasses
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autoresearch.files import data_root, replace_file
from autoresearch.judge import measurement
from autoresearch.nouns import RunResult
from autoresearch.text import fail


@dataclass
class Measure:
    """measure.json of a search."""

    path: Path
    scale: str
    expected: dict[str, Any]  # of every honest run
    files: dict[str, list]  # evaluator and data, and what they were when the search began


def load_measure(folder: Path, scale: str) -> Measure:
    """What the first session of a search wrote down, or wrote down now. Ends the program if the data are damaged."""
    data, path = data_root() / scale, folder / "measure.json"
    if problem := measurement.check_fingerprint(data):
        fail(problem)
    if path.exists():
        measure = Measure(path, scale, **json.loads(path.read_text()))
        check_budget(measure, folder.name)
        return measure
    files = measurement.measure_files(measurement.protected_files(data))
    measure = Measure(path, scale, measurement.measure_expected(), files)
    save_measure(measure)
    return measure


def expected_of(folder: Path) -> dict[str, Any]:
    """What the search in a folder expects of its runs; {} where none was begun."""
    path = folder / "measure.json"
    return json.loads(path.read_text())["expected"] if path.exists() else {}


def keep_budget(folder: Path) -> None:
    """Have a search's runs train as long as they did, like the demo's, where the user names no time.

    It has to be asked before prepare_data.py is imported, which reads the variable.
    """
    if budget := expected_of(folder).get("time_budget"):
        os.environ.setdefault("AUTORESEARCH_BUDGET", str(budget))


def check_scale(folder: Path, scale: str) -> None:
    """End the program where the search in a folder is of another scale: no numbers would compare."""
    before = {"paced": "cpu", "wall": "h100"}.get(expected_of(folder).get("clock", ""), scale)
    if before != scale:
        mend = f"set AUTORESEARCH_SCALE={before}, or start another --tag"
        fail(f"the search {folder.name} is of scale {before}, not {scale}; {mend}")


def check_budget(measure: Measure, tag: str) -> None:
    """End the program where this session would train for another time than the search did: no numbers would compare."""
    before, now = measure.expected["time_budget"], measurement.time_budget()
    if before and now and before != now:  # 0: by steps
        mend = f"AUTORESEARCH_BUDGET={before}, or start another --tag"
        fail(f"the runs of search {tag} train for {before} s, not {now} s; {mend}")


def save_measure(measure: Measure) -> None:
    replace_file(measure.path, json.dumps({"expected": measure.expected, "files": measure.files}, indent=1))


def changed_measure(measure: Measure) -> str:
    """Why numbers would not compare any more with those before, or "": evaluator or data are not what they were."""
    problem = measurement.check_integrity([Path(path) for path in measure.files], measure.files)
    return f"{problem}; undo that, or start another --tag" if problem else ""


def start_limit(measure: Measure) -> float:
    """Seconds before the clock starts, after which a run is to begin again on the compile cache that it filled."""
    return measurement.longest_start(measure.expected, measurement.LIMITS[measure.scale])


def believe(measure: Measure, result: RunResult, folder: Path) -> RunResult:
    """A good result as it is, or as invalid with the reason why it is not believed."""
    record, expected = measurement.read_record(folder), measure.expected
    reason = measurement.check_result(result, record, expected, measurement.LIMITS[measure.scale])
    if record is None or reason:
        return dataclasses.replace(result, status="invalid", error=reason)
    if expected["before_clock"] is None:  # the baseline's: what start and training take here
        expected["before_clock"] = measurement.before_clock(record, result.seconds, expected["clock"])
        expected |= {name: result.summary.get(name) for name in ("cpu_seconds", "pace_seconds")}
        save_measure(measure)
    tokens = measurement.trained_tokens(record)  # what is printed has one decimal of a million
    return dataclasses.replace(result, summary=result.summary | ({"total_tokens_M": tokens / 1e6} if tokens else {}))
