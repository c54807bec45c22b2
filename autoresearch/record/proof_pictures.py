"""
The pictures of an ablation and of a promotion.

They are drawn with matplotlib's figures and not pyplot, whose state is global.
"""

from pathlib import Path
from typing import Any

from autoresearch.judge.noise import mean
from autoresearch.record.progress import FAINT, GREEN, GREY, INK, PURPLE, RED, drawable
from autoresearch.record.proof import ablation_line, promotion_line, shortened

COLOURS = {"real": GREEN, "nothing": GREY, "harmful": RED}


def draw_ablation(report: dict[str, Any], path: Path) -> None:
    """What each factor is worth, with its 95 % interval, the largest on top."""
    from matplotlib.figure import Figure

    factors = sorted(report["factors"], key=lambda each: each["gain"])
    figure = Figure(figsize=(10, 1.4 + 0.36 * len(factors)), dpi=150, layout="constrained")
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
    """val_bpb of whole runs over their budget, with the target; beside it the training loss over time, steps, FLOPs."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 4.2), dpi=150, layout="constrained")
    curves = [curve for curve in report["curves"] if len(curve["losses"]) > 2]
    kinds = [("training_seconds", "seconds"), ("num_steps", "steps"), ("mfu_percent", "FLOPs, relative")]
    kinds = [kind for kind in kinds if curves and all(curve[kind[0]] for curve in curves)]
    panels = figure.subplots(1, 1 + len(kinds), squeeze=False)[0]
    draw_budgets(panels[0], report)
    for axes, (name, title) in zip(panels[1:], kinds, strict=True):
        for curve in curves:
            whole = curve[name] * (curve["training_seconds"] if name == "mfu_percent" else 1)
            places = [percent / 100 * whole for percent, _ in curve["losses"]]
            style = {"color": GREY if curve["arm"] == "baseline" else GREEN, "linewidth": 1.2}
            dashed = curve["arm"] == "best" and curve["budget"] != report["horizon"]
            label = f"{curve['arm']}, {curve['budget']} s"
            axes.plot(
                places, [loss for _, loss in curve["losses"]], linestyle="--" if dashed else "-", label=label, **style
            )
        axes.set_xlabel(title, color=FAINT)
        axes.set_title("training loss", fontsize=9, color=INK)
        axes.legend(fontsize=7, frameon=False)
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(promotion_line(report), fontsize=10, color=INK)
    save(figure, path)


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
    axes.set_xlabel("seconds of training, whole runs", color=FAINT)
    axes.set_title("val_bpb", fontsize=9, color=INK)
    axes.legend(fontsize=7, frameon=False)


def save(figure: Any, path: Path) -> None:
    figure.savefig(path.with_suffix(".tmp"), format="png")
    path.with_suffix(".tmp").replace(path)
