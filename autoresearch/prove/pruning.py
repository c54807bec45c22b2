"""
The best without what does nothing: measured next to the best on fresh seeds and, where it is no worse, offered.

A designed set of runs says what a factor is worth on average, with the others in half of the time. Where factors depend
on each other that can differ from what it is worth in the best. So there, and where the pruned train.py cannot run or
turns out worse, each factor that seems to do nothing is taken out of the best by itself first: it stays, and counts as
real, if the best is worse without it. Where the best is worse without all of the rest, the half that is worth most goes
back in, as often as it takes.
"""

import dataclasses
import itertools
import math
from dataclasses import dataclass
from typing import Any

from autoresearch.nouns import Runs, Task
from autoresearch.prove.effects import Difference, Effects, p_of_worse, paired_difference
from autoresearch.prove.factors import Conflict, Factor, Factors, Problem
from autoresearch.prove.target import paired_sigma
from autoresearch.prove.trials import Trials, time_text
from autoresearch.record.repository import commit_file, commit_of, file_at
from autoresearch.source import code_lines
from autoresearch.text import plural

FRESH_SEEDS = 3  # of each train.py
WORSE = 0.05  # the probability below which a train.py counts as worse than the best
REAL = 0.025  # and a factor as real: what does nothing had as much of a chance in the designed runs already
DEPENDENT = 0.05  # the probability below which factors count as depending on each other


@dataclass
class Pruning:
    """The measuring of the best without some factors."""

    trials: Trials
    factors: Factors
    effects: Effects
    problem: Problem
    seed: int  # the first that is fresh

    def refused(self, out: list[Factor]) -> str:
        """Return why the best without these factors cannot run, or ""."""
        try:
            return self.problem(self.factors.without(out))
        except Conflict as conflict:
            return str(conflict)

    def tasks(self, out: list[Factor], round_: int) -> list[Task]:
        """On fresh seeds, others in each round: what was chosen in one shall not be judged by it."""
        name = f"the best without {names(out)}" if out else "the best"
        first = self.seed + round_ * FRESH_SEEDS
        seeds = range(first, first + FRESH_SEEDS)
        return [Task(name, self.factors.without(out), seed, "prove", budget=self.trials.budget) for seed in seeds]

    def values(self, out: list[Factor], round_: int) -> Runs:
        runs = {task.seed: self.trials.value(task) for task in self.tasks(out, round_)}
        return {seed: value for seed, value in runs.items() if math.isfinite(value)}

    def difference(self, out: list[Factor], round_: int) -> tuple[Difference, float] | None:
        """(without these factors minus the best, the probability of that if they do nothing); None without a number."""
        without, best = self.values(out, round_), self.values([], round_)
        if not without.keys() & best.keys():
            return None
        noise = paired_sigma([without, best], self.trials.ledger.known.paired_noise)
        difference = paired_difference(without, best, noise.sigma)
        return difference, p_of_worse(difference, noise.degrees_of_freedom)

    def stays(self, out: list[Factor], round_: int) -> bool:
        found = self.difference(out, round_)
        return not found or found[1] < WORSE


def names(factors: list[Factor]) -> str:
    return ", ".join(factor.name for factor in factors)


def prune(pruning: Pruning, factors: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Return what can be taken out, None if nothing can, and note in `factors` what each is worth by itself."""
    verdicts = [worth.verdict for worth in pruning.effects.worths]
    out = [factor for factor, verdict in zip(pruning.factors.removable, verdicts, strict=True) if verdict != "real"]
    if not out:
        return None
    round_ = 0
    apart = pruning.effects.dependence_p < DEPENDENT or bool(pruning.refused(out))
    if not apart:
        measure(pruning, [out], round_)
    if apart or pruning.stays(out, round_):
        measure(pruning, [[factor] for factor in out], round_)
        for factor in out:
            note_alone(pruning, factor, next(each for each in factors if each["name"] == factor.name))
        out = [factor for factor in out if not pruning.stays([factor], round_)]
        if out:
            out, round_ = largest_removal(pruning, sorted(out, key=lambda factor: worth(pruning, factor)))
    return report_of(pruning, out, round_) if out else None


def largest_removal(pruning: Pruning, out: list[Factor]) -> tuple[list[Factor], int]:
    """(what can be taken out together, the round that says so): all, or its first half, worth least, ..."""
    for round_ in itertools.count(1):
        refused = pruning.refused(out)
        if not refused:
            measure(pruning, [out], round_)
        if len(out) == 1 or not (refused or pruning.stays(out, round_)):
            break
        out = out[: len(out) // 2]
    return out, round_


def worth(pruning: Pruning, factor: Factor) -> float:
    """Return all that is known of its worth: on average, and in the best by itself."""
    average = pruning.effects.worths[pruning.factors.removable.index(factor)].gain
    alone = pruning.difference([factor], 0)
    return average + (alone[0].value if alone else 0.0)


def measure(pruning: Pruning, removals: list[list[Factor]], round_: int) -> None:
    """Run each removal and the best next to it, seed by seed."""
    arms = [pruning.tasks(out, round_) for out in [[], *removals]]
    tasks = [task for same_seed in zip(*arms, strict=True) for task in same_seed]
    what = f"without {names(removals[0])}" if len(removals) == 1 else "without each that seems to do nothing"
    pruning.trials.log.say(f"the best next to the best {what}: {time_text(pruning.trials, tasks)}")
    pruning.trials.make(tasks)


def note_alone(pruning: Pruning, factor: Factor, entry: dict[str, Any]) -> None:
    """Note what taking it out of the best does; if that is worse, it is real, whatever it is worth on average."""
    if found := pruning.difference([factor], 0):
        difference, p = found
        entry["alone"] = dataclasses.asdict(difference)
        entry["verdict"] = "real" if p < REAL else entry["verdict"]


def report_of(pruning: Pruning, out: list[Factor], round_: int) -> dict[str, Any]:
    best, source = pruning.factors.without([]), pruning.factors.without(out)
    lines = code_lines(best) - code_lines(source)
    report: dict[str, Any] = {"out": [factor.name for factor in out], "lines": lines, "branch": ""}
    if reason := pruning.problem(source):
        return report | {"refused": reason}
    found = pruning.difference(out, round_)
    if not found:
        return report | {"refused": "it did not end with a number"}
    report["difference"] = dataclasses.asdict(found[0])
    if found[1] >= WORSE:
        report["branch"] = offer(pruning.trials, source, report)
    return report


def offer(trials: Trials, source: str, report: dict[str, Any]) -> str:
    """Commit the pruned train.py on a branch of its own, on top of the search's. Returns it, "" if it is taken."""
    ledger, branch = trials.ledger, f"{trials.ledger.branch}-pruned"
    there = commit_of(ledger.repo, f"refs/heads/{branch}")
    if there and file_at(ledger.repo, there, "train.py") == source:
        return branch
    if there:
        trials.log.say(f"{branch} is there already, with another train.py, and is left alone; delete it first")
        return ""
    value = report["difference"]
    message = (
        f"Same number, {plural(report['lines'], 'line')} less: without {', '.join(report['out'])}\n\n"
        f"val_bpb {value['value']:+.6f} +- {value['standard_error']:.6f} against the best, "
        f"on {value['seeds']} fresh seeds; runs/{ledger.tag}/ablation.json"
    )
    commit_file(ledger.repo, ledger.head, "train.py", source, message, f"refs/heads/{branch}")
    return branch
