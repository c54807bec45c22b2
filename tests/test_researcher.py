"""anthropic against a real HTTP server that speaks the Messages protocol to the real SDK."""

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from loop_helpers import STUB, check_invariants, make_context, make_repository, rows_of, run_loop

from proposers import CannotPropose, ProposalFailed
from researcher import EditError, edit_text, propose_by_claude
from settings import Settings

# -----------------------------------------------------------------------------
# The text editor


def edit(command, **arguments):
    return edit_text("a = 1\nb = 1\n", {"command": command, "path": "train.py"} | arguments)


def test_the_editor_edits():
    assert edit("str_replace", old_str="a = 1", new_str="a = 2")[0] == "a = 2\nb = 1\n"
    assert edit("str_replace", old_str="a = 1\n")[0] == "b = 1\n"
    assert edit("insert", insert_line=1, insert_text="c = 3")[0] == "a = 1\nc = 3\nb = 1\n"
    assert edit("insert", insert_line=0, insert_text="c = 3\n")[0] == "c = 3\na = 1\nb = 1\n"
    assert edit("create", file_text="x\n")[0] == "x\n"
    assert edit("view")[1] == "1\ta = 1\n2\tb = 1"
    assert edit("view", view_range=[2, -1])[1] == "2\tb = 1"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"command": "str_replace", "old_str": "zzz", "new_str": ""}, "occurs 0 times"),
        ({"command": "str_replace", "old_str": "= 1", "new_str": ""}, "occurs 2 times"),
        ({"command": "str_replace", "old_str": "", "new_str": ""}, "occurs 0 times"),
        ({"command": "insert", "insert_line": 9, "insert_text": ""}, "not between 0 and 2"),
        ({"command": "undo_edit"}, "no such command"),
        ({"command": "view", "path": "/etc/passwd"}, "there is only train.py"),
    ],
)
def test_the_editor_refuses(arguments, message):
    with pytest.raises(EditError, match=message):
        edit_text("a = 1\nb = 1\n", {"path": "train.py"} | arguments)


# -----------------------------------------------------------------------------
# Anthropic


class Messages(BaseHTTPRequestHandler):
    """Answers each POST with the next scripted reply, streamed as server-sent events; keeps what was sent."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def send_json(self, status, body):
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self):  # /v1/models/<id>
        model = self.path.split("?")[0].rpartition("/")[2]
        if self.headers["authorization"] != "Bearer good-key":
            return self.send_json(401, error("authentication_error"))
        if not model.startswith("claude"):
            return self.send_json(404, error("not_found_error"))
        self.send_json(200, {"type": "model", "id": model, "display_name": model, "created_at": "2026-01-01T00:00:00Z"})

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.server.requests.append({"authorization": self.headers["authorization"], "body": body})
        reply = self.server.replies.pop(0) if self.server.replies else {"status": 401, "type": "script_is_over"}
        if "status" in reply:
            return self.send_json(reply["status"], error(reply["type"]))
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.end_headers()
        for event in stream_events(**reply):
            self.wfile.write(f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode())
        self.close_connection = True


def error(kind):
    return {"type": "error", "error": {"type": kind, "message": f"a {kind}"}}


def stream_events(blocks, stop_reason="tool_use", stop_details=None):
    usage = {
        "input_tokens": 1000,
        "cache_read_input_tokens": 5000,
        "cache_creation_input_tokens": 200,
        "output_tokens": 1,
    }
    message = {"id": "m", "type": "message", "role": "assistant", "model": "claude-x", "content": [], "usage": usage}
    yield {"type": "message_start", "message": message | {"stop_reason": None, "stop_sequence": None}}
    for index, block in enumerate(blocks):
        if block["type"] == "tool_use":
            start, delta = (
                block | {"input": {}},
                {"type": "input_json_delta", "partial_json": json.dumps(block["input"])},
            )
        else:
            start, delta = {"type": "text", "text": ""}, {"type": "text_delta", "text": block["text"]}
        yield {"type": "content_block_start", "index": index, "content_block": start}
        yield {"type": "content_block_delta", "index": index, "delta": delta}
        yield {"type": "content_block_stop", "index": index}
    delta = {"stop_reason": stop_reason, "stop_sequence": None, "stop_details": stop_details}
    yield {"type": "message_delta", "delta": delta, "usage": {"output_tokens": 100}}
    yield {"type": "message_stop"}


def tool(name, **arguments):
    return {"type": "tool_use", "id": f"call{time.monotonic_ns()}", "name": name, "input": arguments}


def editor(command, **arguments):
    return tool("str_replace_based_edit_tool", command=command, path="train.py", **arguments)


def replace(old, new):
    return editor("str_replace", old_str=old, new_str=new)


@pytest.fixture
def api(monkeypatch):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Messages)
    server.requests, server.replies = [], []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("ANTHROPIC_BASE_URL", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("ANTHROPIC_API_KEY", "good-key")
    yield server
    server.shutdown()
    server.server_close()


def tool_errors(request):
    """The tool results that a request carries last, as (is_error, text)."""
    return [(part["is_error"], part["content"]) for part in request["body"]["messages"][-1]["content"]]


def test_claude_edits_and_submits(api, tmp_path):
    api.replies[:] = [
        {"blocks": [{"type": "text", "text": "Let me look."}, editor("view")]},
        {"blocks": [replace("LEVEL = 2.0", "LEVEL = 1.9"), tool("submit", description="lower the level")]},
    ]
    proposal = propose_by_claude(make_context(tmp_path, note="Traceback: boom"))
    assert proposal.description == "lower the level"
    assert proposal.source == STUB.replace("LEVEL = 2.0", "LEVEL = 1.9")
    assert (proposal.usage.input, proposal.usage.cache_read, proposal.usage.output) == (2000, 10000, 200)
    assert proposal.usage.cost == pytest.approx((2000 * 4 + 10000 * 0.2 + 400 * 8 + 200 * 20) / 1e6)
    first = api.requests[0]
    assert first["authorization"] == "Bearer good-key"
    assert first["body"]["system"][0]["cache_control"] == {"type": "ephemeral", "ttl": "1h"}
    text = json.dumps(first["body"]["messages"])
    assert "LEVEL = 2.0" in text and "Traceback: boom" in text and "abc1234\\t2.0" in text
    kept = (tmp_path / "0001/exchange.json").read_text()
    assert "lower the level" in kept and "good-key" not in kept


def test_bad_edits_go_back_to_the_model(api, tmp_path):
    api.replies[:] = [
        {"blocks": [tool("submit", description="nothing")]},
        {"blocks": [replace("not there", "x")]},
        {"blocks": [replace("print(", "print (")]},
        {"blocks": [replace("LEVEL = 2.0", "LEVEL = ("), tool("submit", description="broken")]},
        {"blocks": [tool("frobnicate"), tool("str_replace_based_edit_tool", command="insert", path="train.py")]},
        {"blocks": [{"type": "text", "text": "I am done."}], "stop_reason": "end_turn"},
        {"blocks": [replace("LEVEL = (", "LEVEL = 1"), tool("submit", description="mended")]},
    ]
    proposal = propose_by_claude(make_context(tmp_path))
    assert proposal.source == STUB.replace("LEVEL = 2.0", "LEVEL = 1")
    answers = [tool_errors(request) for request in api.requests[1:6]]
    assert answers[0] == [(True, "error: train.py is unchanged")]
    assert "occurs 0 times" in answers[1][0][1] and "occurs 2 times" in answers[2][0][1]
    assert answers[3][0][0] is False and "does not parse" in answers[3][1][1]
    assert "no such tool" in answers[4][0][1] and "bad arguments" in answers[4][1][1]


@pytest.mark.parametrize(
    ("replies", "kind", "message"),
    [
        ([{"blocks": [editor("view")]}] * 3, ProposalFailed, "nothing was submitted in 3 turns"),
        ([{"blocks": [], "stop_reason": "max_tokens"}], ProposalFailed, "cut off"),
        (
            [
                {
                    "blocks": [],
                    "stop_reason": "refusal",
                    "stop_details": {"type": "refusal", "category": "frontier_llm", "explanation": "no"},
                }
            ],
            ProposalFailed,
            "refused; frontier_llm: no",
        ),
        ([{"status": 400, "type": "invalid_request_error"}], ProposalFailed, "API failed"),
        ([{"status": 401, "type": "authentication_error"}], CannotPropose, "for good"),
        ([{"status": 404, "type": "not_found_error"}], CannotPropose, "for good"),
    ],
)
def test_what_is_no_proposal_says_why(api, tmp_path, replies, kind, message):
    api.replies[:] = replies
    with pytest.raises(kind, match=message) as caught:
        propose_by_claude(make_context(tmp_path, settings=Settings(max_turns=3)))
    billed = sum("blocks" in reply for reply in replies)
    assert caught.value.usage.output == 100 * billed  # failed proposals cost money too


def test_an_overloaded_api_is_asked_again(api, tmp_path):
    api.replies[:] = [
        {"status": 529, "type": "overloaded_error"},
        {"blocks": [replace("LEVEL = 2.0", "LEVEL = 1.9"), tool("submit", description="at last")]},
    ]
    assert propose_by_claude(make_context(tmp_path)).description == "at last"


@pytest.mark.slow
def test_the_whole_loop_with_claude(api, tmp_path, prepared):
    repo = make_repository(tmp_path / "repo")
    api.replies[:] = [
        {"blocks": [replace("LEVEL = 2.0", "LEVEL = 1.9"), tool("submit", description="first idea")]},
        {"blocks": [], "stop_reason": "max_tokens"},
        {"blocks": [replace("LEVEL = 1.9", "LEVEL = oops"), tool("submit", description="second idea")]},
        {"blocks": [replace("LEVEL = 1.9", "LEVEL = 1.7"), tool("submit", description="third idea")]},
    ]
    done = run_loop(repo, "--experiments", "3")
    rows = rows_of(repo)
    assert [(row.status, row.description.partition(" [")[0]) for row in rows] == [
        ("keep", "baseline"),
        ("keep", "first idea"),
        ("crash", "second idea"),
        ("keep", "third idea"),
    ], done.stdout + done.stderr
    assert rows[1].tokens == 6300 and rows[1].cost > 0
    assert rows[2].cost == pytest.approx(2 * rows[1].cost, abs=1e-4)  # with the failed proposal before it
    assert "spent           $" in done.stdout
    assert "name 'oops' is not defined" in json.dumps(api.requests[3]["body"]["messages"])
    check_invariants(repo)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("key", "model", "message"),
    [
        ("bad-key", "claude-opus-5-5", "ANTHROPIC_API_KEY was rejected (401)"),
        ("good-key", "gpt-2", "the API knows no model 'gpt-2'"),
    ],
)
def test_a_bad_key_or_model_ends_the_start(api, tmp_path, prepared, key, model, message):
    repo = make_repository(tmp_path / "repo")
    program = (repo / "program.md").read_text()
    (repo / "program.md").write_text(program.replace("claude-opus-5-5", model))
    done = run_loop(repo, "--experiments", "1", env={"ANTHROPIC_API_KEY": key})
    assert done.returncode == 2 and message in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.slow
def test_the_spend_cap_ends_the_session(api, tmp_path, prepared):
    repo = make_repository(tmp_path / "repo")
    program = (repo / "program.md").read_text()
    (repo / "program.md").write_text(program.replace("max_cost: null", "max_cost: 0.005"))
    api.replies[:] = [{"blocks": [replace("LEVEL = 2.0", "LEVEL = 1.9"), tool("submit", description="one")]}]
    done = run_loop(repo, "--experiments", "9")
    assert "max_cost is reached" in done.stdout and len(rows_of(repo)) == 2
