"""
anthropic: a proposer. Claude reads what was tried, edits train.py with the text-editor tool, submits; the Messages API.

    python agent_loop.py --hours 48                      # the default proposer; needs ANTHROPIC_API_KEY
    python -m pytest tests/test_researcher.py            # against a local server that speaks the protocol
    python benchmarks/scripted_researcher.py             # 40 experiments with a scripted model, as one transcript

One conversation makes one experiment, and is continued where that experiment crashed by a slip. What it is shown is
made in prompt.py, in an order that lets nearly all of it be read from the API's cache.

Whatever the API does ends in a Proposal or in ProposalFailed (try again), Refused (the model declined, and is not asked
the same again) or CannotPropose (a person has to mend something). The whole exchange is in exchange.json.
"""

import ast
import email.utils
import itertools
import json
import math
import random
import re
import time
from dataclasses import dataclass, field
from pathlib import Path

from ledger import one_line, replace_file
from prompt import (
    HISTORY_CHARACTERS,
    NOTEBOOK_CHARACTERS,
    cached,
    clean,
    crash_text,
    first_prompt,
    text_block,
    untrusted,
)
from proposers import CannotPropose, Context, Proposal, ProposalFailed, Refused, Usage, edit_problem

# anthropic takes seconds to import: the functions that use it do.

READ_CHARACTERS = 12_000  # of what read_experiment shows
MAX_TOKENS = 64_000  # of one answer, thinking included
READ_TIMEOUT = 300.0  # seconds without a byte, after which a stream counts as dead
LONGEST_WAIT = 60.0  # seconds between two attempts, unless the API names its own
STUMBLES = 3  # answers in a row without a usable tool call, after which the proposal counts as failed
SHORTENINGS = 4  # how often the history is halved because the API finds the prompt too long

# -----------------------------------------------------------------------------
# The tools

CATEGORIES = (
    *("architecture", "optimizer", "schedule", "hyperparameter", "initialization", "batch", "efficiency"),
    *("simplification", "other"),
)


def tool(name: str, description: str, properties: dict, optional: tuple[str, ...] = ()) -> dict:
    """A tool of ours; the API sees to it that its input fits the schema."""
    schema = {"type": "object", "properties": properties, "additionalProperties": False}
    schema["required"] = [key for key in properties if key not in optional]
    return {"name": name, "description": description, "input_schema": schema, "strict": True}


READ_TOOL = """Look at a past experiment: its diff against the best it was tried on, the end of its log, or its notes
(why it was tried, what was expected, how it was judged)."""
SUBMIT_TOOL = "Submit train.py, as edited, as the next experiment. It is checked; what is wrong comes back as an error."
NOTEBOOK = (
    f"the whole new text of your notebook, at most {NOTEBOOK_CHARACTERS} characters; without it the notebook stays"
)
EXPECTED = "by how much you expect val_bpb to fall, e.g. 0.002; negative if it should rise"

TOOLS = [
    {"type": "text_editor_20250728", "name": "str_replace_based_edit_tool"},
    tool(
        "read_experiment",
        READ_TOOL,
        {"number": {"type": "integer"}, "what": {"type": "string", "enum": ["diff", "log", "notes"]}},
    ),
    tool(
        "submit",
        SUBMIT_TOOL,
        {
            "description": {"type": "string", "description": "one line: what changed, from what to what"},
            "hypothesis": {"type": "string", "description": "one or two sentences: why this should help"},
            "expected_gain": {"type": "number", "description": EXPECTED},
            "category": {"type": "string", "enum": [*CATEGORIES]},
            "notebook": {"type": "string", "description": NOTEBOOK},
        },
        optional=("notebook",),
    ),
]


class ToolError(Exception):
    """Told to the model as the tool's error."""


def argument(arguments: dict, name: str, kind: type, default=None):
    """An argument of a tool call. Raises ToolError if it is missing or of another type."""
    value = arguments.get(name, default)
    accepted = (int, float) if kind is float else kind
    if not isinstance(value, accepted) or isinstance(value, bool):
        raise ToolError(f"the argument {name} is missing or is not of type {kind.__name__}")
    return value


def edit_text(source: str, arguments: dict) -> tuple[str, str]:
    """Carry out one text-editor call on `source`. Returns (new source, answer to the model); raises ToolError."""
    path, command = argument(arguments, "path", str), argument(arguments, "command", str)
    if Path(path).name != "train.py":
        raise ToolError(f"there is only train.py here, not {path}")
    if command == "view":
        return source, view_lines(source, argument(arguments, "view_range", list, [1, -1]))
    if command == "create":
        after = argument(arguments, "file_text", str)
    elif command == "str_replace":
        after = replace_once(source, argument(arguments, "old_str", str), argument(arguments, "new_str", str, ""))
    elif command == "insert":
        after = insert_after(source, argument(arguments, "insert_line", int), argument(arguments, "insert_text", str))
    else:
        raise ToolError(f"there is no command {command}; there are view, create, str_replace and insert")
    if after == source:
        raise ToolError("this changes nothing")
    return after, f"train.py is edited{syntax_warning(after)}"


def view_lines(source: str, view_range: list) -> str:
    """Numbered lines from the first to the last of `view_range`, -1 for the end."""
    lines = source.removesuffix("\n").split("\n")
    if len(view_range) != 2 or not all(type(number) is int for number in view_range):
        raise ToolError("view_range should be two line numbers")
    first, last = view_range[0], len(lines) if view_range[1] == -1 else view_range[1]
    if not 1 <= first <= last <= len(lines):
        raise ToolError(f"view_range {view_range} is not within lines 1 to {len(lines)}")
    return "\n".join(f"{number}\t{lines[number - 1]}" for number in range(first, last + 1))


def replace_once(source: str, old: str, new: str) -> str:
    count = source.count(old) if old else 0
    if count != 1:
        raise ToolError(f"old_str occurs {count} times in train.py; it must occur exactly once")
    return source.replace(old, new)


def insert_after(source: str, number: int, text: str) -> str:
    """`text` as lines of its own behind line `number`, 0 for the top."""
    lines = [f"{line}\n" for line in source.removesuffix("\n").split("\n")]
    if not 0 <= number <= len(lines):
        raise ToolError(f"insert_line {number} is not between 0 and {len(lines)}")
    return "".join([*lines[:number], text.removesuffix("\n") + "\n", *lines[number:]])


def syntax_warning(source: str) -> str:
    """That a file does not parse as it stands: told at once, refused only when it is submitted."""
    try:
        ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        return f"; as it stands it does not parse: {error}"
    return ""


def checked_proposal(context: Context, source: str, arguments: dict) -> Proposal:
    """What is submitted, if it can be an experiment. Raises ToolError; writes the notebook."""
    texts = {name: argument(arguments, name, str) for name in ("description", "hypothesis", "category")}
    expected = float(argument(arguments, "expected_gain", float))
    notebook = argument(arguments, "notebook", str, "")
    if not one_line(texts["description"]):
        raise ToolError("the description is empty")
    if texts["category"] not in CATEGORIES:
        raise ToolError(f"the category should be one of: {', '.join(CATEGORIES)}")
    if not math.isfinite(expected):
        raise ToolError("expected_gain should be a finite number")
    if len(notebook) > NOTEBOOK_CHARACTERS:
        raise ToolError(f"the notebook has {len(notebook)} characters; at most {NOTEBOOK_CHARACTERS} are kept")
    before = [context.best_source] + ([context.crash.source] if context.crash else [])
    if problem := next(filter(None, (edit_problem(text, source) for text in before)), "") or context.forbidden(source):
        raise ToolError(problem)
    if notebook:
        context.notebook.parent.mkdir(parents=True, exist_ok=True)
        replace_file(context.notebook, clean(notebook))
    texts["description"] = one_line(texts["description"])
    return Proposal(source=source, expected=expected, **texts)


# -----------------------------------------------------------------------------
# Asking


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


def make_client(max_retries: int = 0):
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


def priced(usage, prices) -> Usage:
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


def stream_reply(client, conversation: Conversation):
    """One answer; None if its tool input is not JSON. What it cost is booked however it ends, as far as it is known."""
    import httpx2

    reply = None
    with client.messages.stream(**request(conversation)) as stream:
        try:
            for event in stream:
                if event.type == "message_start":
                    reply = stream.current_message_snapshot  # filled in as the stream goes on
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


def book(conversation: Conversation, reply, request_id: str | None) -> None:
    """Add what an answer cost to the bill and to the record."""
    usage = priced(reply.usage, conversation.context.settings.prices)
    details = {"stop_details": reply.stop_details.to_dict()} if reply.stop_details else {}
    turn = {"request_id": request_id, "stop_reason": reply.stop_reason, "usage": vars(usage)} | details
    conversation.turns.append(turn)
    conversation.usage += usage


def ask(client, conversation: Conversation):
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


def raise_for_good(error, problem: str) -> None:
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


# -----------------------------------------------------------------------------
# The conversation


def add(conversation: Conversation, role: str, blocks: list[dict]) -> None:
    """Add to the messages; to the last one, if it is of the same role."""
    if conversation.messages[-1]["role"] == role:
        conversation.messages[-1]["content"].extend(blocks)
    else:
        conversation.messages.append({"role": role, "content": blocks})


def say(conversation: Conversation, text: str) -> None:
    """Add to what the model reads next."""
    add(conversation, "user", [text_block(text)])


def take_reply(conversation: Conversation, reply) -> bool:
    """Do what an answer says. False if it held nothing usable. An answer that was cut off is dropped as a whole."""
    if reply is None:
        say(conversation, "Your last answer held tool input that is not valid JSON, and was dropped. Try again.")
        return False
    if reply.stop_reason == "refusal":
        details = reply.stop_details
        category, explanation = (details.category, details.explanation) if details else (None, None)
        explanation = one_line(explanation or "it gave no explanation")[:500]
        raise Refused(f"the model declined ({category or 'no category'}): {explanation}")
    if reply.stop_reason == "model_context_window_exceeded":
        raise TooLong("the conversation does not fit into the model's context window")
    if reply.stop_reason == "max_tokens":
        say(conversation, "Your last answer was cut off for its length, and dropped. Be brief: make smaller edits.")
        return False
    content = [block.to_dict() for block in reply.content if block.type != "text" or block.text.strip()]
    if any("thinking" not in block["type"] for block in content):  # thinking alone cannot be sent back
        add(conversation, "assistant", content)
    if calls := [block for block in reply.content if block.type == "tool_use"]:
        add(conversation, "user", [tool_result(conversation, call) for call in calls])
    elif reply.stop_reason != "pause_turn":  # after a pause it is simply asked to go on
        answer_without_tool(conversation, reply)
        return False
    return True


def answer_without_tool(conversation: Conversation, reply) -> None:
    """Words only: in a repair that is its way to give up; else it is reminded."""
    if conversation.context.crash:
        words = one_line(" ".join(block.text for block in reply.content if block.type == "text"))
        raise ProposalFailed(f"the model leaves the crash as it is: {words[:300]}")
    say(conversation, "Nothing is submitted yet. Edit train.py with the tool, then call submit.")


def tool_result(conversation: Conversation, call) -> dict:
    """Carry out one tool call; what is wrong with it goes back to the model."""
    result = {"type": "tool_result", "tool_use_id": call.id}
    try:
        return result | {"content": use_tool(conversation, call.name, call.input)}
    except ToolError as error:
        return result | {"content": f"error: {error}", "is_error": True}


def use_tool(conversation: Conversation, name: str, arguments) -> str:
    """The answer of a tool. Raises ToolError."""
    context = conversation.context
    if not isinstance(arguments, dict):
        raise ToolError("the tool's input should be an object")
    if conversation.proposal:
        raise ToolError("train.py is already submitted")
    if name == "str_replace_based_edit_tool":
        conversation.source, answer = edit_text(conversation.source, arguments)
        return answer
    if name == "read_experiment":
        number, what = argument(arguments, "number", int), argument(arguments, "what", str)
        try:
            return untrusted(context.read(number, what), READ_CHARACTERS)
        except ValueError as error:
            raise ToolError(str(error)) from error
    if name == "submit":
        conversation.proposal = checked_proposal(context, conversation.source, arguments)
        return "submitted"
    raise ToolError(f"there is no tool {name}")


def exchange_path(context: Context) -> Path:
    return context.folder / "exchange.json"


def save(conversation: Conversation, outcome: str = "") -> None:
    """The whole exchange so far, as JSON; the key is not in it."""
    context = conversation.context
    context.folder.mkdir(parents=True, exist_ok=True)
    record = {
        "model": context.settings.model,
        "outcome": outcome or ("submitted" if conversation.proposal else "unfinished"),
        "cost": sum(turn["usage"]["cost"] for turn in conversation.turns),
        "turns": conversation.turns,
        "system": conversation.system,
        "messages": conversation.messages,
    }
    replace_file(exchange_path(context), json.dumps(record, indent=1))


def begin(context: Context, limit: int) -> Conversation:
    """A new conversation, with at most `limit` characters of history."""
    source = context.crash.source if context.crash else context.best_source
    return Conversation(context, source, *first_prompt(context, limit))


def resume(context: Context) -> Conversation | None:
    """The conversation that made the experiment which crashed, if it is there and was held with the present model."""
    path = exchange_path(context)
    if not context.crash or not path.is_file():
        return None
    record = json.loads(path.read_text())
    if record["model"] != context.settings.model or record["outcome"] != "submitted":
        return None
    conversation = Conversation(context, context.crash.source, record["system"], record["messages"], record["turns"])
    say(conversation, crash_text(context))
    return conversation


def converse(client, conversation: Conversation) -> Proposal:
    """Turn after turn until something is submitted. Raises ProposalFailed and its kinds, or TooLong."""
    limit, stumbles = conversation.context.settings.max_turns, 0
    for _ in range(limit):
        reply = ask(client, conversation)
        stumbles = 0 if take_reply(conversation, reply) else stumbles + 1
        save(conversation)
        if conversation.proposal:
            return conversation.proposal
        if stumbles == STUMBLES:
            raise ProposalFailed(f"{STUMBLES} answers in a row were cut off, unreadable or without a tool call")
    raise ProposalFailed(f"nothing was submitted in {limit} turns")


def converse_within_context(client, conversation: Conversation) -> Proposal:
    """The same, begun afresh with half the history where the prompt is too long."""
    context = conversation.context
    for shortening in itertools.count(1):
        try:
            return converse(client, conversation)
        except TooLong as error:
            if shortening > SHORTENINGS:
                raise ProposalFailed(f"{error}, however little history is sent") from error
            limit = HISTORY_CHARACTERS >> shortening
            context.log(f"{error}; beginning again with {limit} characters of history")
            fresh = begin(context, limit)
            conversation.source, conversation.system, conversation.messages = fresh.source, fresh.system, fresh.messages


def propose_by_claude(context: Context) -> Proposal:
    """The next train.py, or the repaired one. Raises ProposalFailed, Refused or CannotPropose, with what it cost."""
    conversation = resume(context) or begin(context, HISTORY_CHARACTERS)
    try:
        with make_client() as client:
            proposal = converse_within_context(client, conversation)
    except ProposalFailed as failure:
        failure.usage = conversation.usage
        save(conversation, f"failed: {failure}")
        raise
    proposal.usage = conversation.usage
    return proposal
