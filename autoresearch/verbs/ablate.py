"""
Which of the kept changes still help? Every one is taken out and put in again, in a designed set of runs:

    python agent_loop.py ablate --tag nov22
    python agent_loop.py ablate --tag nov22 --hours 4 --gpus all
    python agent_loop.py ablate --tag nov22 --fixed 4,9        # these stay in

It writes runs/<tag>/ablation.json and ablation.png. The train.py without useless changes is measured beside the best
and, if it is no worse, offered as a commit on autoresearch/<tag>-pruned; nothing else is touched. The same command
again goes on where it stopped. docs/prove.md says how it is done.
"""

import argparse
import dataclasses
import difflib
import functools
import itertools
import math
from collections.abc import Iterable
from typing import Any

from autoresearch.judge.static_check import audit_source
from autoresearch.loop.start import add_slots
from autoresearch.loop.trials import (
    Bench,
    Trial,
    first_seed,
    note_plan,
    open_bench,
    publish,
    run_trials,
    tested_mean,
    time_text,
)
from autoresearch.nouns import Noise
from autoresearch.prove.design import half_design, ordered_rows, seeds_per_row
from autoresearch.prove.effects import Effects, Pair, analyse
from autoresearch.prove.factors import Factor, Factors, Keep, Problem, find_factors, join_for
from autoresearch.record.ledger import Ledger
from autoresearch.record.proof import ablation_text, factor_lines
from autoresearch.record.proof_pictures import draw_ablation
from autoresearch.source import syntax_problem
from autoresearch.text import fail, lines_of, plural
from autoresearch.verbs.pruning import FRESH_SEEDS, Pruning, prune

SHORT = 3  # steps of a run that only shows whether a train.py runs

# -----------------------------------------------------------------------------
# Factors


def kept_changes(ledger: Ledger) -> list[Keep]:
    pairs = itertools.pairwise(ledger.kept)
    return [
        Keep(row.number, row.description, ledger.source_of(before.number), ledger.source_of(row.number))
        for before, row in pairs
    ]


def problems(bench: Bench) -> Problem:
    """Why a train.py cannot run: as it is written, or as a short run has shown."""
    baseline = bench.ledger.source_of(bench.ledger.kept[0].number)

    @functools.cache
    def written(source: str) -> str:
        return syntax_problem(source) or audit_source(source, baseline)

    def problem(source: str) -> str:
        result = bench.done.get(short_trial(bench, "", source).key)
        return written(source) or (result.error or result.status if result and result.status != "ok" else "")

    return problem


def short_trial(bench: Bench, what: str, source: str) -> Trial:
    return Trial(what, source, bench.session.options.seed, bench.budget, SHORT)


def all_rows(factors: Factors) -> list[tuple[int, ...]]:
    half = half_design(len(factors.removable)).tolist() if factors.removable else []
    return [tuple(sign * level for level in row) for row in half for sign in (1, -1)]


def without(factors: Factors, out: Factor) -> str:
    return factors.source([-1 if factor == out else 1 for factor in factors.removable])


def settled_factors(bench: Bench, problem: Problem, marked: set[int]) -> Factors:
    """The factors, each taken out for a short run; every combination of the design is a train.py that may run."""
    keeps = kept_changes(bench.ledger)
    if unknown := marked - {keep.number for keep in keeps}:
        fail(f"--fixed {', '.join(map(str, sorted(unknown)))}: not a kept change; kept: {numbers_of(keeps)}")
    while True:
        factors = find_factors(keeps, problem, marked)
        while joined := join_for(factors, problem, all_rows(factors)):
            factors = joined
        trials = [
            short_trial(bench, f"without {factor.name}, {SHORT} steps", without(factors, factor))
            for factor in factors.removable
        ]
        missing = [trial for trial in trials if trial.key not in bench.done]
        if not missing:
            return factors
        bench.session.log.say(f"can each change be removed alone? short runs: {time_text(bench, missing)}")
        run_trials(bench, trials)


def numbers_of(keeps: list[Keep]) -> str:
    return ", ".join(str(keep.number) for keep in keeps)


# -----------------------------------------------------------------------------
# Runs


def design_trials(bench: Bench, factors: Factors, seed: int) -> list[tuple[int, tuple[int, ...], Trial]]:
    """(pair, levels, run) in the order of running."""
    count = len(factors.removable)
    seeds = [seed + step for step in range(seeds_per_row(count))]
    rows = ordered_rows(count, seeds)
    return [
        (
            pair,
            levels,
            Trial(row_name(factors, levels), factors.source(levels), seed, bench.budget, tested=len(set(levels)) == 1),
        )
        for pair, levels, seed in rows
    ]


def row_name(factors: Factors, levels: Iterable[int]) -> str:
    """What a row is, the shorter way."""
    pairs = list(zip(factors.removable, levels, strict=True))
    inside, out = ([factor.name for factor, level in pairs if level == side] for side in (1, -1))
    if not out or not inside:
        return "the best" if not out else "without all factors"
    few = f"without {', '.join(out)}" if len(out) <= len(inside) else f"with {', '.join(inside)} alone"
    return few


def mirrored_pairs(bench: Bench, trials: list[tuple[int, tuple[int, ...], Trial]]) -> list[Pair]:
    """The pairs of which both runs have a number."""
    values = {(pair, trial.seed, levels): bench.value(trial) for pair, levels, trial in trials}
    found = []
    for (_, seed, levels), value in values.items():
        mirror = tuple(-level for level in levels)
        other = next((v for (_, s, some), v in values.items() if s == seed and some == mirror), math.nan)
        if levels > mirror and math.isfinite(value) and math.isfinite(other):
            found.append(Pair(levels, value, other, seed))
    return found


# -----------------------------------------------------------------------------
# The report


def report_of(bench: Bench, factors: Factors, effects: Effects, crashed: list[str], runs: int) -> dict[str, Any]:
    """ablation.json, but for test rows and the pruned train.py."""
    ledger = bench.ledger
    best = ledger.source_of(ledger.best.number)
    return {
        "version": 1,
        "search": ledger.branch,
        "best": {"number": ledger.best.number, "commit": ledger.best.commit},
        "factors": [
            {**dataclasses.asdict(factor), "name": factor.name, **dataclasses.asdict(worth), "alone": None}
            | {"diff": diff_text(best, without(factors, factor), "best", f"without {factor.name}")}
            for factor, worth in zip(factors.removable, effects.worths, strict=True)
        ],
        "fixed": [{"name": factor.name, "title": factor.title, "why": why} for factor, why in factors.fixed],
        "runs": runs,
        "crashed": crashed,
        **{name: value for name, value in dataclasses.asdict(effects).items() if name != "worths"},
    }


def diff_text(before: str, after: str, old_name: str, new_name: str) -> str:
    """What taking a factor out changes, to be looked at: what applies and runs can still not undo what it should."""
    old, new = (lines_of(text) for text in (before, after))
    return "".join(difflib.unified_diff(old, new, old_name, new_name, n=1))


# -----------------------------------------------------------------------------
# The verb


def ablate(bench: Bench, marked: set[int]) -> None:
    log, ledger = bench.session.log, bench.ledger
    problem = problems(bench)
    factors = settled_factors(bench, problem, marked)
    for line in factor_lines(factors.removable, factors.fixed):
        log.say(line)
    if not factors.removable:
        fail("none of the kept changes can be taken out")
    plan = note_plan(bench, {"for": ledger.best.commit, "seed": first_seed(bench)})
    rows = design_trials(bench, factors, plan["seed"])
    trials = [trial for *_, trial in rows]
    count, pairs = plural(len(factors.removable), "factor"), plural(len(rows) // 2, "mirrored pair")
    log.say(f"{count} in {pairs}, {time_text(bench, trials)}")
    log.say(f"then, if some seem to do nothing: the best without them beside the best, {2 * FRESH_SEEDS} runs or more")
    run_trials(bench, trials)
    crashed = [trial.what for trial in trials if math.isnan(bench.value(trial))]
    try:
        effects = analyse(mirrored_pairs(bench, rows), paired_noise(bench))
    except ValueError as error:
        fail(f"{error}; see {bench.folder}")
    corners = {"baseline": -1, "best": 1}  # all out, all in
    test = {name: tested_mean(bench, [t for _, row, t in rows if set(row) == {side}]) for name, side in corners.items()}
    report = report_of(bench, factors, effects, crashed, len(rows)) | {"test": test, "pruned": None}
    after = max(trial.seed for trial in trials) + 1
    try:
        pruning = Pruning(bench, factors, effects, problem, paired_noise(bench), after)
        report["pruned"] = prune(pruning, report["factors"])
    finally:  # what is known without it, where time or patience ended
        note = "; each removal's diff is in the former"
        publish(bench, "ablation", report, draw_ablation, ablation_text, note)


def paired_noise(bench: Bench) -> Noise:
    return bench.ledger.known.paired_noise


def numbers(text: str) -> set[int]:
    try:
        return {int(part) for part in text.split(",") if part}
    except ValueError:
        fail(f"--fixed {text}: give numbers of experiments, like 4,9")


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="agent_loop.py ablate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tag", help="of the search (default: the one that was last at work)")
    parser.add_argument("--hours", type=float, help="stop in time; the same command goes on later")
    parser.add_argument("--fixed", default="", metavar="N,N", help="kept changes that are not to be taken out")
    add_slots(parser)
    args = parser.parse_args(arguments)
    marked = numbers(args.fixed)
    with open_bench(args, "ablation") as bench:
        ablate(bench, marked)
