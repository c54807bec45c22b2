"""anthropic through the whole loop: the real agent_loop.py against the local server."""

import json
import re

import pytest
from anthropic_helpers import prompt_of
from loop_helpers import STUB, check_invariants, git, make_repository, rows_of, run_loop
from messages_server import Failure, editor, refuse, replace, say, submit

pytestmark = pytest.mark.slow

TRAIN = STUB.replace("LEVEL = 2.0", 'CHECKING = "AUTORESEARCH_STEPS" in os.environ\nLEVEL = 2.0')
SLIP = "LEVEL = 2 if CHECKING else oops"  # that the check does not see


def set_program(repo, *changes: tuple[str, str]) -> None:
    """Change lines of program.md, and commit it."""
    text = (repo / "program.md").read_text()
    for before, after in changes:
        assert before in text
        text = text.replace(before, after)
    (repo / "program.md").write_text(text)
    git(repo, "commit", "-qam", "settings")


def failures_of(repo) -> list[dict]:
    events = map(json.loads, (repo / "runs/t/journal.jsonl").read_text().splitlines())
    return [event for event in events if event["event"] == "failed"]


def test_the_whole_loop_with_claude(api, tmp_path, prepared):
    repo = make_repository(tmp_path / "repo", TRAIN)
    cut = say(editor("view"), stop_reason="max_tokens")
    api.replies[:] = [
        say(replace("LEVEL = 2.0", "LEVEL = typo"), submit("first idea")),
        say(replace("LEVEL = typo", "LEVEL = 1.9"), submit("first idea")),
        *[cut] * 2,
        say(replace("LEVEL = 1.9", SLIP), submit("second idea")),
        say(replace("LEVEL = 1.9", "LEVEL = 1.7"), submit("third idea")),
    ]
    done = run_loop(repo, "--experiments", "3")
    rows = rows_of(repo)
    assert [(row.status, row.description.partition(" [")[0]) for row in rows] == [
        ("keep", "baseline"),
        ("keep", "first idea"),
        ("crash", "second idea"),
        ("keep", "third idea"),
    ], done.stdout + done.stderr
    checked = json.dumps(api.requests[1]["body"]["messages"][-1])
    assert "name 'typo' is not defined" in checked  # found by the check, not by a run
    (failed,) = failures_of(repo)
    assert (
        rows[1].tokens > 1000 and rows[1].cost > 0 and failed["cost"] > 0 and "two answers ran into" in failed["reason"]
    )
    assert (rows[1].category, rows[1].hypothesis, rows[1].expected) == ("hyperparameter", "lower is better", 0.1)
    assert "cost: known after the first proposal; no cap" in done.stdout and re.search(r"spent +\$", done.stdout)
    last = json.dumps(api.requests[-1]["body"]["messages"])
    assert "name 'oops' is not defined" in last and "-LEVEL = 2.0\\n+LEVEL = 1.9" in last  # the crash; the kept diff
    assert "A measured gain of " in last and "more experiments fit" in last
    check_invariants(repo)


def test_a_bad_key_ends_the_start(api, tmp_path, prepared):
    repo = make_repository(tmp_path / "repo")
    done = run_loop(repo, "--experiments", "1", env={"ANTHROPIC_API_KEY": "bad-key"})
    assert done.returncode == 2 and "answered 401" in done.stderr and done.stderr.count("\n") == 1


def test_the_spend_cap_ends_the_session(api, tmp_path, prepared):
    repo = make_repository(tmp_path / "repo")
    set_program(repo, ("max_cost: null", "max_cost: 0.015"))
    api.replies[:] = [say(replace("LEVEL = 2.0", "LEVEL = 1.9"), submit("one"))]
    done = run_loop(repo, "--experiments", "9")
    assert "could pass max_cost $0.01" in done.stdout and "capped at $0.01" in done.stdout and len(rows_of(repo)) == 2


def test_a_spend_limit_ends_the_session_and_the_model_never_hears_of_it(api, tmp_path, prepared):
    repo = make_repository(tmp_path / "repo")
    api.replies[:] = [Failure(429, "rate_limit_error", "Spend limit reached", code="enforced_spend_limit_reached")]
    done = run_loop(repo, "--experiments", "2")
    assert done.returncode == 1 and "raise the spend limit in the Console" in done.stdout, done.stdout + done.stderr
    api.replies[:] = [say(replace("LEVEL = 2.0", "LEVEL = 1.9"), submit("one"))]
    run_loop(repo, "--experiments", "1")
    (failed,) = failures_of(repo)
    assert failed["told"] is False and "Spend limit" not in prompt_of(api.requests[-1])
    assert len(rows_of(repo)) == 2


def test_a_model_that_does_not_fit_changes_nothing_in_mid_run(api, tmp_path, prepared):
    repo = make_repository(tmp_path / "repo")

    def write_another_model(body, reply, bill):
        if len(api.requests) == 1:
            text = (repo / "program.md").read_text()
            (repo / "program.md").write_text(text.replace("model: claude-opus-5-5", "model: claude-haiku-4-5"))

    api.watch = write_another_model
    api.replies[:] = [say(replace("LEVEL = 2.0", f"LEVEL = {level}"), submit(f"to {level}")) for level in (2.1, 2.2)]
    done = run_loop(repo, "--experiments", "2")
    assert "program.md: claude-haiku-4-5 has no adaptive thinking" in done.stdout, done.stdout + done.stderr
    assert "going on with model claude-opus-5-5, effort medium" in done.stdout
    assert [request["body"]["model"] for request in api.requests] == ["claude-opus-5-5"] * 2


def test_a_crash_is_repaired_and_refusals_end_the_session(api, tmp_path, prepared):
    repo = make_repository(tmp_path / "repo", TRAIN)
    set_program(repo, ("repairs: 0", "repairs: 2"))
    api.replies[:] = [
        say(replace("LEVEL = 2.0", SLIP), submit("a slip")),
        say(replace(SLIP, "LEVEL = 1.9"), submit("mended")),
        *[refuse("frontier_llm", "it could assist a competing model")] * 4,
    ]
    done = run_loop(repo, "--experiments", "9")
    rows = rows_of(repo)
    assert [(row.status, row.repairs) for row in rows] == [("keep", 0), ("keep", 1)], done.stdout + done.stderr
    assert "name 'oops' is not defined" in json.dumps(api.requests[1]["body"]["messages"])
    assert done.returncode == 1 and "for a person to decide" in done.stdout
    assert done.stdout.count("the model declined (frontier_llm): it could assist a competing model") >= 3
    asked = [prompt_of(request) for request in api.requests[2:]]
    assert len(asked) == len(set(asked)) == 3, "the same is not asked again: each is an experiment of its own"
    assert not any(word in text for text in asked for word in ("declined", "frontier_llm", "competing"))
    assert [event["told"] for event in failures_of(repo)] == [False] * 3
    check_invariants(repo)
