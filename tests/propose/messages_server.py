"""
A server that speaks the Messages protocol, streaming included, to the real SDK: a scripted model, or a fault.

    server = start_server(replies)                       # a list of replies, or a function from a request's body to one
    ANTHROPIC_BASE_URL=server.url ANTHROPIC_API_KEY=good-key

A reply is made by say(...) of text and tool calls, or is one of the faults below. Like the API, the server refuses
what is no valid conversation, and bills by the rule of the prompt cache as it is documented: an entry is written at
each mark; from each mark, the longest entry at it or at one of the 20 blocks before it is read; a prefix counts only if
it is the same to the last byte, tools and system included. A token is taken for four characters.
"""

import hashlib
import itertools
import json
import os
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

CHARACTERS_PER_TOKEN = 4
LOOK_BACK = 20  # blocks
MARKS = 4  # at most
SHORTEST_ENTRY = 1024  # tokens

# -----------------------------------------------------------------------------
# Replies

calls = itertools.count(1)


@dataclass
class Reply:
    """An answer of the model, and what goes wrong on its way."""

    blocks: list[dict]
    stop_reason: str = "tool_use"
    stop_details: dict | None = None
    fault: str = ""  # in the middle of the stream: reset, stall, end, error event
    error_type: str = "overloaded_error"  # of an error event


@dataclass
class Failure:
    """An answer that is an error from the start."""

    status: int
    type: str = "api_error"
    message: str = "an error"
    headers: dict = field(default_factory=dict)


def tool(name: str, **arguments) -> dict:
    return {"type": "tool_use", "id": f"toolu_{next(calls):04d}", "name": name, "input": arguments}


def editor(command: str, **arguments) -> dict:
    return tool("str_replace_based_edit_tool", command=command, path="train.py", **arguments)


def replace(old: str, new: str) -> dict:
    return editor("str_replace", old_str=old, new_str=new)


def submit(description: str, **changes) -> dict:
    values = {
        "description": description,
        "hypothesis": "lower is better",
        "expected_gain": 0.1,
        "category": "hyperparameter",
    }
    return tool("submit", **(values | changes))


def say(*blocks: dict | str, **changes) -> Reply:
    """A reply of tool calls and texts; without a tool call the turn ends."""
    blocks = [{"type": "text", "text": block} if isinstance(block, str) else block for block in blocks]
    called = any(block["type"] == "tool_use" for block in blocks)
    return Reply(blocks, **({"stop_reason": "tool_use" if called else "end_turn"} | changes))


def refuse(category: str | None, explanation: str | None) -> Reply:
    details = {"type": "refusal", "category": category, "explanation": explanation}
    return Reply([], stop_reason="refusal", stop_details=details)


# -----------------------------------------------------------------------------
# Requests: what the API would refuse, and what it would bill


def tokens(text: str) -> int:
    return -(-len(text) // CHARACTERS_PER_TOKEN)


def blocks_of(body: dict) -> list[tuple[str, bool]]:
    """(text, marked) of every block in the order of the prefix: tools, system, messages."""
    parts = [("tools", block) for block in body["tools"]] + [("system", block) for block in body["system"]]
    parts += [(message["role"], block) for message in body["messages"] for block in message["content"]]
    unmarked = [({key: block[key] for key in block if key != "cache_control"}, place) for place, block in parts]
    return [
        (f"{place}:{json.dumps(block)}", "cache_control" in part)
        for (block, place), (_, part) in zip(unmarked, parts, strict=True)
    ]


def problem_of(body: dict) -> str:
    """Why the API would answer 400, or ""."""
    messages = body["messages"]
    if messages[0]["role"] != "user" or any(not message["content"] for message in messages):
        return "messages: the first is the user's, and none is empty"
    if any(one["role"] == other["role"] == "assistant" for one, other in itertools.pairwise(messages)):
        return "messages: two of the assistant in a row"
    if sum(marked for _, marked in blocks_of(body)) > MARKS:
        return f"a maximum of {MARKS} blocks with cache_control may be provided"
    for message, following in zip(messages, [*messages[1:], {"content": []}], strict=True):
        called = {block["id"] for block in message["content"] if block["type"] == "tool_use"}
        answered = {block["tool_use_id"] for block in following["content"] if block["type"] == "tool_result"}
        if called != answered:
            return f"tool_use and tool_result do not match: {called ^ answered}"
        if any(block["type"] == "text" and not block["text"].strip() for block in message["content"]):
            return "messages: text content blocks must be non-empty"
    return ""


class PromptCache:
    """What the API keeps of the prefixes that it has seen, and how much of the last request's prefix comes again."""

    def __init__(self):
        self.entries: set[str] = set()
        self.last: list[str] = []  # the prefixes of the request before

    def bill(self, body: dict) -> dict:
        """The input tokens of a request by kind, and `repeated`: those in a prefix that the last request sent too."""
        blocks = blocks_of(body)
        sizes = list(itertools.accumulate(tokens(text) for text, _ in blocks))
        prefixes, state = [], hashlib.sha256()
        for text, _ in blocks:
            state.update(text.encode())
            prefixes.append(state.hexdigest())
        marks = [index for index, (_, marked) in enumerate(blocks) if marked]
        found = [
            index for mark in marks for index in range(mark, max(-1, mark - LOOK_BACK), -1) if self.has(prefixes[index])
        ]
        read = sizes[max(found)] if found else 0
        written = max(0, sizes[marks[-1]] - read) if marks and sizes[marks[-1]] >= SHORTEST_ENTRY else 0
        self.entries |= {prefixes[mark] for mark in marks if sizes[mark] >= SHORTEST_ENTRY}
        same = sum(one == other for one, other in zip(prefixes, self.last, strict=False))
        self.last = prefixes
        return {
            "input_tokens": sizes[-1] - read - written,
            "cache_read_input_tokens": read,
            "cache_creation_input_tokens": written,
            "repeated": sizes[same - 1] if same else 0,
        }

    def has(self, prefix: str) -> bool:
        return prefix in self.entries


def shares(bills: list[dict]) -> tuple[float, float]:
    """(share of the input in a prefix that the request before had sent, share that the cache served)."""
    total = sum(sum(bill[name] for name in bill if name.endswith("_tokens")) for bill in bills)
    return tuple(sum(bill[name] for bill in bills) / total for name in ("repeated", "cache_read_input_tokens"))


# -----------------------------------------------------------------------------
# The protocol


def error_body(kind: str, message: str) -> dict:
    return {"type": "error", "error": {"type": kind, "message": message}}


def stream_events(reply: Reply, usage: dict):
    """The events of a streamed answer. A tool's input may be given as text, to be sent as it is."""
    message = {"id": "msg", "type": "message", "role": "assistant", "model": "claude", "content": [], "usage": usage}
    yield {"type": "message_start", "message": message | {"stop_reason": None, "stop_sequence": None}}
    output = 0
    for index, block in enumerate(reply.blocks):
        if block["type"] == "tool_use":
            text = block["input"] if isinstance(block["input"], str) else json.dumps(block["input"])
            start, delta = block | {"input": {}}, {"type": "input_json_delta", "partial_json": text}
        else:
            text = block["text"]
            start, delta = {"type": "text", "text": ""}, {"type": "text_delta", "text": text}
        output += tokens(text)
        yield {"type": "content_block_start", "index": index, "content_block": start}
        yield {"type": "content_block_delta", "index": index, "delta": delta}
        yield {"type": "content_block_stop", "index": index}
    delta = {"stop_reason": reply.stop_reason, "stop_sequence": None, "stop_details": reply.stop_details}
    yield {"type": "message_delta", "delta": delta, "usage": {"output_tokens": output}}
    yield {"type": "message_stop"}


class Messages(BaseHTTPRequestHandler):
    """POST /v1/messages and GET /v1/models/<id>."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def send_json(self, status: int, body: dict, headers: dict | None = None) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"content-type": "application/json", "request-id": "req_error", **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self):
        model = self.path.partition("?")[0].rpartition("/")[2]
        if self.headers["authorization"] != "Bearer good-key":
            return self.send_json(401, error_body("authentication_error", "invalid key"))
        if not model.startswith("claude"):
            return self.send_json(404, error_body("not_found_error", f"model: {model}"))
        self.send_json(200, {"type": "model", "id": model, "display_name": model, "created_at": "2026-01-01T00:00:00Z"})

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if problem := problem_of(body):
            self.server.problems.append(problem)
            return self.send_json(400, error_body("invalid_request_error", problem))
        reply = self.server.next_reply(body)
        self.server.requests.append({"authorization": self.headers["authorization"], "body": body, "reply": reply})
        if isinstance(reply, Failure):
            self.server.watch(body, reply, {})
            return self.send_json(reply.status, error_body(reply.type, reply.message), reply.headers)
        bill = self.server.cache.bill(body)
        self.server.bills.append(bill)
        self.server.watch(body, reply, bill)
        self.stream(reply, {name: count for name, count in bill.items() if name != "repeated"} | {"output_tokens": 1})

    def stream(self, reply: Reply, usage: dict) -> None:
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("request-id", f"req_{len(self.server.requests):04d}")
        self.end_headers()
        self.close_connection = True
        for event in stream_events(reply, usage):
            self.wfile.write(f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode())
            if event["type"] == "message_start" and reply.fault:
                return self.fail_in_mid_stream(reply)

    def fail_in_mid_stream(self, reply: Reply) -> None:
        self.wfile.flush()
        if reply.fault == "error event":
            event = error_body(reply.error_type, f"a {reply.error_type}")
            self.wfile.write(f"event: error\ndata: {json.dumps(event)}\n\n".encode())
        elif reply.fault == "stall":
            self.server.released.wait(60)
        elif reply.fault == "reset":
            time.sleep(0.1)  # so that the client has read what came before: a reset discards what is unread
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            os.close(self.connection.detach())  # a plain close() would wait for the files made of it, and say goodbye


class Server(ThreadingHTTPServer):
    """`requests`: what was sent; `bills`: what each answer cost; `problems`: why requests were refused as invalid.

    `watch(body, reply, bill)` is called with each request before it is answered.
    """

    daemon_threads = True

    def __init__(self, replies: list | Callable[[dict], Reply | Failure], watch: Callable = lambda *values: None):
        super().__init__(("127.0.0.1", 0), Messages)
        self.replies, self.watch, self.cache, self.released = replies, watch, PromptCache(), threading.Event()
        self.requests: list[dict] = []
        self.bills: list[dict] = []
        self.problems: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def next_reply(self, body: dict) -> Reply | Failure:
        if callable(self.replies):
            return self.replies(body)
        return self.replies.pop(0) if self.replies else Failure(401, "authentication_error", "the script is over")

    def handle_error(self, request, client_address):
        """A client that hung up is no news; anything else is."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)

    def stop(self) -> None:
        self.released.set()
        self.shutdown()
        self.server_close()


def start_server(replies: list | Callable[[dict], Reply | Failure], watch: Callable = lambda *values: None) -> Server:
    server = Server(replies, watch)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    return server
