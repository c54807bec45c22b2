"""The steps of a train.py under the profiler, really trained; and what is read from a log."""

import ast
import re

import pytest
from loop_helpers import STUB
from shipped import TRAIN

from autoresearch.run.profile_steps import STEPS, profile_source, read_profile
from autoresearch.run.training import RunOptions, run_training

OPTIONS = RunOptions(scale="cpu", seed=42, kill_after=300, steps=STEPS)


def test_the_train_py_is_in_the_file_as_it_is():
    source = """print('it\\'s', "a\\n")\n"""
    (assignment,) = [
        node
        for node in ast.parse(profile_source(source)).body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "SOURCE"
    ]
    assert ast.literal_eval(assignment.value) == source


def test_the_profile_is_what_follows_its_heading():
    assert read_profile("step 1\n") == "" and read_profile("a\n=== profile\n3 ms\n") == "3 ms\n"


@pytest.mark.slow
def test_the_time_of_a_step_is_told_by_operation(tmp_path, prepared):
    run_training(profile_source(TRAIN), tmp_path, OPTIONS)
    text = read_profile((tmp_path / "run.log").read_text())
    assert "10 steps, after 15" in text and "4096 tokens per step" in text and "TFLOP/s" in text, text
    assert "aten::mm" in text and "Optimizer.step#Muon.step" in text
    forward = {part: float(ms) for ms, part in re.findall(r"([\d.]+)  of these in forward of (\S+)", text)}
    assert 0 < forward["blocks.*.fc"] < forward["blocks.*"], "with all that it calls, the layers together"
    times = [float(line.split()[0]) for line in text.splitlines() if " % " in line and "aten::" in line]
    assert len(times) > 15 and times == sorted(times, reverse=True) and times[0] > 0
    assert "MFU" not in text  # the peak of a CPU is not known


@pytest.mark.slow
def test_what_takes_no_steps_has_no_profile(tmp_path, prepared):
    result = run_training(profile_source(STUB), tmp_path, OPTIONS)
    assert result.status == "crash" and "25 are needed" in result.error
    assert not read_profile((tmp_path / "run.log").read_text())
