"""
The tools that the model works with: an editor, a look at past experiments, a check of a few steps, and submit.

What is wrong with a call is a ToolError, which goes back to the model as the tool's answer. The editor is a tool like
the others, with a schema of its own: so it works on any server that speaks the Messages API.
"""

import difflib
import re
from typing import Any

from autoresearch.nouns import Json, Proposal
from autoresearch.propose.brief import NOTEBOOK_CHARACTERS
from autoresearch.propose.context import Context
from autoresearch.propose.dry_check import report
from autoresearch.source import lines_of_other_scales, syntax_problem
from autoresearch.text import one_line

ADVICE = (
    "Fix it. If only the tiny size or the want of a GPU is why, submit the same text again: it is not checked twice."
)
HUGE = 1e9  # a number of the model's that is no line and no gain, as infinity is none

# -----------------------------------------------------------------------------
# Definitions
CATEGORIES = (
    *("architecture", "optimizer", "schedule", "hyperparameter", "initialization", "batch", "efficiency"),
    *("simplification", "other"),
)
TEXT, WHOLE = {"type": "string"}, {"type": "integer"}


def tool(name: str, description: str, properties: Json, optional: tuple[str, ...] = ()) -> Json:
    """A tool of ours; the API sees to it that its input fits the schema."""
    schema = {"type": "object", "properties": properties, "additionalProperties": False}
    schema["required"] = [key for key in properties if key not in optional]
    return {"name": name, "description": description, "input_schema": schema, "strict": True}


EDITOR_TOOL = """Edit train.py, or your notebook.md. str_replace: replace old_str, which must occur exactly once, by
new_str. insert: put insert_text behind line insert_line (0: at the top). create: write the whole file, file_text.
view: show its lines, with numbers; view_range [first, last], -1 for the end. Prefer several small str_replace calls in
one answer to one long one; create is for an empty notebook."""
READ_TOOL = """Look at a past experiment: its diff against the best it was tried on, the end of its log, its notes (why
it was tried, what was expected, how it was judged), a map of its model (parameters, operations, bytes by part), or its
profile, if one was made: where the time of a step goes."""
CHECK_TOOL = """Run train.py, as edited, for two steps at a tiny size on the CPU: names, shapes, the summary, whether
the scorer takes the model. How long it takes here is told with what is left. submit does the same by itself, once for
each text, so call it only to look at something before."""
SUBMIT_TOOL = "Submit train.py, as edited, as the next experiment. It is checked; what is wrong comes back as an error."
EXPECTED = "by how much you expect val_bpb to fall, e.g. 0.002; negative if it should rise"

EDITOR = tool(
    "editor",
    EDITOR_TOOL,
    {
        "command": {"type": "string", "enum": ["view", "str_replace", "insert", "create"]},
        "path": {"type": "string", "enum": ["train.py", "notebook.md"]},
        "old_str": TEXT,
        "new_str": TEXT,
        "insert_line": WHOLE,
        "insert_text": TEXT,
        "file_text": TEXT,
        "view_range": {"type": "array", "items": WHOLE},
    },
    optional=("old_str", "new_str", "insert_line", "insert_text", "file_text", "view_range"),
)
READ = tool(
    "read_experiment",
    READ_TOOL,
    {"number": WHOLE, "what": {"type": "string", "enum": ["diff", "log", "notes", "map", "profile"]}},
)
CHECK = tool("check", CHECK_TOOL, {})
SUBMIT = tool(
    "submit",
    SUBMIT_TOOL,
    {
        "description": {"type": "string", "description": "one line: what changed, from what to what"},
        "hypothesis": {"type": "string", "description": "one or two sentences: why this should help"},
        "expected_gain": {"type": "number", "description": EXPECTED},
        "category": {"type": "string", "enum": [*CATEGORIES]},
    },
)


def tools_for(context: Context) -> list[Json]:
    """Their definitions; with `effort: null`, which is for models that are not Claude, without `strict`."""
    tools = [EDITOR, READ, CHECK, SUBMIT] if context.check else [EDITOR, READ, SUBMIT]
    unknown = {"strict"} if context.settings.effort is None else set()
    return [{name: tool[name] for name in tool if name not in unknown} for tool in tools]


class ToolError(Exception):
    """Told to the model as the tool's error."""


def argument(arguments: Json, name: str, kind: type, default: Any = None) -> Any:
    """An argument of a tool call; null counts as left out. Raises ToolError if it is missing or of another type."""
    value = default if arguments.get(name) is None else arguments[name]
    if kind is int and isinstance(value, float) and value.is_integer():
        return int(value)
    accepted = (int, float) if kind is float else kind
    if not isinstance(value, accepted) or isinstance(value, bool):
        raise ToolError(f"the argument {name} is missing or is not of type {kind.__name__}")
    return value


# -----------------------------------------------------------------------------
# The editor


def edit_text(text: str, arguments: Json, name: str = "train.py", scale: str = "") -> tuple[str, str]:
    """Carry out one call of the editor on the text of file `name`. Returns (new text, answer); raises ToolError.

    `scale`: the search's; the constants of another one are not edited.
    """
    command = argument(arguments, "command", str)
    if command == "view":
        return text, view_lines(text, argument(arguments, "view_range", list, [1, -1]))
    if command == "create":
        after = argument(arguments, "file_text", str)
    elif command == "str_replace":
        old, new = argument(arguments, "old_str", str), argument(arguments, "new_str", str, "")
        after = replace_once(text, old, new, name, lines_of_other_scales(text, scale) if scale else range(0))
    elif command == "insert":
        after = insert_after(text, argument(arguments, "insert_line", int), argument(arguments, "insert_text", str))
    else:
        raise ToolError(f"there is no command {command}; there are view, str_replace, insert and create")
    if after == text:
        raise ToolError("this changes nothing")
    if name == "train.py":
        return after, f"train.py is edited{syntax_warning(after)}"
    if len(after) > max(NOTEBOOK_CHARACTERS, len(text)):
        raise ToolError(f"the notebook would have {len(after)} characters; at most {NOTEBOOK_CHARACTERS} are kept")
    return after, f"{name} is edited"


def view_lines(text: str, view_range: list[Any]) -> str:
    """Numbered lines from the first to the last of `view_range`, -1 for the end."""
    lines = text.removesuffix("\n").split("\n")
    if len(view_range) != 2 or not all(isinstance(number, int | float) and abs(number) < HUGE for number in view_range):
        raise ToolError("view_range should be two line numbers")
    first, last = int(view_range[0]), len(lines) if view_range[1] == -1 else int(view_range[1])
    if not 1 <= first <= last <= len(lines):
        raise ToolError(f"view_range {view_range} is not within lines 1 to {len(lines)}")
    return "\n".join(f"{number}\t{lines[number - 1]}" for number in range(first, last + 1))


def replace_once(text: str, old: str, new: str, name: str, hidden: range = range(0)) -> str:
    """The text with `old` replaced, which occurs once outside of the `hidden` lines (from 0)."""
    there = places(text, old) if old else []
    shown = [line for line in there if line - 1 not in hidden]
    count = len(shown)
    if count == 1:
        lines = text.split("\n")
        before, after = "\n".join(lines[: shown[0] - 1]), "\n".join(lines[shown[0] - 1 :])
        return (before + "\n" if shown[0] > 1 else "") + after.replace(old, new, 1)
    if there and not shown:
        raise ToolError(f"old_str occurs only at line {there[0]}, among the constants of another scale; edit your own")
    where = nearest_line(text, old) if count == 0 else f"at lines {', '.join(map(str, shown))}"
    raise ToolError(f"old_str occurs {count} times in {name}, {where}; it must occur exactly once")


def places(text: str, old: str) -> list[int]:
    """The numbers of the lines where a text begins in another."""
    starts = [match.start() for match in re.finditer(re.escape(old), text)]
    return [text.count("\n", 0, start) + 1 for start in starts]


def nearest_line(text: str, old: str) -> str:
    """What is there instead of the first line of `old` that is nowhere in the text."""
    lines, wanted = text.splitlines(), [line for line in old.splitlines() if line.strip()]
    missing = [line for line in wanted if line not in lines] or wanted
    found = difflib.get_close_matches(missing[0], lines, n=1, cutoff=0.5) if missing else []
    return (
        f"the nearest to `{missing[0].strip()}` is line {lines.index(found[0]) + 1}: `{found[0]}`"
        if found
        else "nor anything near it"
    )


def insert_after(text: str, number: int, new: str) -> str:
    """`new` as lines of its own behind line `number`, 0 for the top."""
    lines = [f"{line}\n" for line in text.removesuffix("\n").split("\n")] if text else []
    if not 0 <= number <= len(lines):
        raise ToolError(f"insert_line {number} is not between 0 and {len(lines)}")
    return "".join([*lines[:number], new.removesuffix("\n") + "\n", *lines[number:]])


def syntax_warning(source: str) -> str:
    """That a file does not parse as it stands: told at once, refused only when it is submitted."""
    problem = syntax_problem(source)
    return f"; as it stands it does not parse: {problem}" if problem else ""


# -----------------------------------------------------------------------------
# Check and submit


def checked(context: Context, source: str) -> str:
    """What a few steps of a train.py showed. Raises ToolError where that speaks against it."""
    assert context.check
    good, text = report(context.check(source))
    if not good:
        raise ToolError(f"{text}\n{ADVICE}")
    return text


def made_proposal(context: Context, source: str, arguments: Json) -> Proposal:
    """What is submitted, if it can be an experiment. Raises ToolError."""
    texts = {name: argument(arguments, name, str) for name in ("description", "hypothesis", "category")}
    expected = argument(arguments, "expected_gain", float)
    if not one_line(texts["description"]):
        raise ToolError("the description is empty")
    if texts["category"] not in CATEGORIES:
        raise ToolError(f"the category should be one of: {', '.join(CATEGORIES)}")
    if not abs(expected) < HUGE:
        raise ToolError("expected_gain should be a finite number")
    if problem := context.problem(source) or context.forbidden(source):
        raise ToolError(problem)
    texts["description"] = one_line(texts["description"])
    return Proposal(source=source, expected=float(expected), **texts)
