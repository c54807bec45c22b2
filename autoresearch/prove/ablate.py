"""
The worth of each kept change: every one is taken out and put in again, in a designed set of runs.
"""

import dataclasses
import difflib
import functools
import itertools
import json
import math
from collections.abc import Callable, Iterable
from typing import Any

from autoresearch.judge.static_check import audit_source
from autoresearch.nouns import Task
from autoresearch.prove.design import half_design, ordered_rows, seeds_per_row
from autoresearch.prove.effects import Effects, Pair, analyse
from autoresearch.prove.factors import Factors, Keep, Problem, find_factors, join_for
from autoresearch.prove.pruning import FRESH_SEEDS, Pruning
from autoresearch.prove.trials import Stopped, Trials, key_of, note_plan, say_if_too_long, time_text
from autoresearch.record.ledger import Ledger
from autoresearch.record.proof import ablation_text, factor_lines
from autoresearch.source import syntax_problem
from autoresearch.text import fail, lines_of, plural

SHORT = 3  # steps of a run that only shows whether a train.py runs
Rows = Callable[[Factors], list[tuple[int, ...]]]  # the combinations that will be run

# -----------------------------------------------------------------------------
# Factors


def kept_changes(ledger: Ledger) -> list[Keep]:
    pairs = itertools.pairwise(ledger.kept)
    return [
        Keep(row.number, row.description, ledger.source_of(before.number), ledger.source_of(row.number))
        for before, row in pairs
    ]


def problems(trials: Trials) -> Problem:
    """Return why a train.py cannot run: as it is written, or as a short run has shown."""
    baseline = trials.ledger.source_of(trials.ledger.kept[0].number)

    @functools.cache
    def written(source: str) -> str:
        return syntax_problem(source) or audit_source(source, baseline)

    def problem(source: str) -> str:
        result = trials.done.get(key_of(short_task(trials, "", source)))
        return written(source) or (result.error or result.status if result and result.status != "ok" else "")

    return problem


def short_task(trials: Trials, what: str, source: str) -> Task:
    return Task(what, source, trials.seed, "prove", budget=trials.budget, steps=SHORT)


def all_rows(factors: Factors) -> list[tuple[int, ...]]:
    """The combinations that a whole design runs."""
    half = half_design(len(factors.removable)).tolist() if factors.removable else []
    return [tuple(sign * level for level in row) for row in half for sign in (1, -1)]


def settled_factors(trials: Trials, problem: Problem, marked: set[int], rows: Rows) -> Factors:
    """The factors, each taken out for a short run; every one of their rows is a train.py that may run."""
    keeps = kept_changes(trials.ledger)
    if unknown := marked - {keep.number for keep in keeps}:
        kept = ", ".join(str(keep.number) for keep in keeps)
        fail(f"--fixed {', '.join(map(str, sorted(unknown)))}: not a kept change; kept: {kept}")
    while True:
        factors = find_factors(keeps, problem, marked)
        while joined := join_for(factors, problem, rows(factors)):
            factors = joined
        tasks = [
            short_task(trials, f"without {factor.name}, {SHORT} steps", factors.without([factor]))
            for factor in factors.removable
        ]
        missing = [task for task in tasks if key_of(task) not in trials.done]
        if not missing:
            break
        trials.log.say(f"can each change be removed alone? short runs: {time_text(trials, missing)}")
        trials.make(tasks)
    for line in factor_lines(factors.removable, factors.fixed):
        trials.log.say(line)
    if not factors.removable:
        fail("none of the kept changes can be taken out")
    return factors


# -----------------------------------------------------------------------------
# Runs


def design_runs(trials: Trials, factors: Factors, seed: int) -> list[tuple[int, tuple[int, ...], Task]]:
    """(pair, levels, run) in the order of running."""
    count = len(factors.removable)
    seeds = [seed + step for step in range(seeds_per_row(count))]
    found = []
    for pair, levels, seed in ordered_rows(count, seeds):
        name, tested = row_name(factors, levels), len(set(levels)) == 1
        task = Task(name, factors.source(levels), seed, "prove", budget=trials.budget, tested=tested)
        found.append((pair, levels, task))
    return found


def row_name(factors: Factors, levels: Iterable[int]) -> str:
    """Return the name of a row: what is out, or what is in, whichever is shorter."""
    pairs = list(zip(factors.removable, levels, strict=True))
    inside, out = ([factor.name for factor, level in pairs if level == side] for side in (1, -1))
    if not out or not inside:
        return "the best" if not out else "without all factors"
    return f"without {', '.join(out)}" if len(out) <= len(inside) else f"with {', '.join(inside)} alone"


def mirrored_pairs(trials: Trials, rows: list[tuple[int, tuple[int, ...], Task]]) -> list[Pair]:
    """The pairs of which both runs have a number."""
    values = {(pair, task.seed, levels): trials.value(task) for pair, levels, task in rows}
    found = []
    for (_, seed, levels), value in values.items():
        mirror = tuple(-level for level in levels)
        other = next((v for (_, s, some), v in values.items() if s == seed and some == mirror), math.nan)
        if levels > mirror and math.isfinite(value) and math.isfinite(other):
            found.append(Pair(levels, value, other, seed))
    return found


# -----------------------------------------------------------------------------
# The report


def report_of(trials: Trials, factors: Factors, effects: Effects, crashed: list[str], runs: int) -> dict[str, Any]:
    """ablation.json, but for test rows and the pruned train.py."""
    ledger = trials.ledger
    best = ledger.source_of(ledger.best.number)
    return {
        "version": 1,
        "search": ledger.branch,
        "best": {"number": ledger.best.number, "commit": ledger.best.commit},
        "factors": [
            {**dataclasses.asdict(factor), "name": factor.name, **dataclasses.asdict(worth), "alone": None}
            | {"diff": diff_text(best, factors.without([factor]), factor.name)}
            for factor, worth in zip(factors.removable, effects.worths, strict=True)
        ],
        "fixed": [{"name": factor.name, "title": factor.title, "why": why} for factor, why in factors.fixed],
        "runs": runs,
        "crashed": crashed,
        **{name: value for name, value in dataclasses.asdict(effects).items() if name != "worths"},
    }


def so_far(trials: Trials, factors: Factors, rows: list[tuple[int, tuple[int, ...], Task]]) -> str:
    """The effects by the runs that there are, with their present intervals."""
    done = sum(key_of(task) in trials.done for *_, task in rows)
    head = f"so far, by {done} of {len(rows)} runs"
    try:
        effects = analyse(mirrored_pairs(trials, rows), trials.ledger.known.paired_noise)
    except ValueError as error:
        return f"{head}: {error}"
    report = report_of(trials, factors, effects, [], done) | {"test": dict.fromkeys(("baseline", "best"))}
    report = json.loads(json.dumps(report | {"pruned": None}), parse_constant=lambda _: None)
    return f"{head}:\n{ablation_text(report)}\n"


def diff_text(best: str, after: str, factor: str) -> str:
    """Return the diff of taking a factor out, for a person: what merges and runs may still not undo the change."""
    return "".join(difflib.unified_diff(lines_of(best), lines_of(after), "best", f"without {factor}", n=1))


# -----------------------------------------------------------------------------
# All of it


def measure_factors(trials: Trials, marked: set[int]) -> tuple[dict[str, Any], Pruning]:
    """(ablation.json but for the pruned train.py, what it takes to make that). `marked`: changes that stay in."""
    log, ledger = trials.log, trials.ledger
    problem = problems(trials)
    factors = settled_factors(trials, problem, marked, all_rows)
    plan = note_plan(trials, {"for": ledger.best.commit, "seed": trials.first_seed})
    rows = design_runs(trials, factors, plan["seed"])
    tasks = [task for *_, task in rows]
    count, pairs = plural(len(factors.removable), "factor"), plural(len(rows) // 2, "mirrored pair")
    log.say(f"{count} in {pairs}, {time_text(trials, tasks)}")
    log.say(f"then, if some seem to do nothing: the best without them next to the best, {2 * FRESH_SEEDS} runs or more")
    shorter = f", and --quick asks only whether one is harmful, in {2 * len(factors.removable) + 2} runs"
    say_if_too_long(trials, tasks, shorter)
    try:
        trials.make(tasks)
    except Stopped:
        log.say(so_far(trials, factors, rows))
        raise
    crashed = [task.title for task in tasks if math.isnan(trials.value(task))]
    try:
        effects = analyse(mirrored_pairs(trials, rows), trials.ledger.known.paired_noise)
    except ValueError as error:
        fail(f"{error}; see {trials.folder}")
    corners = {"baseline": -1, "best": 1}  # all out, all in
    test = {name: trials.tested_mean([t for _, row, t in rows if set(row) == {side}]) for name, side in corners.items()}
    report = report_of(trials, factors, effects, crashed, len(rows)) | {"test": test, "pruned": None}
    return report, Pruning(trials, factors, effects, problem, max(task.seed for task in tasks) + 1)
