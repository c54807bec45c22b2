"""A coding agent's place is taken by a script, and train.py really trains: what it is told is enough to mend a slip."""

import json
import re
import sys

import pytest
from loop_helpers import PRINTED_LOOP, check_invariants, git, make_repository, rows_of, run_loop, start_loop
from shipped import TRAIN

pytestmark = pytest.mark.slow
STEPS = {"AUTORESEARCH_STEPS": "4"}

# Has an idea, and makes a shape error two modules deep with it; mends the line that its traceback names.
AGENT = r"""
import json, pathlib, re
here, seen = pathlib.Path("."), pathlib.Path(SEEN)
train, crash = here / "train.py", here / "crash.txt"
text = train.read_text()
good, bad = "self.gate(x[..., :GATE_CHANNELS])", "self.gate(x)"
if crash.exists():
    seen.write_text(crash.read_text())
    lines = [int(number) for number in re.findall(r'train\.py", line (\d+)', crash.read_text())]
    source = text.splitlines(keepends=True)
    (at,) = {number - 1 for number in lines if bad in source[number - 1]}
    assert "mat1 and mat2 shapes" in crash.read_text()
    source[at] = source[at].replace(bad, good)
    train.write_text("".join(source))
else:
    assert good in text
    train.write_text(text.replace(good, bad).replace("GATE_RANGE = 3.0", "GATE_RANGE = 2.5"))
    said = ["a narrower gate", "hypothesis: less is more", "expected: 0.01", "category: optimizer"]
    (here / "description.txt").write_text("\n".join(said))
    (here / "notebook.md").write_text("gates look at 12 channels")
"""


def small_repository(tmp_path):
    repo = make_repository(tmp_path / "repo", train=TRAIN, serial=False)
    program = (repo / "program.md").read_text()
    for name in ("baseline_repeats", "confirm_runs"):
        program = re.sub(rf"{name}: \d+", f"{name}: 0", program)
    (repo / "program.md").write_text(program)
    git(repo, "commit", "-qam", "one run of everything")
    return repo


def test_a_shape_error_in_a_nested_module_is_mended_by_its_agent(tmp_path, prepared):
    """Also: what it says of its edit fills the columns, its notebook comes back, and `profile` keeps one."""
    repo, seen = small_repository(tmp_path), tmp_path / "seen"
    (tmp_path / "agent.py").write_text(AGENT.replace("SEEN", repr(str(seen))))
    command = f"{sys.executable} {tmp_path}/agent.py"
    done = run_loop(repo, "--experiments", "1", "--command", command, env=STEPS, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    row = rows_of(repo)[1]
    assert row.repairs == 1 and row.status in ("keep", "discard"), done.stdout
    assert (row.description, row.hypothesis, row.expected) == ("a narrower gate", "less is more", 0.01)
    assert row.steps == 4 and row.best == 0 and row.category == "optimizer"
    traceback = seen.read_text()
    assert "in attention" in traceback and "in <module>" in traceback  # from its top on
    diff = git(repo, "show", "refs/autoresearch/t/0001", "--", "train.py")
    assert "+GATE_RANGE = 2.5" in diff and "self.gate" not in diff
    assert (repo / "runs/t/notebook.md").read_text() == "gates look at 12 channels"
    profiled = start_loop(repo, "--experiment", "0", env=STEPS, program=(PRINTED_LOOP, "profile"))
    out, err = profiled.communicate(timeout=900)
    assert profiled.returncode == 0, err
    kept = (repo / "runs/t/0000/profile.txt").read_text()
    assert "ms per step" in kept and kept in out and "0000/profile.txt" in out
    folders = {path.name for path in (repo / "runs/t").iterdir() if path.is_dir()}
    assert folders - {"proposals"} == {"0000", "0001"} and not list((repo / "runs/t").glob("proposals/*"))
    check_invariants(repo)


def test_a_failed_proposal_is_in_the_journal_with_what_was_said(tmp_path, prepared):
    repo = make_repository(tmp_path / "repo")
    marker = tmp_path / "called"
    command = f"test -e {marker} || {{ touch {marker}; echo I have no idea; exit 3; }}; echo X = 1 >> train.py; echo x"
    done = run_loop(repo, "--experiments", "1", "--command", command)
    assert done.returncode == 0, done.stderr
    events = [json.loads(line) for line in (repo / "runs/t/journal.jsonl").read_text().splitlines()]
    (failed,) = [event for event in events if event["event"] == "failed"]
    assert failed["exchange"] == "I have no idea\n" and "code 3" in failed["reason"]
    assert not list((repo / "runs/t/proposals").iterdir())
