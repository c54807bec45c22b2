"""A fault of the loop itself costs one experiment: whatever it calls may raise, the search goes on, nothing is lost."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from faulty_loop import STAGES
from loop_helpers import check_invariants, git, make_repository, proposer_script, rows_of, run_loop, set_level

pytestmark = pytest.mark.slow
SCRIPT = Path(__file__).with_name("faulty_loop.py")
LEVELS = [set_level(2 - number / 10) for number in range(1, 6)]
ANEW = 'sed -i.old "s/^LEVEL = .*/LEVEL = 2.$(date +%N)/" train.py; echo another'


def run_faulty(folder, stages: list[str], *options: str, seed: int = 1, chance: float = 0.0):
    command = [sys.executable, str(SCRIPT), str(seed), str(chance), *stages, "--", "--tag", "t", *options]
    return subprocess.run(command, cwd=folder, env=os.environ | {}, capture_output=True, text=True, timeout=900)


@pytest.mark.parametrize("stage", STAGES)
def test_each_stage_may_fail_once(stage, tmp_path, prepared):
    """The fourth call of each: the baseline has passed by then, unless it is called more than once for it."""
    repo = make_repository(tmp_path / "repo")
    at = 1 if stage in ("merge", "draw", "propose") else 2 if stage in ("branch", "train.py", "ask", "queue") else 4
    done = run_faulty(repo, [f"{stage}:{at}"], "--experiments", "4", "--command", proposer_script(repo, LEVELS))
    log = (repo / "runs/t/loop.log").read_text()
    assert f"injected into {stage}" in log and "Traceback (most recent call last)" in log
    assert done.returncode == 0, done.stdout + done.stderr
    rows = rows_of(repo)
    assert len(rows) == 5 and sum(row.status == "crash" for row in rows) <= 1
    assert git(repo, "show", "autoresearch/t:results.tsv") == (repo / "results.tsv").read_text().strip()
    check_invariants(repo)


def test_three_faults_in_a_row_end_the_session_cleanly(tmp_path, prepared):
    repo = make_repository(tmp_path / "repo")
    command = proposer_script(repo, LEVELS)
    run_loop(repo, "--experiments", "1", "--command", command)
    done = run_faulty(repo, ["start"], "--experiments", "9", "--command", command, chance=1.0)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "three faults in a row, the last: a fault of the loop: " in done.stdout and "best seen" in done.stdout
    assert git(repo, "show", "autoresearch/t:results.tsv") == (repo / "results.tsv").read_text().strip()
    again = run_loop(repo, "--experiments", "5", "--command", command)  # the mended loop
    assert again.returncode == 0, again.stdout + again.stderr
    assert len(rows_of(repo)) == 6
    check_invariants(repo)


def test_a_search_under_a_rain_of_faults_keeps_its_books(tmp_path, prepared):
    repo = make_repository(tmp_path / "repo", serial=False)
    command = proposer_script(repo, [*LEVELS[:3], ANEW])
    for seed in range(20):
        done = run_faulty(repo, [*STAGES], "--experiments", "12", "--command", command, seed=seed, chance=0.1)
        if done.returncode == 0:
            break
    faults = (repo / "runs/t/loop.log").read_text().count("(traceback in loop.log)")
    assert run_loop(repo, "--experiments", "12", "--command", command).returncode == 0
    assert len(rows_of(repo)) == 13 and faults >= 3
    check_invariants(repo)
