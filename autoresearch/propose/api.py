"""
The Messages API: one request, one answer, what it cost; and what is done about every way in which a request can fail.

What passes (overload, rate limits, faults of the server, a lost connection) is waited out. What no waiting mends (a
rejected key, no credit, a spend limit, a setting that the model does not take) is CannotPropose and ends the session.
What lies in this one conversation is BeginAgain.
"""

import itertools
import random
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from autoresearch.nouns import Json, Proposal, Usage
from autoresearch.propose.context import CannotPropose, Context, Fault
from autoresearch.propose.models import (
    address_problem,
    base_url,
    cause_of,
    make_client,
    misfit,
    price_problem,
    priced,
    prices_of,
    retirement,
)
from autoresearch.settings import Settings
from autoresearch.text import one_line

# anthropic takes seconds to import: the functions that use it do.

MAX_TOKENS = 32_000  # of one answer, where program.md does not say how many
LONGEST_WAIT = 60.0  # seconds between two attempts, unless the API names its own
CHARACTERS_PER_TOKEN = 3.5  # of an answer whose end, and with it the count, never came
POLL = 0.2  # seconds between two looks at whether anybody still waits

# Types of errors that come in the middle of a stream, whose HTTP status says 200.
STATUS = {
    "invalid_request_error": 400,
    "authentication_error": 401,
    "billing_error": 402,
    "permission_error": 403,
    "not_found_error": 404,
    "request_too_large": 413,
    "rate_limit_error": 429,
}
# Codes and words of errors that keep coming until a person has done something.
SPENT = ("enforced_spend_limit_reached", "contract_spend_limit_reached", "linked_organization_spend_limit_reached")
ON_HOLD = ("organization_on_hold", "linked_organization_billing_unavailable")
SPENT_WORDS = r"usage limit|spend(ing)? limit|credit balance"


# Fields of ours that a server may not take, as its errors name them, and the setting that changes or drops each.
FIELDS = {
    r"\bttl\b|cache_control": "`cache: 5m` or `cache: off`",
    r"output_config|\beffort\b|\bthinking\.\w|adaptive|\bstrict\b": "`effort: null`",
    r"inference_geo": "`inference_geo: null`",
    r"\bmax_tokens\b": "another `max_tokens:`",
}


class BeginAgain(Exception):
    """This conversation cannot go on; a new one may. `shorter`: with less history."""

    def __init__(self, message: str, shorter: bool):
        super().__init__(message)
        self.shorter = shorter


@dataclass
class Conversation:
    """One exchange with the model, and what has come of it."""

    context: Context
    source: str  # train.py as it is edited so far
    system: list[Any]
    messages: list[Any]
    tools: list[Json]
    turns: list[Json] = field(default_factory=list)  # of every answer: how it ended, what it cost
    usage: Usage = field(default_factory=Usage)  # of this proposal; earlier attempts at it were booked before
    proposal: Proposal | None = None  # once it is submitted
    checked: set[str] = field(default_factory=set)  # texts of train.py that were tried for a few steps


# -----------------------------------------------------------------------------
# One request


def request(conversation: Conversation) -> Json:
    """What is sent: with the hour's marks of first_prompt(), and one for five minutes on what was said last."""
    settings = conversation.context.settings
    *before, last = conversation.messages
    *blocks, block = last["content"]
    marked = block | {"cache_control": {"type": "ephemeral"}}
    sent = {
        "model": settings.model,
        "max_tokens": settings.max_tokens or MAX_TOKENS,
        "system": conversation.system,
        "tools": conversation.tools,
        "messages": [with_cache(each, settings.cache) for each in [*before, last | {"content": [*blocks, marked]}]],
    }
    if settings.inference_geo:
        sent["inference_geo"] = settings.inference_geo
    if settings.effort is None:
        return sent
    thinking = {"type": "adaptive", "display": "summarized"}  # the reasons are in the transcript; it costs the same
    return sent | {"thinking": thinking, "output_config": {"effort": settings.effort}}


def with_cache(message: Json, cache: str) -> Json:
    """A message whose marks for the API's cache are as program.md wants them."""
    if cache == "1h":
        return message
    mark = {"cache_control": {"type": "ephemeral"}} if cache == "5m" else {}
    content = [
        {name: block[name] for name in block if name != "cache_control"} | (mark if "cache_control" in block else {})
        for block in message["content"]
    ]
    return message | {"content": content}


def stream_reply(client: Any, conversation: Conversation) -> Any:
    """One answer; None if its tool input is not JSON. What it cost is booked however it ends, as far as it is known."""
    import httpx2

    context, reply, characters, started = conversation.context, None, 0, time.monotonic()
    with client.messages.stream(**request(conversation)) as stream, watched(stream.response, context):
        try:
            for event in stream:
                if event.type == "message_start":
                    context.begun()
                elif not reply:
                    continue
                reply = stream.current_message_snapshot
                characters += delta_size(event)
                context.used = conversation.usage + priced_so_far(conversation, reply, characters)
        except (AttributeError, TypeError) as error:  # the SDK takes what it needs for granted
            problem = f"{type(error).__name__}: {one_line(str(error))[:150]}"
            raise Fault(f"the server's answer is not complete, `usage` may be missing: {problem}") from error
        except ValueError as error:
            context.log(f"the model's answer cannot be read: {one_line(str(error))[:200]}")
            return None
        finally:
            if reply:
                book(conversation, reply, stream.request_id, characters, time.monotonic() - started)
    if reply is None or reply.stop_reason is None:
        raise httpx2.RemoteProtocolError("the answer ended early")
    return reply


def delta_size(event: Any) -> int:
    """Characters of the model's that an event brings."""
    if event.type != "content_block_delta":
        return 0
    return sum(len(getattr(event.delta, name, None) or "") for name in ("text", "thinking", "partial_json"))


@contextmanager
def watched(response: Any, context: Context) -> Iterator[None]:
    """Cut the connection when nobody waits for the answer any more: the reader may see nothing for minutes."""
    done = threading.Event()

    def watch() -> None:
        while not done.wait(POLL):
            if context.should_stop() or time.monotonic() > context.deadline:
                with suppress(OSError):
                    response.extensions["network_stream"].get_extra_info("socket").shutdown(socket.SHUT_RDWR)
                return

    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        done.set()


# -----------------------------------------------------------------------------
# What it cost


def priced_so_far(conversation: Conversation, reply: Any, characters: int) -> Usage:
    """What an answer costs; before its end is there, at least what its characters do."""
    least = 0 if reply.stop_reason else round(characters / CHARACTERS_PER_TOKEN)
    return priced(getattr(reply, "usage", None), conversation.context.settings, least)


def book(conversation: Conversation, reply: Any, request_id: str | None, characters: int, seconds: float) -> None:
    """Add what an answer cost to the bill and to the record."""
    usage = priced_so_far(conversation, reply, characters)
    details = {"stop_details": reply.stop_details.to_dict()} if reply.stop_details else {}
    thinking = getattr(getattr(getattr(reply, "usage", None), "output_tokens_details", None), "thinking_tokens", None)
    turn = {"request_id": request_id, "stop_reason": reply.stop_reason, "seconds": round(seconds, 1)}
    conversation.turns.append(turn | {"usage": vars(usage), "thinking_tokens": thinking} | details)
    conversation.usage += usage
    conversation.context.used = conversation.usage


def check_money(conversation: Conversation) -> None:
    context, limit = conversation.context, conversation.context.settings.max_cost
    if limit is not None and context.spent() + conversation.usage.cost >= limit:
        raise Fault(f"max_cost of ${limit:.2f} is reached in the middle of a proposal")


# -----------------------------------------------------------------------------
# What can go wrong


def ask(client: Any, conversation: Conversation) -> Any:
    """One answer of the model, asked for again for as long as what goes wrong will pass and there is time."""
    import anthropic
    import httpx2

    context = conversation.context
    for attempt in itertools.count():
        check_time(context)
        check_money(conversation)
        try:
            return stream_reply(client, conversation)
        except anthropic.APIStatusError as error:
            problem = said_by(error)
            raise_for_good(error, problem)
            wait = retry_after(error.response.headers.get("retry-after", ""))
        except (anthropic.APIError, httpx2.RequestError) as error:
            raise_for_address(error)
            problem, wait = f"the connection failed: {cause_of(error)}", None
        except anthropic.AnthropicError as error:  # a login has expired: a person may log in while the search waits
            mend = "log in again, or set ANTHROPIC_API_KEY"
            raise Fault(f"the API cannot be asked: {cause_of(error)}; {mend}") from error
        check_time(context)
        wait_to_retry(context, problem, wait or min(LONGEST_WAIT, 2**attempt) * random.uniform(0.75, 1))


def said_by(error: Any) -> str:
    """An error of the API in one line."""
    how = f"answered {error.status_code}" if error.status_code >= 400 else "broke off an answer:"
    return f"the API {how} {error.type or ''}: {one_line(error.api_message or error.message)[:200]}"


def raise_for_address(error: Exception) -> None:
    """Raise CannotPropose if a request cannot even be sent: a slip in the key or in the address."""
    import httpx2

    if isinstance(error.__cause__ or error, httpx2.UnsupportedProtocol | httpx2.LocalProtocolError | httpx2.InvalidURL):
        message = f"the API cannot be asked: {cause_of(error)}; check ANTHROPIC_API_KEY and ANTHROPIC_BASE_URL"
        raise CannotPropose(message) from error


def raise_for_good(error: Any, problem: str) -> None:
    """Raise what an API error means, unless it will pass: rate limits, overload, timeouts, faults of the server."""
    status = error.status_code if error.status_code >= 400 else STATUS.get(error.type, 500)
    if error.error_code in SPENT or (status == 400 and re.search(SPENT_WORDS, problem, re.I)):
        raise CannotPropose(f"{problem}; raise the spend limit in the Console, or wait until it is reset") from error
    if status in (401, 402, 403, 404) or error.error_code in ON_HOLD:
        raise CannotPropose(f"{problem}; check the key, its credit and `model:` in program.md") from error
    too_long = status == 413 or re.search(r"too long|context (window|limit|length|size)", problem)
    setting = next((each for field, each in FIELDS.items() if re.search(field, problem)), "")
    if status in (400, 422) and not too_long and (setting or "not supported" in problem):
        setting = setting or "another `model:`, `effort:` or `max_tokens:`"
        raise CannotPropose(f"{problem}; set {setting} in program.md") from error
    if status in (400, 413, 422):
        raise BeginAgain(problem, shorter=bool(too_long)) from error
    if status not in (408, 409, 429) and status < 500:
        raise Fault(problem) from error


def retry_after(header: str) -> float | None:
    """Seconds that the API asks to wait for; None if it does not say."""
    return (float(header) or None) if re.fullmatch(r"\d+(\.\d+)?", header) else None


def check_time(context: Context) -> None:
    if context.should_stop():
        raise Fault("stopped")
    if time.monotonic() > context.deadline:
        raise Fault("no time was left to finish the proposal")


def wait_to_retry(context: Context, problem: str, seconds: float) -> None:
    """Wait, and say so. Raises Fault if the time of this proposal is over before."""
    until = time.monotonic() + seconds
    if until > context.deadline:
        raise Fault(f"{problem}; to wait {seconds:.0f} s for another attempt is too late for this proposal")
    context.log(f"{problem}; asking again in {seconds:.0f} s")
    while time.monotonic() < until:
        check_time(context)
        time.sleep(min(POLL, max(0.0, until - time.monotonic())))


# -----------------------------------------------------------------------------
# Before a search


def check_model(settings: Settings) -> list[str]:
    """One cheap call. Returns what is worth saying; raises Fault with what only a person can fix."""
    import anthropic

    if problem := price_problem(settings) or address_problem():
        raise CannotPropose(problem)
    said = [] if prices_of(settings) else [f"no price of {settings.model} is known: dollars are not counted"]
    try:
        with make_client(max_retries=1) as client:
            if not (client.api_key or client.auth_token or client.credentials):
                raise CannotPropose(
                    "ANTHROPIC_API_KEY is not set; set it, or use --proposer constants, or --command '...'"
                )
            info = client.models.retrieve(settings.model)
    except anthropic.APIStatusError as error:
        problem = said_by(error)
        if error.status_code in (400, 404, 405) and base_url():  # a server of one's own may know no such call
            return [*said, f"{problem}: the server says nothing of {settings.model}; going on without"]
        with suppress(BeginAgain):
            raise_for_good(error, problem)
    except anthropic.APIConnectionError as error:
        raise_for_address(error)
        problem = f"the API cannot be reached: {cause_of(error)}"
    except (anthropic.AnthropicError, ValueError) as error:  # no credentials; a model whose name is no path
        raise CannotPropose(f"`model: {settings.model}` cannot be asked for: {cause_of(error)}") from error
    else:
        if problem := misfit(info, settings):
            raise CannotPropose(problem)
        return said + retirement(info, settings)
    return [*said, f"{problem}; the search begins, and asks again when it needs a proposal"]
