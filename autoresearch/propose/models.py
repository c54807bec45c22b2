"""
The models: the client that asks one, what the API says of it, and what its answers cost.
"""

import math
import os
import re
from typing import Any

from autoresearch.nouns import Usage
from autoresearch.propose.context import CannotPropose
from autoresearch.settings import Prices, Settings
from autoresearch.text import one_line

READ_TIMEOUT = 300.0  # seconds without a byte, after which a stream counts as dead

# -----------------------------------------------------------------------------
# The client


def make_client(max_retries: int = 0) -> Any:
    """An API client; ANTHROPIC_BASE_URL and the SDK's other variables work. Waiting is ours, so that it can be seen.

    Raises CannotPropose where the machine's proxy or certificates are of no use.
    """
    import anthropic
    import httpx2

    try:  # it takes up proxies and certificates as the SDK's own does, which would leave a traceback behind
        httpx2.Client().close()
    except (ImportError, OSError, ValueError, httpx2.InvalidURL) as error:
        mend = "check HTTPS_PROXY, ALL_PROXY and SSL_CERT_FILE"
        raise CannotPropose(f"no connection can be made here: {cause_of(error)}; {mend}") from error
    return anthropic.Anthropic(max_retries=max_retries, timeout=anthropic.Timeout(READ_TIMEOUT, connect=15.0))


def cause_of(error: BaseException) -> str:
    """What lies at the bottom of an error: a refused port, a name that does not resolve, a certificate ..."""
    while error.__cause__:
        error = error.__cause__
    return f"{type(error).__name__}: {one_line(str(error))[:150]}"


def base_url() -> str:
    """The server that was asked for in place of Anthropic's, or ""."""
    return os.environ.get("ANTHROPIC_BASE_URL", "")


def address_problem() -> str:
    """Why ANTHROPIC_BASE_URL cannot be one, or ""."""
    url = base_url()
    if url and not re.match(r"https?://[^/]", url):
        return f"ANTHROPIC_BASE_URL {url} should begin with http:// or https://"
    if re.search(r"/v1/?$", url):
        return f"ANTHROPIC_BASE_URL {url} should end before /v1: the SDK appends that itself"
    return ""


def misfit(info: Any, settings: Settings) -> str:
    """What of the settings the model does not take, by what the API says of it, or "". Nothing said: taken to fit."""
    if getattr(info, "lifecycle", "") == "retired":
        return f"{settings.model} is retired and answers no more; set another `model:`"
    if settings.max_tokens and isinstance(info.max_tokens, int) and settings.max_tokens > info.max_tokens:
        return f"`max_tokens: {settings.max_tokens}`: {settings.model} gives {info.max_tokens} at most"
    if settings.effort is None:
        return ""
    if supported(info, "thinking", "types", "adaptive") is False:
        return f"{settings.model} has no adaptive thinking; set `effort: null`, or another `model:`"
    if supported(info, "effort") is False or supported(info, "effort", settings.effort) is False:
        return f"{settings.model} does not take `effort: {settings.effort}`; set another, or `effort: null`"
    return ""


def retirement(info: Any, settings: Settings) -> list[str]:
    """That a model is about to be retired, for the start of a search."""
    if getattr(info, "lifecycle", "") != "deprecated":
        return []
    day = getattr(info, "retires_at", None)
    return [f"{settings.model} is deprecated, and retires {f'on {day:%Y-%m-%d}' if day else 'on a day not named yet'}"]


def supported(info: Any, *names: str) -> bool | None:
    """Whether a capability is there; None where the server says nothing of it."""
    value = getattr(info, "capabilities", None)
    for name in names:
        value = getattr(value, name, None)
    return getattr(value, "supported", None)


# -----------------------------------------------------------------------------
# What an answer costs

# US dollars per million tokens, as of October 2026: Opus and Fable from the official documentation, Sonnet and Haiku
# from three third-party tables that agree. Wrong or missing? `prices:` in program.md goes before this table.
PRICES = {
    "claude-opus-5-5": Prices(input=4, output=20, cache_read=0.2, cache_write=8),
    "claude-opus-5": Prices(input=5, output=25, cache_read=0.5, cache_write=10),
    "claude-fable-5-2": Prices(input=8, output=40, cache_read=0.2, cache_write=16),
    "claude-fable-5-1": Prices(input=10, output=50, cache_read=0.25, cache_write=20),
    "claude-sonnet-5-5": Prices(input=2, output=10, cache_read=0.1, cache_write=4),
    "claude-haiku-5-5": Prices(input=0.1, output=0.5, cache_read=0.01, cache_write=0.2),
}
US_FACTOR = 1.1  # of all prices, where inference_geo is us
LONG_PROMPT = 100_000  # tokens; beyond them these models cost another price, for all tokens of the request
PRICES_OF_LONG = {"claude-haiku-5-5": Prices(input=0.5, output=2.5, cache_read=0.05, cache_write=1)}


def known_name(model: str) -> str:
    """The model's name in the table: it may carry a provider in front and a date or a version behind. "" if none."""
    ending = r"(-\d{8})?(-v\d+)?([@:\[].*)?$"
    model = re.sub(r"(?<=\d)\.(?=\d)", "-", model)  # some providers write 5.5
    return next((name for name in PRICES if re.search(rf"(^|[/.]){re.escape(name)}{ending}", model)), "")


def prices_of(settings: Settings, prompt: int = 0) -> Prices | None:
    """The prices of a request whose prompt has so many tokens; None if nobody knows them."""
    name = known_name(settings.model)
    table = PRICES_OF_LONG if prompt > LONG_PROMPT and name in PRICES_OF_LONG else PRICES
    return settings.prices or table.get(name)


def price_problem(settings: Settings) -> str:
    """Why a cap cannot be held with these settings, or ""."""
    if settings.max_cost is None or prices_of(settings):
        return ""
    return f"max_cost is set, but no price of `model: {settings.model}` is known; set `prices:` in program.md"


def priced(usage: Any, settings: Settings, output: int = 0) -> Usage:
    """An API usage record as ours, with its cost. `output`: tokens that came at least, where the record is cut off."""
    if usage is None:  # a server of one's own need not count
        return Usage(output=output)
    read, written = usage.cache_read_input_tokens or 0, usage.cache_creation_input_tokens or 0
    lifetimes = getattr(usage, "cache_creation", None)
    brief = min(written, getattr(lifetimes, "ephemeral_5m_input_tokens", 0) or 0)
    counts = Usage(usage.input_tokens or 0, max(usage.output_tokens or 0, output), read, written)
    prices = prices_of(settings, counts.input + read + written)
    if not prices:
        return counts
    cost = prices.input * counts.input + prices.output * counts.output + prices.cache_read * read
    cost += prices.cache_write * (written - brief) + prices.cache_write_5m * brief
    return counts + Usage(cost=cost / 1e6 * (US_FACTOR if settings.inference_geo == "us" else 1))


def cost_line(settings: Settings, proposals: float, measured: list[float]) -> str:
    """What so many proposals will cost, for the start of a session. `measured`: of proposals so far, in US dollars."""
    capped, free = f"capped at ${settings.max_cost or 0:.2f}", "no cap: `max_cost:` or --max-cost"
    cap = free if settings.max_cost is None else capped
    if not prices_of(settings):
        return f"cost: no price of {settings.model} is known; tokens are counted, dollars are not (`prices:`)"
    if not measured:
        return f"cost: known after the first proposal; {cap}"
    each = sum(measured) / len(measured)
    many = f"${proposals * each:.0f} for about {proposals:.0f} proposals, " if math.isfinite(proposals) else ""
    return f"cost: {many}${each:.2f} each (by the last {len(measured)}); {cap}"
