"""The lines of the terminal: what is said first, what is cut, and what is left out."""

import math

import pytest
from loop_helpers import make_row
from rich.console import Console

from autoresearch.record.lines import Log, progress_parts, result_line, say_result, speed_parts

LINE = "step 12 | 34.0 % | loss 2.1234 | 18.3 k tok/s | mfu {} % | 13 s left"
LONG = make_row(number=7, status="discard", val_bpb=2.1, gain=-0.1, description="a long description " * 10)
SLIP = "RuntimeError: mat1 and mat2 shapes cannot be multiplied (2048x64 and 12x2)"
CRASH = make_row(number=8, status="crash", val_bpb=0.0, gain=math.nan, description="a gate " * 30, reason=SLIP)


MEANWHILE = "one run; but 0004 was kept meanwhile, and it runs again on top of it"
BETTER = make_row(number=5, status="discard", val_bpb=1.9, gain=0.1, description="a gate", reason=MEANWHILE)


@pytest.mark.parametrize("width", [60, 80, 109, 110, 150])
@pytest.mark.parametrize("row", [LONG, CRASH], ids=["discard", "crash"])
def test_a_result_fits_the_terminal(row, width):
    assert len(result_line(row, width)) <= width


def test_what_is_cut_is_the_description(tmp_path):
    assert "-10.0 x noise" in result_line(LONG, 80) and "-0.100000" in result_line(LONG, 150)
    assert "mat1 and mat2" in result_line(CRASH, 80) and SLIP in result_line(CRASH, 150)
    assert result_line(CRASH).endswith(f"({SLIP})") and "a gate " * 29 in result_line(CRASH)


def test_what_was_better_and_is_not_kept_says_why():
    assert result_line(BETTER).endswith("a gate  (0004 was kept meanwhile, and it runs again on top of it)")
    assert all("0004 was kept" in result_line(BETTER, width) for width in (80, 110))


def test_the_file_has_the_whole_line(tmp_path):
    log = Log(Console(width=80, force_terminal=True, file=open(tmp_path / "screen", "w")), tmp_path / "loop.log")  # noqa: SIM115
    say_result(log, CRASH)
    log.console.file.close()
    assert result_line(CRASH) in (tmp_path / "loop.log").read_text()
    assert max(map(len, (tmp_path / "screen").read_text().splitlines())) <= 80


def test_progress_says_what_matters_first():
    assert progress_parts(LINE.format("0.0"), 9.4, "h100") == [" 34 %", "13 s left", "loss 2.1234"]
    assert progress_parts(LINE.format("0.0"), 9.4, "cpu")[1] == "13 paced s left, 9 s so far"
    assert progress_parts("out of memory: now 2 passes", 9.4, "cpu") == ["out of memory: now 2 passes"]
    assert progress_parts("", 0.0, "cpu") == []


def test_no_utilization_is_shown_where_the_peak_is_unknown():
    assert speed_parts(LINE.format("0.0")) == ["18.3 k tok/s"]
    assert speed_parts(LINE.format("41.2")) == ["18.3 k tok/s", "mfu 41.2 %"]
