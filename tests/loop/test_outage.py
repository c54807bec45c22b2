"""A command whose agent is out: its last words are on the screen and in `status`, and no later agent reads of it."""

import subprocess
import sys

import pytest
from loop_helpers import check_invariants, make_repository, proposer_script, rows_of, run_loop, set_level


@pytest.mark.slow
def test_an_outage_is_waited_out_and_stays_out_of_what_agents_read(tmp_path, prepared):
    repo, calls, seen = make_repository(tmp_path / "repo"), tmp_path / "calls", tmp_path / "seen"
    status = f"cd {repo}; {sys.executable} agent_loop.py status > {tmp_path}/status"
    cases = [
        "echo 'usage limit reached|1764430000'",  # and exit code 0
        "echo 'Credit balance is too low'; exit 1",
        f"cat history.md now.md > {seen}; ({status}); {proposer_script(repo, [set_level(1.9)])}",
    ]
    script = tmp_path / "agent.sh"
    lines = "".join(f"{number}) {case} ;;\n" for number, case in enumerate(cases, 1))
    script.write_text(f"echo x >> {calls}\ncase $(wc -l < {calls} | tr -d ' ') in\n{lines}esac\n")
    done = run_loop(repo, "--experiments", "1", "--command", f"sh {script}", timeout=900)
    assert [row.val_bpb for row in rows_of(repo)] == [2.0, 1.9], done.stdout + done.stderr
    for words in ("unchanged; it said: usage limit reached", "ended with code 1: Credit balance is too low"):
        assert words in done.stdout
    assert "Credit balance is too low" in (tmp_path / "status").read_text()
    assert "limit" not in seen.read_text() and "balance" not in seen.read_text()
    check_invariants(repo)
    status = subprocess.check_output([sys.executable, "agent_loop.py", "status"], cwd=repo, text=True)
    assert "2 failed proposals" in status and "Credit" not in status  # it has passed
