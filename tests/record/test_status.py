"""status: what it says of a search, from the disk alone."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from loop_helpers import append, git, make_repository, proposer_script, run_loop, set_level, start_loop
from searches import write_search

from autoresearch.nouns import Run, RunResult
from autoresearch.record.ledger import Ledger, Sitting
from autoresearch.record.repository import Repository
from autoresearch.record.status import pace, trajectory


def status_of(folder, *args, json_too: bool = True) -> dict:
    command = [sys.executable, "agent_loop.py", "status", *(["--json"] if json_too else []), *args]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout, parse_constant=pytest.fail) if json_too else done.stdout


@pytest.mark.parametrize(
    ("gains", "kept", "word"),
    [
        ([], set(), "too early to say"),
        ([(0.9, 0.02)] * 5, {1, 2, 3, 4, 5}, "too early to say"),
        ([(0.02, -0.03)] * 11 + [(0.95, 0.02)], {12}, "improving"),
        ([(0.95, 0.02)] + [(0.2, -0.01)] * 12, {1}, "plateauing"),  # the keep is too long ago, but some may be good
        ([(0.02, -0.03)] * 11 + [(0.75, 0.004)], {12}, "plateauing"),  # what was kept is less than the noise
        ([(0.02, -0.03)] * 12, set(), "stuck"),
    ],
)
def test_trajectory_follows_from_what_is_believed_of_the_last_experiments(gains, kept, word):
    assert trajectory(dict(enumerate(gains, 1)), kept, sigma=0.01)["word"] == word


def test_a_slot_that_scores_is_busy():
    once = Run(1, 42, RunResult("ok", 60.0, 1.6, extra_seconds=36.0), ended=100.0)
    runs = [once, Run(3, 42, RunResult("crash", 4.0), ended=104.0)]
    sitting = Sitting(0.0, 1, "constants", "cpu", 2, None, None, 125.0)
    assert pace(Ledger(Repository(Path()), "t", runs=runs, sittings=[sitting]), False)["slot_busy_share"] == 100 / 250


@pytest.mark.slow
def test_status_of_a_long_search(tmp_path):
    """Counts, time and money are those of what was written; on another branch, without results.tsv."""
    folder = make_repository(tmp_path / "repo")
    rows = write_search(folder, 200)
    status = status_of(folder)
    kept = [row for row in rows if row.status == "keep"]
    assert git(folder, "branch", "--show-current") == "main" and status["search"] == "autoresearch/t"
    assert status["version"] == 2 and not status["alive"] and status["running"] == status["waiting"] == []
    assert status["experiments"]["tried"] == 199 and status["experiments"]["kept"] == len(kept) - 1
    assert status["experiments"]["failed_proposals"] == 10
    assert status["best"]["number"] == kept[-1].number and status["best"]["confirmed"]["runs"] == 3
    assert status["best"]["confirmed"]["val_bpb"] == pytest.approx(kept[-1].val_bpb + 0.0001)
    gain = rows[0].val_bpb - kept[-1].val_bpb - 0.0001
    assert status["gain"]["value"] == pytest.approx(gain, abs=1e-6)
    assert status["gain"]["low"] < gain < status["gain"]["high"] and status["gain"]["of"] == "confirmed"
    pace = status["pace"]
    assert pace["hours"] == pytest.approx((350 * 200 + 10) / 3600, rel=0.01) and pace["hours_left"] is None
    assert pace["slot_busy_share"] == pytest.approx(330 / 350, abs=0.01)
    cost = status["cost"]
    assert cost["cache_share"] == 0.9 and cost["dollars"] == pytest.approx(0.05 * 199 + 0.1)
    assert cost["dollars_per_kept"] == pytest.approx(cost["dollars"] / (len(kept) - 1))
    assert cost["failed_dollars"] == pytest.approx(0.1) and cost["failed_tokens"] == 50_000
    assert sum(each["tried"] for each in status["categories"]) == 199 and len(status["last"]) == 10
    text = status_of(folder, "--tag", "t", json_too=False)
    for part in ("best confirmed", "last ten", "by category", "slots busy 9"):
        assert part in text
    assert f"{status['trajectory']['word']}, not running" in text.splitlines()[0]


def test_status_without_a_search_names_the_mend(tmp_path):
    folder = make_repository(tmp_path / "repo")
    done = subprocess.run([sys.executable, "agent_loop.py", "status"], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 2 and "begin one: python agent_loop.py --demo" in done.stderr
    write_search(folder, 3)
    command = [sys.executable, "agent_loop.py", "report", "--tag", "nov1"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr == "error: there is no search nov1; there are: t\n"


@pytest.mark.slow
def test_status_beside_a_running_loop(tmp_path, prepared):
    """It sees what runs and changes nothing; afterwards it sees that the loop is gone, however that ended."""
    folder = make_repository(tmp_path / "repo")
    slow = append("import time; print('step 7 of it', flush=True); time.sleep(600)", "a very slow idea")
    loop = start_loop(folder, "--experiments", "9", "--command", proposer_script(folder, [slow]))
    try:
        deadline, status = time.time() + 120, {}
        while "step 7 of it" not in json.dumps(status) and time.time() < deadline:
            begun = git(folder, "for-each-ref", "refs/heads/autoresearch")
            status = status_of(folder) if begun else {}
        assert status["alive"] and status["pace"]["experiments_wanted"] == 9
        assert status["running"] == [
            {"number": 1, "seed": 42, "description": "a very slow idea", "progress": "step 7 of it"}
        ]
    finally:
        loop.kill()
        loop.communicate()
    status = status_of(folder)
    assert not status["alive"] and status["running"] == []


@pytest.mark.slow
def test_a_session_leaves_the_page_and_its_end_in_the_journal(tmp_path, prepared):
    folder = make_repository(tmp_path / "repo")
    edits = [set_level(1.5), set_level(1.2) + "; echo '<script>alert(1)</script>'"]
    command = proposer_script(folder, edits)
    done = run_loop(folder, "--experiments", "2", "--command", command, env={"PICTURES": "1"})
    assert done.returncode == 0, done.stderr
    status = status_of(folder)
    assert status["pace"]["hours"] > 0 and 0 < status["pace"]["slot_busy_share"] <= 1 and not status["alive"]
    page = (folder / "runs/t/report.html").read_text()
    assert "autoresearch/t" in page and "not running" in page and "level to 1.5" in page
    assert '<span class="plus">+LEVEL = 1.5</span>' in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page and "<script>alert" not in page


@pytest.mark.slow
def test_a_page_that_cannot_be_drawn_costs_the_page_only(tmp_path, prepared):
    folder = make_repository(tmp_path / "repo")
    (folder / "autoresearch/record/page.html").write_text("{{ nothing.at.all }}")
    git(folder, "commit", "-qam", "a page that is broken")
    command = proposer_script(folder, [set_level(1.5)])
    done = run_loop(folder, "--experiments", "1", "--command", command, env={"PICTURES": "1"})
    assert done.returncode == 0, done.stderr
    assert "report.html is not drawn: UndefinedError" in done.stdout and "1 experiment done" in done.stdout
    assert "Traceback" in (folder / "runs/t/loop.log").read_text()
