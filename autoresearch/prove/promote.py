"""
Baseline and best at a larger depth, and the time in which the best reaches there what the baseline does.
"""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from autoresearch.judge.noise import mean
from autoresearch.nouns import Noise, RunResult, Runs, Task
from autoresearch.prove import target
from autoresearch.prove.depth import bound_constants, depth_of, with_depth
from autoresearch.prove.shapes import moved, not_comparable, shapes_of, shapes_text
from autoresearch.prove.target import Points, fit_line, next_budget, paired_sigma
from autoresearch.prove.trials import Trials, key_of, note_plan, time_text
from autoresearch.text import fail

HORIZONS = (0.75, 1.0, 1.25)  # of the baseline: what a second is worth
PRIOR_FREEDOM = 4.0  # degrees of freedom that the search's noise counts as at another depth, where it may differ


@dataclass(frozen=True)
class Arms:
    """Baseline and best, at the larger depth."""

    sources: dict[str, str]  # "baseline", "best" -> train.py
    searched: dict[str, int]  # their depths in the search
    depths: dict[str, int]  # and here


# -----------------------------------------------------------------------------
# What is compared


def make_arms(trials: Trials, depth: int | None, times: int | None) -> Arms:
    """Both train.py texts with another DEPTH; by default both with twice the best's."""
    ledger, scale = trials.ledger, trials.scale
    texts = {"baseline": ledger.source_of(ledger.kept[0].number), "best": ledger.source_of(ledger.best.number)}
    try:
        searched = {name: depth_of(text, scale) for name, text in texts.items()}
        depths = {name: times * own if times else depth or 2 * searched["best"] for name, own in searched.items()}
        return Arms({name: with_depth(text, scale, depths[name]) for name, text in texts.items()}, searched, depths)
    except ValueError as error:
        fail(f"{error}")


def announce(trials: Trials, arms: Arms, bound: list[str]) -> None:
    """Say which depths are compared, and what does not follow them."""
    log, ledger, scale = trials.log, trials.ledger, trials.scale
    both = " and ".join(
        f"{name} at depth {depth} (searched at {arms.searched[name]})" for name, depth in arms.depths.items()
    )
    log.say(both)
    for before, row in zip(ledger.kept, ledger.kept[1:], strict=False):
        old, new = (depth_of(ledger.source_of(each.number), scale) for each in (before, row))
        if old != new:
            log.say(f"kept change {row.number} changed DEPTH itself, {old} -> {new}")
    if bound:
        log.say(f"the best's train.py does not adjust these to its depth: {', '.join(bound)}")


# -----------------------------------------------------------------------------
# The horizon


def horizon_by_tokens(trials: Trials, arms: Arms, seed: int) -> int:
    """Seconds in which the larger baseline sees as many tokens per parameter as the search's, from a run of each."""
    small = trials.ledger.source_of(trials.ledger.kept[0].number)
    wanted = {
        "the larger baseline, for its speed": arms.sources["baseline"],
        "the search's baseline, for its tokens per parameter": small,
    }
    tasks = [Task(title, source, seed, "prove", budget=trials.budget) for title, source in wanted.items()]
    trials.log.say(f"how long is a run? as many tokens per parameter as in the search; {time_text(trials, tasks)}")
    trials.make(tasks)
    ratios = []
    for task in tasks:
        result = trials.done[key_of(task)]
        if result.status != "ok":
            fail(f"{task.title}: {result.status}, {result.error}; see {trials.folder / key_of(task)}")
        facts = result.facts
        if not all(facts.get(name, 0) > 0 for name in ("total_tokens_M", "num_params_M", "training_seconds")):
            fail("train.py prints no total_tokens_M, num_params_M and training_seconds; give --budget SECONDS")
        ratios.append(facts["total_tokens_M"] / facts["num_params_M"] / facts["training_seconds"])
    larger, searched = ratios
    return max(trials.budget, round(trials.budget * searched / larger))


# -----------------------------------------------------------------------------
# Runs


@dataclass
class Promotion:
    """The runs of a promotion, as far as they are there."""

    trials: Trials
    arms: Arms
    horizon: int
    seeds: list[int]

    def tasks(self, arm: str, budget: int) -> list[Task]:
        what = f"{arm}, depth {self.arms.depths[arm]}, {budget} s"
        tested = budget == self.horizon
        source = self.arms.sources[arm]
        return [Task(what, source, seed, "prove", budget=budget, tested=tested) for seed in self.seeds]

    def results(self, arm: str, budget: int) -> list[RunResult]:
        return [self.trials.done[key_of(task)] for task in self.tasks(arm, budget)]

    def runs(self, arm: str, budget: int) -> Runs:
        values = {task.seed: self.trials.value(task) for task in self.tasks(arm, budget)}
        missing = [seed for seed, value in values.items() if math.isnan(value)]
        if missing:
            result = self.results(arm, budget)[self.seeds.index(missing[0])]
            name = f"{arm} at depth {self.arms.depths[arm]}, {budget} s"
            fail(f"{name}: {result.status}, {result.error}; see {self.trials.folder}")
        return values

    @property
    def budgets(self) -> list[int]:
        return sorted({max(1, round(share * self.horizon)) for share in HORIZONS})

    def noise(self, points: Points) -> Noise:
        """Return what is left of a run's noise with its seed taken off, here; the search's counts a little."""
        known = self.trials.ledger.known.paired_noise
        prior = Noise(known.sigma, min(known.degrees_of_freedom, PRIOR_FREEDOM))
        return paired_sigma([*(self.runs("baseline", b) for b in self.budgets), *points.values()], prior)


def run_promotion(promotion: Promotion) -> tuple[Points, Points]:
    """(budget -> runs) of the baseline at three horizons, and of the best at what finds the time to the target."""
    trials, horizon = promotion.trials, promotion.horizon
    pairs = zip(promotion.tasks("baseline", horizon), promotion.tasks("best", horizon), strict=True)
    first = [task for pair in pairs for task in pair]
    others = [task for b in promotion.budgets if b != horizon for task in promotion.tasks("baseline", b)]
    shorter = f"then {len(promotion.seeds)} runs at each shorter budget of the best, two to six of them"
    trials.log.say(f"horizon {horizon} s: {time_text(trials, first + others)}; {shorter}")
    trials.make(first + others)
    base = {budget: promotion.runs("baseline", budget) for budget in promotion.budgets}
    points = {horizon: promotion.runs("best", horizon)}
    while budget := next_of(promotion, base, points):
        tasks = promotion.tasks("best", budget)
        trials.log.say(f"the best for {budget} s: {time_text(trials, tasks)}")
        trials.make(tasks)
        points[budget] = promotion.runs("best", budget)
    return base, points


def next_of(promotion: Promotion, base: Points, points: Points) -> int | None:
    """The next budget of the best; none without a gain at the horizon."""
    sigma, goal = promotion.noise(points).sigma, base[promotion.horizon]
    if not target.passes(points, promotion.horizon, goal, sigma):
        return None
    least = max(1, promotion.horizon // 50)
    return next_budget(points, goal, fit_line(base, sigma), sigma, least)


# -----------------------------------------------------------------------------
# The report


def report_of(promotion: Promotion, base: Points, points: Points, bound: list[str]) -> dict[str, Any]:
    """promotion.json."""
    arms, horizon, noise = promotion.arms, promotion.horizon, promotion.noise(points)
    goal, line = base[horizon], fit_line(base, noise.sigma)
    there, here = promotion.trials.ledger.known.gain, mean(goal) - mean(points[horizon])
    assert there, "a search that is promoted has a best"
    error = noise.sigma * math.sqrt(2 / len(goal))
    found = target.time_to_target(points, goal, noise)
    passed = [budget for budget in points if target.passes(points, budget, goal, noise.sigma)]
    spread = math.hypot(error / here, there.standard_error / there.value) if here and there.value else math.nan
    transfer = here / there.value if there.value else math.nan
    ledger = promotion.trials.ledger
    return {
        "version": 1,
        "search": ledger.branch,
        "kept": len(ledger.kept) - 1,
        "best_number": ledger.best.number,
        "searched_depth": arms.searched,
        "depth": arms.depths,
        "horizon": horizon,
        "seeds": promotion.seeds,
        "noise": dataclasses.asdict(noise),
        "baseline": {str(budget): {str(s): v for s, v in runs.items()} for budget, runs in base.items()},
        "best": {str(budget): {str(s): v for s, v in runs.items()} for budget, runs in sorted(points.items())},
        "slope": {"b": line.b, "standard_error": line.error},
        "searched": {**dataclasses.asdict(there), "gain": there.value},
        "gain": {"value": here, "standard_error": error, "clear": horizon in passed},
        "test": {arm: promotion.trials.tested_mean(promotion.tasks(arm, horizon)) for arm in ("baseline", "best")},
        "transfer": {"value": transfer, "standard_error": abs(transfer) * spread},
        "predicted_seconds": target.predicted_seconds(horizon, here, line),
        "time": dataclasses.asdict(found) if found else None,
        "confirmed": min(passed, default=None),
        "split": split_of(promotion, points, found),
        "bound": bound,
        "curves": curves_of(promotion, points, found),
    }


def split_of(promotion: Promotion, points: Points, found: target.TimeToTarget | None) -> dict[str, float] | None:
    """Return how many tokens the best needs, and what a token costs it, as shares of the baseline's."""
    if not found:
        return None
    near = min(points, key=lambda budget: abs(math.log(budget / found.seconds)))
    tokens, seconds = {}, {}
    for arm, budget in (("baseline", promotion.horizon), ("best", near)):
        results = promotion.results(arm, budget)
        tokens[arm] = sum(result.facts.get("total_tokens_M", 0.0) for result in results)
        seconds[arm] = sum(result.facts.get("training_seconds", 0.0) for result in results)
    if not all(tokens.values()) or not all(seconds.values()):
        return None
    cost = (seconds["best"] / tokens["best"]) / (seconds["baseline"] / tokens["baseline"])
    return {"tokens": found.seconds / promotion.horizon / cost, "cost_per_token": cost}


def curves_of(promotion: Promotion, points: Points, found: target.TimeToTarget | None) -> list[dict[str, Any]]:
    """The training loss of a run of each arm, for the picture: percent of the budget, and how much the whole was."""
    wanted = [("baseline", promotion.horizon), ("best", promotion.horizon)]
    if found:
        wanted.append(("best", min(points, key=lambda budget: abs(budget - found.seconds))))
    curves = []
    for arm, budget in wanted:
        result = promotion.results(arm, budget)[0]
        facts = {name: result.printed.get(name, 0.0) for name in ("training_seconds", "num_steps", "mfu_percent")}
        curves.append({"arm": arm, "budget": budget, "losses": result.losses} | facts)
    return curves


# -----------------------------------------------------------------------------
# All of it


def compared_arms(trials: Trials, depth: int | None, times: int | None, budget: int | None, force: bool) -> Arms:
    """Show both models, and return what is compared. If a kept change moved depth or width: twice each one's own."""
    seed, own = trials.first_seed, make_arms(trials, None, 1)
    searched = shapes_of(trials, own.sources, own.depths, seed)
    if not depth and not times and moved(searched):
        trials.log.say("a kept change moved depth or width: each at twice its own depth (--times 2); --depth D for one")
        times = 2
    arms = make_arms(trials, depth, times)
    here = shapes_of(trials, arms.sources, arms.depths, seed)
    trials.log.say(shapes_text(searched, here, trials, budget))
    if depth and not force and (problem := not_comparable(here, depth)):
        fail(problem)
    return arms


def promote(
    trials: Trials, depth: int | None, times: int | None, budget: int | None, seeds: int, force: bool = False
) -> dict[str, Any]:
    """promotion.json, once all its runs are made."""
    arms = compared_arms(trials, depth, times, budget, force)
    bound = bound_constants(arms.sources["best"], trials.scale)
    announce(trials, arms, bound)
    wanted = [trials.ledger.best.commit, arms.depths, budget]
    seed = note_plan(trials, {"for": wanted, "seed": trials.first_seed})["seed"]
    horizon = budget or horizon_by_tokens(trials, arms, seed)
    promotion = Promotion(trials, arms, horizon, [seed + step for step in range(seeds)])
    return report_of(promotion, *run_promotion(promotion), bound)
