"""The demo leaves the checkout as it is, however it ends. A search begins from the user's branch, not from a best."""

import json
import subprocess
import sys

import pytest
from loop_helpers import (
    STUB,
    append,
    git,
    make_repository,
    press_ctrl_c,
    processes_in,
    proposer_script,
    rows_of,
    run_loop,
    set_level,
    start_loop,
    wait_for,
)

from autoresearch.row import HEADER

SHORT = STUB.replace("20.0", "6.0")  # a demo's runs are of six seconds
MINE = SHORT + "# my own idea, not committed\n"


@pytest.fixture
def repo(tmp_path, prepared):
    """A checkout on a branch of the user's, with uncommitted edits of train.py and of results.tsv."""
    repo = make_repository(tmp_path / "repo", SHORT)
    git(repo, "switch", "-qc", "mine")
    (repo / "train.py").write_text(MINE)
    (repo / "results.tsv").write_text(HEADER + "# a line of mine\n")
    return repo


def state(repo) -> tuple:
    """All of a checkout that a demo has to leave alone."""
    texts = [(repo / name).read_text() for name in ("train.py", "results.tsv", "program.md")]
    return git(repo, "rev-parse", "--symbolic-full-name", "HEAD"), git(repo, "status", "--porcelain"), texts


def demo(repo, *edits, experiments="2"):
    return run_loop(
        repo, "--demo", "--slots", "1", "--experiments", experiments, "--command", proposer_script(repo, list(edits))
    )


def read(repo, *words) -> str:
    command = [sys.executable, "agent_loop.py", *words]
    return subprocess.run(command, cwd=repo, check=True, capture_output=True, text=True, timeout=900).stdout


@pytest.mark.slow
def test_a_demo_leaves_the_checkout_and_its_result_can_be_looked_at(repo):
    before = state(repo)
    done = run_loop(repo, "--demo", "--slots", "1", "--experiments", "2", "--command",
                    proposer_script(repo, [set_level(1.9), set_level(1.8)]), env={"PICTURES": "1"})  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert state(repo) == before and not (repo / "progress.png").exists()
    head = git(repo, "rev-parse", "--short", "HEAD")
    assert f"autoresearch/t begins from mine, commit {head} start" in done.stdout
    assert done.stdout.count("python agent_loop.py --hours 1 --proposer constants") == 1
    assert "left alone" not in done.stdout
    assert "LEVEL = 1.8" in git(repo, "show", "autoresearch/t:train.py")
    assert git(repo, "show", "autoresearch/t:results.tsv").count("\n") == 3
    status = json.loads(read(repo, "status", "--json"))
    assert status["search"] == "autoresearch/t" and status["experiments"]["kept"] == 2
    assert "runs/t/progress.png" in done.stdout and (repo / "runs/t/progress.png").read_bytes().startswith(b"\x89PNG")
    assert "LEVEL" in (repo / read(repo, "report", "--tag", "t").strip()).read_text()
    again = demo(repo, set_level(1.7), experiments="3")
    assert again.returncode == 0 and state(repo) == before, again.stderr
    assert [row.val_bpb for row in rows_of(repo / "runs/t")] == [2.0, 1.9, 1.8, 1.7]


@pytest.mark.slow
@pytest.mark.parametrize("end", [press_ctrl_c, lambda process: process.kill()], ids=["ctrl_c", "kill"])
def test_a_demo_that_is_stopped_leaves_the_checkout_and_goes_on(repo, end):
    git(repo, "stash", "-q")
    git(repo, "switch", "-q", "--detach")
    before, slow = state(repo), append("import time; time.sleep(8)", "slow")
    steps = [set_level(1.9), slow, set_level(1.8)]
    loop = start_loop(repo, "--demo", "--slots", "1", "--experiments", "3", "--command", proposer_script(repo, steps))
    wait_for(lambda: processes_in(repo / "runs/t/0002/seed42"))
    end(loop)
    loop.communicate(timeout=900)
    assert state(repo) == before
    done = run_loop(
        repo, "--demo", "--slots", "1", "--experiments", "3", "--command", proposer_script(repo, steps), timeout=900
    )
    assert done.returncode == 0 and state(repo) == before, done.stderr
    assert [row.val_bpb for row in rows_of(repo / "runs/t")][:2] == [2.0, 1.9] and len(rows_of(repo / "runs/t")) == 4


@pytest.mark.slow
def test_a_user_on_the_branch_of_a_demo_sees_it_go_on_there(repo):
    git(repo, "stash", "-q")
    assert demo(repo, set_level(1.9), experiments="1").returncode == 0
    git(repo, "switch", "-q", "autoresearch/t")
    done = demo(repo, set_level(1.8))
    assert done.returncode == 0 and git(repo, "status", "--porcelain") == "", done.stderr
    assert "LEVEL = 1.8" in (repo / "train.py").read_text()
    assert [row.val_bpb for row in rows_of(repo)] == [2.0, 1.9, 1.8]


@pytest.mark.slow
def test_a_search_begins_from_the_users_branch_unless_from_names_another(tmp_path, prepared):
    repo = make_repository(tmp_path / "repo")

    def search(*options, tag, level):
        command = ("--command", proposer_script(repo, [set_level(level)]))
        done = run_loop(repo, "--experiments", "1", *command, "--tag", tag, *options)
        assert done.returncode == 0, done.stderr
        return [row.val_bpb for row in rows_of(repo)], done.stdout

    assert search(tag="one", level=1.9)[0] == [2.0, 1.9]
    rows, out = search(tag="two", level=1.8)
    assert rows == [2.0, 1.8] and "autoresearch/two begins from main, commit " in out
    rows, out = search("--from", "autoresearch/one", tag="three", level=1.7)
    assert rows == [1.9, 1.7] and "; its train.py has what the search one kept (scale cpu)\n" in out
    rows, out = search("--from", "autoresearch/one", "--experiments", "2", tag="two", level=1.6)
    assert (
        rows == [2.0, 1.8, 1.6] and "two goes on from its own best; --from autoresearch/one is for a new --tag" in out
    )
    refused = run_loop(repo, "--tag", "four", "--experiments", "1", "--command", "x", "--from", "nowhere")
    assert refused.returncode == 2 and "--from nowhere is not a commit" in refused.stderr
    assert git(repo, "branch", "--show-current") == "autoresearch/two" and not (repo / "runs/four").exists()
