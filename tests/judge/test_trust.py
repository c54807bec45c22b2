"""After a run: numbers, records and clocks that agree, and that do not; files that changed."""

import json
import os
import shutil
from dataclasses import replace

import pytest

from autoresearch.files import RECORD
from autoresearch.judge import trust
from autoresearch.judge.trust import check_integrity, check_result
from autoresearch.nouns import RunResult

# -----------------------------------------------------------------------------
# After a run, from numbers alone


@pytest.fixture
def honest():
    """[result, record, expected] of a run in order."""
    moments = {"imported": 2.0, "first_batch": 3.0, "clock_started": 4.0, "evaluated": 24.1, "finished": 25.0}
    record = {name: {"cpu": at, "paced": at, "wall": at + 100, "batches": 4} for name, at in moments.items()}
    record |= {"batches": 204, "training_tokens": 1000}
    expected = {"lowest_bpb": 0.5, "time_budget": 20, "clock": "paced", "before_clock": 4.2, "cpu_seconds": 24.0}
    return [RunResult("ok", 30.0, 2.0, measured={"cpu_seconds": 26.0}), record, expected]


def verdict(honest, scale="cpu", **changes):
    """check_result() after `part__name=value` changes."""
    parts = dict(zip(("result", "record", "expected"), honest, strict=True))
    for name, value in changes.items():
        part, *path = name.split("__")
        if part == "result":
            parts[part] = replace(parts[part], **{path[0]: value})
        elif not path:
            parts[part] = value
        else:
            place = parts[part]
            for key in path[:-1]:
                place = place[key]
            place[path[-1]] = value
    return check_result(*parts.values(), trust.LIMITS[scale])


def test_honest_numbers_pass(honest):
    assert verdict(honest) == ""
    assert verdict(honest, "h100", expected__clock="wall", expected__before_clock=8.0) == ""


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"record": None}, "no record"),
        ({"result__val_bpb": float("nan")}, "not plausible"),
        ({"expected__lowest_bpb": 2.1}, "no model of this text can reach"),
        ({"record__batches": 0}, "no training batch"),
        ({"record__clock_started__wall": 125.0}, "training_clock() was not read"),
        (
            {"record__evaluated__paced": 30.0, "record__finished__paced": 31.0},
            "it trained for 26.0 s; the budget is 20 s",
        ),
        ({"record__finished__paced": 26.0}, "took 1.9 s to hand the model over; 1.5 s are allowed"),
        ({"result__seconds": 20.0}, "ahead of the loop's"),
        ({"expected__before_clock": -10.0}, "4 s of work before the clock started"),
        ({"result__measured": {"cpu_seconds": 40.0}}, "40.0 s of CPU time; the baseline 24.0 s"),
        ({"result__measured": {}}, "its clock was slow"),
        (
            {"scale": "h100", "expected__clock": "wall", "result__seconds": 90.0},
            "69 s of work before the clock started; the baseline needed 4 s",
        ),
        (
            {"scale": "h100", "expected__clock": "wall", "result__seconds": 100.0, "record__imported__wall": 30.0,
             "record__clock_started__wall": 45.0},
            "it trained for 79.1 s",
        ),
    ],
)  # fmt: skip
def test_what_makes_a_number_invalid(honest, changes, words):
    assert words in verdict(honest, **changes)


def test_on_a_core_that_became_slower_the_same_work_takes_more_cpu_time(honest):
    """As the scorer saw it: 1.4 times 24 s and a second are allowed at the baseline's pace."""
    worked = {"cpu_seconds": 40.0}
    assert verdict(honest, expected__pace_seconds=0.003, result__measured=worked | {"pace_seconds": 0.004}) == ""
    for pace in (0.003, 0.001, None):  # a faster one takes nothing off, and where it is not known nothing is added
        assert "its clock was slow" in verdict(honest, result__measured=worked | {"pace_seconds": pace})
    assert "slow" in verdict(honest, expected__pace_seconds=None, result__measured=worked | {"pace_seconds": 0.004})
    assert (
        verdict(honest, expected__pace_seconds=0.003, result__measured={"cpu_seconds": 34.0, "pace_seconds": 0.001})
        == ""
    )


def test_tokens_are_those_of_the_batches_since_the_clock_started(honest):
    assert trust.trained_tokens(honest[1]) == pytest.approx(1000 * 200 / 204)


@pytest.mark.parametrize("text", ["", "[]", "{", "{}\n", '{"val_bpb": 1}', "\xff"])
def test_a_record_that_is_none(tmp_path, text):
    assert trust.read_record(tmp_path) is None
    (tmp_path / RECORD).write_text(text, encoding="latin-1")
    assert trust.read_record(tmp_path) is None


# -----------------------------------------------------------------------------
# The evaluator and the data


def test_integrity(tmp_path):
    paths = [tmp_path / name for name in ("a", "b")]
    for path in paths:
        path.write_text("text")
    expected = json.loads(json.dumps(trust.measure_files(paths)))
    assert check_integrity(paths, expected) == ""
    os.utime(paths[0], (0, 0))  # touched: hashed again, and the same
    assert check_integrity(paths, expected) == ""
    paths[1].write_text("tExt")
    os.utime(paths[1], ns=(expected[paths[1].name][0][1],) * 2)  # size and mtime as they were
    assert check_integrity(paths, expected).startswith("b has changed since")
    paths[0].unlink()
    assert check_integrity(paths, expected).startswith("a is missing, b has changed since")


def test_each_protected_file_has_a_name_of_its_own(prepared):
    paths = trust.protected_files(prepared)
    measured = json.loads(json.dumps(trust.measure_files(paths)))
    assert len(measured) == len(paths) and check_integrity(paths, measured) == ""


def test_fingerprint(prepared, tmp_path):
    copy = shutil.copytree(prepared, tmp_path / "cpu")
    assert trust.check_fingerprint(copy) == ""
    with open(copy / "val.bin", "r+b") as file:
        file.write(b"1234")
    assert "is not what meta.json says" in trust.check_fingerprint(copy)
    assert trust.protected_files(copy)[0].name == "prepare_data.py"
