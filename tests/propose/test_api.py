"""What the API can do: errors that pass and errors that do not, streams that break, what all of it costs."""

import json
import time

import pytest
from anthropic_helpers import GOOD, logged, prompt_of
from loop_helpers import make_context
from messages_rules import MODELS
from messages_server import Failure, editor, refuse, replace, say, thinking

from autoresearch.propose import api as messages_api
from autoresearch.propose import models
from autoresearch.propose.anthropic import propose_by_anthropic
from autoresearch.propose.api import retry_after
from autoresearch.propose.context import CannotPropose, Fault, ProposalFailed, Refused
from autoresearch.propose.models import cost_line, known_name, price_problem, priced, prices_of
from autoresearch.settings import Prices, Settings

# -----------------------------------------------------------------------------
# What passes


@pytest.mark.parametrize(
    "fault",
    [
        Failure(429, "rate_limit_error"),
        Failure(529, "overloaded_error"),
        Failure(500),
        Failure(503),
        Failure(408, "timeout_error"),
        Failure(409, "conflict_error"),
        Failure(429, "rate_limit_error", code="ramp_limit_exceeded"),
        say("hello", fault="reset"),
        say("hello", fault="end"),
        say("hello", fault="stall"),
        say("hello", fault="error event"),
        say("hello", fault="error event", error_type="api_error"),
        say("hello", fault="error event", error_type="rate_limit_error"),
    ],
    ids=lambda fault: getattr(fault, "fault", "") or str(getattr(fault, "status", "")),
)
def test_what_passes_is_waited_out(api, tmp_path, monkeypatch, fault):
    monkeypatch.setattr(models, "READ_TIMEOUT", 0.5)
    lines, changes = logged()
    api.replies[:] = [fault, fault, say(*GOOD)]
    assert propose_by_anthropic(make_context(tmp_path, **changes)).description == "lower the level"
    assert len(lines) == 2 and all("asking again in" in line for line in lines), lines
    assert [request["body"] for request in api.requests[1:]] == [api.requests[0]["body"]] * 2


def test_retry_after_is_obeyed(api, tmp_path):
    lines, changes = logged()
    api.replies[:] = [Failure(429, "rate_limit_error", headers={"retry-after": "1"}), say(*GOOD)]
    started = time.monotonic()
    propose_by_anthropic(make_context(tmp_path, **changes))
    assert retry_after("1.5") == 1.5 and retry_after("soon") is retry_after("") is None
    assert time.monotonic() - started >= 1 and "rate_limit_error" in lines[0] and "in 1 s" in lines[0]


def test_no_wait_outlasts_the_deadline(api, tmp_path):
    api.replies[:] = [Failure(429, "rate_limit_error", headers={"retry-after": "3600"})]
    with pytest.raises(ProposalFailed, match="to wait 3600 s for another attempt is too late"):
        propose_by_anthropic(make_context(tmp_path, deadline=time.monotonic() + 60))
    api.replies[:] = [Failure(529, "overloaded_error")] * 1000
    with pytest.raises(ProposalFailed, match=r"too late|no time was left"):
        propose_by_anthropic(make_context(tmp_path, deadline=time.monotonic() + 1))
    assert 3 < len(api.requests) < 1000


def test_a_request_to_stop_ends_waiting_and_streams(api, tmp_path, monkeypatch):
    monkeypatch.setattr(messages_api, "LONGEST_WAIT", 60.0)
    api.replies[:] = [Failure(529, "overloaded_error", headers={"retry-after": "60"})]
    with pytest.raises(Fault, match="stopped"):
        propose_by_anthropic(make_context(tmp_path, should_stop=lambda: len(api.requests) > 0))
    api.replies[:] = [say(fault="pings", begun="I think of this and that. " * 100)]  # then pings, and nothing else
    context = make_context(tmp_path, should_stop=lambda: len(api.bills) > 0)
    with pytest.raises(Fault, match="stopped") as caught:
        propose_by_anthropic(context)
    assert not api.released.is_set() and caught.value.usage.tokens > 0  # the API bills what it has read ...
    assert caught.value.usage == context.used


def test_a_deadline_cuts_a_stream_that_only_pings(api, tmp_path):
    api.replies[:] = [say(fault="pings")]
    with pytest.raises(Fault, match="no time was left"):
        propose_by_anthropic(make_context(tmp_path, deadline=time.monotonic() + 1))


# -----------------------------------------------------------------------------
# What no waiting mends


@pytest.mark.parametrize(
    ("failure", "message"),
    [
        (Failure(401, "authentication_error"), "401 .*check the key"),
        (Failure(402, "billing_error"), "402 .*credit"),
        (Failure(403, "permission_error"), "403"),
        (Failure(404, "not_found_error", "model: x"), "404 .*program.md"),
        (Failure(400, "invalid_request_error", "You have reached your specified API usage limits."), "raise the spend"),
        (Failure(400, "invalid_request_error", "Your credit balance is too low to use the API"), "raise the spend"),
        (Failure(400, "invalid_request_error", "adaptive thinking is not supported on this model"), "`effort: null`"),
        (Failure(400, "invalid_request_error", "images are not supported here"), "another `model:`"),
        (Failure(400, "invalid_request_error", "messages.0.content.4.cache_control.ttl: extra input"), "`cache: 5m`"),
        (Failure(422, "invalid_request_error", "tools.0.strict: unknown field"), "`effort: null`"),
        (Failure(400, "invalid_request_error", "output_config: Extra inputs are not permitted"), "`effort: null`"),
        (Failure(400, "invalid_request_error", "inference_geo is not available"), "`inference_geo: null`"),
        (Failure(400, "invalid_request_error", "max_tokens: 32000 > 8192"), "another `max_tokens:`"),
        (Failure(400, "invalid_request_error", code="organization_on_hold"), "check the key, its credit"),
        (Failure(429, "rate_limit_error", code="enforced_spend_limit_reached"), "raise the spend limit"),
        (Failure(429, "rate_limit_error", code="contract_spend_limit_reached"), "raise the spend limit"),
        (say("hm", fault="error event", error_type="authentication_error"), "broke off .*check the key"),
        (say("hm", fault="error event", error_type="billing_error"), "broke off .*credit"),
        (say("hm", fault="error event", error_type="permission_error"), "broke off"),
    ],
)
def test_what_waiting_does_not_mend_ends_the_session_at_once(api, tmp_path, failure, message):
    api.replies[:] = [failure]
    with pytest.raises(CannotPropose, match=message):
        propose_by_anthropic(make_context(tmp_path))
    assert len(api.requests) == 1
    assert "failed: " in json.loads((tmp_path / "0001" / "exchange.json").read_text())["outcome"]


@pytest.mark.parametrize(
    "fault",
    [
        Failure(400, "invalid_request_error", "messages.3: a thinking block is bound to a different conversation"),
        say("hm", fault="error event", error_type="invalid_request_error"),
    ],
)
def test_a_conversation_that_is_refused_begins_again(api, tmp_path, fault):
    lines, changes = logged()
    api.replies[:] = [say(thinking("so"), replace("LEVEL = 2.0", "LEVEL = 8")), fault, say(*GOOD)]
    assert "LEVEL = 1.9" in propose_by_anthropic(make_context(tmp_path, **changes)).source
    assert (
        prompt_of(api.requests[0]) == prompt_of(api.requests[2]) and len(lines) == 1 and "beginning again" in lines[0]
    )
    api.replies[:] = [fault] * 9
    with pytest.raises(CannotPropose, match="4 times in a row"):
        propose_by_anthropic(make_context(tmp_path))
    assert len(api.requests) == 3 + 4


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (refuse("frontier_llm", "could assist\na competing model"), r"declined \(frontier_llm\): could assist a comp"),
        (refuse(None, None), r"declined \(no category\): it gave no explanation"),
        (say("No.", stop_reason="refusal"), r"declined \(no category\)"),
    ],
)
def test_a_refusal_is_an_answer(api, tmp_path, reply, message):
    api.replies[:] = [say(editor("view")), reply, say(*GOOD)]
    with pytest.raises(Refused, match=message) as caught:
        propose_by_anthropic(make_context(tmp_path))
    assert len(api.requests) == 2 and len(api.replies) == 1  # it is not asked again
    assert caught.value.usage.cache_write > 0
    exchange = json.loads((tmp_path / "0001" / "exchange.json").read_text())
    assert exchange["outcome"].startswith("failed: the model declined")
    assert exchange["turns"][-1]["stop_reason"] == "refusal"
    assert exchange["turns"][-1].get("stop_details", {}).get("category") == (reply.stop_details or {}).get("category")


# -----------------------------------------------------------------------------
# Money


def test_turns_and_money_are_limited(api, tmp_path):
    api.replies[:] = [say(editor("view"))] * 3
    with pytest.raises(ProposalFailed, match="nothing was submitted in 3 turns"):
        propose_by_anthropic(make_context(tmp_path, settings=Settings(max_turns=3)))
    api.replies[:] = [say("Well.")] * 9
    with pytest.raises(ProposalFailed, match="3 answers in a row"):
        propose_by_anthropic(make_context(tmp_path))
    asked = len(api.requests)
    api.replies[:] = [say(editor("view")), say(*GOOD)]
    settings = Settings(max_cost=1.0)
    with pytest.raises(Fault, match=r"max_cost of \$1.00 is reached") as caught:
        propose_by_anthropic(make_context(tmp_path, settings=settings, spent=lambda: 0.99999))
    assert len(api.requests) == asked + 1 and caught.value.usage.cost > 0
    with pytest.raises(ProposalFailed, match="max_cost"):
        propose_by_anthropic(make_context(tmp_path, settings=settings, spent=lambda: 1.0))
    assert len(api.requests) == asked + 1
    api.replies[:] = [say(editor("view"))] * 5
    with pytest.raises(Fault, match=r"max_cost of \$1.00 is reached"):  # by what others use meanwhile
        propose_by_anthropic(
            make_context(tmp_path, settings=settings, spent=lambda: 0.45 * (len(api.requests) - asked))
        )
    assert len(api.requests) == asked + 3


def test_an_answer_that_breaks_off_is_booked_by_what_came(api, tmp_path):
    thought = "I weigh three candidates. " * 1000
    api.replies[:] = [say(fault="end", begun=thought), say(*GOOD)]
    usage = propose_by_anthropic(make_context(tmp_path)).usage
    lost, _ = json.loads((tmp_path / "0001" / "exchange.json").read_text())["turns"]
    assert lost["usage"]["output"] == round(len(thought) / 3.5) and lost["stop_reason"] is None
    assert usage.cost > 20 * len(thought) / 3.5 / 1e6


def test_what_an_unforeseen_error_has_cost_is_known(api, tmp_path):
    """A lone surrogate in what the model says cannot be sent back: the second request fails before it is sent."""
    api.replies[:] = [say("\ud800", editor("view"))]
    context = make_context(tmp_path)
    with pytest.raises(UnicodeEncodeError):
        propose_by_anthropic(context)
    assert context.used.cost > 0 and context.used.output > 0


def test_each_lifetime_of_the_cache_has_its_price(api, tmp_path):
    api.replies[:] = [say(thinking("hm"), editor("view")), say(*GOOD)]
    used = propose_by_anthropic(make_context(tmp_path)).usage
    written = [bill["cache_creation"] for bill in api.bills]
    for_an_hour, brief = (sum(w[f"ephemeral_{name}_input_tokens"] for w in written) for name in ("1h", "5m"))
    read = sum(bill["cache_read_input_tokens"] for bill in api.bills)
    assert brief > 0 and for_an_hour > 0 and read > 0 and used.cache_write == brief + for_an_hour
    assert used.cost == pytest.approx((8 * for_an_hour + 5 * brief + 0.2 * read + 20 * used.output) / 1e6)


@pytest.mark.parametrize(
    ("name", "known", "output"),
    [
        ("claude-opus-5-5", "claude-opus-5-5", 20),
        ("claude-opus-5", "claude-opus-5", 25),
        ("anthropic/claude-fable-5-1", "claude-fable-5-1", 50),
        ("claude-sonnet-5-5-20260901", "claude-sonnet-5-5", 10),
        ("claude-opus-5-7", "", None),
        ("qwen3-coder:30b", "", None),
    ],
)
def test_prices_follow_the_model(name, known, output):
    prices = prices_of(Settings(model=name))
    assert known_name(name) == known and (prices.output if prices else None) == output
    assert bool(price_problem(Settings(model=name, max_cost=5.0))) == (not known)
    own = Settings(model=name, max_cost=5.0, prices=Prices(input=1, output=2, cache_read=3, cache_write=4))
    assert price_problem(own) == "" and prices_of(own).output == 2


def test_a_long_prompt_of_haiku_costs_more(api):
    settings = Settings(model="claude-haiku-5-5")
    usage = type("Usage", (), {"output_tokens": 0, "cache_read_input_tokens": 0, "cache_creation_input_tokens": 0})()
    costs = []
    for usage.input_tokens in (100_000, 100_001):
        costs.append(priced(usage, settings).cost)
    assert costs == pytest.approx([0.01, 0.0500005])


def test_the_start_says_what_a_night_costs():
    line = cost_line(Settings(), 497, [])
    assert line == "cost: known after the first proposal; no cap: `max_cost:` or --max-cost"
    assert "$200 for about 100 proposals, $2.00 each (by the last 2)" in cost_line(Settings(), 100, [1.0, 3.0])
    assert "capped at $50.00" in cost_line(Settings(max_cost=50.0), float("inf"), [])
    assert "no price of qwen3 is known" in cost_line(Settings(model="qwen3"), 100, [])


# -----------------------------------------------------------------------------
# Other servers, other places


@pytest.mark.parametrize(
    ("cache", "marks"),
    [("1h", ["1h", "1h", "1h", None]), ("5m", [None] * 4), ("off", [])],
)
def test_the_cache_is_asked_for_as_program_md_says(api, tmp_path, cache, marks):
    api.replies[:] = [say(*GOOD)]
    propose_by_anthropic(make_context(tmp_path, settings=Settings(cache=cache)))
    (message,) = api.requests[0]["body"]["messages"]
    controls = [block["cache_control"] for block in message["content"] if "cache_control" in block]
    assert [control.get("ttl") for control in controls] == marks[-len(controls) or 4 :]
    assert bool(controls) == bool(marks)


def test_a_model_that_is_not_claude_is_sent_no_field_that_only_claude_knows(api, tmp_path):
    api.replies[:] = [say(*GOOD)]
    propose_by_anthropic(make_context(tmp_path, settings=Settings(effort=None, cache="off")))
    sent = json.dumps(api.requests[0]["body"])
    assert not [name for name in ("strict", "cache_control", "thinking", "output_config") if f'"{name}"' in sent]


def test_a_place_is_asked_for_and_its_price_is_counted(api, tmp_path):
    costs = []
    for geo in (None, "us"):
        api.replies[:] = [say(*GOOD)]
        api.cache.entries.clear()
        costs.append(propose_by_anthropic(make_context(tmp_path, settings=Settings(inference_geo=geo))).usage.cost)
    assert [request["body"].get("inference_geo") for request in api.requests] == [None, "us"]
    assert costs[1] == pytest.approx(1.1 * costs[0])


def test_a_server_that_does_not_count_tokens_is_told_in_one_line(api, tmp_path):
    api.counts_tokens = False
    api.replies[:] = [say(*GOOD)]
    with pytest.raises(Fault, match="`usage` may be missing"):
        propose_by_anthropic(make_context(tmp_path))


def test_a_model_that_retires_is_named_before_a_search(api, monkeypatch):
    facts = MODELS["claude-sonnet-5-5"]
    settings = Settings(model="claude-sonnet-5-5")
    monkeypatch.setitem(
        MODELS, "claude-sonnet-5-5", facts | {"lifecycle": "deprecated", "retires_at": "2027-01-31T00:00:00Z"}
    )
    assert messages_api.check_model(settings) == ["claude-sonnet-5-5 is deprecated, and retires on 2027-01-31"]
    monkeypatch.setitem(MODELS, "claude-sonnet-5-5", facts | {"lifecycle": "retired"})
    with pytest.raises(CannotPropose, match="claude-sonnet-5-5 is retired"):
        messages_api.check_model(settings)
