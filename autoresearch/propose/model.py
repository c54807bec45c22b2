"""
The client, and the model behind it: does the key work, is the model there, does it take what program.md asks for?
"""

import os
import re
from typing import Any

from autoresearch.propose.prices import price_problem, prices_of
from autoresearch.settings import Settings
from autoresearch.text import one_line

READ_TIMEOUT = 300.0  # seconds without a byte, after which a stream counts as dead
LIMITS: dict[str, int] = {}  # model -> tokens of its longest answer, as the API says


def make_client(max_retries: int = 0) -> Any:
    """An API client; ANTHROPIC_BASE_URL and the SDK's other variables work. Waiting is ours, so that it can be seen."""
    import anthropic

    return anthropic.Anthropic(max_retries=max_retries, timeout=anthropic.Timeout(READ_TIMEOUT, connect=15.0))


def cause_of(error: BaseException) -> str:
    """What lies at the bottom of an error: a refused port, a name that does not resolve, a certificate ..."""
    while error.__cause__:
        error = error.__cause__
    return f"{type(error).__name__}: {one_line(str(error))[:150]}"


def base_url() -> str:
    """The server that was asked for in place of Anthropic's, or ""."""
    return os.environ.get("ANTHROPIC_BASE_URL", "")


def check_model(settings: Settings) -> tuple[str, list[str]]:
    """One cheap call. Returns (what only a person can mend or "", what is worth saying)."""
    import anthropic

    if problem := price_problem(settings) or address_problem():
        return problem, []
    said = [] if prices_of(settings) else [f"no price of {settings.model} is known: dollars are not counted"]
    try:
        with make_client(max_retries=1) as client:
            if not (client.api_key or client.auth_token or client.credentials):
                return "ANTHROPIC_API_KEY is not set; set it, or use --proposer constants, or --command '...'", []
            info = client.models.retrieve(settings.model)
    except anthropic.APIStatusError as error:
        problem, warning = status_problem(error, settings.model)
        return problem, said + [warning] * bool(warning)
    except anthropic.APIConnectionError as error:
        return connection_problem(error, said)
    except (anthropic.AnthropicError, ValueError) as error:  # no credentials; a model whose name is no path
        return f"`model: {settings.model}` cannot be asked for: {cause_of(error)}", []
    if isinstance(info.max_tokens, int):
        LIMITS[settings.model] = info.max_tokens
    return misfit(info, settings), said


def address_problem() -> str:
    """Why ANTHROPIC_BASE_URL cannot be one, or ""."""
    url = base_url()
    if url and not re.match(r"https?://[^/]", url):
        return f"ANTHROPIC_BASE_URL {url} should begin with http:// or https://"
    if re.search(r"/v1/?$", url):
        return f"ANTHROPIC_BASE_URL {url} should end before /v1: the SDK appends that itself"
    return ""


def status_problem(error: Any, model: str) -> tuple[str, str]:
    """(what only a person can mend or "", what is worth saying) of an answer that is an error."""
    answered = f"{error.status_code} {one_line(error.api_message or error.message)[:150]}"
    if error.status_code in (401, 403):
        return f"ANTHROPIC_API_KEY was rejected ({error.status_code}); check the key", ""
    if error.status_code == 402:
        return f"the API answered {answered}; check the credit of the account", ""
    if error.status_code in (400, 404, 405):
        if base_url():
            said = f"the server says nothing of the model {model} ({error.status_code}): going on without"
            return "", f"{said}; if its window is small, set `max_tokens:`"
        return f"the API knows no model {model!r}; set another `model:` in program.md", ""
    return "", f"the API answered {answered}; the search begins, and asks again when it needs a proposal"


def connection_problem(error: Any, said: list[str]) -> tuple[str, list[str]]:
    """The same where there was no answer: a slip in the settings ends the start, a network that is down does not."""
    import httpx2

    cause = error.__cause__
    if isinstance(cause, httpx2.UnsupportedProtocol | httpx2.LocalProtocolError | httpx2.InvalidURL):
        return f"the API cannot be asked: {cause_of(error)}; check ANTHROPIC_API_KEY and ANTHROPIC_BASE_URL", []
    later = "the search begins, and asks again when it needs a proposal"
    return "", [*said, f"the API cannot be reached: {cause_of(error)}; {later}"]


def misfit(info: Any, settings: Settings) -> str:
    """What of the settings the model does not take, by what the API says of it, or "". Nothing said: taken to fit."""
    if settings.max_tokens and isinstance(info.max_tokens, int) and settings.max_tokens > info.max_tokens:
        return f"`max_tokens: {settings.max_tokens}`: {settings.model} gives {info.max_tokens} at most"
    if settings.effort is None:
        return ""
    if supported(info, "thinking", "types", "adaptive") is False:
        return f"{settings.model} has no adaptive thinking; set `effort: null`, or another `model:`"
    if supported(info, "effort") is False or supported(info, "effort", settings.effort) is False:
        return f"{settings.model} does not take `effort: {settings.effort}`; set another, or `effort: null`"
    return ""


def supported(info: Any, *names: str) -> bool | None:
    """Whether a capability is there; None where the server says nothing of it."""
    value = getattr(info, "capabilities", None)
    for name in names:
        value = getattr(value, name, None)
    return getattr(value, "supported", None)
