"""command with real programs."""

import time

import pytest
from loop_helpers import STUB, make_context

from proposers import ProposalFailed, propose_by_command
from settings import Settings


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
