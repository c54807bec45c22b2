"""After a run: numbers, records and clocks that agree, and that do not; files that changed."""

import json
import os
import shutil
from dataclasses import replace

import pytest

from autoresearch.files import RECORD
from autoresearch.judge import trust
from autoresearch.judge.trust import Measure, believe, check_integrity, check_result
from autoresearch.nouns import Run, RunResult

# -----------------------------------------------------------------------------
# After a run, from numbers alone


@pytest.fixture
def honest():
    """[result, record, expected] of a run in order."""
    moments = {"imported": 2.0, "first_batch": 3.0, "clock_started": 4.0, "evaluated": 24.1, "finished": 25.0}
    record = {name: {"cpu": at, "paced": at, "wall": at + 100, "batches": 4} for name, at in moments.items()}
    record |= {"batches": 204, "training_tokens": 1000}
    expected = {"lowest_bpb": 0.5, "time_budget": 20, "clock": "paced", "before_clock": 4.0, "costs": [250.0]}
    return [RunResult("ok", 30.0, 2.0, measured={"cpu_seconds": 26.0, "pace_seconds": 0.004}), record, expected]


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
        ({"record__evaluated__paced": 25.8, "record__finished__paced": 26.0}, "trained for 21.8 s"),
        ({"result__seconds": 20.0}, "ahead of the loop's"),
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


def contradicts(honest, costs, **measured):
    """contradiction() where runs of these costs were believed."""
    result, record, expected = honest
    result, expected = replace(result, measured=measured), expected | {"costs": costs}
    return trust.contradiction(result, record, expected, trust.LIMITS["cpu"])


def test_more_work_than_usual_contradicts_the_clock_of_the_run(honest):
    """24 s at 0.004 s a look are a cost of 250; 1.4 times that are allowed, and half a second."""
    assert contradicts(honest, [250.0], cpu_seconds=34.0, pace_seconds=0.004) == ""
    assert contradicts(honest, [250.0], cpu_seconds=40.0, pace_seconds=0.004) == (
        "it took 40.0 s of CPU time where 24.0 s are usual"
    )
    assert contradicts(honest, [], cpu_seconds=400.0, pace_seconds=0.004) == "", "nothing is known yet"
    assert contradicts(honest, [250.0], pace_seconds=0.004), "the guard has measured nothing"


def test_on_a_busy_machine_the_same_work_takes_more_cpu_time(honest):
    """As the scorer saw it while the run trained."""
    assert contradicts(honest, [250.0], cpu_seconds=40.0, pace_seconds=0.006) == ""
    assert contradicts(honest, [250.0], cpu_seconds=40.0, pace_seconds=0.002)


@pytest.mark.parametrize(
    ("moment", "kind", "at", "words"),
    [
        ("clock_started", "cpu", 30.0, "30 s of work before the clock started; the baseline needed 4 s"),
        ("finished", "paced", 28.0, "evaluate_bpb took 3.9 s to hand the model over; 3 s are allowed"),
    ],
)
def test_a_late_moment_may_be_the_machines_fault(honest, moment, kind, at, words):
    """Of what is allowed, three times as much is allowed on a machine that is three times slower."""
    honest[1][moment][kind], honest[2]["pace"] = at, 0.004
    assert contradicts(honest, [], cpu_seconds=40.0, pace_seconds=0.004) == words
    assert contradicts(honest, [], cpu_seconds=40.0, pace_seconds=0.012) == ""


def test_what_is_usual_is_learned_from_all_believed_runs(honest):
    """Not from the first one's value, and the further they are from each other, the more is allowed."""
    forty = {"cpu_seconds": 40.0, "pace_seconds": 0.004}
    assert contradicts(honest, [250.0] * 9, **forty) and contradicts(honest, [400.0, *[250.0] * 9], **forty)
    assert contradicts(honest, [250.0, 350.0, 350.0, 340.0], **forty) == ""
    assert contradicts(honest, [210.0, 290.0, 215.0, 285.0, 250.0], **forty) == "", "1.7 times: 5 times 0.14 more"


def test_a_run_whose_clocks_contradict_each_other_runs_again_once(honest):
    busy = replace(honest[0], status="busy")
    assert trust.reason_to_repeat(busy) and not trust.reason_to_repeat(honest[0])
    assert trust.busy_text("why", {}) == "the machine was busy: nothing is known of this edit (why)"
    assert trust.busy_text("why", {42: 1.8}) == "the machine was busy: seed 42 gave 1.800000 (why)"


def test_two_seeds_that_give_the_same_first_losses_are_refused(honest):
    losses = [6.93, 6.81, 6.5, 6.4, 6.3, 6.2, 6.1, 6.0, 5.9, 5.8]
    result = replace(honest[0], first_losses=losses)
    run = Run(1, 42, result)
    assert trust.same_training(result, 43, [run]).status == "invalid"
    assert "seeds 42 and 43 give the same losses" in trust.same_training(result, 43, [run]).error
    assert trust.same_training(result, 42, [run]) is result, "the same seed, made again"
    other = replace(result, first_losses=[*losses[:9], 5.7])
    assert trust.same_training(other, 43, [run]) is other
    short = replace(result, first_losses=[6.93])
    assert trust.same_training(short, 43, [Run(1, 42, short)]) is short, "guessing is the same for every seed"


def test_the_scorer_has_as_long_as_the_baseline_needed_ten_times(measure, honest, tmp_path):
    assert trust.longest_scoring(measure) == 600
    result = replace(honest[0], measured=honest[0].measured | {"scoring_seconds": 2.0})
    assert believe(measure, result, tmp_path).status == "ok" and trust.longest_scoring(measure) == 80


def test_tokens_are_those_of_the_batches_since_the_clock_started(honest):
    assert trust.trained_tokens(honest[1]) == pytest.approx(1000 * 200 / 204)


@pytest.mark.parametrize("text", ["", "[]", "{", "{}\n", '{"val_bpb": 1}', "\xff"])
def test_a_record_that_is_none(tmp_path, text):
    assert trust.read_record(tmp_path) is None
    (tmp_path / RECORD).write_text(text, encoding="latin-1")
    assert trust.read_record(tmp_path) is None


# -----------------------------------------------------------------------------
# The evaluator and the data


def test_a_search_goes_on_with_what_it_was_begun_with(prepared, tmp_path, monkeypatch):
    """In the next session, and where the version before noted whole paths and protected fewer files."""
    began = trust.load_measure(tmp_path, "cpu", 20)
    assert trust.changed_measure(trust.load_measure(tmp_path, "cpu", 20)) == ""
    old = {f"/elsewhere/{name}": known for name, known in began.files.items() if "/" not in name}
    began.path.write_text(json.dumps({"expected": began.expected, "files": old}))
    assert trust.changed_measure(trust.load_measure(tmp_path, "cpu", 20)) == ""
    old["/elsewhere/prepare_data.py"] = [[], "another"]
    began.path.write_text(json.dumps({"expected": began.expected, "files": old}))
    problem = trust.changed_measure(trust.load_measure(tmp_path, "cpu", 20))
    assert problem == "prepare_data.py has changed since this search began; undo that, or start another --tag"


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


# -----------------------------------------------------------------------------
# Of a search


@pytest.fixture
def measure(honest, tmp_path):
    (tmp_path / RECORD).write_text(json.dumps(honest[1]))
    return Measure(tmp_path / "measure.json", "cpu", honest[2] | {"before_clock": None, "costs": []}, {})


def test_believed_runs_tell_what_an_honest_one_takes(measure, honest, tmp_path):
    for seconds in (24.0, 30.0):
        result = replace(honest[0], measured={"cpu_seconds": seconds, "pace_seconds": 0.004})
        assert believe(measure, result, tmp_path).status == "ok"
    known = json.loads(measure.path.read_text())["expected"]
    assert known["before_clock"] == 4.0 and known["costs"] == [250.0, 312.5]
    slow = believe(measure, replace(result, measured={"cpu_seconds": 80.0, "pace_seconds": 0.004}), tmp_path)
    assert slow.status == "busy" and json.loads(measure.path.read_text())["expected"] == known


def test_a_run_of_another_length_is_held_against_the_same_cost(measure, honest, tmp_path):
    assert believe(measure, honest[0], tmp_path).status == "ok"
    longer = replace(honest[0], measured={"cpu_seconds": 44.0, "pace_seconds": 0.004})
    assert believe(measure, longer, tmp_path).status == "busy"
    assert believe(measure, longer, tmp_path, budget=40).status == "ok"
    assert json.loads(measure.path.read_text())["expected"]["time_budget"] == 20


def test_a_search_of_the_version_before_learns_what_honest_runs_take(measure, honest, tmp_path):
    """Its measure.json has the CPU seconds of the baseline, seen by another probe."""
    del measure.expected["costs"]
    measure.expected |= {"before_clock": 4.0, "cpu_seconds": 24.0, "pace_seconds": 0.002}
    assert believe(measure, honest[0], tmp_path).status == "ok" and len(measure.expected["costs"]) == 1
