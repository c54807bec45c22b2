"""One run: real processes that hang, fork, ignore signals, shout, crash and look for secrets."""

import math
import time

import pytest
from loop_helpers import alive

import run_experiment
from run_experiment import last_lines, parse_progress, parse_summary

GOOD = "print('---\\nval_bpb: 1.5\\npeak_vram_mb: 1024.0')\n"


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setattr(run_experiment, "GRACE", 0.5)

    def run_source(source, kill_after=60, **options):
        return run_experiment.run_experiment(source, 7, "cpu", tmp_path / "run", kill_after, **options)

    return run_source


def gone(pid: int, seconds: float = 10) -> bool:
    deadline = time.monotonic() + seconds
    while alive(pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not alive(pid)


def test_a_number_comes_back(run):
    result = run("print('noise\\n---\\nval_bpb: 9\\n' + 'x' * 100)\n" + GOOD)
    assert (result.status, result.val_bpb, result.memory_gb) == ("ok", 1.5, 1.0)


def test_a_crash_names_its_exception(run, tmp_path):
    result = run("print('step 1')\n1 / 0\n")
    assert (result.status, result.error) == ("crash", "ZeroDivisionError: division by zero")
    assert "Traceback" in result.tail and math.isnan(result.val_bpb)
    assert (tmp_path / "run/run.log").read_text().startswith("step 1\n")


def test_a_nan_is_handed_on_as_it_is(run):
    assert math.isnan(run("print('---\\nval_bpb: nan')").val_bpb)


@pytest.mark.parametrize("source", ["import sys; sys.exit(0)", "print('val_bpb: 1.0')", "print('---\\nval_bpb: low')"])
def test_no_summary_is_a_crash(run, source):
    result = run(source)
    assert (result.status, result.error) == ("crash", "it ended without a val_bpb line")


def test_a_number_printed_before_a_failure_does_not_count(run):
    assert run(GOOD + "import sys; sys.exit(1)").status == "crash"


def test_timeout_kills_children_that_ignore_sigterm(run, tmp_path):
    source = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
for generation in range(3):
    if os.fork() == 0:
        continue  # each child has a child of its own
    break
open(f"pid{os.getpid()}", "w").close()
while True:
    time.sleep(100)
"""
    result = run(source, kill_after=2)
    pids = [int(path.name[3:]) for path in (tmp_path / "run").glob("pid*")]
    assert result.status == "timeout" and result.error == "killed after 2 s"
    assert result.seconds < 20
    assert len(pids) == 4 and all(gone(pid) for pid in pids)


def test_children_left_behind_by_a_good_run_are_gone(run, tmp_path):
    result = run("import subprocess\nopen('pid', 'w').write(str(subprocess.Popen(['sleep', '600']).pid))\n" + GOOD)
    assert result.status == "ok"
    assert gone(int((tmp_path / "run/pid").read_text()))


def test_closing_its_output_does_not_hide_a_run_from_the_clock(run):
    result = run("import os, time\nos.close(1); os.close(2)\ntime.sleep(600)", kill_after=1)
    assert result.status == "timeout" and result.seconds < 20


def test_a_stop_is_heard_within_a_moment(run):
    started = time.monotonic()
    result = run("import time; time.sleep(600)", should_stop=lambda: time.monotonic() - started > 0.5)
    assert result.status == "interrupted" and result.seconds < 10


def test_a_log_has_a_limit_and_keeps_its_end(run, tmp_path, monkeypatch):
    monkeypatch.setattr(run_experiment, "LOG_LIMIT", 100_000)
    result = run("for i in range(100_000): print('spam', i)\n" + GOOD)
    log = (tmp_path / "run/run.log").read_text()
    assert result.val_bpb == 1.5
    assert len(log) < 100_000 + run_experiment.TAIL + 200
    assert log.startswith("spam 0\n") and "[... cut: " in log and "val_bpb: 1.5" in log


def test_no_secret_reaches_a_run(run, monkeypatch):
    for name in ("ANTHROPIC_API_KEY", "AWS_SECRET_ACCESS_KEY", "HF_TOKEN", "GITHUB_TOKEN", "SOME_PASSWORD"):
        monkeypatch.setenv(name, "hush-hush")
    result = run("import os; print(dict(os.environ))")
    assert "hush-hush" not in result.tail
    assert "'AUTORESEARCH_SEED': '7'" in result.tail and "'AUTORESEARCH_SCALE': 'cpu'" in result.tail


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
