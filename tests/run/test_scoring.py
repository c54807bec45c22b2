"""From a train.py to its number: the scorer's process, a second start on a filled cache, what is left in the folder."""

import contextlib
import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from run_helpers import GOOD, inside

import prepare_data
from autoresearch.files import GRAPH
from autoresearch.nouns import RunResult
from autoresearch.run import scoring
from autoresearch.run.scoring import Scorer, scored, train_and_score
from autoresearch.run.training import RunOptions

OPTIONS = RunOptions("cpu", 7, 600, "off")
both = pytest.mark.parametrize("mode", [inside, "off"])


class Uniform(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.logits = torch.nn.Parameter(torch.zeros(1024))

    def forward(self, inputs):
        return self.logits.expand(*inputs.shape, 1024)


@pytest.fixture
def scorer(prepared):
    with contextlib.closing(Scorer()) as scorer:
        yield scorer


@pytest.mark.slow
@both
def test_one_process_scores_one_model_after_another(scorer, mode, tmp_path):
    prepare_data.hand_over(Uniform(), 1024, 16, tmp_path)
    first = scorer.score(tmp_path, replace(OPTIONS, sandbox=mode))
    process = scorer.process
    (tmp_path / "graph.json").write_text("{")
    assert "refused" in scorer.score(tmp_path, replace(OPTIONS, sandbox=mode))
    prepare_data.hand_over(Uniform(), 1024, 32, tmp_path)
    assert scorer.score(tmp_path, OPTIONS)["val_bpb"] == pytest.approx(first["val_bpb"], rel=1e-9)
    assert scorer.process is process and process.poll() is None
    scorer.close()
    assert process.poll() is not None


@pytest.mark.slow
def test_a_scorer_that_was_stopped_or_killed_begins_anew(scorer, tmp_path):
    prepare_data.hand_over(Uniform(), 1024, 16, tmp_path)
    assert scorer.score(tmp_path, OPTIONS, lambda: True) == {}
    assert scorer.score(tmp_path, OPTIONS)["val_bpb"] > 2
    scorer.process.kill()
    scorer.process.wait()
    assert scorer.score(tmp_path, OPTIONS)["val_bpb"] > 2


def test_what_is_printed_is_not_the_number(scorer, tmp_path):
    result = train_and_score(GOOD, tmp_path / "run", OPTIONS, scorer=scorer)
    assert (result.status, result.error) == ("crash", "it ended without evaluate_bpb()") and math.isnan(result.val_bpb)
    assert scorer.process.poll() is None  # it has seen how slow the machine is; there was nothing to score


def test_the_time_of_a_slot_is_known_with_first_start_and_scoring(monkeypatch, tmp_path):
    now, trainings = [100.0], [RunResult("again", 40.0), RunResult("ok", 13.0)]

    def pass_time(seconds, outcome):
        now[0] += seconds
        for name in GRAPH:
            (tmp_path / name).touch()
        return outcome

    monkeypatch.setattr(scoring, "time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(scoring, "run_training", lambda *_: pass_time(trainings[0].seconds, trainings.pop(0)))
    scorer = SimpleNamespace(watch=lambda _: None, score=lambda *_: pass_time(4.0, {"val_bpb": 1.6}))
    result = train_and_score("", tmp_path, OPTIONS, scorer=scorer)
    assert (result.seconds, result.extra_seconds, result.slot_seconds) == (13.0, 44.0, 57.0)


def test_the_pace_of_the_machine_is_the_scorers_whatever_a_run_prints(scorer, tmp_path):
    prepare_data.hand_over(Uniform(), 1024, 16, tmp_path)
    result = RunResult("ok", 1.0, printed={"pace_seconds": 1e6, "test_bpb": 0.1}, measured={"cpu_seconds": 1.0})
    measured = scored(result, tmp_path, OPTIONS, lambda: False, scorer).measured
    assert 0 < measured["pace_seconds"] < 1 and measured["cpu_seconds"] == 1.0 and "test_bpb" not in measured


@pytest.mark.slow
def test_a_run_that_begins_is_told_to_a_process_that_then_scores(scorer, tmp_path):
    prepare_data.hand_over(Uniform(), 1024, 16, tmp_path)
    scorer.watch(OPTIONS)
    assert scorer.score(tmp_path, OPTIONS)["pace_seconds"] > 0, "also where both messages came before it was ready"
    process = scorer.process
    scorer.watch(OPTIONS)
    assert scorer.score(tmp_path, OPTIONS)["val_bpb"] > 2 and scorer.process is process


@pytest.mark.slow
def test_a_run_that_always_asks_for_another_start_crashes(scorer, tmp_path):
    source = "import sys\nprint('started', flush=True)\nsys.exit(75)\n"
    result = train_and_score(source, tmp_path / "run", replace(OPTIONS, start_limit=3.5), scorer=scorer)
    assert (result.status, result.error.partition(",")[0]) == ("crash", "exit code 75 is for training_clock()")
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["run.log", "train.py"]


@pytest.mark.slow
@pytest.mark.parametrize("mode", [inside])
def test_a_second_start_finds_what_was_compiled_without_training_rows_and_nothing_else(scorer, mode, tmp_path):
    source = """
import os
import sys
from pathlib import Path
from torch._inductor.runtime.cache_dir_utils import default_cache_dir
header = Path(default_cache_dir(), "precompiled_headers", "header.h.gch")
if not header.exists():
    header.parent.mkdir(parents=True)
    rows = Path(os.environ["AUTORESEARCH_DATA_DIR"], "cpu/train.bin")
    header.write_text(f"compiled with rows: {rows.exists()}")
    Path("weights").write_text("trained")  # of a training that the clock has not seen
    Path("record.json").write_text('{"again": true}')  # as prepare_data does
    sys.exit(75)
assert not Path("weights").exists()
print("found:", header.read_text())
"""
    options = replace(OPTIONS, start_limit=3.5, sandbox=mode)
    assert "found: compiled with rows: False" in train_and_score(source, tmp_path / "run", options, scorer=scorer).tail
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["run.log", "train.py"]


SLOW_START = """
import os, time
from prepare_data import training_clock
kernel = os.environ["TORCHINDUCTOR_CACHE_DIR"] + "/kernel"
compiled = not os.path.exists(kernel)
while compiled and time.process_time() < 4.5:
    pass
open(kernel, "w").close()
training_clock()
print("compiled:", compiled)
"""


@pytest.mark.slow
def test_a_run_that_compiles_begins_again_on_the_cache_that_it_filled(scorer, tmp_path):
    limited = replace(OPTIONS, start_limit=3.5)
    assert "compiled: False" in train_and_score(SLOW_START, tmp_path / "run", limited, scorer=scorer).tail
    always = SLOW_START.replace(
        "compiled and ", ""
    )  # is it work before the clock? The second start goes on, and shows it
    assert "compiled: False" in train_and_score(always, tmp_path / "run", limited, scorer=scorer).tail
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["run.log", "train.py"]
