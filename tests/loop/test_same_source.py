"""The same train.py handed in again is the same candidate: what was run of it counts."""

import json
import re

import pytest
from loop_helpers import (
    STUB,
    check_invariants,
    make_repository,
    make_row,
    proposer_script,
    rows_of,
    run_loop,
    start_loop,
)

from autoresearch.judge.knowledge import by_source, judged, knowledge
from autoresearch.row import runs_of

BY_SEED = "import os\nSEED = int(os.environ.get('AUTORESEARCH_SEED') or 42)\n" + STUB.replace(
    "LEVEL = 2.0", "LEVEL = 2 + 0.003 * (SEED - 43)"
)


def hand_in(number: int, values: list[float], comment: str) -> str:
    """A shell line: one source, its number by its seed; a comment of its own, its prompt's noise put aside."""
    edit = f"sed -i.old 's/^LEVEL = .*/LEVEL = {values}[SEED - 42]  # {comment}/' train.py"
    return f"{edit}; cp now.md $SEEN/{number}.md; echo 'a table of bigrams'"


@pytest.mark.slow
def test_a_file_that_is_handed_in_twice_is_judged_by_all_its_runs(tmp_path, prepared):
    """As in the first search with an LLM: dropped at +0.009, kept at +0.050 when it came again, each time alone."""
    repo = make_repository(tmp_path / "repo", train=BY_SEED)
    values = [1.996, 1.975, 1.98, 1.98, 1.98]
    edits = [hand_in(1, values, "first"), hand_in(2, values, "and   again"), hand_in(3, [2.5] * 9, "another")]
    arguments, seen = ("--command", proposer_script(repo, edits)), {"SEEN": str(tmp_path)}
    done = run_loop(repo, "--experiments", "2", *arguments, env=seen)
    assert done.returncode == 0, done.stderr
    _, first, again = rows_of(repo)
    assert (first.status, list(runs_of(first))) == ("discard", [42])
    assert again.runs.startswith(first.runs + " 43:") and "after 2 runs" in again.reason
    assert again.description == "same source as 0001: a table of bigrams"
    assert "the same source as 0001, whose runs count" in done.stdout
    out, _ = start_loop(repo, "--json", program=("agent_loop.py", "status")).communicate(timeout=900)
    assert run_loop(repo, "--experiments", "3", *arguments, env=seen).returncode == 0
    noise = {n: re.search(r"noise of a run is ([\d.]+)", (tmp_path / f"{n}.md").read_text())[1] for n in (1, 2, 3)}
    assert noise == {row.number: f"{row.noise:.6f}" for row in rows_of(repo)[1:]}, "the prompt's is the row's"
    assert noise[3] == f"{json.loads(out)['noise']['sigma']:.6f}", "and that of `status` just before"
    check_invariants(repo)


@pytest.mark.slow
def test_the_same_source_in_two_slots_is_run_on_two_seeds(tmp_path, prepared):
    repo = make_repository(tmp_path / "repo", train=BY_SEED)
    edit = "sed -i.old 's/^LEVEL = .*/import time; time.sleep(2); LEVEL = 2.5/' train.py; echo slower"
    done = run_loop(repo, "--slots", "2", "--experiments", "2", "--command", proposer_script(repo, [edit]))
    assert done.returncode == 0, done.stderr
    runs = [runs_of(row) for row in rows_of(repo)[1:]]
    assert set(runs[0]) | set(runs[1]) == {42, 43}
    check_invariants(repo)


def test_runs_of_one_source_are_one_sample_and_all_teach_the_noise():
    base = make_row(commit="b", runs="42:2.000000 43:2.010000 44:1.990000")
    near = make_row(commit="n", number=1, status="discard", parent="b", runs="42:1.995000", description="wider")
    again = make_row(
        commit="a", number=2, parent="b", runs="42:1.995000 43:1.985000", description="same source as 0001: wider"
    )
    other = make_row(commit="o", number=3, parent="a", runs="42:1.900000", description="deeper")
    rows = [base, near, again, other]
    assert [row.number for row in judged(rows)] == [0, 2, 3]
    later = {0: {45: 2.02}, 2: {44: 1.99}}
    assert by_source(rows, later)[:2] == [runs_of(base) | later[0], {42: 1.995, 43: 1.985, 44: 1.99}]
    known = knowledge(rows, later, "cpu")
    assert known.noise.degrees_of_freedom == 2 + 3 + 2, "also those of a best that is one no more"
    on_another = [base, near, make_row(**{**vars(again), "parent": "other"}), other]
    assert [row.number for row in judged(on_another)] == [0, 1, 2, 3] and len(by_source(on_another, {})) == 3
