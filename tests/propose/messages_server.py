"""
A server that speaks the Messages protocol, streaming included, to the real SDK: a scripted model, or a fault.

    server = start_server(replies)                       # a list of replies, or a function from a request's body to one
    ANTHROPIC_BASE_URL=server.url ANTHROPIC_API_KEY=good-key

A reply is made by say(...) of text, thinking and tool calls, or is one of the faults below. Like the API, the server
refuses what is no valid conversation and bills by the documented rule of the prompt cache: messages_rules.py.
"""

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

from messages_rules import MODELS, PromptCache, model_info, problem_of, signed, tokens

# -----------------------------------------------------------------------------
# Replies

calls = itertools.count(1)


@dataclass
class Reply:
    """An answer of the model, and what goes wrong on its way."""

    blocks: list[dict]
    stop_reason: str = "tool_use"
    stop_details: dict | None = None
    fault: str = ""  # in the middle of the stream: reset, stall, pings, end, error event
    error_type: str = "overloaded_error"  # of an error event
    begun: str = ""  # thinking that comes before the fault


@dataclass
class Failure:
    """An answer that is an error from the start."""

    status: int
    type: str = "api_error"
    message: str = "an error"
    headers: dict = field(default_factory=dict)
    code: str = ""  # error.details.error_code


def tool(name: str, **arguments) -> dict:
    return {"type": "tool_use", "id": f"toolu_{next(calls):04d}", "name": name, "input": arguments}


def thinking(text: str) -> dict:
    """A thinking block; the server signs it."""
    return {"type": "thinking", "thinking": text}


def editor(command: str, path: str = "train.py", **arguments) -> dict:
    return tool("editor", command=command, path=path, **arguments)


def replace(old: str, new: str) -> dict:
    return editor("str_replace", old_str=old, new_str=new)


def note(text: str) -> dict:
    """The notebook, written anew."""
    return editor("create", "notebook.md", file_text=text)


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
# The protocol


def error_body(kind: str, message: str, code: str = "") -> dict:
    details = {"details": {"error_code": code}} if code else {}
    return {"type": "error", "error": {"type": kind, "message": message} | details}


def block_events(index: int, block: dict):
    """The events of one block. A tool's input may be given as text, to be sent as it is."""
    if block["type"] == "tool_use":
        text = block["input"] if isinstance(block["input"], str) else json.dumps(block["input"])
        start, deltas = block | {"input": {}}, [{"type": "input_json_delta", "partial_json": text}]
    elif block["type"] == "thinking":
        start = {"type": "thinking", "thinking": "", "signature": ""}
        deltas = [{"type": "thinking_delta", "thinking": block["thinking"]}]
        deltas += [{"type": "signature_delta", "signature": block["signature"]}]
    else:
        start, deltas = {"type": "text", "text": ""}, [{"type": "text_delta", "text": block["text"]}]
    yield {"type": "content_block_start", "index": index, "content_block": start}
    for delta in deltas:
        yield {"type": "content_block_delta", "index": index, "delta": delta}
    yield {"type": "content_block_stop", "index": index}


def stream_events(reply: Reply, blocks: list[dict], usage: dict):
    """The events of a streamed answer."""
    message = {"id": "msg", "type": "message", "role": "assistant", "model": "claude", "content": [], "usage": usage}
    yield {"type": "message_start", "message": message | {"stop_reason": None, "stop_sequence": None}}
    yield {"type": "ping"}
    for index, block in enumerate(blocks):
        yield from block_events(index, block)
    thought = sum(tokens(block["thinking"]) for block in blocks if block["type"] == "thinking")
    output = sum(tokens(json.dumps(block)) for block in blocks)
    delta = {"stop_reason": reply.stop_reason, "stop_sequence": None, "stop_details": reply.stop_details}
    counts = {"output_tokens": output, "output_tokens_details": {"thinking_tokens": thought}}
    yield {"type": "message_delta", "delta": delta, "usage": counts}
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
        if self.server.only_messages:
            return self.send_json(404, {"error": f"Unexpected endpoint GET {self.path}"})
        if self.headers["authorization"] != "Bearer good-key":
            return self.send_json(401, error_body("authentication_error", "invalid key"))
        if fault := self.server.models_fault:
            return self.send_json(fault.status, error_body(fault.type, fault.message))
        if model not in MODELS:
            return self.send_json(404, error_body("not_found_error", f"model: {model}"))
        self.send_json(200, model_info(model))

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if self.path != "/v1/messages":
            return self.send_json(404, error_body("not_found_error", f"no {self.path}"))
        if problem := problem_of(body):
            self.server.problems.append(problem)
            return self.send_json(400, error_body("invalid_request_error", problem))
        reply = self.server.next_reply(body)
        self.server.requests.append({"authorization": self.headers["authorization"], "body": body, "reply": reply})
        if isinstance(reply, Failure):
            self.server.watch(body, reply, {})
            return self.send_json(reply.status, error_body(reply.type, reply.message, reply.code), reply.headers)
        bill = self.server.cache.bill(body)
        self.server.bills.append(bill)
        self.server.watch(body, reply, bill)
        usage = {name: count for name, count in bill.items() if name != "repeated"} | {"output_tokens": 1}
        self.stream(reply, signed(body, reply.blocks), usage)

    def stream(self, reply: Reply, blocks: list[dict], usage: dict) -> None:
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("request-id", f"req_{len(self.server.requests):04d}")
        self.end_headers()
        self.close_connection = True
        for event in stream_events(reply, blocks, usage):
            if not self.server.counts_tokens:
                message = {name: each for name, each in event.get("message", {}).items() if name != "usage"}
                event = {name: each for name, each in event.items() if name != "usage"} | {"message": message}
            self.send_event(event)
            if event["type"] == "message_start" and reply.fault:
                if reply.begun:
                    for begun in [*block_events(0, thinking(reply.begun) | {"signature": "x"})][:2]:
                        self.send_event(begun)
                return self.fail_in_mid_stream(reply)

    def send_event(self, event: dict) -> None:
        self.wfile.write(f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode())
        self.wfile.flush()

    def fail_in_mid_stream(self, reply: Reply) -> None:
        if reply.fault == "error event":
            event = error_body(reply.error_type, f"a {reply.error_type}")
            self.wfile.write(f"event: error\ndata: {json.dumps(event)}\n\n".encode())
        elif reply.fault == "stall":
            self.server.released.wait(60)
        elif reply.fault == "pings":  # as while the model thinks, where nothing of it is shown
            while not self.server.released.wait(0.1):
                self.send_event({"type": "ping"})
        elif reply.fault == "reset":
            time.sleep(0.1)  # so that the client has read what came before: a reset discards what is unread
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            os.close(self.connection.detach())  # a plain close() would wait for the files made of it, and say goodbye


class Server(ThreadingHTTPServer):
    """`requests`: what was sent; `bills`: what each answer cost; `problems`: why requests were refused as invalid.

    `watch(body, reply, bill)` is called with each request before it is answered. `only_messages`: like a local server,
    it knows no other endpoint. `counts_tokens`: else there is no `usage`.
    `models_fault`: what a question about a model is answered with instead.
    """

    daemon_threads = True

    def __init__(self, replies: list | Callable[[dict], Reply | Failure], watch: Callable = lambda *values: None):
        super().__init__(("127.0.0.1", 0), Messages)
        self.replies, self.watch, self.cache, self.released = replies, watch, PromptCache(), threading.Event()
        self.requests: list[dict] = []
        self.bills: list[dict] = []
        self.problems: list[str] = []
        self.only_messages = False
        self.counts_tokens = True
        self.models_fault: Failure | None = None

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
