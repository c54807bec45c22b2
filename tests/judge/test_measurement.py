"""After a run: numbers, records and clocks that agree, and that do not; files that changed."""

import json
import os
import shutil

import pytest

from autoresearch.files import RECORD
from autoresearch.judge import measurement
from autoresearch.judge.measurement import check_integrity, check_result

# -----------------------------------------------------------------------------
# After a run, from numbers alone


@pytest.fixture
def honest():
    """(summary, record, expected, seconds) of a run in order."""
    moments = {"imported": 2.0, "first_batch": 3.0, "clock_started": 4.0, "evaluated": 24.1, "finished": 26.0}
    counts = {"batches": 1, "optimizer_steps": 4}
    record = {name: {"cpu": at, "paced": at, "wall": at + 100} | counts for name, at in moments.items()}
    record |= {
        "val_bpb": 2.0,
        "nats": 2.0 * 1000 * 0.6931471805599453,
        "bytes": 1000,
        "tokens": 400,
        "fingerprint": "f",
    }
    record |= {"val_reads": 1, "evaluations": 1, "batches": 200, "training_tokens": 1000, "optimizer_steps": 4}
    expected = {"fingerprint": "f", "bytes": 1000, "tokens": 400, "lowest_bpb": 0.5, "time_budget": 20}
    summary = {"val_bpb": 2.0, "training_seconds": 20.1, "num_steps": 200.0}
    return summary, record, expected | {"clock": "paced", "before_clock": 4.2}, 30.0


def verdict(honest, seconds=None, **changes):
    """check_result() after `part__name=value` changes."""
    parts = dict(zip(("summary", "record", "expected"), honest, strict=False))
    for name, value in changes.items():
        *path, last = name.split("__")
        part = parts
        for key in path:
            part = part[key]
        part[last] = value
    return check_result(*parts.values(), measurement.LIMITS["cpu"], honest[3] if seconds is None else seconds)


def test_honest_numbers_pass(honest):
    assert verdict(honest) == ""
    assert verdict(honest, expected__clock="wall", expected__before_clock=8.0) == ""


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"record": None}, "no record"),
        ({"summary__val_bpb": 1.9}, "it printed val_bpb 1.9, but evaluate_bpb measured 2.000000"),
        ({"summary__val_bpb": float("nan")}, "it printed val_bpb nan"),
        ({"record__evaluations": 2}, "measured 2 times"),
        ({"record__fingerprint": "g"}, "not the validation set"),
        ({"record__bytes": 2000}, "not the validation set"),
        ({"record__nats": 1.0}, "does not add up"),
        ({"expected__lowest_bpb": 2.1}, "no model of this text can reach"),
        ({"record__val_reads": 2}, "validation rows were read"),
        ({"record__batches": 0}, "no training batch"),
        (
            {"record__evaluated": {"cpu": 24.0, "paced": 30.0, "wall": 130.0}},
            "it trained for 26.0 s; the budget is 20 s",
        ),
        ({"summary__training_seconds": 10.0}, "it printed 10.0 training_seconds, but they were 20.1"),
        ({"record__clock_started__optimizer_steps": 200}, "200 optimizer steps on 1 batches"),
        ({"record__clock_started__wall": 125.0}, "training_clock() was not read"),
        ({"seconds": 20.0}, "ahead of the loop's"),
        (
            {"expected__clock": "wall", "seconds": 50.0},
            "28 s of work before the clock started; the baseline needed 4 s",
        ),
        ({"expected__before_clock": -10.0}, "4 s of work before the clock started"),
    ],
)
def test_what_makes_a_number_invalid(honest, changes, words):
    assert words in verdict(honest, **changes)


@pytest.mark.parametrize("text", ["", "[]", "{", "{}\n", '{"val_bpb": 1}', "\xff"])
def test_a_record_that_is_none(tmp_path, text):
    assert measurement.read_record(tmp_path) is None
    (tmp_path / RECORD).write_text(text, encoding="latin-1")
    assert measurement.read_record(tmp_path) is None


# -----------------------------------------------------------------------------
# The evaluator and the data


def test_integrity(tmp_path):
    paths = [tmp_path / name for name in ("a", "b")]
    for path in paths:
        path.write_text("text")
    expected = json.loads(json.dumps(measurement.measure_files(paths)))
    assert check_integrity(paths, expected) == ""
    os.utime(paths[0], (0, 0))  # touched: hashed again, and the same
    assert check_integrity(paths, expected) == ""
    paths[1].write_text("tExt")
    os.utime(paths[1], ns=(expected[str(paths[1])][0][1],) * 2)  # size and mtime as they were
    assert check_integrity(paths, expected).startswith("b has changed since")
    paths[0].unlink()
    assert check_integrity(paths, expected).startswith("a is missing, b has changed since")


def test_fingerprint(prepared, tmp_path):
    copy = shutil.copytree(prepared, tmp_path / "cpu")
    assert measurement.check_fingerprint(copy) == ""
    with open(copy / "val.bin", "r+b") as file:
        file.write(b"1234")
    assert "is not what meta.json says" in measurement.check_fingerprint(copy)
    assert measurement.protected_files(copy)[0].name == "prepare_data.py"
