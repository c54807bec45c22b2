"""
`ablate --review`: the proposer looks through how a change was taken out, and writes the best without it.

    runs/<tag>/ablation/reviews/<factor>-<hash>/    train.py as it was handed in, or failed.txt: nobody is asked twice
"""

import functools
import hashlib
import json
import math
import os
import time
from pathlib import Path

from autoresearch.files import replace_file
from autoresearch.loop.briefing import about_search
from autoresearch.loop.proposers import PROPOSERS
from autoresearch.loop.trials import Bench, Stopped
from autoresearch.propose.context import CannotPropose, Context, Fault, ProposalFailed, Removal
from autoresearch.prove.factors import Problem
from autoresearch.text import fail, one_line


def reviewed_removal(bench: Bench, removal: Removal, problem: Problem) -> tuple[str, str]:
    """(the train.py that the proposer hands in, "") or ("", why there is none). Raises Stopped."""
    best = bench.ledger.source_of(bench.ledger.best.number)
    question = hashlib.sha256(f"{best}\0{removal.source}".encode()).hexdigest()[:12]
    folder = bench.folder / "reviews" / f"{removal.name}-{question}"
    answer, failed = folder / "train.py", folder / "failed.txt"
    if not answer.exists() and not failed.exists():
        try:
            replace_file(answer, ask(bench, removal, problem, folder))
        except Fault as failure:  # of no answer: the same command asks again
            return "", str(failure)
        except ProposalFailed as failure:
            replace_file(failed, str(failure))
    return (answer.read_text(), "") if answer.exists() else ("", failed.read_text())


def ask(bench: Bench, removal: Removal, problem: Problem, folder: Path) -> str:
    """What the proposer answers, now. Raises ProposalFailed, or Stopped where it was not let finish."""
    options, log = bench.session.options, bench.session.log
    folder.mkdir(parents=True, exist_ok=True)
    log.say(f"{options.proposer} looks through the removal of {removal.name}: {one_line(removal.title)[:80]}")
    context = make_context(bench, removal, problem, folder)
    try:
        proposal = PROPOSERS[options.proposer](context)
    except ProposalFailed as failure:
        if bench.session.stop.is_set() or time.time() > options.deadline:
            raise Stopped("stopped before a removal was looked through") from failure
        if isinstance(failure, CannotPropose):
            fail(f"{failure}; fix that and run the same command again")
        raise
    cost = f" (${proposal.usage.cost:.4f})" if proposal.usage.cost else ""
    log.say(f"      {proposal.description}{cost}")
    return proposal.source


def make_context(bench: Bench, removal: Removal, problem: Problem, folder: Path) -> Context:
    """What it may know: the removal, and the whole search. Its notes on that are not the search's."""
    session, ledger = bench.session, bench.ledger
    spent = ledger.spent + spent_on_reviews(folder.parent)
    return Context(
        number=ledger.next_number,
        removal=removal,
        folder=folder,
        notebook=folder / "notebook.md",
        spent=lambda: spent,
        deadline=min(session.options.deadline, time.time() + session.settings.proposal_timeout),
        forbidden=problem,
        should_stop=functools.partial(look, bench),
        **about_search(session, ledger),
    )


def look(bench: Bench) -> bool:
    """Whether the user wants to stop; the lock stays fresh meanwhile."""
    os.utime(bench.session.lock.fileno())
    return bench.session.stop.is_set()


def spent_on_reviews(folder: Path) -> float:
    """US dollars on all reviews so far, for max_cost."""
    return math.fsum(json.loads(path.read_text())["cost"] for path in folder.glob("*/exchange.json"))
