"""prepare_data.py as train.py sees it: environment, batches and the clock. The metric has a file of its own."""

import contextlib
import itertools
import json
import os
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from data_helpers import assert_refused, command
from torch.utils import deterministic
from torch.utils._python_dispatch import TorchDispatchMode

import prepare_data
from prepare_data import MAX_SEQ_LEN, make_dataloader


@pytest.mark.parametrize(("name", "value"), [("AUTORESEARCH_SCALE", "b200"), ("AUTORESEARCH_SEED", "x")])
def test_bad_environment(name, value):
    assert_refused(command(env=os.environ | {name: value}), f"{name}={value}")


# -----------------------------------------------------------------------------
# Batches


@pytest.fixture
def started(monkeypatch):
    """The clock has started."""
    monkeypatch.setattr(prepare_data, "noted", {"batches": 0, "training_tokens": 0, "imported": {}})
    monkeypatch.setitem(prepare_data.noted, "clock_started", {"paced": prepare_data.paced_seconds()})


def test_before_the_clock_starts_there_is_nothing_to_learn(tokenizer, monkeypatch):
    monkeypatch.setattr(prepare_data, "noted", {"batches": 0, "training_tokens": 0, "imported": {}})
    loader = make_dataloader(tokenizer, 64, MAX_SEQ_LEN, "train")
    chance, before = next(loader)[0], next(loader)[0]
    assert chance.shape == (64, MAX_SEQ_LEN) and not torch.equal(chance, before)
    counts = torch.bincount(torch.cat((chance, before)).flatten(), minlength=1024)
    assert counts.max() < 50  # of 16 on average; in text the most frequent token is a hundredth of all
    prepare_data.noted["clock_started"] = {}
    first = torch.tensor(prepare_data.load_rows("train")[:64, :-1].astype(np.int64))
    assert torch.equal(next(loader)[0].cpu(), first)


def test_a_run_has_the_training_rows_alone_and_no_batch_once_its_model_is_handed_over(
    tokenizer, monkeypatch, tmp_path, started
):
    monkeypatch.setattr(prepare_data, "RECORD", tmp_path / "record.json")
    with pytest.raises(AssertionError, match="training rows alone"):
        next(make_dataloader(tokenizer, 8, MAX_SEQ_LEN, "val"))
    loader = make_dataloader(tokenizer, 8, MAX_SEQ_LEN, "train")
    next(loader)
    prepare_data.noted["evaluated"] = {}
    with pytest.raises(RuntimeError, match="the training is over"):
        next(loader)


def test_once_the_budget_is_over_there_are_batches_for_the_end_of_a_step_alone(
    tokenizer, monkeypatch, tmp_path, started
):
    monkeypatch.setattr(prepare_data, "RECORD", tmp_path / "record.json")
    loader = make_dataloader(tokenizer, 8, MAX_SEQ_LEN, "train")
    now = prepare_data.noted["clock_started"]["paced"]
    prepare_data.noted |= {"clock_started": {"paced": now - 1.03 * prepare_data.TIME_BUDGET}, "clock_reads": 70}
    next(loader)
    prepare_data.noted["clock_started"]["paced"] -= 0.02 * prepare_data.TIME_BUDGET
    with pytest.raises(RuntimeError, match=r"no batch after 21.* s: the budget is 20 s of training_clock"):
        next(loader)


def test_a_second_hand_over_moves_the_moments(tokenizer, monkeypatch, tmp_path, started):
    monkeypatch.setattr(prepare_data, "RECORD", tmp_path / "record.json")
    monkeypatch.setitem(prepare_data.noted, "evaluated", {"wall": 0.0})
    prepare_data.hand_over(torch.nn.Embedding(1024, 1024), 1024, 8, tmp_path)
    assert json.loads((tmp_path / "record.json").read_text())["evaluated"]["wall"] > 0


def test_batches_of_chance_before_the_clock_are_told(tokenizer, monkeypatch, capsys):
    monkeypatch.setattr(prepare_data, "noted", {"batches": 0, "training_tokens": 0, "imported": {"wall": 0.0}})
    next(make_dataloader(tokenizer, 8, MAX_SEQ_LEN, "train"))
    prepare_data.training_clock()
    prepare_data.training_clock()
    assert capsys.readouterr().out == "the batches before the clock held tokens by chance: 1\n"


def test_batches(tokenizer, started):
    loader = make_dataloader(tokenizer, 8, MAX_SEQ_LEN, "train")
    again = make_dataloader(tokenizer, 8, MAX_SEQ_LEN, "train")
    rows = prepare_data.load_rows("train")
    for number in range(3):
        inputs, targets, epoch = next(loader)
        assert inputs.shape == targets.shape == (8, MAX_SEQ_LEN) and epoch == 1
        assert inputs.dtype == targets.dtype == torch.int64
        expected = torch.tensor(rows[8 * number : 8 * number + 8].astype(np.int64))
        assert torch.equal(inputs.cpu(), expected[:, :-1]) and torch.equal(targets.cpu(), expected[:, 1:])
        assert torch.equal(inputs, next(again)[0])


@pytest.mark.parametrize("T", [MAX_SEQ_LEN, MAX_SEQ_LEN // 4])
def test_epochs_and_shorter_rows(tokenizer, T, started):
    rows = prepare_data.load_rows("val")
    B = 100
    per_epoch = len(rows) * (MAX_SEQ_LEN // T) // B
    batches = list(itertools.islice(make_dataloader(tokenizer, B, T, "val"), 2 * per_epoch + 1))
    assert [epoch for _, _, epoch in batches] == [1] * per_epoch + [2] * per_epoch + [3]
    targets = torch.cat([targets for _, targets, _ in batches[:per_epoch]]).cpu().numpy()
    expected = rows[:, 1:].reshape(-1, T)[: len(targets)]
    assert targets.shape == (per_epoch * B, T) and np.array_equal(targets, expected)
    assert torch.equal(batches[0][1], batches[per_epoch][1])


def test_impossible_batches(tokenizer, started):
    for B, T in ((1, 100), (1, 2 * MAX_SEQ_LEN), (10_000, MAX_SEQ_LEN)):
        with pytest.raises(AssertionError, match=r"T=|B="):
            next(make_dataloader(tokenizer, B, T, "val"))


# -----------------------------------------------------------------------------
# The clock of the cpu scale


def busy(seconds: float) -> float:
    """Work for so much CPU time. Returns what the training clock says that it was."""
    before, until = prepare_data.training_clock(), time.process_time() + seconds
    while time.process_time() < until:
        prepare_data.training_clock()
    return prepare_data.training_clock() - before


def test_the_clock_counts_work_and_no_waiting():
    worked, before = busy(1.0), prepare_data.training_clock()
    time.sleep(0.5)
    assert prepare_data.training_clock() - before < 0.2
    assert 0.02 < worked < 20  # of a machine that much slower or faster than the one that a second is named after
    readings = [prepare_data.training_clock() for _ in range(1000)]
    assert readings == sorted(readings)


def test_what_a_compiler_took_counts_as_time_before_the_clock(monkeypatch):
    monkeypatch.setattr(prepare_data, "noted", {"batches": 0})
    prepare_data.note_first("imported")
    subprocess.run([sys.executable, "-c", "import time\nwhile time.process_time() < 1: pass"], check=True)
    prepare_data.note_first("clock_started")
    assert prepare_data.noted["clock_started"]["cpu"] - prepare_data.noted["imported"]["cpu"] > 0.9


@pytest.mark.slow
def test_where_the_same_work_takes_longer_the_clock_runs_slower(monkeypatch):
    monkeypatch.setattr(prepare_data, "pace", dict.fromkeys(prepare_data.pace, 0.0))
    normal, look = busy(1.0), prepare_data.look
    monkeypatch.setattr(prepare_data, "pace", dict.fromkeys(prepare_data.pace, 0.0))
    monkeypatch.setattr(prepare_data, "look", lambda: 3 * look())
    assert busy(1.0) == pytest.approx(normal / 3, rel=0.5)


class Operators(TorchDispatchMode):
    """Notes what torch does: each operator, the kinds of its numbers, and the settings at that moment."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kinds = [each.dtype for each in args if isinstance(each, torch.Tensor)]
        filled = torch.are_deterministic_algorithms_enabled() and deterministic.fill_uninitialized_memory
        settings = torch.get_num_threads(), torch.backends.mkldnn.matmul.fp32_precision, torch.is_anomaly_enabled()
        self.seen.append((str(function), kinds, filled, *settings))
        return function(*args, **kwargs or {})


def operators_of_a_look():
    with Operators() as operators:
        prepare_data.look()
    return operators.seen


@pytest.fixture
def as_before():
    kept = torch.get_num_threads()
    yield
    torch.set_num_threads(kept)
    torch.set_default_dtype(torch.float32)
    torch.set_float32_matmul_precision("highest")
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize(
    "change",
    [
        lambda: torch.set_default_dtype(torch.float64),
        lambda: torch.set_default_dtype(torch.bfloat16),
        lambda: torch.set_num_threads(2),
        lambda: torch.set_float32_matmul_precision("medium"),
        lambda: torch.use_deterministic_algorithms(True),
        lambda: torch.autocast("cpu", torch.bfloat16),
        torch.inference_mode,
        torch.no_grad,
        lambda: torch.autograd.set_detect_anomaly(True),
    ],
)
def test_a_look_is_the_same_work_whatever_train_py_has_set(change, as_before):
    expected = operators_of_a_look()
    with change() or contextlib.nullcontext():
        before = torch.get_default_dtype(), torch.get_num_threads(), torch.get_float32_matmul_precision()
        assert operators_of_a_look() == expected
        assert before == (torch.get_default_dtype(), torch.get_num_threads(), torch.get_float32_matmul_precision())
