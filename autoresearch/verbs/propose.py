"""
propose: one real proposal, shown in full, and nothing trained. The first thing to run with a new key, model or server.

    export ANTHROPIC_API_KEY=...
    python agent_loop.py propose                 # what came back: answers, tokens by kind, thinking, cost, the diff
    python agent_loop.py propose --no-check      # without the check of the edit for two steps on the CPU

It reads train.py, program.md and the search of this checkout, and writes only runs/propose/NNNN/ (and the notebook
there). Run twice within an hour, the second should read most of its input from the API's cache.
"""

import argparse
import difflib
import json
import math
import os
import time
from pathlib import Path
from typing import Any

from autoresearch.files import ROOT
from autoresearch.judge.knowledge import USUAL_NOISE
from autoresearch.judge.static_check import audit_source
from autoresearch.loop.briefing import about_session, make_check
from autoresearch.loop.session import Session
from autoresearch.loop.start import check_proposer, new_session
from autoresearch.nouns import Proposal
from autoresearch.propose.anthropic import exchange_path, propose_by_claude
from autoresearch.propose.context import Context, ProposalFailed, Refused
from autoresearch.record.reading import read_ledger
from autoresearch.record.repository import current_branch, open_repository
from autoresearch.row import Row

# -----------------------------------------------------------------------------
# What it is told


def make_session(max_cost: float | None) -> Session:
    """What the loop would know of program.md and of this machine."""
    args = argparse.Namespace(tag="propose", proposer="anthropic", max_cost=max_cost)
    lock = open(os.devnull)  # noqa: SIM115 (a session wants one; nothing is locked here)
    return new_session(args, time.monotonic(), lock, "loop.log")


def baseline_row() -> Row:
    """A row for a train.py that was not measured yet."""
    return Row(
        commit="0000000",
        val_bpb=math.nan,
        memory_gb=0.0,
        status="keep",
        description="baseline, not measured yet",
        number=0,
        gain=math.nan,
        parent="0000000",
        seconds=0.0,
        tokens=0,
        cost=0.0,
        started="",
        noise=math.nan,
        runs="",
    )


def no_past(number: int, what: str) -> str:
    raise ValueError("past experiments cannot be looked at in a single proposal")


def make_context(session: Session, folder: Path, with_check: bool) -> Context:
    """The Context of a search that stands where this checkout does."""
    repo = open_repository(ROOT)
    rows = read_ledger(repo, current_branch(repo).removeprefix("autoresearch/") or "HEAD")[0].rows
    source = (ROOT / "train.py").read_text()
    return Context(
        number=max([row.number for row in rows], default=0) + 1,
        best_source=source,
        rows=rows if any(row.status == "keep" for row in rows) else [baseline_row()],
        noise=USUAL_NOISE[session.options.scale].sigma,
        folder=folder,
        notebook=folder.parent / "notebook.md",
        deadline=time.monotonic() + session.settings.proposal_timeout,
        read=no_past,
        forbidden=lambda edited: audit_source(edited, source),
        log=print,
        check=make_check(session) if with_check else None,
        **about_session(session),
    )


# -----------------------------------------------------------------------------
# What came back


def show_turn(number: int, turn: dict[str, Any]) -> None:
    """One answer of the model: how it ended, and its tokens by what they cost."""
    usage = turn["usage"]
    thought = "" if turn["thinking_tokens"] is None else f" ({turn['thinking_tokens']} of them thinking)"
    print(
        f"answer {number}: {turn['stop_reason']}, {turn['seconds']:.0f} s | input {usage['input']} new, "
        f"{usage['cache_write']} written to the cache, {usage['cache_read']} read from it | "
        f"output {usage['output']}{thought} | ${usage['cost']:.4f}"
    )


def show_words(messages: list[dict[str, Any]]) -> None:
    """What the model thought (as a summary), said and called."""
    for block in (block for message in messages if message["role"] == "assistant" for block in message["content"]):
        text = block.get("thinking") or block.get("text") or ""
        if text.strip():
            print(f"  {block['type']}: {text.strip()[:600]}")
        if block["type"] == "tool_use":
            print(f"  calls {block['name']}: {json.dumps(block['input'])[:200]}")


def show_exchange(context: Context) -> None:
    """The answers of the exchange, and what all of them cost."""
    path = exchange_path(context)
    if not path.is_file():
        return
    record = json.loads(path.read_text())
    for number, turn in enumerate(record["turns"], 1):
        show_turn(number, turn)
    show_words(record["messages"])
    print(f"cost: ${context.used.cost:.4f} in {len(record['turns'])} answers; the whole exchange: {path}")


def show_proposal(context: Context, proposal: Proposal) -> None:
    print(f"\nproposal: {proposal.description}\n{proposal.hypothesis}")
    print(f"category {proposal.category}, expected gain {proposal.expected:+.6f}\n")
    before, after = context.best_source.splitlines(), proposal.source.splitlines()
    print("\n".join(difflib.unified_diff(before, after, "train.py", "train.py, as proposed", lineterm="")))


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="agent_loop.py propose", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--max-cost", type=float, help="US dollars, for program.md's max_cost")
    parser.add_argument("--no-check", action="store_true", help="do not run the edit for two steps on the CPU")
    args = parser.parse_args(arguments)
    open_repository(ROOT)
    place = ROOT / "runs" / "propose"
    place.mkdir(parents=True, exist_ok=True)
    folder = place / f"{len(list(place.glob('[0-9]*'))) + 1:04d}"
    session = make_session(args.max_cost)
    check_proposer("anthropic", session.settings)
    context = make_context(session, folder, not args.no_check)
    print(f"asking {session.settings.model}, effort {session.settings.effort}, for one proposal; nothing is trained\n")
    try:
        proposal = propose_by_claude(context)
    except ProposalFailed as failure:
        show_exchange(context)
        kind = "a refusal" if isinstance(failure, Refused) else "no proposal"
        print(f"\n{kind}: {failure}")
        if isinstance(failure, Refused):
            print("whether and how to go on is for a person to decide: see Refusals in docs/researcher.md")
        raise SystemExit(1) from None
    show_exchange(context)
    show_proposal(context, proposal)
