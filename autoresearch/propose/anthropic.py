"""
anthropic: a proposer. Claude reads what was tried, edits train.py with an editor, submits; the Messages API.

    python agent_loop.py propose                         # one real proposal, shown; nothing is trained
    python agent_loop.py --hours 48                      # the default proposer; needs ANTHROPIC_API_KEY
    python -m pytest tests/propose                       # against a local server that speaks the protocol

One conversation makes one experiment, and is continued where that experiment crashed by a slip. It begins with the
brief, whose order lets nearly all of it be read from the API's cache.

Whatever the API does ends in a Proposal or in ProposalFailed (try again), Refused (the model declined, and is not asked
the same again) or CannotPropose (a person has to fix something). The whole exchange is in exchange.json.
"""

import dataclasses
import json
import threading
from pathlib import Path
from typing import Any

from autoresearch.files import replace_file
from autoresearch.nouns import Json, Proposal
from autoresearch.propose.api import BeginAgain, Conversation, ask
from autoresearch.propose.brief import NOTE_CHARACTERS, NOTEBOOK_CHARACTERS, Section, as_text, brief, read_notebook
from autoresearch.propose.context import CannotPropose, Context, Crash, ProposalFailed, Refused
from autoresearch.propose.history import FULL, clean, thinned, untrusted
from autoresearch.propose.models import make_client
from autoresearch.propose.tools import ToolError, argument, checked, edit_text, made_proposal, tools_for
from autoresearch.source import lines_of_other_scales
from autoresearch.text import one_line

READ_CHARACTERS = 12_000  # of what read_experiment shows
STUMBLES = 3  # answers in a row without a usable tool call, after which the proposal counts as failed
BEGINNINGS = 4  # of one proposal; where the prompt is too long, each with half the lines of history
NOTEBOOK = threading.Lock()  # several conversations may write it at once

# -----------------------------------------------------------------------------
# What it is told

ROLE = """You are the researcher of an automatic experiment loop on the pretraining of small GPTs. Nobody watches:
a person wrote the instructions that follow and reads the results in the morning.

One conversation makes one experiment. You are shown the instructions, every experiment so far, and the best train.py.
You edit that file with the editor (its path is train.py; it is shown in full below, so that viewing it again is seldom
worth its cost), then call submit. The loop trains the file for a fixed time and measures val_bpb, bits per byte on
held-out text; lower is better.

# How to work with the tools

- Make small, targeted edits, never a rewrite of the whole file. Put all edits that belong together and the submit into
  one answer: each answer is a request that is paid for. If an edit misses, nothing is submitted, and you fix it.
- Only submit ends your turn. Nobody reads a report, and nobody answers a question.
- Before you submit, do the arithmetic: head dimension and divisibility, memory, the time of a step.{checked}
- Your notebook (notebook.md, shown to you every time) is yours. Write into it what the history does not tell: what you
  have learned, what to try next and why. Change the lines that changed; it may have {notebook} characters.
"""

CHECKED = """
- submit first runs the file for two steps at a tiny size on the CPU; what fails there comes back to you. It does not
  see what only a GPU does: kernels, memory, speed."""

TASK = "Make experiment {number}: edit train.py, then submit."

REPAIR = """Experiment {number} crashed (repair {attempt} of {repairs}): this looks like a slip in the code, not like a
bad idea. train.py, as you view and edit it now, is the file that crashed, not the best one. Fix the slip, keep the
idea, and submit again. If the idea itself cannot work, edit nothing and do not submit: answer in one sentence why,
without calling a tool."""


def text_block(text: str) -> Json:
    return {"type": "text", "text": text}


def cached(block: Json) -> Json:
    """The block with a mark: the API keeps everything up to here for an hour. Three of the four that a request has."""
    return block | {"cache_control": {"type": "ephemeral", "ttl": "1h"}}


def crash_text(context: Context, crash: Crash) -> str:
    """What went wrong, for the model to fix."""
    text = REPAIR.format(number=crash.number, attempt=crash.attempt, repairs=context.settings.repairs)
    return f"{text}\n\n{untrusted(crash.tail, NOTE_CHARACTERS)}"


def shown_source(source: str, scale: str) -> str:
    """A train.py without the constants of another scale: so each name is assigned once, and an edit is unambiguous."""
    hidden = lines_of_other_scales(source, scale)
    if not hidden:
        return source
    lines = source.split("\n")
    note = f"    ...  # {len(hidden)} lines of constants of another scale, which are not shown and not edited here"
    return "\n".join([*lines[: hidden.start], note, *lines[hidden.stop :]])


def section_blocks(section: Section, scale: str) -> list[Json]:
    """A section as blocks: its title and every part of it, so that one that has grown is read from the cache as far as
    it was sent before. Each ends with a newline: nothing documents how neighbouring blocks are joined."""
    parts = (
        [f"```python\n{shown_source(part, scale)}\n```" for part in section.parts]
        if section.file == "best.py"
        else section.parts
    )
    blocks = [text_block(f"{text}\n") for text in (f"# {section.title}\n", *parts)]
    return [*blocks[:-1], cached(blocks[-1])] if section.settled and section.parts else blocks


def first_prompt(context: Context, full: int) -> tuple[list[Any], list[Any]]:
    """(system, messages) of a new conversation, what changes least first. `full`: experiments with a line each."""
    role = ROLE.format(notebook=NOTEBOOK_CHARACTERS, checked=CHECKED * bool(context.check))
    sections = brief(context, full)
    first, last = (next(n for n, s in enumerate(sections) if s.file == file) for file in ("program.md", "notebook.md"))
    blocks = [block for section in sections[first:last] for block in section_blocks(section, context.options.scale)]
    task = crash_text(context, context.crash) if context.crash else TASK.format(number=context.number)
    blocks.append(text_block(f"\n{as_text(sections[last:])}\n\n# Your task\n\n{task}\n"))
    system = f"{role}\n{as_text(sections[:first])}\n"
    return [text_block(system)], [{"role": "user", "content": blocks}]


# -----------------------------------------------------------------------------
# The answer


def add(conversation: Conversation, role: str, blocks: list[Json]) -> None:
    """Add to the messages; to the last one, if it is of the same role."""
    if conversation.messages[-1]["role"] == role:
        conversation.messages[-1]["content"].extend(blocks)
    else:
        conversation.messages.append({"role": role, "content": blocks})


def say(conversation: Conversation, text: str) -> None:
    """Add to what the model reads next."""
    add(conversation, "user", [text_block(text)])


def take_reply(conversation: Conversation, reply: Any) -> bool:
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
        raise BeginAgain("the conversation does not fit into the model's context window", shorter=True)
    if reply.stop_reason == "max_tokens":
        if sum(turn["stop_reason"] == "max_tokens" for turn in conversation.turns) > 1:
            raise ProposalFailed("two answers ran into `max_tokens:`")
        say(conversation, "Your last answer was cut off for its length, and dropped. Be brief: make smaller edits.")
        return False
    content = [block.to_dict() for block in reply.content if block.type != "text" or block.text.strip()]
    if any("thinking" not in block["type"] for block in content):  # thinking alone cannot be sent back
        add(conversation, "assistant", content)
    if calls := [block for block in reply.content if block.type == "tool_use"]:
        add(conversation, "user", tool_results(conversation, calls))
        return True
    answer_without_tool(conversation, reply)
    return False


def answer_without_tool(conversation: Conversation, reply: Any) -> None:
    """Words only: in a repair in which nothing was edited that is its way to give up; else it is reminded."""
    crash = conversation.context.crash
    if crash and conversation.source == crash.source:
        words = one_line(" ".join(block.text for block in reply.content if block.type == "text"))
        raise ProposalFailed(f"the model leaves the crash as it is: {words[:300]}")
    say(conversation, "Nothing is submitted yet. Edit train.py with the tool, then call submit.")


# -----------------------------------------------------------------------------
# The tools at work


def tool_results(conversation: Conversation, calls: list[Any]) -> list[Json]:
    """Carry out the calls of one answer, submit last: half of an idea, where another edit missed, is not submitted."""
    results: dict[str, Json] = {}
    missed = False
    for call in sorted(calls, key=lambda call: call.name == "submit"):
        results[call.id] = tool_result(conversation, call, missed)
        missed = missed or (call.name == "editor" and results[call.id].get("is_error", False))
    return [results[call.id] for call in calls]


def tool_result(conversation: Conversation, call: Any, missed: bool) -> Json:
    """Carry out one tool call; what is wrong with it goes back to the model."""
    result = {"type": "tool_result", "tool_use_id": call.id}
    try:
        if missed and call.name in ("submit", "check"):
            raise ToolError("not done: an edit of this same answer failed. Fix that edit, then submit")
        return result | {"content": use_tool(conversation, call.name, call.input)}
    except ToolError as error:
        return result | {"content": f"error: {error}", "is_error": True}


def use_tool(conversation: Conversation, name: str, arguments: Any) -> str:
    """The answer of a tool. Raises ToolError."""
    context = conversation.context
    if not isinstance(arguments, dict):
        raise ToolError("the tool's input should be an object")
    if conversation.proposal:
        raise ToolError("train.py is already submitted")
    if name == "editor":
        return edit_file(conversation, arguments)
    if name == "read_experiment":
        number, what = argument(arguments, "number", int), argument(arguments, "what", str)
        try:
            text = context.read(number, what)
            return untrusted(thinned(text) if what == "log" else text, READ_CHARACTERS)
        except ValueError as error:
            raise ToolError(str(error)) from error
    if name == "check" and context.check:
        conversation.checked.add(conversation.source)
        return checked(context, conversation.source)
    if name == "submit":
        return submit(conversation, arguments)
    raise ToolError(f"there is no tool {name}")


def edit_file(conversation: Conversation, arguments: Json) -> str:
    """The editor: train.py in this conversation, or the notebook on disk, which outlives it."""
    path = Path(argument(arguments, "path", str)).name
    if path == "train.py":
        conversation.source, answer = edit_text(
            conversation.source, arguments, scale=conversation.context.options.scale
        )
        return answer
    if path != "notebook.md":
        raise ToolError(f"there are only train.py and notebook.md here, not {arguments['path']}")
    with NOTEBOOK:
        before = read_notebook(conversation.context)
        after, answer = edit_text(before, arguments, path)
        if after != before:
            conversation.context.notebook.parent.mkdir(parents=True, exist_ok=True)
            replace_file(conversation.context.notebook, clean(after))
    return answer


def submit(conversation: Conversation, arguments: Json) -> str:
    """Submit train.py as it is edited, after a check of a few steps, once for each text. Raises ToolError."""
    context, source = conversation.context, conversation.source
    proposal, answer = made_proposal(context, source, arguments), "submitted"
    context.doing = f"being checked: {proposal.description}"
    if context.check and source not in conversation.checked:
        conversation.checked.add(source)
        answer = f"submitted; {checked(context, source)}"
    conversation.proposal = proposal
    return answer


# -----------------------------------------------------------------------------
# The conversation


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
        "tools": conversation.tools,
        "messages": conversation.messages,
    }
    replace_file(exchange_path(context), json.dumps(record, indent=1))


def begin(context: Context, full: int) -> Conversation:
    """A new conversation, in which `full` experiments have a line each."""
    return Conversation(context, context.start, *first_prompt(context, full), tools_for(context))


def resume(context: Context) -> Conversation | None:
    """The conversation that made the experiment which crashed, if it is there and was held with the present model."""
    path = exchange_path(context)
    if not context.crash or not path.is_file():
        return None
    record = json.loads(path.read_text())
    if record["model"] != context.settings.model or record["outcome"] != "submitted":
        return None
    told = record["system"], record["messages"], record.get("tools") or tools_for(context)  # older ones kept no tools
    conversation = Conversation(context, context.crash.source, *told, record["turns"])
    say(conversation, crash_text(context, context.crash))
    return conversation


def converse(client: Any, conversation: Conversation) -> Proposal:
    """Turn after turn until something is submitted. Raises ProposalFailed and its kinds, or BeginAgain."""
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


def converse_or_begin_again(client: Any, conversation: Conversation) -> Proposal:
    """The same, begun afresh where the API does not take the conversation; with half the history if it is too long."""
    full = FULL
    for _ in range(BEGINNINGS):
        try:
            return converse(client, conversation)
        except BeginAgain as error:
            problem, full = error, full // 2 if error.shorter else full
            conversation.context.log(f"{problem}; beginning again with {full} experiments in full")
            fresh = begin(conversation.context, full)
            conversation.source, conversation.system, conversation.messages = fresh.source, fresh.system, fresh.messages
    fix = "lower `max_tokens:`, or take a model with a larger window" if problem.shorter else "see exchange.json"
    raise CannotPropose(f"{problem}: {BEGINNINGS} times in a row; {fix}")


def propose_by_anthropic(context: Context) -> Proposal:
    """The next train.py, or the repaired one. Raises ProposalFailed, Refused or CannotPropose.

    What it has cost is in context.used, whatever it ends with.
    """
    conversation = resume(context) or begin(context, FULL)
    try:
        with make_client() as client:
            proposal = converse_or_begin_again(client, conversation)
    except ProposalFailed as failure:
        failure.usage = conversation.usage
        save(conversation, f"failed: {failure}")
        raise
    return dataclasses.replace(proposal, usage=conversation.usage)
