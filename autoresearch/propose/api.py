"""
The Messages API: one request, one answer, what it cost; and what is done about every way in which a request can fail.
"""

import email.utils
import itertools
import random
import re
import time
from dataclasses import dataclass, field
from typing import Any

from autoresearch.nouns import Proposal, Usage
from autoresearch.propose.context import CannotPropose, Context, ProposalFailed
from autoresearch.propose.prompt import cached
from autoresearch.propose.tools import TOOLS
from autoresearch.settings import Prices
from autoresearch.text import one_line

# anthropic takes seconds to import: the functions that use it do.

MAX_TOKENS = 64_000  # of one answer, thinking included
READ_TIMEOUT = 300.0  # seconds without a byte, after which a stream counts as dead
LONGEST_WAIT = 60.0  # seconds between two attempts, unless the API names its own


class TooLong(Exception):
    """The API, or the model, has no room for this prompt."""


@dataclass
class Conversation:
    """One exchange with the model, and what has come of it."""

    context: Context
    source: str  # train.py as it is edited so far
    system: list
    messages: list
    turns: list[dict] = field(default_factory=list)  # of every answer: how it ended, what it cost
    usage: Usage = field(default_factory=Usage)  # of this proposal; earlier attempts at it were booked before
    proposal: Proposal | None = None  # once it is submitted


def make_client(max_retries: int = 0) -> Any:
    """An API client; ANTHROPIC_BASE_URL and the SDK's other variables work. Waiting is ours, so that it can be seen."""
    import anthropic

    return anthropic.Anthropic(max_retries=max_retries, timeout=anthropic.Timeout(READ_TIMEOUT, connect=15.0))


def check_key(model: str) -> str:
    """One cheap call: does the key work, does the model exist? Returns what is wrong, or ""."""
    import anthropic

    try:
        with make_client(max_retries=2) as client:
            client.models.retrieve(model)
    except (anthropic.AuthenticationError, anthropic.PermissionDeniedError) as error:
        return f"ANTHROPIC_API_KEY was rejected ({error.status_code}); check the key"
    except anthropic.NotFoundError:
        return f"the API knows no model {model!r}; set another `model:` in program.md"
    except anthropic.AnthropicError as error:
        return f"the API cannot be reached: {one_line(str(error))}; check the network and ANTHROPIC_BASE_URL"
    return ""


def priced(usage: Any, prices: Prices) -> Usage:
    """An API usage record as ours, with its cost in US dollars."""
    counts = {
        "input": usage.input_tokens,
        "output": usage.output_tokens,
        "cache_read": usage.cache_read_input_tokens or 0,
        "cache_write": usage.cache_creation_input_tokens or 0,
    }
    return Usage(**counts, cost=sum(getattr(prices, kind) * count for kind, count in counts.items()) / 1e6)


def check_time(context: Context) -> None:
    if context.should_stop():
        raise ProposalFailed("stopped")
    if time.time() > context.deadline:
        raise ProposalFailed("no time was left to finish the proposal")


def request(conversation: Conversation) -> dict:
    """What is sent: beside the marks of first_prompt() one on what was said last, and on system if there is room."""
    system, messages = conversation.system, list(conversation.messages)
    last = max(index for index, message in enumerate(messages) if message["role"] == "user")
    content = messages[last]["content"]
    messages[last] = {"role": "user", "content": [*content[:-1], cached(content[-1])]}
    if sum("cache_control" in block for message in messages for block in message["content"]) < 4:
        system = [*system[:-1], cached(system[-1])]
    settings = conversation.context.settings
    return {
        "model": settings.model,
        "max_tokens": MAX_TOKENS,
        "system": system,
        "tools": TOOLS,
        "messages": messages,
        "thinking": {"type": "adaptive"},
        "output_config": {"effort": settings.effort},
    }


def stream_reply(client: Any, conversation: Conversation) -> Any:
    """One answer; None if its tool input is not JSON. What it cost is booked however it ends, as far as it is known."""
    import httpx2

    reply = None
    with client.messages.stream(**request(conversation)) as stream:
        try:
            for event in stream:
                if event.type == "message_start":
                    reply = stream.current_message_snapshot  # filled in as the stream goes on
                    conversation.context.begun()
                check_time(conversation.context)
        except ValueError as error:
            conversation.context.log(f"the model's answer cannot be read: {one_line(str(error))[:200]}")
            return None
        finally:
            if reply:
                book(conversation, reply, stream.request_id)
    if reply is None or reply.stop_reason is None:
        raise httpx2.RemoteProtocolError("the answer ended early")
    return reply


def book(conversation: Conversation, reply: Any, request_id: str | None) -> None:
    """Add what an answer cost to the bill and to the record."""
    usage = priced(reply.usage, conversation.context.settings.prices)
    details = {"stop_details": reply.stop_details.to_dict()} if reply.stop_details else {}
    turn = {"request_id": request_id, "stop_reason": reply.stop_reason, "usage": vars(usage)} | details
    conversation.turns.append(turn)
    conversation.usage += usage


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
            how = f"answered {error.status_code}" if error.status_code >= 400 else "broke off an answer:"
            message = one_line(error.api_message or error.message)[:200]
            problem = f"the API {how} {error.type or ''}: {message}"
            raise_for_good(error, problem)
            wait = retry_after(error.response.headers.get("retry-after", ""))
        except (anthropic.APIError, httpx2.RequestError) as error:
            problem, wait = f"the connection failed: {type(error).__name__}: {one_line(str(error))[:100]}", None
        wait_to_retry(context, problem, wait or min(LONGEST_WAIT, 2**attempt) * random.uniform(0.75, 1))


def check_money(conversation: Conversation) -> None:
    context, limit = conversation.context, conversation.context.settings.max_cost
    if limit is not None and context.spent + conversation.usage.cost >= limit:
        raise ProposalFailed(f"max_cost of ${limit:.2f} is reached in the middle of a proposal")


def raise_for_good(error: Any, problem: str) -> None:
    """Raise what an API error means, unless it will pass: rate limits, overload, timeouts, faults of the server."""
    status = error.status_code
    if status < 400:  # an error in the middle of a stream that began well
        status = 400 if error.type == "invalid_request_error" else 500
    if status in (401, 402, 403, 404):
        raise CannotPropose(f"{problem}; check the key, its credit and `model:` in program.md") from error
    if status == 413 or (status == 400 and re.search(r"too long|context (window|limit|length)", problem)):
        raise TooLong(problem) from error
    if status not in (408, 409, 429) and status < 500:
        raise ProposalFailed(problem) from error


def retry_after(header: str) -> float | None:
    """Seconds that the API asks to wait for, given as a number or as a date; None if it does not say."""
    if re.fullmatch(r"\d+(\.\d+)?", header):
        return float(header) or None
    date = email.utils.parsedate_tz(header)
    return max(1.0, email.utils.mktime_tz(date) - time.time()) if date else None


def wait_to_retry(context: Context, problem: str, seconds: float) -> None:
    """Wait, and say so. Raises ProposalFailed if the time of this proposal is over before."""
    until = time.time() + seconds
    if until > context.deadline:
        raise ProposalFailed(f"{problem}; to wait {seconds:.0f} s for another attempt is too late for this proposal")
    context.log(f"{problem}; asking again in {seconds:.0f} s")
    while time.time() < until:
        check_time(context)
        time.sleep(min(0.2, max(0.0, until - time.time())))
