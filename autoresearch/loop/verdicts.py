"""
The verdict that follows from the runs of one experiment. It rests on the ledger alone, so a journal gives it again.
"""

import dataclasses
import math
import re
import time

from autoresearch.judge.belief import after_candidate
from autoresearch.judge.keep_rule import better_of_two, judge, reconsider
from autoresearch.judge.knowledge import looked_at_again
from autoresearch.judge.noise import mean, without_seed
from autoresearch.judge.static_check import audit_source
from autoresearch.judge.trust import busy_text
from autoresearch.merge import merge_texts
from autoresearch.nouns import Experiment, Proposal, Run, RunResult, Runs, Usage, Verdict
from autoresearch.record.ledger import Ledger
from autoresearch.row import ON_TOP, SECOND_LOOK, Row, runs_of, runs_text
from autoresearch.settings import Settings
from autoresearch.source import count_statements, edit_problem

# -----------------------------------------------------------------------------
# Whether it may run


def forbidden(ledger: Ledger, source: str) -> str:
    """Return what a train.py does that the search's first one does not do and no training has to do, or ""."""
    return audit_source(source, ledger.source_of(ledger.kept[0].number)) if ledger.kept else ""


def on_best(ledger: Ledger, source: str, base: int) -> str | None:
    """`source`, an edit of the best `base`, on top of the present best. None if it does not fit.

    It fits if the two changes touch no line in common, and what comes of them is an edit that may run.
    """
    best = ledger.best.number
    if base == best:
        return source
    best_source = ledger.source_of(best)
    merged = merge_texts(best_source, ledger.source_of(base), source)
    return None if not merged or edit_problem(best_source, merged) or forbidden(ledger, merged) else merged


# -----------------------------------------------------------------------------
# The verdict


def own_runs(ledger: Ledger, experiment: Experiment) -> list[Run]:
    """The ended runs of the present attempt at an experiment, oldest first."""
    return ledger.runs_for(experiment.number, "judge", experiment.repairs)


def attempt_runs(ledger: Ledger, experiment: Experiment) -> list[Run]:
    """The runs that an experiment is judged by: first those of the same source in other rows, then its own."""
    own, later, found = own_runs(ledger, experiment), ledger.later, {}
    for row in rows_before(ledger, experiment):
        for seed, value in (runs_of(row) | later.get(row.number, {})).items():
            result = RunResult("ok", row.seconds, value, row.memory_gb, {"num_steps": row.steps})
            found[seed] = Run(experiment.number, seed, result)
    return [run for seed, run in found.items() if seed not in {each.seed for each in own}] + own


def rows_before(ledger: Ledger, experiment: Experiment) -> list[Row]:
    """The rows of the same source that have runs, oldest first.

    The same source is an edit of the same best, or that best's own, or another row's whole file that it names.
    """
    title = experiment.proposal.description
    named = {int(match[1]) for pattern in (SECOND_LOOK, ON_TOP) if (match := pattern.match(title))}
    rows = [row for row in ledger.rows if row.runs and row.status in ("keep", "discard", "busy")]
    likely = [row for row in rows if row.best == experiment.base or row.status == "keep" or row.number in named]
    likely = [row for row in likely if row.number != experiment.number]
    return ledger.same_source(experiment.proposal.source, likely)


def good_runs(runs: list[Run]) -> Runs:
    return {run.seed: run.result.val_bpb for run in runs if run.result.status == "ok"}


def verdict_on(ledger: Ledger, settings: Settings, experiment: Experiment) -> Verdict:
    """Return the verdict of an experiment's runs so far, one at least, against the best its edit was made for."""
    runs = attempt_runs(ledger, experiment)
    failed = [run.result for run in runs if run.result.status != "ok"]
    if failed:
        status, reason = failed[-1].status, failed[-1].error
        return Verdict(status, busy_text(reason, good_runs(runs)) if status == "busy" else reason)
    known = ledger.known
    values = without_seed(good_runs(runs), known.offsets)
    if not ledger.kept:
        return judge(values, None, known.paired_noise, settings.keep.baseline_repeats)
    base = ledger.source_of(experiment.base)
    return judge(
        values,
        known.beliefs[ledger.row(experiment.base).commit],
        known.paired_noise,
        memory_gb=max(run.result.memory_gb for run in runs),
        memory_limit_gb=settings.memory_limit_gb or math.inf,
        statements_less=count_statements(base) - count_statements(experiment.proposal.source),
    )


def is_slip(run: Run) -> bool:
    """Return whether a run ended with what its proposer can fix: an exception, but not for lack of memory."""
    raised = run.result.status == "crash" and "Traceback (most recent call last)" in run.result.tail
    return raised and not re.search(r"OutOfMemoryError|MemoryError|out of memory", run.result.tail)


def second_look(ledger: Ledger, settings: Settings, under_way: list[str]) -> Row | None:
    """A near miss on the present best, if what came after has shown that best to be a lucky one."""
    known, best = ledger.known, ledger.best
    limit = settings.memory_limit_gb or math.inf
    looked_at = {int(match[1]) for text in under_way if (match := SECOND_LOOK.match(text))}
    looked_at |= looked_at_again(ledger.rows)  # also those whose second look failed, which judged() does not count
    near = [row for row in known.rows if row.parent == best.commit and row.status == "discard"]
    near = [row for row in near if row.memory_gb <= limit and row.number not in looked_at]
    runs = [without_seed(runs_of(row), known.offsets) for row in near]
    chosen = reconsider(runs, known.beliefs[best.commit], known.paired_noise)
    return near[chosen[0]] if chosen else None


def second_proposal(ledger: Ledger, row: Row) -> Proposal:
    """The proposal that judges a near miss again."""
    description = f"second look at {row.number:04d}: {SECOND_LOOK.sub('', row.description)}"
    return Proposal(description, ledger.source_of(row.number), row.hypothesis, category=row.category)


def on_top(ledger: Ledger, experiment: Experiment) -> tuple[Proposal, bool]:
    """An edit that beat the best it was made for, on top of the best that was kept meanwhile; and whether it fits."""
    best, proposal = ledger.best.number, experiment.proposal
    source = on_best(ledger, proposal.source, experiment.base)
    description = f"{experiment.number:04d} on top of {best:04d}: {ON_TOP.sub('', proposal.description)}"
    again = dataclasses.replace(proposal, description=description, source=source or "", usage=Usage())
    return again, bool(source)


def better_than_best(ledger: Ledger, experiment: Experiment) -> tuple[str, str]:
    """(status, reason) of an experiment next to the present best, by what is believed of both."""
    known = ledger.known
    runs = without_seed(good_runs(attempt_runs(ledger, experiment)), known.offsets)
    base, best = (known.beliefs[ledger.row(number).commit] for number in (experiment.base, ledger.best.number))
    believed = after_candidate(dataclasses.replace(base, usual=best.usual), runs, True, known.paired_noise)
    return better_of_two(believed, best, len(runs))


def discarded(verdict: Verdict, reason: str) -> Verdict:
    """A keep that is none yet."""
    return dataclasses.replace(verdict, status="discard", reason=reason)


# -----------------------------------------------------------------------------
# The row


def row_of(ledger: Ledger, experiment: Experiment, verdict: Verdict, noise: float) -> Row:
    """The row of a decided experiment, but for its commit."""
    runs, before = attempt_runs(ledger, experiment), rows_before(ledger, experiment)
    ended, good = [run.result for run in runs], good_runs(runs)
    proposal, usage = experiment.proposal, experiment.proposal.usage
    title = proposal.description + (" [suspiciously good]" if verdict.suspicious else "")
    if before and not SECOND_LOOK.match(title):
        title = f"same source as {before[-1].number:04d}: {title}"
    return Row(
        commit="",
        val_bpb=mean(good) if verdict.status in ("keep", "discard") else 0.0,
        memory_gb=max([result.memory_gb for result in ended], default=0.0),
        status=verdict.status,
        description=title,
        number=experiment.number,
        gain=verdict.gain,
        parent=ledger.row(experiment.base).commit if ledger.kept else ledger.head[:7],
        seconds=ended[-1].seconds if ended else 0.0,
        tokens=usage.tokens,
        cost=usage.cost,
        started=time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(experiment.started)),
        noise=noise,
        runs=runs_text(good),
        reason=verdict.reason,
        category=proposal.category,
        expected=proposal.expected,
        repairs=experiment.repairs,
        hypothesis=proposal.hypothesis,
        best=experiment.base,
        steps=int(ended[-1].printed.get("num_steps", 0)) if ended else 0,
        tokens_per_second=ended[-1].tokens_per_second if ended else math.nan,
    )


def message_of(ledger: Ledger, experiment: Experiment, verdict: Verdict, row: Row) -> tuple[str, str]:
    """(subject, facts) of the commit of a finished experiment: what was measured, and why it was decided so."""
    subject = experiment.title
    if verdict.status not in ("keep", "discard"):
        return f"{subject} ({verdict.status})", verdict.reason
    gain = f", {verdict.gain:+.6f}, {verdict.gain / row.noise:+.1f} x noise" if math.isfinite(verdict.gain) else ""
    values = attempt_runs(ledger, experiment)[-1].result.facts
    facts = ", ".join(f"{name} {value:g}" for name, value in values.items() if name != "val_bpb")
    before = f"; best before {ledger.best.val_bpb:.6f}" if ledger.kept else ""
    return f"{subject} (val_bpb {row.val_bpb:.6f}{gain})", f"{verdict.status}: {verdict.reason}{before}\n{facts}"
