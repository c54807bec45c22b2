"""anthropic against a real HTTP server that speaks the Messages protocol to the real SDK: one conversation."""

import json

import pytest
from anthropic_helpers import CRASHED, GOOD, logged, make_rows, prompt_of, results_of
from loop_helpers import STUB, make_context
from messages_rules import problem_of
from messages_server import Failure, editor, replace, say, submit, thinking, tool

from autoresearch.propose.anthropic import propose_by_anthropic
from autoresearch.propose.context import CannotPropose, Crash, ProposalFailed
from autoresearch.settings import Settings

# -----------------------------------------------------------------------------
# Turns


def test_the_exchange_is_kept_without_the_key(api, tmp_path):
    api.replies[:] = [say(thinking("First a look."), "I look.", editor("view")), say(*GOOD)]
    proposal = propose_by_anthropic(make_context(tmp_path))
    assert proposal.source == STUB.replace("LEVEL = 2.0", "LEVEL = 1.9")
    text = (tmp_path / "0001" / "exchange.json").read_text()
    exchange = json.loads(text)
    assert "lower the level" in text and "good-key" not in text
    assert [turn["stop_reason"] for turn in exchange["turns"]] == ["tool_use", "tool_use"]
    assert [turn["request_id"] for turn in exchange["turns"]] == ["req_0001", "req_0002"]
    assert exchange["outcome"] == "submitted" and exchange["cost"] == pytest.approx(proposal.usage.cost)
    for kind, name in (("input", "input_tokens"), ("cache_read", "cache_read_input_tokens")):
        assert getattr(proposal.usage, kind) == sum(bill[name] for bill in api.bills)
    assert proposal.usage.cache_read > 0 and proposal.usage.output > 0
    assert exchange["turns"][0]["thinking_tokens"] > 0 and "First a look." in text  # the reasons are in the transcript
    assert api.requests[0]["body"]["thinking"] == {"type": "adaptive", "display": "summarized"}
    assert api.requests[0]["body"]["output_config"] == {"effort": "medium"}


def test_thinking_is_sent_back_as_it_came(api, tmp_path):
    """The server refuses what is not bound to its own conversation: interleaved, after dropped answers, in a repair."""
    cut = say(thinking("cut"), editor("view"), stop_reason="max_tokens")
    api.replies[:] = [
        say(thinking("one"), "words", thinking("two"), editor("view"), thinking(""), editor("view", view_range=[1, 2])),
        say(thinking("only this"), stop_reason="end_turn"),
        cut,
        say(thinking("a look"), editor("view")),
        say(thinking("words only"), "I will submit."),
        say(thinking("done"), *[replace("LEVEL = 2.0", "LEVEL = oops"), submit("a slip")]),
    ]
    propose_by_anthropic(make_context(tmp_path))
    api.replies[:] = [
        say(thinking("I see"), editor("view")),
        say(thinking("so"), replace("oops", "1.9"), submit("now")),
    ]
    assert "LEVEL = 1.9" in propose_by_anthropic(repair(tmp_path)).source
    last = api.requests[-1]["body"]
    said = [block["thinking"] for message in last["messages"] for block in message["content"] if "thinking" in block]
    assert said == ["one", "two", "", "a look", "words only", "done", "I see"]
    last["messages"][1]["content"][0]["signature"] = "another"
    assert "bound to a different conversation" in problem_of(last)


def test_malformed_tool_input_is_told(api, tmp_path):
    broken = replace("a", "b") | {"input": '{"command": nonsense'}
    lines, changes = logged()
    api.replies[:] = [say(broken), say(tool("submit")), say(*GOOD)]
    propose_by_anthropic(make_context(tmp_path, **changes))
    assert "not valid JSON" in json.dumps(api.requests[1]["body"]["messages"]) and "cannot be read" in lines[0]
    assert results_of(api.requests[2]) == [(True, "error: the argument description is missing or is not of type str")]
    assert len(json.loads((tmp_path / "0001" / "exchange.json").read_text())["turns"]) == 3  # all three were billed
    api.replies[:] = [say(broken)] * 3
    with pytest.raises(ProposalFailed, match="3 answers in a row"):
        propose_by_anthropic(make_context(tmp_path))


def test_a_cut_off_answer_is_dropped_and_told(api, tmp_path):
    cut = say(replace("LEVEL = 2.0", "LEVEL = 7"), stop_reason="max_tokens")
    api.replies[:] = [cut, say(editor("view")), say(*GOOD)]
    assert "LEVEL = 1.9" in propose_by_anthropic(make_context(tmp_path)).source
    assert "was cut off" in json.dumps(api.requests[1]["body"]["messages"])
    api.replies[:] = [cut] * 2  # asked again once: each such answer is paid for to the last token
    with pytest.raises(ProposalFailed, match="two answers ran into `max_tokens:`") as caught:
        propose_by_anthropic(make_context(tmp_path))
    assert caught.value.usage.output > 0


@pytest.mark.parametrize(
    "fault",
    [
        Failure(400, "invalid_request_error", "prompt is too long: 210000 tokens > 200000 maximum"),
        Failure(400, "invalid_request_error", "input length and `max_tokens` exceed context limit: 1 + 2 > 2"),
        Failure(413, "request_too_large", "Request exceeds the maximum size"),
        say("hm", stop_reason="model_context_window_exceeded"),
    ],
    ids=["400", "400-max", "413", "window"],
)
def test_a_prompt_that_is_too_long_is_shortened(api, tmp_path, fault):
    rows, (lines, changes) = make_rows(150, kept=(0, 3)), logged()
    api.replies[:] = [say(replace("LEVEL = 2.0", "LEVEL = 8")), fault, say(*GOOD)]
    proposal = propose_by_anthropic(make_context(tmp_path, rows=rows, **changes))
    assert "LEVEL = 1.9" in proposal.source  # begun afresh, without the edit before
    long, _, short = (prompt_of(request) for request in api.requests)
    assert len(lines) == 1 and "beginning again with 30 experiments in full" in lines[0]
    assert "The first 60 experiments in short" in long and "The first 120 experiments in short" in short
    api.replies[:] = [fault] * 9
    with pytest.raises(CannotPropose, match="4 times in a row; lower `max_tokens:`"):
        propose_by_anthropic(make_context(tmp_path, rows=rows))
    assert len(api.requests) == 3 + 4


# -----------------------------------------------------------------------------
# Repairs


def repair(tmp_path, **changes):
    crash = Crash(1, CRASHED, "Traceback\nNameError: name 'oops' is not defined\x1b[0m", attempt=1)
    return make_context(tmp_path, crash=crash, **changes)


def test_a_repair_goes_on_with_its_conversation(api, tmp_path):
    api.replies[:] = [say(replace("LEVEL = 2.0", "LEVEL = oops"), submit("a slip"))]
    first = propose_by_anthropic(make_context(tmp_path))
    api.replies[:] = [
        say(submit("unmended")),
        say(replace("oops", "2.0"), submit("undone")),
        say(replace("LEVEL = 2.0", "LEVEL = 1.8"), submit("mended")),
    ]
    second = propose_by_anthropic(repair(tmp_path))
    assert first.source == CRASHED and second.source == STUB.replace("LEVEL = 2.0", "LEVEL = 1.8")
    messages = api.requests[1]["body"]["messages"]
    assert messages[:2] == json.loads((tmp_path / "0001" / "exchange.json").read_text())["messages"][:2]
    told = messages[-1]["content"][-1]["text"]
    assert "repair 1 of 2" in told and "name 'oops' is not defined\n</untrusted>" in told
    assert results_of(api.requests[2]) == [(True, "error: train.py is unchanged")]
    assert results_of(api.requests[3])[1] == (True, "error: train.py is unchanged")  # the best, once more
    exchange = json.loads((tmp_path / "0001" / "exchange.json").read_text())
    assert exchange["cost"] == pytest.approx(first.usage.cost + second.usage.cost) and len(exchange["turns"]) == 4


@pytest.mark.parametrize("model", ["", "claude-sonnet-5-5"])
def test_a_repair_without_its_conversation_begins_afresh(api, tmp_path, model):
    if model:  # another one than the conversation was held with
        api.replies[:] = [say(replace("LEVEL = 2.0", "LEVEL = oops"), submit("a slip"))]
        propose_by_anthropic(make_context(tmp_path))
    api.replies[:] = [say(replace("oops", "1.9"), submit("mended"))]
    proposal = propose_by_anthropic(repair(tmp_path, settings=Settings(model=model or "claude-opus-5-5")))
    assert proposal.source == STUB.replace("LEVEL = 2.0", "LEVEL = 1.9")
    assert len(api.requests[-1]["body"]["messages"]) == 1 and "Experiment 1 crashed" in prompt_of(api.requests[-1])


def test_a_repair_may_be_declined(api, tmp_path):
    api.replies[:] = [say("It needs more\nmemory than there is.")]
    with pytest.raises(ProposalFailed, match="leaves the crash as it is: It needs more memory than there is"):
        propose_by_anthropic(repair(tmp_path))


def test_a_repair_that_is_mended_and_ends_in_words_is_asked_to_submit(api, tmp_path):
    api.replies[:] = [say(replace("oops", "1.9")), say("I mended the slip; submitting it next."), say(submit("mended"))]
    assert "LEVEL = 1.9" in propose_by_anthropic(repair(tmp_path)).source
    assert "Nothing is submitted yet" in json.dumps(api.requests[2]["body"]["messages"][-1])
