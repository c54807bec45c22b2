"""
propose: one real proposal, shown in full, and nothing trained. The first thing to run with a new key, model or server.

    export ANTHROPIC_API_KEY=...
    python agent_loop.py propose                 # what came back: answers, tokens by kind, thinking, cost, the diff
    python agent_loop.py propose --no-check      # without the check of the edit for two steps on the CPU

It reads program.md and the search whose branch is checked out, or train.py where there is none, and writes only
runs/propose/NNNN/ and the notebook there. Run twice within an hour, the second should read most of its input from the
API's cache.
"""

import argparse
import difflib
import json
import math
import time
from typing import Any

from autoresearch.files import ROOT
from autoresearch.loop.bench import Slot
from autoresearch.loop.briefing import make_context
from autoresearch.loop.inflight import Queue, bench_of
from autoresearch.loop.start import check_proposer, new_session
from autoresearch.nouns import Proposal
from autoresearch.propose.anthropic import exchange_path, propose_by_anthropic
from autoresearch.propose.context import Context, ProposalFailed, Refused
from autoresearch.record.ledger import Ledger
from autoresearch.record.reading import read_ledger
from autoresearch.record.repository import current_branch, open_repository
from autoresearch.row import TYPES, Row
from autoresearch.verbs import make_parser

# -----------------------------------------------------------------------------
# What it is told


def baseline_row() -> Row:
    """A row for a train.py that was not measured yet."""
    numbers = dict.fromkeys(("val_bpb", "gain", "noise"), math.nan)
    empty: dict[str, Any] = {name: kind() for name, kind in TYPES.items()}
    return Row(**empty | numbers | {"status": "keep", "description": "baseline, not measured yet"})


def find_ledger() -> Ledger:
    """The search whose branch is checked out; else one that has only this train.py as its baseline."""
    repo = open_repository(ROOT)
    branch = current_branch(repo)
    ledger, _ = read_ledger(repo, branch.removeprefix("autoresearch/") or "HEAD")
    if branch.startswith("autoresearch/") and ledger.kept:
        return ledger
    return Ledger(repo, "propose", rows=[baseline_row()], sources={0: (ROOT / "train.py").read_text()})


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
    """Print the model's thoughts (as a summary), words and calls."""
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
    parser = make_parser("propose", __doc__, "")
    parser.add_argument("--max-cost", type=float, help="US dollars, for program.md's max_cost")
    parser.add_argument("--no-check", action="store_true", help="do not run the edit for two steps on the CPU")
    args = parser.parse_args(arguments)
    open_repository(ROOT)
    place = ROOT / "runs" / "propose"
    place.mkdir(parents=True, exist_ok=True)
    folder = place / f"{len(list(place.glob('[0-9]*'))) + 1:04d}"
    asked = argparse.Namespace(tag="propose", proposer="anthropic", max_cost=args.max_cost)
    session = new_session(asked, time.monotonic(), "loop.log")
    check_proposer("anthropic", session.settings)
    ledger = find_ledger()
    context = make_context(session, ledger, Queue(bench_of(session, ledger, [Slot()])), folder)
    context.notebook = place / "notebook.md"
    context.check = None if args.no_check else context.check
    print(f"asking {session.settings.model}, effort {session.settings.effort}, for one proposal; nothing is trained\n")
    try:
        proposal = propose_by_anthropic(context)
    except ProposalFailed as failure:
        show_exchange(context)
        kind = "a refusal" if isinstance(failure, Refused) else "no proposal"
        print(f"\n{kind}: {failure}")
        if isinstance(failure, Refused):
            print("whether and how to go on is for a person to decide: see Refusals in docs/researcher.md")
        raise SystemExit(1) from None
    show_exchange(context)
    show_proposal(context, proposal)
