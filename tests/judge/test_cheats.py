"""
The number can't be talked into, and nothing is harmed: each layer stops the cheats of patches.py that get as far as it.

Real trainings of a few steps or a second, and the limits of a run, with bubblewrap and without.
"""

import importlib
import multiprocessing
import os
import re
import runpy
import shutil
import sys
import time
import traceback
from dataclasses import replace

import pytest
import torch
from patches import HONEST, ROOT, SOURCE, apply_patch, cheats, expectations, read_patch

import prepare_data
from autoresearch.files import RECORD
from autoresearch.judge import measurement
from autoresearch.judge.measurement import check_result
from autoresearch.nouns import RunResult
from autoresearch.process import LOG_LIMIT
from autoresearch.run import sandbox, training
from autoresearch.run.training import RunOptions, run_training
from autoresearch.text import last_lines

LIMITS = replace(measurement.LIMITS["cpu"], slack=0.3, overhead=2.0)
torch.set_num_threads(1)  # before this process forks

# -----------------------------------------------------------------------------
# Short runs, forked: torch is imported already, and the validation set is small


@pytest.fixture(scope="module")
def small(prepared, tmp_path_factory):
    """A data folder with 96 validation rows, and a prepare_data.py with a budget of one second."""
    importlib.import_module("torch._dynamo")  # which torch's optimizers import: before the forks, once
    root = tmp_path_factory.mktemp("small")
    shutil.copytree(prepared, root / "cpu")
    with open(root / "cpu/val.bin", "r+b") as file:
        file.truncate(96 * 2 * (prepare_data.MAX_SEQ_LEN + 1))
    text = (ROOT / "prepare_data.py").read_text()
    budget = f"Scale(128, 1024, {prepare_data.TIME_BUDGET},"
    assert text.count(budget) == 1
    (root / "short").mkdir()
    (root / "short/prepare_data.py").write_text(text.replace(budget, "Scale(128, 1024, 1,"))
    return root


@pytest.fixture
def expected(small, monkeypatch):
    monkeypatch.setattr(prepare_data, "DATA_DIR", small / "cpu")
    return measurement.measure_expected()


def child(folder, module_folder, environment):
    """In a forked process: run train.py with the prepare_data.py of a folder."""
    os.chdir(folder)
    os.environ.update(environment)
    sys.modules.pop("prepare_data")
    sys.path[:] = [str(module_folder), *(entry for entry in sys.path if entry != str(ROOT))]
    with open("run.log", "w", buffering=1) as log:
        os.dup2(log.fileno(), 1)
        sys.stdout = sys.stderr = log
        code = 0
        try:
            runpy.run_path("train.py", run_name="__main__")
        except SystemExit as end:
            code = end.code or 0
        except BaseException:
            traceback.print_exc()
            code = 1
        log.flush()
    os._exit(code)


@pytest.fixture(scope="module")
def train(small, tmp_path_factory):
    """A function: train a source for some steps (0: for a second), and give what a run's reader gets."""

    def train_source(source, steps=2):
        tmp_path = tmp_path_factory.mktemp("run")
        (tmp_path / "train.py").write_text(source)
        environment = {"AUTORESEARCH_DATA_DIR": str(small), "AUTORESEARCH_STEPS": str(steps), "AUTORESEARCH_SEED": "1"}
        environment["AUTORESEARCH_RECORD"] = RECORD
        module_folder = ROOT if steps else small / "short"
        arguments = (tmp_path, module_folder, environment)
        process = multiprocessing.get_context("fork").Process(target=child, args=arguments)
        started = time.monotonic()
        process.start()
        process.join(60)
        process.kill()
        process.join()
        text = (tmp_path / "run.log").read_text()
        status, error = "ok" if process.exitcode == 0 else "crash", training.find_error(last_lines(text))
        result = RunResult(status, time.monotonic() - started, summary=training.parse_summary(text), error=error)
        return result, measurement.read_record(tmp_path)

    return train_source


@pytest.fixture(scope="module")
def unchanged(train):
    """What the unchanged train.py gives: (result, record)."""
    return train(SOURCE)


@pytest.mark.slow
@pytest.mark.parametrize("path", cheats("evaluator"))
def test_the_evaluator_refuses(path, train):
    result, record = train(apply_patch(path), steps=4)
    assert result.status == "crash" and record is None
    assert expectations(path)["evaluator"] in result.error


@pytest.mark.slow
@pytest.mark.parametrize("path", cheats("record"))
def test_the_record_contradicts(path, train, expected):
    result, record = train(apply_patch(path))
    assert result.status == "ok", result.error
    reason = check_result(result.summary, record, expected, LIMITS, result.seconds)
    assert expectations(path)["record"] in reason


@pytest.mark.slow
@pytest.mark.parametrize("path", cheats("budget"))
def test_the_clocks_contradict(path, train, expected, unchanged):
    expected |= {"time_budget": 1, "before_clock": measurement.before_clock(unchanged[1], unchanged[0].seconds, "cpu")}
    result, record = train(apply_patch(path), steps=0)
    assert result.status == "ok", result.error
    reason = check_result(result.summary, record, expected, LIMITS, result.seconds)
    assert expectations(path)["budget"] in reason


@pytest.mark.slow
@pytest.mark.parametrize("path", cheats("no gain"))
def test_nothing_is_gained(path, train, expected, unchanged):
    result, record = train(apply_patch(path))
    assert check_result(result.summary, record, expected, LIMITS, result.seconds) == ""
    assert result.summary["val_bpb"] >= unchanged[0].summary["val_bpb"] - 1e-5


RUN = [pytest.param(path, id=path.stem) for path in HONEST if "# run" in read_patch(path)[0]]


@pytest.mark.slow
@pytest.mark.parametrize("path", RUN)
def test_an_honest_number_is_believed(path, train, expected):
    result, record = train(apply_patch(path))
    assert result.status == "ok", result.error
    assert check_result(result.summary, record, expected, LIMITS, result.seconds) == ""


@pytest.mark.slow
def test_an_honest_run_by_the_clock_is_believed(train, expected):
    result, record = train(SOURCE, steps=0)
    expected |= {"time_budget": 1, "before_clock": measurement.before_clock(record, result.seconds, "cpu")}
    assert check_result(result.summary, record, expected, LIMITS, result.seconds) == ""


# -----------------------------------------------------------------------------
# Real runs, with bubblewrap and without

problem = sandbox.bubblewrap_problem()
inside = pytest.param("on", marks=pytest.mark.skipif(bool(problem), reason=problem))
BOUNDS = {"processes": 16, "memory": 1_000_000_000, "data": 1_000_000_000, "disk": 200_000_000}


@pytest.fixture
def victim(tmp_path, monkeypatch):
    """Somebody's folder with a repository and notes, and a key in the environment."""
    monkeypatch.setenv("ANTHROPIC_API_KEY", "hush-hush")
    monkeypatch.setattr(training, "GRACE", 0.5)
    folder = tmp_path / "victim"
    (folder / ".git").mkdir(parents=True)
    (folder / ".git/HEAD").write_text("ref: refs/heads/main\n")
    (folder / "notes.txt").write_text("mine")
    yield folder
    assert (folder / ".git/HEAD").read_text() == "ref: refs/heads/main\n"
    assert (folder / "notes.txt").read_text() == "mine"


def run_cheat(path, tmp_path, victim, mode):
    source = apply_patch(path).replace("VICTIM", str(victim))
    kill_after = 2 if "timeout" in expectations(path) else 60
    result = run_training(source, tmp_path / "run", RunOptions("cpu", 1, kill_after, mode, limits=BOUNDS))
    assert "hush-hush" not in result.tail
    return result


@pytest.mark.slow
@pytest.mark.parametrize("mode", [inside, "off"])
@pytest.mark.parametrize("path", cheats("guard", "timeout"))
def test_the_guard_ends_it(path, mode, tmp_path, victim):
    result = run_cheat(path, tmp_path, victim, mode)
    layer = "timeout" if "timeout" in expectations(path) else "guard"
    assert result.status == ("timeout" if layer == "timeout" else "crash")
    assert re.search(expectations(path)[layer], result.error)
    assert (tmp_path / "run/run.log").stat().st_size < LOG_LIMIT + 100_000


@pytest.mark.slow
@pytest.mark.parametrize("mode", [inside])
@pytest.mark.parametrize("path", cheats("sandbox"))
def test_the_sandbox_keeps_it_in(path, mode, tmp_path, victim):
    result = run_cheat(path, tmp_path, victim, mode)
    assert result.status == "crash" and re.search(expectations(path)["sandbox"], result.error)


@pytest.mark.slow
@pytest.mark.parametrize("mode", [inside, "off"])
def test_a_real_run_is_believed(small, expected, mode, tmp_path, monkeypatch):
    for name, value in (("DATA_DIR", str(small)), ("STEPS", "2"), ("RECORD", RECORD)):
        monkeypatch.setenv(f"AUTORESEARCH_{name}", value)
    result = run_training(SOURCE, tmp_path / "run", RunOptions("cpu", 1, 60, mode))
    record = measurement.read_record(tmp_path / "run")
    assert result.status == "ok", result.tail
    expected |= {"time_budget": 0, "before_clock": measurement.before_clock(record, result.seconds, "cpu")}
    assert check_result(result.summary, record, expected, measurement.LIMITS["cpu"], result.seconds) == ""
