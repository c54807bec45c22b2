"""
The pictures of an ablation and of a promotion.
"""

from pathlib import Path
from typing import Any

from autoresearch.judge.noise import mean
from autoresearch.record.charts import (
    FAINT,
    GREEN,
    GREY,
    INK,
    PURPLE,
    RED,
    Curve,
    draw_losses,
    drawable,
    known_ends,
    new_figure,
    quiet,
    save,
)
from autoresearch.record.proof import ablation_line, promotion_line, shortened

COLOURS = {"real": GREEN, "nothing": GREY, "harmful": RED}


def draw_ablation(report: dict[str, Any], path: Path) -> None:
    """Draw what each factor is worth, with its 95 % interval, the largest on top."""
    factors = sorted(report["factors"], key=lambda each: each["gain"])
    figure = new_figure(10, 1.4 + 0.36 * len(factors))
    axes = figure.subplots()
    places, gains = range(len(factors)), [factor["gain"] for factor in factors]
    widths = [factor["high"] - factor["gain"] for factor in factors]
    axes.barh(places, gains, xerr=widths, color=[COLOURS[f["verdict"]] for f in factors], ecolor=INK, height=0.62)
    names = [drawable(f"{factor['name']}  {shortened(factor['title'])}") for factor in factors]
    axes.set_yticks(places, names, fontsize=8, color=INK, parse_math=False)
    axes.axvline(0, color=INK, linewidth=0.8)
    alone = [
        (factor["alone"]["value"], place) for place, factor in zip(places, factors, strict=True) if factor["alone"]
    ]
    if alone:
        axes.plot(*zip(*alone, strict=True), "D", color=PURPLE, markersize=5)
    diamond = "; diamond: taken out of the best by itself" if alone else ""
    figure.supxlabel(f"lower val_bpb by the change, average over the others, 95 %{diamond}", fontsize=8, color=FAINT)
    figure.suptitle(ablation_line(report), fontsize=9, color=INK)
    axes.spines[["top", "right", "left"]].set_visible(False)
    save(figure, path)


def draw_promotion(report: dict[str, Any], path: Path) -> None:
    """val_bpb of whole runs over their budget, with the target; next to it the losses over time, steps and FLOPs."""
    figure = new_figure(12, 4.2)
    curves = [curve_of(each, report["horizon"]) for each in report["curves"] if len(each["losses"]) > 2]
    first, *panels = figure.subplots(1, 1 + len(known_ends(curves)), squeeze=False)[0]
    draw_budgets(first, report)
    for axes, name in zip(panels, known_ends(curves), strict=True):
        draw_losses(axes, curves, name)
        axes.set_title("training loss", fontsize=9, color=FAINT)
    figure.suptitle(promotion_line(report), fontsize=10, color=INK)
    save(figure, path)


def curve_of(told: dict[str, Any], horizon: int) -> Curve:
    """A curve of promotion.json; dashed: of a shorter run."""
    colour = GREY if told["arm"] == "baseline" else GREEN
    style = {"linestyle": "-" if told["budget"] == horizon else "--"}
    return Curve(f"{told['arm']}, {told['budget']} s", colour, told["losses"], told, style)


def draw_budgets(axes: Any, report: dict[str, Any]) -> None:
    """Every run of both arms, and the target."""
    goal = mean(report["baseline"][str(report["horizon"])])
    for arm, colour in (("baseline", GREY), ("best", GREEN)):
        dots = [(int(budget), value) for budget, runs in report[arm].items() for value in runs.values()]
        axes.scatter(*zip(*dots, strict=True), s=14, color=colour, label=arm, zorder=3)
        means = sorted((int(budget), mean(runs)) for budget, runs in report[arm].items())
        axes.plot(*zip(*means, strict=True), color=colour, linewidth=0.8)
    axes.axhline(goal, color=PURPLE, linewidth=0.8, label="target")
    if report["time"]:
        axes.axvspan(report["time"]["low"], report["time"]["high"], color=PURPLE, alpha=0.25)
    axes.set_xscale("log")
    budgets = sorted({int(budget) for arm in ("baseline", "best") for budget in report[arm]})
    axes.set_xticks(budgets, budgets, fontsize=8)
    axes.minorticks_off()
    quiet(axes)
    axes.set_xlabel("seconds of training, whole runs")
    axes.set_title("val_bpb", fontsize=9, color=FAINT)
    axes.legend(fontsize=8, frameon=False, labelcolor=FAINT)
