"""
The tools that the model works with: an editor for train.py, a look at past experiments, and submit.

What is wrong with a call is a ToolError, which goes back to the model as the tool's answer.
"""

import math
from pathlib import Path
from typing import Any

from autoresearch.files import replace_file
from autoresearch.nouns import Proposal
from autoresearch.propose.context import Context
from autoresearch.propose.prompt import NOTEBOOK_CHARACTERS, clean
from autoresearch.source import edit_problem, syntax_problem
from autoresearch.text import one_line

# -----------------------------------------------------------------------------
# Definitions
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


def argument(arguments: dict, name: str, kind: type, default: Any = None) -> Any:
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
    problem = syntax_problem(source)
    return f"; as it stands it does not parse: {problem}" if problem else ""


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
