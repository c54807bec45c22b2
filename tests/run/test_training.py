"""One run: real processes that hang, fork, shout, crash and look for secrets, with bubblewrap and without."""

import ast
import math
import random
import sys
import time
from pathlib import Path

import pytest
from run_helpers import GOOD, inside, sleepers

from autoresearch import process
from autoresearch.run import training
from autoresearch.run.training import (
    RunOptions,
    parse_losses,
    parse_progress,
    parse_summary,
    run_training,
    traceback_in,
)
from autoresearch.text import last_lines


@pytest.fixture(params=[inside, "off"])
def run(tmp_path, monkeypatch, request):
    monkeypatch.setattr(training, "GRACE", 0.5)

    def run_source(source, kill_after=120, **callbacks):
        return run_training(source, tmp_path / "run", RunOptions("cpu", 7, kill_after, request.param), **callbacks)

    return run_source


@pytest.fixture
def nap() -> str:
    """Seconds for `sleep` that no other process has as its argument, so that it can be told by them."""
    return f"{600 + random.random():.9f}"


def test_a_number_comes_back(run):
    result = run("print('noise\\n---\\nval_bpb: 9\\n' + 'x' * 100)\n" + GOOD)
    assert (result.status, result.printed["val_bpb"], result.memory_gb) == ("ok", 1.5, 1.0)
    assert math.isnan(result.val_bpb)  # what a run prints is not its number


def test_a_loss_is_the_mean_of_a_tenth_of_the_budget():
    log = "".join(f"\nstep {n} | {n / 2:.1f} % | loss {4 + n % 2:.4f} | 15.0 k tok/s" for n in range(1, 201))
    assert parse_losses(log) == [(10.0 * tenth, 4.5) for tenth in range(1, 11)]
    assert parse_losses("step 1 | 50.0 % | loss 3.0000 | 1 s left") == [(50.0, 3.0)] and parse_losses("no step") == []


def test_a_crash_names_its_exception(run, tmp_path):
    result = run("print('step 1')\n1 / 0\n")
    assert (result.status, result.error) == ("crash", "ZeroDivisionError: division by zero")
    assert "Traceback" in result.tail and math.isnan(result.val_bpb)
    assert (tmp_path / "run/run.log").read_text().startswith("step 1\n")


def test_the_guard_measures_the_cpu_time_whatever_is_printed(run):
    work = "import time\nwhile time.process_time() < 1: pass\n"
    forged = """open('guard.json', 'w').write('{"cpu_seconds": 0.1}')\n"""
    result = run(work + forged + GOOD + "print('cpu_seconds: 0.1', end='')")
    assert 1 <= result.measured["cpu_seconds"] < 3 and result.printed["cpu_seconds"] == 0.1


def test_the_guard_writes_through_no_link_of_the_run(run, tmp_path):
    (tmp_path / "outside").write_text("precious")
    result = run(f"import os\nos.symlink('{tmp_path}/outside', 'guard.json')\n" + GOOD)
    assert result.measured["cpu_seconds"] > 0 and (tmp_path / "outside").read_text() == "precious"


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.slow
def test_the_cpu_time_of_a_child_that_nobody_waits_for_counts(run):
    """It is in no parent's sum. The guard looks every two seconds at the latest: so long lives the child."""
    source = """
import os, signal, time
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
alive, end = os.pipe()
if os.fork() == 0:
    while time.process_time() < 1: pass
    time.sleep(2.5)
    os._exit(0)
os.close(end)
os.read(alive, 1)
"""
    assert 1 <= run(source + GOOD).measured["cpu_seconds"] < 3


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.slow
def test_the_cpu_time_of_children_that_live_shorter_than_the_guard_looks_counts(run):
    """One that is new and at work stands for those that came and went since the last look."""
    source = """
import os, signal, time
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
for child in range(200):
    alive, end = os.pipe()
    if os.fork() == 0:
        while time.process_time() < 0.02: pass
        os._exit(0)
    os.close(end)
    os.read(alive, 1)
    os.close(alive)
"""
    assert 1.3 < run(source + GOOD).measured["cpu_seconds"] < 12, "4 s; without the others it is 0.4 s"


def test_a_run_made_again_finds_nothing_of_the_one_before(run, tmp_path):
    """It was busy, as it trained for too long: what it learned is gone. The loop's own files stay."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run/proposal.json").write_text("{}")
    source = "import os\nprint('found:', os.path.exists('weights'))\nos.makedirs('weights/deep')\n"
    assert "found: False" in run(source).tail
    assert "found: False" in run(source).tail and (tmp_path / "run/proposal.json").read_text() == "{}"


def test_a_number_printed_before_a_failure_does_not_count(run):
    assert run(GOOD + "import sys; sys.exit(1)").status == "crash"


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.slow
def test_timeout_kills_children_that_ignore_sigterm(run, nap):
    source = f"""
import os, signal
signal.signal(signal.SIGTERM, signal.SIG_IGN)
for generation in range(3):
    if os.fork() == 0:
        continue  # each child has a child of its own
    break
os.execvp("sleep", ["sleep", "{nap}"])
"""
    seen = []
    result = run(source, kill_after=8, should_stop=lambda: seen.append(sleepers(nap)))
    assert result.status == "timeout" and result.error == "killed after 8 s"
    assert result.seconds < 300
    assert max(seen) == 4 and sleepers(nap) == 0


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_children_left_behind_by_a_good_run_are_gone(run, nap):
    result = run(f"import subprocess, time\nsubprocess.Popen(['sleep', '{nap}'])\ntime.sleep(0.3)\n" + GOOD)
    assert result.status == "ok" and sleepers(nap) == 0


def test_closing_its_output_does_not_hide_a_run_from_the_clock(run):
    result = run("import os, time\nos.close(1); os.close(2)\ntime.sleep(600)", kill_after=1)
    assert result.status == "timeout" and result.seconds < 300


def test_a_stop_is_heard_within_a_moment(run):
    started = time.monotonic()
    result = run("import time; time.sleep(600)", should_stop=lambda: time.monotonic() - started > 0.5)
    assert result.status == "interrupted" and result.seconds < 300


def test_a_log_has_a_limit_and_keeps_its_end(run, tmp_path, monkeypatch):
    monkeypatch.setattr(process, "LOG_LIMIT", 100_000)
    result = run("for i in range(100_000): print('spam', i)\n" + GOOD)
    log = (tmp_path / "run/run.log").read_text()
    assert result.printed["val_bpb"] == 1.5
    assert len(log) < 100_000 + process.TAIL + 200
    assert log.startswith("spam 0\n") and "[... cut: " in log and "val_bpb: 1.5" in log


def test_no_secret_reaches_a_run(run, monkeypatch):
    for name in ("ANTHROPIC_API_KEY", "AWS_SECRET_ACCESS_KEY", "HF_TOKEN", "GITHUB_TOKEN", "SOME_PASSWORD"):
        monkeypatch.setenv(name, "hush-hush")
    result = run("import os; print(dict(os.environ))")
    assert "hush-hush" not in result.tail
    assert "'AUTORESEARCH_SEED': '7'" in result.tail and "'AUTORESEARCH_SCALE': 'cpu'" in result.tail


@pytest.mark.slow
def test_at_the_cpu_scale_a_run_compiles_in_its_own_process(run):
    """Other processes' CPU time would count as work that slows its clock down."""
    code = "import torch._inductor.config as config; print('threads', config.compile_threads)"
    assert "threads 1\n" in run(code).tail + "\n"


def test_progress_is_seen_while_it_runs(run):
    lines = []
    run(
        "import time\nfor i in range(3): print(f'\\rstep {i} | loss', end='', flush=True); time.sleep(0.3)",
        on_progress=lines.append,
    )
    assert {"step 0 | loss", "step 2 | loss"} <= set(lines)


def test_text_is_read_as_a_terminal_shows_it():
    assert last_lines("a\rb\rc\nd\n\ne\r\n") == "c\nd\ne"
    assert parse_progress("x\n\rstep 1\rstep 2  ") == "step 2"
    assert parse_summary("\n---\na: 1\n\n---\nb: 2.5\nc: nan\nd: text\n").keys() == {"b", "c"}


# -----------------------------------------------------------------------------
# What a crash hands back


def test_a_traceback_is_found_wherever_it_begins():
    log = Path(__file__).with_name("crash_with_a_long_traceback.log").read_text()  # of a real search: 38 lines
    assert traceback_in(log) == log[log.index("Traceback") :].rstrip()
    assert traceback_in("all went well\n") == ""


def test_a_long_traceback_keeps_the_lines_of_train_py():
    library = '  File "/lib/torch/_inductor/compile_fx.py", line 1, in compile\n    return inner(graph)\n' * 400
    ours = '  File "runs/t/0001/seed42/train.py", line {0}, in step\n    loss = model(batch)[{0}]\n'
    log = f"step 1\nTraceback (most recent call last):\n{ours.format(7)}{library}{ours.format(8)}{library}"
    log += "torch._dynamo.exc.Unsupported: a graph break\n\nThe above exception was the direct cause of the following "
    log += f"exception:\n\nTraceback (most recent call last):\n{ours.format(9)}{library}InductorError: no\n"
    text = traceback_in(log)
    assert len(text) < 2 * training.TRACEBACK and text.startswith("Traceback") and text.endswith("InductorError: no")
    assert all(ours.format(number) in text for number in (7, 8, 9)) and "Unsupported: a graph break" in text
    assert "frames of libraries are left out" in text


def test_budget_steps_and_seed_are_those_of_the_options(tmp_path, monkeypatch):
    """Also where this process was started with others: a run is told what it shall do, it does not find it."""
    for name in ("BUDGET", "STEPS", "SEED", "RECORD", "START_LIMIT"):
        monkeypatch.setenv(f"AUTORESEARCH_{name}", "99")
    tell = (
        "import os\nprint({name[13:]: value for name, value in os.environ.items() if name[:13] == 'AUTORESEARCH_'})\n"
    )
    options = RunOptions("cpu", 7, 600, "off", budget=5, steps=3)
    seen = ast.literal_eval(run_training(tell, tmp_path / "run", options).tail.splitlines()[0])
    assert (seen["SCALE"], seen["SEED"], seen["BUDGET"], seen["STEPS"]) == ("cpu", "7", "5", "3")
    seen = ast.literal_eval(run_training(tell, tmp_path / "run", RunOptions("cpu", 7, 600, "off")).tail.splitlines()[0])
    assert not {"BUDGET", "STEPS", "START_LIMIT"} & seen.keys()
