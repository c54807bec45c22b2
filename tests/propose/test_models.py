"""The client and the model: what is checked before a search begins, and when program.md names another model."""

import pytest
from anthropic_helpers import GOOD
from loop_helpers import make_context
from messages_server import Failure, say

from autoresearch.propose.anthropic import propose_by_anthropic
from autoresearch.propose.api import check_model
from autoresearch.propose.context import CannotPropose, Fault
from autoresearch.propose.models import known_name
from autoresearch.settings import Prices, Settings


def test_a_good_model_says_nothing_and_an_answer_has_a_limit(api, tmp_path):
    assert check_model(Settings()) == []
    api.replies[:] = [say(*GOOD), say(*GOOD)]
    propose_by_anthropic(make_context(tmp_path))
    propose_by_anthropic(make_context(tmp_path, settings=Settings(max_tokens=9000)))
    assert [request["body"]["max_tokens"] for request in api.requests] == [32_000, 9000]


@pytest.mark.parametrize(
    ("variable", "value", "settings", "message"),
    [
        ("ANTHROPIC_API_KEY", "bad-key", {}, "answered 401 authentication_error: invalid key; check the key"),
        ("ALL_PROXY", "socks5://127.0.0.1:1", {}, "no connection can be made here: ImportError: Using SOCKS proxy"),
        ("SSL_CERT_FILE", "/no/such/file", {}, "no connection can be made here: FileNotFoundError"),
        ("ANTHROPIC_BASE_URL", "localhost:1234", {}, "should begin with http:// or https://"),
        ("ANTHROPIC_BASE_URL", "http://localhost:1234/v1", {}, "should end before /v1"),
        ("ANTHROPIC_API_KEY", "good-key\n", {}, "check ANTHROPIC_API_KEY"),
        ("ANTHROPIC_API_KEY", "", {}, "ANTHROPIC_API_KEY is not set"),
        ("X", "x", {"model": ""}, "`model: ` cannot be asked for"),
        ("X", "x", {"model": ".."}, "`model: ..` cannot be asked for"),
        ("X", "x", {"model": "claude-haiku-4-5"}, "has no adaptive thinking; set `effort: null`"),
        ("X", "x", {"max_tokens": 200_000}, "gives 128000 at most"),
        ("X", "x", {"model": "qwen3", "max_cost": 5.0}, "no price of `model: qwen3` is known"),
    ],
)
def test_what_only_a_person_can_mend_is_said(api, monkeypatch, variable, value, settings, message):
    monkeypatch.delenv("ANTHROPIC_AUTH_TOKEN", raising=False)
    monkeypatch.setenv(variable, value)
    with pytest.raises(CannotPropose) as failure:
        check_model(Settings(**settings))
    assert message in str(failure.value) and "\n" not in str(failure.value)


def test_an_expired_login_is_no_edits_fault(api, tmp_path, monkeypatch):
    import anthropic  # takes seconds, which each of pytest's processes would need

    def expired(*_):
        raise anthropic.CredentialsError("the token has expired")

    monkeypatch.setattr("autoresearch.propose.api.stream_reply", expired)
    with pytest.raises(Fault, match="the token has expired; log in again"):
        propose_by_anthropic(make_context(tmp_path))


def test_an_old_model_works_without_thinking(api, tmp_path):
    settings = Settings(model="claude-haiku-4-5", effort=None)
    assert check_model(settings) == ["no price of claude-haiku-4-5 is known: dollars are not counted"]
    api.replies[:] = [say(*GOOD)]
    propose_by_anthropic(make_context(tmp_path, settings=settings))
    assert not {"thinking", "output_config"} & api.requests[0]["body"].keys()


@pytest.mark.parametrize("status", [408, 429, 500, 529])
def test_what_passes_does_not_end_the_start(api, status):
    api.models_fault = Failure(status, "some_error", "come back later")
    (warning,) = check_model(Settings())
    assert f"{status} some_error: come back later; the search begins" in warning


def test_a_network_that_is_down_does_not_end_the_start(api, monkeypatch):
    monkeypatch.setenv("ANTHROPIC_BASE_URL", "http://127.0.0.1:1")
    (warning,) = check_model(Settings())
    assert "Connection refused" in warning


def test_a_model_that_anthropic_does_not_know_is_a_slip_there_only(api, monkeypatch):
    price, warning = check_model(Settings(model="gpt-2"))
    assert "answered 404" in warning and "says nothing of gpt-2; going on" in warning and "no price" in price
    monkeypatch.setattr("autoresearch.propose.api.base_url", lambda: "")
    with pytest.raises(CannotPropose, match=r"answered 404 .* check the key, its credit and `model:`"):
        check_model(Settings(model="gpt-2"))


def test_a_server_that_has_only_messages(api, tmp_path, monkeypatch):
    """Like LM Studio: no models endpoint; any key; a name with / and :."""
    api.only_messages = True
    monkeypatch.delenv("ANTHROPIC_API_KEY")
    monkeypatch.setenv("ANTHROPIC_AUTH_TOKEN", "local")
    settings = Settings(
        model="openai/gpt-oss:20b",
        effort=None,
        max_tokens=8000,
        prices=Prices(input=0, output=0, cache_read=0, cache_write=0),
    )
    (warning,) = check_model(settings)
    assert "going on without" in warning
    api.replies[:] = [say(*GOOD)]
    proposal = propose_by_anthropic(make_context(tmp_path, settings=settings))
    body = api.requests[0]["body"]
    assert proposal.description == "lower the level" and proposal.usage.cost == 0 and body["max_tokens"] == 8000
    assert all("input_schema" in tool for tool in body["tools"])


@pytest.mark.parametrize(
    "name",
    [
        "claude-opus-5.5",
        "anthropic/claude-opus-5.5",
        "claude-opus-5-5[1m]",
        "us.anthropic.claude-opus-5-5-20260901-v1:0",
        "claude-opus-5-5@20260901",
    ],
)
def test_a_model_is_known_by_the_names_that_providers_give_it(name):
    assert known_name(name) == "claude-opus-5-5"
