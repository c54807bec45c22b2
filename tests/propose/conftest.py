"""A server that speaks the Messages protocol, for every test here that wants one."""

import pytest
from messages_server import start_server

from autoresearch.propose import api as messages_api


@pytest.fixture
def api(monkeypatch):
    """A server with an empty script, which the SDK finds through the environment; waits between attempts are short."""
    server = start_server([])
    monkeypatch.setenv("ANTHROPIC_BASE_URL", server.url)
    monkeypatch.setenv("ANTHROPIC_API_KEY", "good-key")
    monkeypatch.setattr(messages_api, "LONGEST_WAIT", 0.05)
    yield server
    server.stop()
    assert not server.problems  # requests that the API would have refused as invalid
