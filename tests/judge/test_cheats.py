"""
The number can't be talked into, and nothing is harmed: each layer stops the cheats of patches.py that get as far as it.

Real trainings of a few steps or a second, and the limits of a run, with bubblewrap and without.
"""

import contextlib
import importlib
import math
import multiprocessing
import os
import re
import resource
import runpy
import shutil
import statistics
import sys
import time
import traceback
from dataclasses import replace

import numpy as np
import pytest
import torch
from patches import HONEST, ROOT, SOURCE, apply_patch, cheats, expectations, read_patch

import prepare_data
from autoresearch.files import GRAPH, RECORD
from autoresearch.judge import scorer, trust
from autoresearch.judge.trust import check_result
from autoresearch.process import LOG_LIMIT, Ended
from autoresearch.run import sandbox, training
from autoresearch.run.scoring import Scorer, train_and_score
from autoresearch.run.training import RunOptions, run_training

LIMITS = replace(trust.LIMITS["cpu"], slack=0.3, start=2.0)
LEFT = ["parts.txt", "record.json", "run.log", "train.py"]
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
    return trust.measure_expected(20)


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
    os._exit(code if isinstance(code, int) else 1)


@pytest.fixture(scope="module")
def scored(small):
    """A function: what the scorer says of the model in a folder, {} if there is none."""
    token_bytes = prepare_data.Tokenizer.from_directory().token_bytes()
    rows = np.memmap(small / "cpu/val.bin", np.uint16, "r").reshape(-1, prepare_data.MAX_SEQ_LEN + 1)

    def score(folder):
        if not all((folder / name).is_file() for name in GRAPH):
            return {"none": "it ended without evaluate_bpb()"}
        return scorer.answer(*(os.open(folder / name, os.O_RDONLY) for name in GRAPH), rows, token_bytes)

    return score


@pytest.fixture(scope="module")
def train(small, scored, tmp_path_factory):
    """A function: train a source for some steps (0: for a second), and give what a run's reader gets."""
    prepare_data.look()  # the first one takes longer

    def train_source(source, steps=2):
        folder = tmp_path_factory.mktemp("run")
        (folder / "train.py").write_text(source)
        environment = {"AUTORESEARCH_DATA_DIR": str(small), "AUTORESEARCH_STEPS": str(steps), "AUTORESEARCH_SEED": "1"}
        environment |= {"AUTORESEARCH_RECORD": RECORD, "TORCHINDUCTOR_CACHE_DIR": str(folder)}
        module_folder = ROOT if steps else small / "short"
        process = multiprocessing.get_context("fork").Process(target=child, args=(folder, module_folder, environment))
        started, used = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
        process.start()
        looks = []
        while process.is_alive() and time.monotonic() < started + 600:
            looks.append(prepare_data.look())
            process.join(0.3)
        process.kill()
        process.join()
        seconds, after = time.monotonic() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
        text = (folder / "run.log").read_text()
        ended = Ended("exit", process.exitcode, text, seconds)
        result = training.read_result(ended, text, 60)
        said = scored(folder) if result.status == "ok" else {}
        if "none" in said or "refused" in said:
            status = "crash" if "none" in said else "invalid"
            result = replace(result, status=status, error=said.get("none") or said["refused"])
        cpu_seconds = after.ru_utime + after.ru_stime - used.ru_utime - used.ru_stime
        measured = {"cpu_seconds": cpu_seconds, "pace_seconds": statistics.fmean(looks)}
        result = replace(result, val_bpb=said.get("val_bpb", math.nan), measured=measured)
        return result, trust.read_record(folder)

    return train_source


@pytest.fixture(scope="module")
def unchanged(train):
    """What the unchanged train.py gives: (result, record)."""
    return train(SOURCE)


@pytest.fixture(scope="module")
def by_the_clock(train):
    """The same for a second of training."""
    return train(SOURCE, steps=0)


def at_most(expected, run):
    """What is expected of a run of a second, after that of the baseline."""
    result, record = run
    known = expected | {"time_budget": 1, "before_clock": trust.before_clock(record, result.seconds, "cpu")}
    return known | {"costs": [trust.cost(result, known)]}


@pytest.mark.slow
@pytest.mark.parametrize("path", cheats("evaluator"))
def test_nothing_is_handed_over(path, train):
    result, _ = train(apply_patch(path), steps=4)
    assert result.status in ("crash", "again") and expectations(path)["evaluator"] in result.error


@pytest.mark.slow
@pytest.mark.parametrize("path", cheats("scorer"))
def test_the_scorer_refuses(path, train):
    result, _ = train(apply_patch(path), steps=4)
    assert result.status in ("invalid", "crash"), "refused by the scorer, or before the training already"
    assert expectations(path)["scorer"] in result.error


@pytest.mark.slow
@pytest.mark.xdist_group("by_the_clock")
@pytest.mark.parametrize("path", cheats("budget"))
def test_the_clocks_contradict(path, train, expected, by_the_clock):
    result, record = train(apply_patch(path), steps=0)
    known = at_most(expected, by_the_clock)
    reason = result.error  # of make_dataloader, which gives no batch once the budget is over
    reason = reason or check_result(result, record, known, LIMITS) or trust.contradiction(result, record, known, LIMITS)
    assert expectations(path)["budget"] in reason


@pytest.mark.slow
@pytest.mark.xdist_group("unchanged")
@pytest.mark.parametrize("path", cheats("no gain"))
def test_nothing_is_gained(path, train, expected, unchanged):
    result, record = train(apply_patch(path))
    assert result.status == "ok", result.error
    assert check_result(result, record, expected, LIMITS) == ""
    assert result.val_bpb >= unchanged[0].val_bpb - 1e-5


RUN = [pytest.param(path, id=path.stem) for path in HONEST if "# run" in read_patch(path)[0]]


@pytest.mark.slow
@pytest.mark.parametrize("path", RUN)
def test_an_honest_number_is_believed(path, train, expected):
    result, record = train(apply_patch(path))
    assert result.status == "ok", result.error
    assert check_result(result, record, expected, LIMITS) == ""


@pytest.mark.slow
@pytest.mark.xdist_group("by_the_clock")
def test_an_honest_run_by_the_clock_is_believed(train, expected, by_the_clock):
    result, record = train(SOURCE, steps=0)
    assert check_result(result, record, at_most(expected, by_the_clock), LIMITS) == ""


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


def run_cheat(path, tmp_path, victim, mode, steps=0):
    source = apply_patch(path).replace("VICTIM", str(victim))
    kill_after = 2 if "timeout" in expectations(path) else 600
    result = run_training(source, tmp_path / "run", RunOptions("cpu", 1, kill_after, mode, steps=steps, limits=BOUNDS))
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
    assert (tmp_path / "run/run.log").stat().st_size < LOG_LIMIT + 110_000


@pytest.mark.slow
@pytest.mark.parametrize("mode", [inside])
@pytest.mark.parametrize("path", cheats("sandbox"))
def test_the_sandbox_keeps_it_in(path, mode, tmp_path, victim, prepared):
    result = run_cheat(path, tmp_path, victim, mode, steps=2)
    assert result.status == "crash" and re.search(expectations(path)["sandbox"], result.error)


@pytest.mark.slow
@pytest.mark.parametrize("mode", [inside, "off"])
@pytest.mark.parametrize("path", cheats("twice"))
def test_nothing_is_carried_from_run_to_run(path, mode, small, tmp_path, monkeypatch):
    monkeypatch.setenv("AUTORESEARCH_DATA_DIR", str(small))
    for name in ("first", "second"):
        result = run_training(apply_patch(path), tmp_path / name, RunOptions("cpu", 1, 600, sandbox=mode, steps=2))
        assert result.status == "ok" and expectations(path)["twice"] not in result.tail


@pytest.mark.slow
@pytest.mark.parametrize("mode", [inside, "off"])
def test_a_real_run_is_believed(small, expected, mode, tmp_path, monkeypatch):
    monkeypatch.setenv("AUTORESEARCH_DATA_DIR", str(small))
    with contextlib.closing(Scorer()) as own:
        result = train_and_score(SOURCE, tmp_path / "run", RunOptions("cpu", 1, 600, sandbox=mode, steps=2), scorer=own)
    assert result.status == "ok", result.tail
    assert 1 < result.val_bpb < 4 and sorted(path.name for path in (tmp_path / "run").iterdir()) == LEFT
    assert check_result(result, trust.read_record(tmp_path / "run"), expected, trust.LIMITS["cpu"]) == ""
