"""benchmarks/first_hour.py from its beginning to its end, at the cpu scale and for real, in a clone of a repository."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from loop_helpers import make_repository
from shipped import TRAIN

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.slow


def first_hour(repo, out, *options):
    command = [sys.executable, repo / "benchmarks/first_hour.py", "--dry", "--out", out, *options]
    return subprocess.run(command, env=os.environ | {"PYTHONPATH": ""}, capture_output=True, text=True, timeout=1800)


@pytest.fixture
def repo(tmp_path, prepared):
    repo = make_repository(tmp_path / "repo", TRAIN)
    (repo / "benchmarks").mkdir(exist_ok=True)
    (repo / "benchmarks/first_hour.py").write_bytes((ROOT / "benchmarks/first_hour.py").read_bytes())
    return repo


def test_a_dry_first_hour_leaves_its_results_in_one_folder(repo, tmp_path):
    before = subprocess.run(["git", "for-each-ref"], cwd=repo, capture_output=True, text=True).stdout
    (repo / "broken.py").write_text("raise SystemExit('this recipe is broken')\n")
    done = first_hour(repo, tmp_path / "out", "--recipe", repo / "broken.py")
    assert done.returncode == 0, done.stdout + done.stderr
    summary = (tmp_path / "out/summary.txt").read_text()
    codes = dict(line.split()[0:4:3] for line in summary.splitlines() if " exit code " in line)
    fit = {"0", "1"}  # 1: it works, but a line is slow, as without bubblewrap
    assert {codes.pop("check_cold"), codes.pop("check")} <= fit
    assert codes == dict.fromkeys(["data", "train_shipped", "search", "report", "profile"], "0") | {"train_recipe": "1"}
    said = (tmp_path / "out/check.txt").read_text()
    check = json.loads(said[said.index("{") :])
    assert {"20 steps", "a whole run"} <= {line["name"] for line in check["lines"]}
    assert "train_shipped: 0.0" in summary and "scorer: median" in summary
    assert "this recipe is broken" in (tmp_path / "out/train_recipe.txt").read_text()
    for name in ("results.tsv", "report.html", "journal.jsonl", "profile.txt"):
        assert (tmp_path / "out" / name).stat().st_size
    assert subprocess.run(["git", "for-each-ref"], cwd=repo, capture_output=True, text=True).stdout == before


def test_what_there_is_no_time_for_is_said(repo, tmp_path):
    done = first_hour(repo, tmp_path / "out", "--minutes", "0")
    assert done.returncode == 0 and done.stdout.count("no time was left") == 7
    missing = first_hour(repo, tmp_path / "out", "--recipe", tmp_path / "nowhere.py")
    assert missing.returncode and missing.stderr == f"error: {tmp_path}/nowhere.py is not there\n"
