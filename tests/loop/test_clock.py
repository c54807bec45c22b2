"""A clock that is set while a search runs: a wait does not grow by an hour, a session does not end hours too early."""

import time
from pathlib import Path

import pytest
from loop_helpers import check_invariants, make_repository, proposer_script, rows_of, set_level, start_loop

SCRIPT = str(Path(__file__).with_name("stepping_loop.py"))


@pytest.mark.slow
@pytest.mark.parametrize("step", [-3600, 5 * 3600])
def test_a_clock_that_is_set_costs_nothing(tmp_path, prepared, step):
    repo, step_file, calls = make_repository(tmp_path / "repo"), tmp_path / "step", tmp_path / "calls"
    fails_twice = f"echo x >> {calls}; if [ $(wc -l < {calls}) -lt 3 ]; then exit 1; fi; "
    command = f"(sleep 1; echo {step} > {step_file}.new; mv {step_file}.new {step_file}) & {fails_twice}"
    command += proposer_script(repo, [set_level(1.9), set_level(1.8)])
    began = time.monotonic()
    loop = start_loop(
        repo, "--hours", "1", "--experiments", "2", "--command", command, program=[SCRIPT, str(step_file)]
    )
    out, err = loop.communicate(timeout=900)
    assert loop.returncode == 0 and "2 experiments done" in out, out + err
    assert [row.val_bpb for row in rows_of(repo)] == [2.0, 1.9, 1.8]
    assert out.count("no proposal") == 2 and time.monotonic() - began < 300
    check_invariants(repo)
