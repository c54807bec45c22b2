"""propose: one proposal, shown, nothing trained; against the local server."""

import os
import subprocess
import sys

import pytest
from loop_helpers import PRINTED_LOOP, ROOT, git, make_repository

sys.path.append(str(ROOT / "tests" / "propose"))
from messages_server import refuse, replace, say, start_server, submit, thinking

pytestmark = pytest.mark.slow


def propose(repo, replies, *arguments) -> subprocess.CompletedProcess:
    """Run the verb in a repository, against a server that gives these replies."""
    server = start_server(replies)
    env = os.environ | {"ANTHROPIC_BASE_URL": server.url, "ANTHROPIC_API_KEY": "good-key"}
    command = [sys.executable, PRINTED_LOOP, "propose", *arguments]
    done = subprocess.run(command, cwd=repo, env=env, capture_output=True, text=True, timeout=900)
    server.stop()
    assert not server.problems
    return done


def test_one_proposal_is_shown_and_nothing_trained(tmp_path, prepared):
    repo = make_repository(tmp_path / "repo")
    good = say(thinking("Lower is better."), replace("LEVEL = 2.0", "LEVEL = 1.9"), submit("lower the level"))
    done = propose(repo, [good])
    assert done.returncode == 0, done.stdout + done.stderr
    for text in ("asking claude-opus-5-5, effort medium", "written to the cache", "of them thinking", "cost: $0.0"):
        assert text in done.stdout, text
    for text in ("thinking: Lower is better.", "proposal: lower the level", "-LEVEL = 2.0\n+LEVEL = 1.9"):
        assert text in done.stdout, text
    assert git(repo, "status", "--porcelain") == "" and (repo / "runs/propose/0001/exchange.json").exists()
    assert not list(repo.glob("runs/**/run.log"))  # the check's folder is gone


def test_a_refusal_is_shown_as_one(tmp_path, prepared):
    repo = make_repository(tmp_path / "repo")
    done = propose(repo, [refuse("frontier_llm", "it could assist a competing model")], "--no-check")
    assert done.returncode == 1 and "a refusal: the model declined (frontier_llm): it could assist" in done.stdout
    assert "answer 1: refusal" in done.stdout and "Traceback" not in done.stderr
