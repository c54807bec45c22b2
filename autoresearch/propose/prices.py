"""
What a proposal costs: the price table of the models, what an answer cost, and what a night will cost about.
"""

import math
import re
from typing import Any

from autoresearch.nouns import Usage
from autoresearch.settings import Prices, Settings

# US dollars per million tokens, as of October 2026: Opus and Fable from the official documentation, Sonnet and Haiku
# from three third-party tables that agree. Wrong or missing? `prices:` in program.md goes before this table.
PRICES = {
    "claude-opus-5-5": Prices(input=4, output=20, cache_read=0.2, cache_write=8),
    "claude-opus-5": Prices(input=5, output=25, cache_read=0.5, cache_write=10),
    "claude-fable-5-1": Prices(input=10, output=50, cache_read=0.25, cache_write=20),
    "claude-sonnet-5-5": Prices(input=2, output=10, cache_read=0.1, cache_write=4),
    "claude-haiku-5-5": Prices(input=0.1, output=0.5, cache_read=0.01, cache_write=0.2),
}
LONG_PROMPT = 100_000  # tokens; beyond them these models cost another price, for all tokens of the request
PRICES_OF_LONG = {"claude-haiku-5-5": Prices(input=0.5, output=2.5, cache_read=0.05, cache_write=1)}

# Tokens of one proposal, thinking included. `medium` and `high` are estimates from the length of edits and the
# documented share of thinking; the others are guesses around them. Nothing here was measured on the real API.
OUTPUT_TOKENS = {"low": 4_000, "medium": 8_500, "high": 20_000, "xhigh": 40_000, "max": 80_000}
PREFIX_TOKENS, REQUESTS, WRITTEN_TOKENS = 25_000, 2.5, 5_000  # read by each request; written anew per proposal


def known_name(model: str) -> str:
    """The model's name in the table: it may carry a provider in front and a date or a version behind. "" if none."""
    ending = r"(-\d{8})?([@:].*)?$"
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
    read, written = usage.cache_read_input_tokens or 0, usage.cache_creation_input_tokens or 0
    lifetimes = getattr(usage, "cache_creation", None)
    brief = min(written, getattr(lifetimes, "ephemeral_5m_input_tokens", 0) or 0)
    counts = Usage(usage.input_tokens or 0, max(usage.output_tokens or 0, output), read, written)
    prices = prices_of(settings, counts.input + read + written)
    if not prices:
        return counts
    cost = prices.input * counts.input + prices.output * counts.output + prices.cache_read * read
    cost += prices.cache_write * (written - brief) + prices.cache_write_5m * brief
    return counts + Usage(cost=cost / 1e6)


def usual_cost(settings: Settings) -> float:
    """US dollars that one proposal costs about, before any was made; nan if no price is known."""
    prices = prices_of(settings)
    if not prices:
        return math.nan
    output = OUTPUT_TOKENS[settings.effort or "medium"]
    read = PREFIX_TOKENS * REQUESTS * prices.cache_read
    return (read + WRITTEN_TOKENS * prices.cache_write + output * prices.output) / 1e6


def cost_line(settings: Settings, proposals: float, measured: list[float]) -> str:
    """What so many proposals will cost, for the start of a session. `measured`: of proposals so far, in US dollars."""
    each = sum(measured) / len(measured) if measured else usual_cost(settings)
    cap = (
        f"capped at ${settings.max_cost:.2f}" if settings.max_cost is not None else "no cap: `max_cost:` or --max-cost"
    )
    if math.isnan(each):
        return f"cost: no price of {settings.model} is known; tokens are counted, dollars are not (`prices:`)"
    source = f"by the last {len(measured)}" if measured else f"an estimate for effort {settings.effort}"
    many = f"${proposals * each:.0f} for about {proposals:.0f} proposals, " if math.isfinite(proposals) else ""
    return f"cost: {many}${each:.2f} each ({source}); {cap}"
