"""
Is any kept change harmful in the best? The best without each of them, on two fresh seeds each: 2 runs for each and 2.
"""

import math

from scipy import stats

from autoresearch.nouns import Runs, Task
from autoresearch.prove.ablate import problems, settled_factors
from autoresearch.prove.effects import Difference, Effects, Worth, p_of_worse, paired_difference
from autoresearch.prove.factors import Factor, Factors
from autoresearch.prove.pruning import FRESH_SEEDS, Pruning, largest_removal, report_of
from autoresearch.prove.target import paired_sigma
from autoresearch.prove.trials import Trials, note_plan, say_if_too_long, time_text
from autoresearch.record.proof import pruned_line, shortened
from autoresearch.text import tables_text

SEEDS = 2
BY_CHANCE = 0.05  # the probability that any change is called harmful where none is (Bonferroni); of "real" likewise


def measure_each(trials: Trials, marked: set[int]) -> None:
    """Say what each change is worth in the best; where some are harmful, offer the best without them."""
    problem, log = problems(trials), trials.log
    factors = settled_factors(trials, problem, marked, lambda factors: [])
    plan = note_plan(trials, {"for": [trials.ledger.best.commit, "quick"], "seed": trials.first_seed})
    arms = arms_of(trials, factors, plan["seed"])
    tasks = [task for same_seed in zip(*arms, strict=True) for task in same_seed]
    log.say(f"the best, and the best without each: {time_text(trials, tasks)}")
    log.say(f"then, if some are harmful: the best without them next to the best, {2 * FRESH_SEEDS} runs or more")
    say_if_too_long(trials, tasks)
    try:
        trials.make(tasks)
    finally:  # what is known so far, where time or patience ended
        effects = effects_in_best(trials, arms)
        log.say(effects_text(factors.removable, effects))
    pairs = list(zip(factors.removable, effects.worths, strict=True))
    harmful = [(worth.gain, factor) for factor, worth in pairs if worth.verdict == "harmful"]
    if harmful:
        pruning = Pruning(trials, factors, effects, problem, plan["seed"] + SEEDS)
        out, round_ = largest_removal(pruning, [factor for _, factor in sorted(harmful, key=lambda each: each[0])])
        log.say(pruned_line({"pruned": report_of(pruning, out, round_)}))


def arms_of(trials: Trials, factors: Factors, seed: int) -> list[list[Task]]:
    """The runs of the best, and of the best without each factor."""
    best = {"the best": trials.ledger.source_of(trials.ledger.best.number)}
    sources = best | {f"the best without {each.name}": factors.without([each]) for each in factors.removable}
    seeds = range(seed, seed + SEEDS)
    return [[Task(name, text, each, "prove", budget=trials.budget) for each in seeds] for name, text in sources.items()]


def effects_in_best(trials: Trials, arms: list[list[Task]]) -> Effects:
    """Return what each factor is worth in the best, by the runs that there are."""
    runs = [{task.seed: trials.value(task) for task in arm if math.isfinite(trials.value(task))} for arm in arms]
    whole = [each for each in runs if len(each) == SEEDS]
    known = trials.ledger.known.paired_noise
    noise = paired_sigma(whole, known) if len(whole) > 1 else known
    best, *others = runs
    worths = [worth_in_best(each, best, noise.sigma, noise.degrees_of_freedom, len(others)) for each in others]
    nothing = dict.fromkeys(("sum", "sum_error", "total", "total_error", "dependence", "dependence_p"), math.nan)
    return Effects(worths, noise.sigma, noise.degrees_of_freedom, **nothing)


def worth_in_best(runs: Runs, best: Runs, sigma: float, freedom: float, factors: int) -> Worth:
    """The cost of taking it out. `p`: of no effect in that direction, times the number of factors that are asked."""
    if not runs.keys() & best.keys():
        return Worth(math.nan, math.nan, math.nan, math.nan, math.nan, "no number")
    found = paired_difference(runs, best, sigma)
    width = stats.t.ppf(0.975, freedom) * found.standard_error
    p = min(1.0, factors * p_of_worse(Difference(abs(found.value), found.standard_error, found.seeds), freedom))
    verdict = "not clear" if p >= BY_CHANCE else "real" if found.value > 0 else "harmful"
    return Worth(found.value, found.standard_error, found.value - width, found.value + width, p, verdict)


def effects_text(factors: list[Factor], effects: Effects) -> str:
    heads = [">change", ">worth in the best", ">± (95 %)", ">p", "verdict", "what"]
    pairs = sorted(zip(effects.worths, factors, strict=True), key=lambda pair: pair[0].gain)
    rows = []
    for each, factor in pairs:
        numbers = [f"{each.gain:+.6f}", f"{each.high - each.gain:.6f}", f"{each.p:.3f}"]
        rows.append([factor.name, *(numbers if math.isfinite(each.gain) else [""] * 3), each.verdict])
        rows[-1].append(shortened(factor.title))
    harmful = [factor.name for each, factor in pairs if each.verdict == "harmful"]
    said = f"harmful beyond chance: {', '.join(harmful)}" if harmful else "none is harmful beyond chance"
    noise = f"noise of a run {effects.sigma:.6f}, {effects.degrees_of_freedom:.0f} degrees of freedom"
    return tables_text([("ablate --quick: what each change is worth in the best", heads, rows)], [said, noise])
