"""command with real programs: scripts that behave like coding agents, well or badly."""

import os
import subprocess
import time
from pathlib import Path

import pytest
from loop_helpers import STUB, make_context, processes_in

from autoresearch.propose.command import propose_by_command
from autoresearch.propose.context import Crash, ProposalFailed
from autoresearch.settings import Settings

# Reads what it is given, talks for a while on both streams with colours, edits train.py, sums up: as coding agents do.
AGENT = """
import pathlib, sys, time
note = pathlib.Path("note.txt").read_text()
rows = pathlib.Path("results.tsv").read_text().splitlines()
for second in range(3):
    print("\\x1b[2mthinking ...\\x1b[0m", file=sys.stderr, flush=True)
    time.sleep(0.3)
train = pathlib.Path("train.py")
train.write_text(train.read_text().replace("LEVEL = oops" if "crashed" in note else "LEVEL = 2.0", "LEVEL = 1.9"))
pathlib.Path("PLAN.md").write_text("1. win")
pathlib.Path("program.md").write_text("be kind to agents")
print(f"I lowered LEVEL after {len(rows) - 1} experiments.")
"""


def test_command_sees_everything_and_gives_back_train_py(tmp_path):
    command = "cat *.md *.tsv *.txt > seen; test -f prepare_data.py && echo 'X = 1' >> train.py; echo my idea"
    proposal = propose_by_command(make_context(tmp_path, command=command, note="it crashed"))
    assert proposal.description == "my idea"
    assert proposal.source == STUB + "X = 1\n"
    seen = (tmp_path / "0001/work/seen").read_text()
    assert "Make it better." in seen and "abc1234\t2.0" in seen and "it crashed" in seen


def test_a_command_that_hangs_is_killed_with_its_children(tmp_path):
    started = time.monotonic()
    settings = Settings(proposal_timeout=1)
    with pytest.raises(ProposalFailed, match="took too long"):
        propose_by_command(make_context(tmp_path, command="sleep 600 & sleep 600", settings=settings))
    assert time.monotonic() - started < 20
    assert not processes_in(tmp_path / "0001/work")


@pytest.fixture
def agent(tmp_path) -> str:
    (tmp_path / "agent.py").write_text(AGENT)
    return f"python3 {tmp_path}/agent.py 'improve train.py' < /dev/null"


def test_an_agent_is_taken_at_its_train_py_and_nothing_else(tmp_path, agent):
    said = []
    proposal = propose_by_command(make_context(tmp_path, command=agent, log=said.append))
    assert proposal.source == STUB.replace("LEVEL = 2.0", "LEVEL = 1.9")
    assert proposal.description == "I lowered LEVEL after 1 experiments."
    assert said == ["      the command also touched PLAN.md, program.md: dropped"]
    assert "thinking" in (tmp_path / "0001/proposal.log").read_text()


def test_an_agent_mends_what_crashed(tmp_path, agent):
    crash = Crash(1, STUB.replace("LEVEL = 2.0", "LEVEL = oops"), "NameError: name 'oops' is not defined", 1)
    proposal = propose_by_command(make_context(tmp_path, command=agent, crash=crash))
    assert proposal.source == STUB.replace("LEVEL = 2.0", "LEVEL = 1.9")
    assert "name 'oops' is not defined" in (tmp_path / "0001/work/note.txt").read_text()


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("echo no credit >&2; exit 1", "ended with code 1: no credit"),
        ("true", "train.py is unchanged"),
        ("rm train.py; mkdir train.py", "the command removed train.py"),
        ("echo 'def f(' >> train.py", "does not parse"),
        ("no-such-agent -p hello", "ended with code 127"),
    ],
)
def test_what_an_agent_leaves_undone_is_said(tmp_path, command, message):
    with pytest.raises(ProposalFailed, match=message):
        propose_by_command(make_context(tmp_path, command=command))


def test_the_recipes_of_the_readme_are_shell(tmp_path):
    """Their quotes end where they should: the shell takes them apart as meant (the agents themselves are not here)."""
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    lines = [
        line.strip() for line in readme.splitlines() if line.strip().startswith(("claude -p", "codex exec", "aider "))
    ]
    assert len(lines) == 3
    for line in lines:
        name = line.split()[0]
        (tmp_path / name).write_text('#!/bin/sh\nfor word; do echo "[$word]"; done\n')
        (tmp_path / name).chmod(0o755)
        env = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
        said = subprocess.run(["/bin/sh", "-c", line], env=env, capture_output=True, text=True, check=True).stdout
        assert "train.py" in said and said.count("[") >= 4 and "program.md" in said
