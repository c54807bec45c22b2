"""
progress.png: the best val_bpb so far as a line, every experiment as a dot, and names for the largest gains.

The loop draws it in a thread, so this file uses matplotlib's figures and not pyplot, whose state is global.
"""

import itertools
import math
import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy

from autoresearch.row import ON_TOP, SECOND_LOOK, Row
from autoresearch.text import one_line, plural

GREEN, GREY, RED, PURPLE, INK, FAINT = "#1f7a5c", "#a3abb0", "#c4543a", "#7d5ba6", "#2b3236", "#6b757b"
LABELS = 24  # at most, however many changes were kept
LENGTHS = (64, 46, 34, 24)  # characters of a label, from the best place for it to a poor one
DISTANCES = (5, 16, 28, 40)  # points between a dot and its label, likewise
SIDES = ((1, 1), (0, 0), (1, 0))  # (right, up): early on there is room above the line, later below it
STYLE = {"fontsize": 8, "color": INK, "parse_math": False}
LEADER = {"arrowstyle": "-", "color": GREY, "linewidth": 0.6, "shrinkA": 0, "shrinkB": 3}


class Confirmed(NamedTuple):
    """val_bpb on fresh seeds."""

    best: float
    error: float  # its standard error
    baseline: float | None = None  # on the same seeds


# -----------------------------------------------------------------------------
# What is drawn where


def best_line(rows: list[Row]) -> numpy.ndarray:
    """(experiment, val_bpb) where the best changes, and at the end."""
    last, corners = 0, []
    for row in rows:
        last = max(last, row.number)  # with several slots a later number may be decided first
        corners += [(last, row.val_bpb)] if row.status == "keep" else []
    return numpy.array([*corners, (last + 0.4, corners[-1][1])])


def vertical_range(values: list[float], line: numpy.ndarray, noise: float) -> tuple[float, float]:
    """The limits of the axis: the whole line, but no dot that is so much worse that it would flatten the line."""
    low, high = line[:, 1].min(), line[:, 1].max()
    room = max(0.15 * (high - low), 6 * noise) or 0.01 * high
    high = min(max(high + noise, float(numpy.quantile(values, 0.8))), high + room)
    low = min(low - noise, *values)
    margin = 0.05 * (high - low) or room
    return low - 2.6 * margin, high + margin  # the failed experiments are marked at the bottom


def label_text(description: str, limit: int) -> str:
    """The first clause of a description, ended after a whole word where it is longer than `limit`."""
    told = ON_TOP.sub("", SECOND_LOOK.sub("", one_line(description)))
    clause = re.split(r": |; | \(| \[", told)[0]
    whole_words = clause[:limit].rpartition(" ")[0].rstrip(" ,->")
    return clause if len(clause) <= limit else f"{whole_words or clause[: limit - 1]}…"


def drawable(text: str) -> str:
    """The text with a question mark for each character that the font lacks."""
    from matplotlib.font_manager import findfont, get_font

    known = get_font(findfont("DejaVu Sans")).get_charmap()
    return "".join(character if ord(character) in known else "?" for character in text)


# -----------------------------------------------------------------------------
# Labels


def boxes(corners: Any, margin: float) -> numpy.ndarray:
    """(left, bottom, right, top) around each two points."""
    pairs = numpy.array(corners).reshape(-1, 2, 2)
    return numpy.concatenate([pairs.min(axis=1) - margin, pairs.max(axis=1) + margin], axis=1)


def obstacles(axes: Any, line: numpy.ndarray) -> numpy.ndarray:
    """What no label may cover, in pixels: the dots and marks, and the pieces of the line."""
    drawn = [dots.get_offset_transform().transform(dots.get_offsets()) for dots in axes.collections[1:]]
    corners = numpy.stack([line[:-1], line[1:] * [1, 0] + line[:-1] * [0, 1], line[1:]], axis=1)
    pieces = axes.transData.transform(corners[:, [0, 1, 1, 2]].reshape(-1, 2))
    return numpy.vstack([boxes(numpy.repeat(numpy.concatenate(drawn), 2, axis=0), 7), boxes(pieces, 4)])


def overlap(some: numpy.ndarray, others: numpy.ndarray) -> bool:
    """Whether any of some boxes touches any of the others."""
    some = some[:, None]
    return bool(((some[..., :2] < others[:, 2:]) & (some[..., 2:] > others[:, :2])).all(axis=-1).any())


def text_size(axes: Any, text: str) -> numpy.ndarray:
    """Width and height of a label in pixels."""
    label = axes.text(0, 0, text, **STYLE)
    size = label.get_window_extent(axes.figure.canvas.get_renderer()).size
    label.remove()
    return numpy.array(size)


def place_label(axes: Any, point: tuple[float, float], texts: list[str], taken: numpy.ndarray) -> numpy.ndarray:
    """Write one of the texts near a point, if there is room; long and close before short or far. Returns all boxes."""
    anchor, scale, frame = axes.transData.transform(point), axes.figure.dpi / 72, axes.bbox.extents
    sizes = [text_size(axes, text) for text in texts]
    places = itertools.product(range(len(texts)), range(len(DISTANCES)), SIDES)
    for short, far, (right, up) in sorted(places, key=lambda place: place[0] + place[1]):
        aside = 9 if far else 5
        corner = anchor + scale * numpy.array([aside if right else -aside, DISTANCES[far] * (1 if up else -1)])
        start = corner - sizes[short] * (not right, not up)
        box = boxes([start, start + sizes[short]], 0)
        margin = box + numpy.array([-4, -2, 4, 2])
        leader = boxes(numpy.repeat(numpy.linspace(anchor, corner, 12)[4 if far else 12 :], 2, axis=0), 1)
        inside = (box[0, :2] > frame[:2]).all() and (box[0, 2:] < frame[2:]).all()
        if inside and not overlap(numpy.vstack([margin, leader]), taken):
            arrow = LEADER | {"relpos": (1 - right, 1 - up)} if far else None
            place = {"xytext": (start - anchor) / scale, "textcoords": "offset points", "arrowprops": arrow}
            axes.annotate(texts[short], point, **place, **STYLE)
            return numpy.vstack([taken, box, leader])
    return taken


def label_gains(axes: Any, kept: list[Row], taken: numpy.ndarray) -> None:
    """Name the baseline and the kept changes, the largest gains first, as long as there is room."""
    by_gain = sorted(kept, key=lambda row: -row.gain if math.isfinite(row.gain) else -math.inf)
    for row in by_gain[:LABELS]:
        texts = dict.fromkeys(drawable(label_text(row.description, limit)) for limit in LENGTHS)
        taken = place_label(axes, (row.number, row.val_bpb), list(texts), taken)


# -----------------------------------------------------------------------------
# The picture


def empty_axes() -> Any:
    """Axes with a quiet frame, in a figure of their own."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure: Any = Figure(figsize=(10, 5.4), dpi=130)
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0.085, 0.095, 0.895, 0.775))
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GREY)
    axes.grid(axis="y", color="0.93", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=FAINT, labelsize=9)
    axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
    axes.set_xlabel("experiment", color=FAINT)
    axes.set_ylabel("val_bpb (lower is better)", color=FAINT)
    return axes


def draw_dots(axes: Any, rows: list[Row]) -> None:
    """A dot for each number; a mark at the upper edge where it is far off, at the lower edge where there is none."""
    area, top = min(max(2500 / len(rows), 9), 26), axes.get_ylim()[1]
    far = [row for row in rows if row.status == "discard" and row.val_bpb >= top]
    for name, statuses, color, marker, size, height in (
        ("kept", {"keep"}, GREEN, "o", 1.7 * area, 0.0),
        ("discarded", {"discard"}, GREY, "o", area, 0.0),
        ("far worse", {"far"}, GREY, "^", 22, 0.985),
        ("failed", {"crash", "timeout"}, RED, "x", 22, 0.02),
        ("invalid", {"invalid"}, PURPLE, "d", 22, 0.02),
    ):
        some = far if name == "far worse" else [row for row in rows if row.status in statuses and row not in far]
        place = axes.get_xaxis_transform() if height else axes.transData
        x, y = [row.number for row in some], [height or row.val_bpb for row in some]
        label = f"{name} ({len(some) - (name == 'kept')})"  # the baseline was not kept, it was there
        if some:
            axes.scatter(x, y, size, color, marker=marker, label=label, transform=place, linewidths=1.1 * bool(height))


def write_title(axes: Any, rows: list[Row], line: numpy.ndarray, confirmed: Confirmed | None) -> None:
    """The result as the title, what it rests on below it, the legend beside it."""
    kept = len(line) - 2
    start, after, error = line[0, 1], line[-1, 1], ""
    if confirmed:
        start, after, error = confirmed.baseline or start, confirmed.best, f" ± {confirmed.error:.4f}"
    title = f"val_bpb {start:.4f} → {after:.4f}{error}" if kept else f"val_bpb {start:.4f}"
    facts = [f"{plural(len(rows) - 1, 'experiment')}, {kept} kept"]
    facts += [f"gain {start - after:.4f} ({100 * (start - after) / start:.1f} %)"] if kept else []
    both = "both " if confirmed and confirmed.baseline else ""
    facts += [f"{both}confirmed on fresh seeds" if confirmed else "not yet confirmed on fresh seeds"]
    axes.figure.text(0.02, 0.945, title, fontsize=13, color=INK, weight="bold")
    axes.figure.text(0.02, 0.9, ", ".join(facts), fontsize=9, color=FAINT)
    corner = {"loc": "lower right", "bbox_to_anchor": (0.985, 0.925), "bbox_transform": axes.figure.transFigure}
    axes.legend(**corner, ncols=5, frameon=False, fontsize=8, labelcolor=FAINT, handletextpad=0.1, columnspacing=1.4)


def progress_figure(rows: list[Row], confirmed: Confirmed | None = None) -> Any:
    """The figure; None as long as there is no baseline."""
    measured = [row for row in rows if row.status in ("keep", "discard")]
    kept = [row for row in measured if row.status == "keep"]
    if not kept:
        return None
    axes, line = empty_axes(), best_line(rows)
    noise = next((row.noise for row in reversed(rows) if row.noise > 0), 0.0)
    bounds = [confirmed.best - confirmed.error, confirmed.best + confirmed.error] if confirmed else []
    axes.set_xlim(-0.02 * line[-1, 0] - 0.5, 1.03 * line[-1, 0] + 0.6)
    axes.set_ylim(vertical_range([*(row.val_bpb for row in measured), *bounds], line, noise))
    axes.fill_between(
        line[:, 0], *(line[:, 1] + [[-noise], [noise]]), step="post", color=GREEN, alpha=0.13, linewidth=0
    )
    axes.step(*line.T, where="post", color=GREEN, linewidth=1.6)
    draw_dots(axes, rows)
    taken = obstacles(axes, line)
    if confirmed:
        point = (1.01 * line[-1, 0] + 0.3, confirmed.best)
        axes.errorbar(*point, confirmed.error, color=INK, fmt="o", markersize=4, capsize=3, linewidth=1.2)
        bar = axes.transData.transform([(point[0], bound) for bound in bounds])
        text = f"confirmed: {confirmed.best:.4f} ± {confirmed.error:.4f}"
        taken = place_label(axes, point, [text], numpy.vstack([taken, boxes(bar, 3)]))
    label_gains(axes, kept, taken)
    write_title(axes, rows, line, confirmed)
    return axes.figure


def draw_progress(rows: list[Row], path: Path, confirmed: Confirmed | None = None) -> None:
    """Draw progress.png, whole or not at all; nothing as long as there is no baseline."""
    if figure := progress_figure(rows, confirmed):
        figure.savefig(path.with_suffix(".tmp"), format="png")
        path.with_suffix(".tmp").replace(path)
