"""
progress.png: the best val_bpb so far as a line, every experiment as a dot, and names for the largest gains.

The loop draws it as progress.png and as a part of the page, where each dot leads to its row.
"""

import itertools
import math
import re
from typing import Any

import numpy

from autoresearch.judge.knowledge import Knowledge
from autoresearch.record.charts import FAINT, GREEN, GREY, INK, LINE, PURPLE, RED, drawable, new_figure, quiet
from autoresearch.row import Row, title_of
from autoresearch.text import plural

LABELS = 24  # at most, however many changes were kept
LENGTHS = (64, 46, 34, 24)  # characters of a label, from the best place for it to a poor one
DISTANCES = (5, 16, 28, 40)  # points between a dot and its label, likewise
SIDES = ((1, 1), (0, 0), (1, 0))  # (right, up): early on there is room above the line, later below it
STYLE = {"fontsize": 8, "color": INK, "parse_math": False}
LEADER = {"arrowstyle": "-", "color": GREY, "linewidth": 0.6, "shrinkA": 0, "shrinkB": 3}


# -----------------------------------------------------------------------------
# What is drawn where


def best_line(rows: list[Row]) -> numpy.ndarray:
    """(experiment, val_bpb) where the best changes, and at the end."""
    corners = [(row.number, row.val_bpb) for row in rows if row.status == "keep"]
    return numpy.array([*corners, (max(row.number for row in rows) + 0.4, corners[-1][1])])


def vertical_range(values: list[float], line: numpy.ndarray, noise: float) -> tuple[float, float]:
    """The limits of the axis: the whole line, but no dot that is so much worse that it would flatten the line."""
    low, high = line[:, 1].min(), line[:, 1].max()
    room = max(0.15 * (high - low), 6 * noise) or 0.01 * high
    high = min(max(high + noise, float(numpy.quantile(values, 0.8))), high + room)
    low = min(low - noise, *values)
    margin = 0.05 * (high - low) or room
    return low - 2.6 * margin, high + margin  # the failed experiments are marked at the bottom


def label_text(description: str, limit: int) -> str:
    """The first clause of a description that says something, ended after a whole word where it is too long."""
    told = title_of(description)
    clause = re.match(r".{12,}?(?=: |; | \(| \[|$)|.*", told)[0]  # type: ignore[index]  # it matches all
    whole_words = clause[:limit].rpartition(" ")[0].rstrip(" ,->")
    return clause if len(clause) <= limit else f"{whole_words or clause[: limit - 1]}…"


# -----------------------------------------------------------------------------
# Labels


def boxes(corners: Any, margin: float) -> numpy.ndarray:
    """(left, bottom, right, top) around each two points."""
    pairs = numpy.array(corners).reshape(-1, 2, 2)
    return numpy.concatenate([pairs.min(axis=1) - margin, pairs.max(axis=1) + margin], axis=1)


def obstacles(axes: Any, line: numpy.ndarray) -> numpy.ndarray:
    """Return what no label may cover, in pixels: the dots and marks, and the pieces of the line."""
    drawn = [dots.get_offset_transform().transform(dots.get_offsets()) for dots in axes.collections[1:]]
    corners = numpy.stack([line[:-1], line[1:] * [1, 0] + line[:-1] * [0, 1], line[1:]], axis=1)
    pieces = axes.transData.transform(corners[:, [0, 1, 1, 2]].reshape(-1, 2))
    return numpy.vstack([boxes(numpy.repeat(numpy.concatenate(drawn), 2, axis=0), 7), boxes(pieces, 4)])


def overlap(some: numpy.ndarray, others: numpy.ndarray) -> bool:
    """Return whether any of some boxes touches any of the others."""
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
    figure = new_figure(10, 5.4)
    figure.set_layout_engine("none")
    axes = figure.add_axes((0.085, 0.095, 0.895, 0.775))
    quiet(axes)
    axes.grid(axis="y", color=LINE, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
    axes.set_xlabel("experiment")
    axes.set_ylabel("val_bpb (lower is better)")
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
        ("machine was busy", {"busy"}, GREY, "x", 22, 0.02),
    ):
        some = far if name == "far worse" else [row for row in rows if row.status in statuses and row not in far]
        place = axes.get_xaxis_transform() if height else axes.transData
        x, y = [row.number for row in some], [height or row.val_bpb for row in some]
        label = f"{name} ({len(some) - (name == 'kept')})"  # the baseline was not kept, it was there
        if some:
            marks = axes.scatter(x, y, size, color, marker=marker, label=label, transform=place)
            marks.set(linewidths=1.1 * bool(height), urls=[f"#e{number}" for number in x])


def write_title(axes: Any, rows: list[Row], line: numpy.ndarray, known: Knowledge) -> None:
    """The result as the title, what it rests on below it, the legend next to it."""
    kept, sure = len(line) - 2, known.confirmed
    start, after = (known.gain.baseline, known.gain.best) if sure and known.gain else (line[0, 1], line[-1, 1])
    error = f" ± {sure.standard_error:.4f}" if sure else ""
    title = f"val_bpb {start:.4f} → {after:.4f}{error}" if kept else f"val_bpb {start:.4f}"
    facts = [f"{plural(len(rows) - 1, 'experiment')}, {kept} kept"]
    facts += [f"gain {start - after:.4f} ({100 * (start - after) / start:.1f} %)"] if kept else []
    facts += ["confirmed on fresh seeds" if sure else "not yet confirmed on fresh seeds"] if kept else []
    axes.figure.text(0.02, 0.945, title, fontsize=13, color=INK, weight="bold")
    axes.figure.text(0.02, 0.9, ", ".join(facts), fontsize=9, color=FAINT)
    corner = {"loc": "lower right", "bbox_to_anchor": (0.985, 0.925), "bbox_transform": axes.figure.transFigure}
    axes.legend(**corner, ncols=5, frameon=False, fontsize=8, labelcolor=FAINT, handletextpad=0.1, columnspacing=1.4)


def progress_figure(rows: list[Row], known: Knowledge) -> Any:
    """The figure; None as long as there is no baseline."""
    measured = [row for row in rows if row.status in ("keep", "discard")]
    kept = [row for row in measured if row.status == "keep"]
    if not kept:
        return None
    axes, line, noise, sure = empty_axes(), best_line(rows), known.paired_noise.sigma, known.confirmed
    bounds = [sure.val_bpb - sure.standard_error, sure.val_bpb + sure.standard_error] if sure else []
    axes.set_xlim(-0.02 * line[-1, 0] - 0.5, 1.03 * line[-1, 0] + 0.6)
    axes.set_ylim(vertical_range([*(row.val_bpb for row in measured), *bounds], line, noise))
    axes.fill_between(
        line[:, 0], *(line[:, 1] + [[-noise], [noise]]), step="post", color=GREEN, alpha=0.13, linewidth=0
    )
    axes.step(*line.T, where="post", color=GREEN, linewidth=1.6)
    draw_dots(axes, rows)
    taken = obstacles(axes, line)
    if sure:
        point = (1.01 * line[-1, 0] + 0.3, sure.val_bpb)
        axes.errorbar(*point, sure.standard_error, color=INK, fmt="o", markersize=4, capsize=3, linewidth=1.2)
        bar = axes.transData.transform([(point[0], bound) for bound in bounds])
        text = f"confirmed: {sure.val_bpb:.4f} ± {sure.standard_error:.4f}"
        taken = place_label(axes, point, [text], numpy.vstack([taken, boxes(bar, 3)]))
    label_gains(axes, kept, taken)
    write_title(axes, rows, line, known)
    return axes.figure
