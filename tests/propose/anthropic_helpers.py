"""What the tests of anthropic share: histories, and what was sent."""

from loop_helpers import STUB, make_row
from messages_server import replace, submit

GOOD = [replace("LEVEL = 2.0", "LEVEL = 1.9"), submit("lower the level")]
CRASHED = STUB.replace("LEVEL = 2.0", "LEVEL = oops")


def make_rows(count: int, kept=(0,), **changes):
    """A history: experiment n lowers the level a little; those in `kept` became the best."""
    rows, best = [], "c000000"
    for number in range(count):
        commit = f"c{number:06d}"
        status = "keep" if number in kept else "discard"
        changes_of_row = {"commit": commit, "parent": best, "number": number, "status": status}
        gain = 0.02 if status == "keep" else -0.005
        rows.append(make_row(**changes_of_row, description=f"idea {number}", gain=gain, **changes))
        best = commit if status == "keep" else best
    return rows


def logged(**changes):
    """(list of log lines, changes for make_context that fill it)."""
    lines = []
    return lines, {"log": lines.append} | changes


def prompt_of(request: dict) -> str:
    """The first user message as it was sent."""
    return "\n".join(block["text"] for block in request["body"]["messages"][0]["content"] if block["type"] == "text")


def results_of(request: dict) -> list[tuple[bool, str]]:
    """(is it an error, text) of the tool results in the last message of a request."""
    content = request["body"]["messages"][-1]["content"]
    return [(block.get("is_error", False), block["content"]) for block in content if block["type"] == "tool_result"]
