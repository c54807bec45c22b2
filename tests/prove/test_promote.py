"""`agent_loop.py promote` on searches whose worth at any depth and budget is written into their train.py."""

import math
import os
import re
import signal
from pathlib import Path

import pytest
from loop_helpers import git, make_repository, wait_for
from prove_helpers import make_stub, report_in, run_verb, runs_in, start_verb, switched, write_kept

from autoresearch.prove.shapes import Shape, moved, not_comparable

# 0.06 at depth 2, 0.04 at depth 4; a second is worth 0.1 / t
FORMULA = "2 - 0.1*math.log(BUDGET/20) - 0.2*math.log(DEPTH) - (0.08 - 0.01*DEPTH)*A"


def depth_search(folder: Path, formula: str = FORMULA) -> None:
    first = make_stub("AB", formula, 0.001).replace("# A\n", "# A\nDEPTH = 2\n", 1)
    make_repository(folder, first)
    write_kept(folder, [first, switched(first, "A"), switched(first, "A", "B")], ["baseline", "A on", "B on"], 0.001)


@pytest.mark.slow
def test_the_time_to_the_target_is_found_at_twice_the_depth_through_kills(tmp_path, prepared):
    folder = tmp_path / "repo"
    depth_search(folder)
    before = git(folder, "rev-parse", "autoresearch/t"), git(folder, "status", "--porcelain")
    for enough in (4, 14):
        process = start_verb(folder, "promote", "--budget", "200")
        wait_for(lambda enough=enough: len(runs_in(folder, "promotion")) >= enough)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    code, out, err = run_verb(folder, "promote", "--budget", "200")
    assert code == 0, err
    report = report_in(folder, "promotion.json")
    assert report["depth"] == {"baseline": 4, "best": 4} and report["searched_depth"] == {"baseline": 2, "best": 2}
    assert report["time"]["low"] - 1 < 200 * math.exp(-0.4) < report["time"]["high"] + 1
    assert report["confirmed"] < 1.1 * 200 * math.exp(-0.4)
    assert report["gain"]["value"] == pytest.approx(0.04, abs=0.004)
    assert report["slope"]["b"] == pytest.approx(0.1, abs=0.01)
    keys = [run["key"] for run in runs_in(folder, "promotion")]
    assert len(keys) == len(set(keys))
    share = re.search(r"at depth 4 the 2 kept changes reach the baseline's [\d.]+ after (\d+) % of its time", out)
    assert share and 64 <= int(share[1]) <= 70, "exp(-0.4) is 67 %"
    assert (folder / "runs/t/promotion.png").stat().st_size > 10_000
    assert (git(folder, "rev-parse", "autoresearch/t"), git(folder, "status", "--porcelain")) == before
    status = run_verb(folder, "status")[1]
    assert f"{share[1]}% time" in status and "promotion: both at both depths" in status


@pytest.mark.slow
def test_a_change_that_does_not_transfer_is_no_gain(tmp_path, prepared):
    folder = tmp_path / "repo"
    depth_search(folder, "2 - 0.1*math.log(BUDGET/20) - 0.04*A*(DEPTH == 2)")
    code, out, err = run_verb(folder, "promote", "--budget", "100", "--times", "3", "--seeds", "2")
    assert code == 0, err
    report = report_in(folder, "promotion.json")
    assert report["depth"]["best"] == 6 and report["time"] is None and not report["gain"]["clear"]
    assert "no gain at depth 6" in out and list(report["best"]) == ["100"]


@pytest.mark.slow
def test_what_cannot_be_promoted_is_one_line(tmp_path, prepared):
    folder = make_repository(tmp_path / "repo")
    first = make_stub("A", "2 - 0.1*A")
    write_kept(folder, [first, switched(first, "A")], ["baseline", "A on"])
    code, _, err = run_verb(folder, "promote", "--budget", "100", timeout=900)
    assert code == 2 and "sets no DEPTH" in err
    code, _, err = run_verb(folder, "promote", "--depth", "4", "--times", "2", timeout=900)
    assert code == 2 and "exclude each other" in err


@pytest.mark.slow
def test_the_horizon_is_as_many_tokens_per_parameter_as_in_the_search(tmp_path, prepared):
    folder = tmp_path / "repo"
    # At depth 4: three times the parameters, half the tokens in a second. So 6 x 20 s.
    facts = "print(f'num_params_M: {1.0 if DEPTH == 2 else 3.0}\\ntotal_tokens_M: {BUDGET / DEPTH}')\n"
    first = (
        make_stub("A", FORMULA, 0.001)
        .replace("# A\n", "# A\nDEPTH = 2\n", 1)
        .replace('open("record', f'{facts}open("record', 1)
    )
    make_repository(folder, first)
    write_kept(folder, [first, switched(first, "A")], ["baseline", "A on"], 0.001)
    code, out, err = run_verb(folder, "promote")
    assert code == 0, err
    report = report_in(folder, "promotion.json")
    assert report["horizon"] == 120 and "horizon 120 s" in out
    assert report["split"] == {"tokens": pytest.approx(0.67, abs=0.03), "cost_per_token": pytest.approx(1.0)}


# The size of train.py's model at the cpu scale, as it prints it.
SIZE = """
DEPTH = 2
ASPECT_RATIO = 32
BIGRAM_ROWS = 1
WIDTH = 32 * math.ceil(DEPTH * ASPECT_RATIO / 32)
PARAMETERS = (12 * DEPTH * WIDTH + 4 * 1024 + BIGRAM_ROWS) * WIDTH
print(f"CPU | depth {DEPTH} | dim {WIDTH}")
"""


@pytest.mark.slow
def test_models_of_two_sizes_are_shown_and_not_compared(tmp_path, prepared):
    """A search kept one layer of width 96. At depth 4 that is width 384, the baseline's is 128."""
    first = make_stub("A", "2 - 0.1*A").replace("# A\n", f"{SIZE}# A\n", 1)
    first = first.replace('open("record', 'print(f"num_params_M: {PARAMETERS / 1e6:.1f}")\nopen("record', 1)
    best = (
        first.replace("DEPTH = 2", "DEPTH = 1").replace("RATIO = 32", "RATIO = 96").replace("ROWS = 1", "ROWS = 4096")
    )
    folder = make_repository(tmp_path / "repo", train=first)
    write_kept(folder, [first, best], ["baseline", "one layer of width 96, 4096 bigrams"])
    code, out, err = run_verb(folder, "promote", "--depth", "4")
    assert code == 2 and "1.3 M parameters at width 128 against 10.2 M parameters at width 384" in err, out + err
    assert "--times 2" in err and "--force" in err
    shown = re.findall(r"(baseline|best), here +(\d+) +(\d+) +([\d.]+) M", out)
    assert shown == [("baseline", "4", "128", "1.3"), ("best", "4", "384", "10.2")]
    code, out, _ = run_verb(folder, "promote", "--hours", "0.001")
    assert code == 0 and "each at twice its own depth (--times 2)" in out


def test_what_compares():
    shape = Shape(4, 128.0, 1.3, 1e4)
    assert not_comparable({"baseline": shape, "best": Shape(4, 384.0, 10.2, 1e3)}, 4)
    assert not_comparable({"best": shape, "baseline": Shape(4, math.nan, 2.0, 1e3)}, 4)
    assert not not_comparable({"baseline": shape, "best": Shape(4, 128.0, 1.9, 1e3)}, 4)
    assert not not_comparable({"baseline": shape, "best": Shape(4, math.nan, math.nan, math.nan)}, 4)
    assert not moved({"baseline": shape, "best": Shape(4, 128.0, 1.9, 1e3)})
    assert not moved({"baseline": shape, "best": Shape(4, math.nan, math.nan, math.nan)})
    assert moved({"baseline": shape, "best": Shape(2, 128.0, 1.3, 1e4)})
    assert moved({"baseline": shape, "best": Shape(4, 192.0, 1.3, 1e4)})
