"""
The common parts of all pictures: colours, curves of training losses, a figure as a PNG file or as a part of the page.

They are matplotlib's figures and not pyplot, whose state is global: the loop draws in a thread.
"""

import io
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from markupsafe import Markup

GREEN, GREY, RED, PURPLE, INK, FAINT, LINE = "#1f7a5c", "#a3abb0", "#c4543a", "#7d5ba6", "#2b3236", "#6b757b", "#ededed"
# The same as the page names them, so that a chart follows its light or dark colours.
VARIABLES = {GREEN: "keep", GREY: "drop", RED: "fail", PURPLE: "sure", INK: "ink", FAINT: "soft", LINE: "line"}


@dataclass(frozen=True)
class Curve:
    """The training loss of a run."""

    label: str
    colour: str
    losses: list[tuple[float, float]]  # (percent of the budget, loss)
    facts: dict[str, float]  # as the run printed them: how much the whole was
    style: dict[str, Any] = field(default_factory=dict)

    @property
    def ends(self) -> dict[str, float]:
        """The whole run by the name of an axis; 0 where that is not known."""
        seconds, steps, mfu = (self.facts.get(name) or 0 for name in ("training_seconds", "num_steps", "mfu_percent"))
        return {"seconds of training": seconds, "steps": steps, "FLOPs, relative": seconds * mfu}


def new_figure(width: float, height: float) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure: Any = Figure(figsize=(width, height), dpi=130, layout="constrained", facecolor="none")
    FigureCanvasAgg(figure)
    return figure


def quiet(axes: Any) -> None:
    """A frame that does not draw the eye."""
    axes.set_facecolor("none")
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GREY)
    axes.tick_params(colors=FAINT, labelsize=9)
    axes.xaxis.label.set_color(FAINT)
    axes.yaxis.label.set_color(FAINT)


def known_ends(curves: list[Curve]) -> list[str]:
    """The axes over which all curves can be drawn."""
    return [name for name in curves[0].ends if all(curve.ends[name] for curve in curves)] if curves else []


def draw_losses(axes: Any, curves: list[Curve], name: str) -> None:
    """Training losses over seconds, steps or FLOPs."""
    whole = curves[0].ends[name] if name.startswith("FLOPs") else 1
    for curve in curves:
        places = [percent / 100 * curve.ends[name] / whole for percent, _ in curve.losses]
        losses = [loss for _, loss in curve.losses]
        axes.plot(places, losses, color=curve.colour, label=curve.label, linewidth=1.4, **curve.style)
    quiet(axes)
    axes.set_xlabel(name)
    axes.legend(fontsize=8, frameon=False, labelcolor=FAINT)


def loss_figure(curves: list[Curve]) -> Any:
    """One panel for each axis that is known; None where there is none."""
    names = known_ends(curves)
    if not names:
        return None
    figure = new_figure(10, 3)
    for axes, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        draw_losses(axes, curves, name)
    return figure


def drawable(text: str) -> str:
    """The text with a question mark for each character that the font lacks."""
    from matplotlib.font_manager import findfont, get_font

    known = get_font(findfont("DejaVu Sans")).get_charmap()
    return "".join(character if ord(character) in known else "?" for character in text)


def save(figure: Any, path: Path) -> None:
    """A PNG file, whole or not at all."""
    figure.savefig(path.with_suffix(".tmp"), format="png", facecolor="white")
    path.with_suffix(".tmp").replace(path)


def as_svg(figure: Any) -> Markup:
    """A part of the page, in the page's colours. Its texts are shapes: nothing of them is read as HTML."""
    file = io.StringIO()
    figure.savefig(file, format="svg", metadata={"Date": None}, facecolor="none")
    text = file.getvalue()
    for colour, name in VARIABLES.items():
        text = text.replace(colour, f"var(--{name})")
    return Markup(text[text.index("<svg") :])
