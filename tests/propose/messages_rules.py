"""
The rules of the Messages API as they are documented: what it refuses, and what it bills.

Bills follow the documented prompt cache: an entry is written at each mark, for five minutes or for an hour; from each
mark, the longest entry at it or at one of the 20 blocks before it is read, which renews it; a prefix counts only if it
is the same to the last byte, tools and system included. A token is taken for four characters.
"""

import hashlib
import itertools
import json
from collections.abc import Iterator

CHARACTERS_PER_TOKEN = 4
LOOK_BACK = 20  # blocks
MARKS = 4  # at most
SHORTEST_ENTRY = 512  # tokens, on Opus 5.5
LIFETIMES = {"5m": 300, "1h": 3600}  # seconds
EFFORTS = ("low", "medium", "high", "xhigh", "max")
# What a model takes and gives. Haiku 4.5 stands for those that know neither adaptive thinking nor effort.
MODELS = {
    "claude-opus-5-5": {"max_tokens": 128_000, "adaptive": True, "efforts": EFFORTS},
    "claude-sonnet-5-5": {"max_tokens": 128_000, "adaptive": True, "efforts": EFFORTS},
    "claude-fable-5-1": {"max_tokens": 128_000, "adaptive": True, "efforts": EFFORTS},
    "claude-haiku-4-5": {"max_tokens": 64_000, "adaptive": False, "efforts": ()},
}
KEYS = {"model", "max_tokens", "system", "tools", "messages", "stream", "thinking", "output_config", "inference_geo"}

# -----------------------------------------------------------------------------
# What it refuses


def model_info(model: str) -> dict:
    """The answer of GET /v1/models/ID."""
    facts = MODELS[model]
    flag = {True: {"supported": True}, False: {"supported": False}}
    efforts = {effort: flag[effort in facts["efforts"]] for effort in EFFORTS}
    types = dict.fromkeys(("between_tools", "disabled", "enabled"), flag[False])
    thinking = flag[True] | {"types": types | {"adaptive": flag[facts["adaptive"]]}}
    names = ("batch", "citations", "code_execution", "image_input", "pdf_input", "structured_outputs")
    capabilities = dict.fromkeys(names, flag[True])
    capabilities |= {"effort": flag[bool(facts["efforts"])] | efforts, "thinking": thinking}
    about = {"type": "model", "id": model, "display_name": model, "created_at": "2026-01-01T00:00:00Z"}
    limits = {"max_input_tokens": 1_000_000, "max_tokens": facts["max_tokens"]}
    limits |= {"lifecycle": facts.get("lifecycle", "active"), "retires_at": facts.get("retires_at")}
    return about | limits | {"capabilities": capabilities}


def problem_of(body: dict) -> str:
    """Why the API would answer 400, or ""."""
    checks = (settings_problem, tools_problem, marks_problem, messages_problem, thinking_problem)
    return next(filter(None, (check(body) for check in checks)), "")


def settings_problem(body: dict) -> str:
    facts = MODELS.get(body["model"])
    if not facts:
        return ""
    if unknown := body.keys() - KEYS:
        return f"{unknown}: extra inputs are not permitted"
    if body["max_tokens"] > facts["max_tokens"]:
        return f"max_tokens: {body['max_tokens']} > {facts['max_tokens']}, the maximum of {body['model']}"
    if "thinking" in body and not facts["adaptive"]:
        return "adaptive thinking is not supported on this model"
    if (effort := body.get("output_config", {}).get("effort")) and effort not in facts["efforts"]:
        return f"output_config.effort: {effort} is not supported on this model"
    return ""


def tools_problem(body: dict) -> str:
    for tool in body["tools"]:
        schema = tool["input_schema"]
        if tool.get("strict") and (schema.get("additionalProperties") is not False or "required" not in schema):
            return f"tools.{tool['name']}: a strict schema needs additionalProperties: false"
        if not set(schema["required"]) <= schema["properties"].keys():
            return f"tools.{tool['name']}: required names no property"
    return ""


def marks_problem(body: dict) -> str:
    lifetimes = [lifetime for _, lifetime in blocks_of(body) if lifetime]
    if len(lifetimes) > MARKS:
        return f"a maximum of {MARKS} blocks with cache_control may be provided"
    if lifetimes != sorted(lifetimes):  # "1h" before "5m"
        return "a cache_control block with ttl 1h must not come after a ttl 5m one"
    return ""


def messages_problem(body: dict) -> str:
    messages = body["messages"]
    if messages[0]["role"] != "user" or any(not message["content"] for message in messages):
        return "messages: the first is the user's, and none is empty"
    if messages[-1]["role"] != "user":
        return "This model does not support assistant message prefill. The conversation must end with a user message."
    if any(one["role"] == other["role"] for one, other in itertools.pairwise(messages)):
        return "messages: two of the same role in a row"
    for message, following in itertools.pairwise([*messages, {"content": []}]):
        called = [block["id"] for block in message["content"] if block["type"] == "tool_use"]
        answered = [block["tool_use_id"] for block in following["content"] if block["type"] == "tool_result"]
        if sorted(called) != sorted(answered):
            return f"tool_use and tool_result do not match: {called} {answered}"
        kinds = [block["type"] == "tool_result" for block in message["content"]]
        if kinds != sorted(kinds, reverse=True):
            return "messages: tool_result blocks come first in their message"
        if any(block["type"] == "text" and not block["text"].strip() for block in message["content"]):
            return "messages: text content blocks must be non-empty"
    return ""


# -----------------------------------------------------------------------------
# Thinking: each block is bound to all that was said before it


def signature(body: dict, before: list[dict], blocks: list[dict]) -> str:
    """Of a thinking block that follows the tools, the system prompt and the messages `before` of a request, and the
    `blocks` of its own answer; marks do not count."""
    bare = [[message["role"], [unmarked(block) for block in message["content"]]] for message in before]
    parts = [[unmarked(block) for block in each] for each in (body["tools"], body["system"], blocks)]
    text = json.dumps([bare, parts], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def signed(body: dict, blocks: list[dict]) -> list[dict]:
    """The blocks of the answer to a request with the signatures of its thinking."""
    done: list[dict] = []
    for block in blocks:
        done.append(
            block | {"signature": signature(body, body["messages"], done)} if block["type"] == "thinking" else block
        )
    return done


def thinking_problem(body: dict) -> str:
    messages = body["messages"]
    for index, message in enumerate(messages):
        content = message["content"]
        if message["role"] == "assistant" and "thinking" in content[-1]["type"]:
            return "messages: an assistant message may not end with a thinking block"
        for place, block in enumerate(content):
            if block["type"] == "thinking" and block["signature"] != signature(body, messages[:index], content[:place]):
                return "messages: a thinking block is bound to a different conversation"
    return ""


# -----------------------------------------------------------------------------
# What it bills


def tokens(text: str) -> int:
    return -(-len(text) // CHARACTERS_PER_TOKEN)


def unmarked(block: dict) -> dict:
    return {key: value for key, value in block.items() if key != "cache_control"}


def blocks_of(body: dict) -> list[tuple[str, str]]:
    """(text, lifetime of its mark or "") of every block in the order of the prefix: tools, system, messages."""
    parts = [("tools", block) for block in body["tools"]] + [("system", block) for block in body["system"]]
    parts += [(message["role"], block) for message in body["messages"] for block in message["content"]]
    lifetimes = [block["cache_control"].get("ttl", "5m") if "cache_control" in block else "" for _, block in parts]
    texts = [f"{place}:{json.dumps(unmarked(block))}" for place, block in parts]
    return list(zip(texts, lifetimes, strict=True))


class PromptCache:
    """What the API keeps of the prefixes that it has seen, and how much of the last request's prefix comes again.

    `now`: seconds, by a clock that the test sets.
    """

    def __init__(self):
        self.entries: dict[str, tuple[float, int]] = {}  # prefix -> (when it ends, its lifetime)
        self.last: list[str] = []  # the prefixes of the request before
        self.now = 0.0

    def bill(self, body: dict) -> dict:
        """The input tokens of a request by kind, and `repeated`: those in a prefix that the last request sent too."""
        blocks = blocks_of(body)
        sizes = list(itertools.accumulate(tokens(text) for text, _ in blocks))
        prefixes, state = [], hashlib.sha256()
        for text, _ in blocks:
            state.update(text.encode())
            prefixes.append(state.hexdigest())
        marks = [index for index, (_, lifetime) in enumerate(blocks) if lifetime and sizes[index] >= SHORTEST_ENTRY]
        found = self.find(prefixes, marks)
        read = sizes[found] if found >= 0 else 0
        written, done = dict.fromkeys(LIFETIMES, 0), read
        for mark in marks:
            seconds = LIFETIMES[blocks[mark][1]]
            self.entries[prefixes[mark]] = (self.now + seconds, seconds)
            written[blocks[mark][1]] += max(0, sizes[mark] - done)
            done = max(done, sizes[mark])
        same = sum(one == other for one, other in zip(prefixes, self.last, strict=False))
        self.last = prefixes
        return {
            "input_tokens": sizes[-1] - done,
            "cache_read_input_tokens": read,
            "cache_creation_input_tokens": sum(written.values()),
            "cache_creation": {f"ephemeral_{name}_input_tokens": count for name, count in written.items()},
            "repeated": sizes[same - 1] if same else 0,
        }

    def find(self, prefixes: list[str], marks: list[int]) -> int:
        """The index of the last block that an entry serves, -1 for none; the entry is renewed."""
        for index in sorted(self.looked_at(marks), reverse=True):
            ends, seconds = self.entries.get(prefixes[index], (-1.0, 0))
            if ends >= self.now:
                self.entries[prefixes[index]] = (self.now + seconds, seconds)
                return index
        return -1

    def looked_at(self, marks: list[int]) -> Iterator[int]:
        return itertools.chain.from_iterable(range(mark, max(-1, mark - LOOK_BACK), -1) for mark in marks)


def shares(bills: list[dict]) -> tuple[float, float]:
    """(share of the input in a prefix that the request before had sent, share that the cache served)."""
    total = sum(sum(bill[name] for name in bill if name.endswith("_tokens")) for bill in bills)
    return tuple(sum(bill[name] for bill in bills) / total for name in ("repeated", "cache_read_input_tokens"))
