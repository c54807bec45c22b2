"""progress.png: what stands where, with few rows and with many."""

import dataclasses
import itertools
import math
import random
import subprocess
import sys
from pathlib import Path

import pytest
from matplotlib.text import Text

from autoresearch.judge.knowledge import Gain, knowledge
from autoresearch.nouns import Estimate
from autoresearch.record import progress
from autoresearch.record.charts import Curve, as_svg, loss_figure
from autoresearch.record.progress import label_text, progress_figure
from autoresearch.row import Row

ROOT = Path(__file__).resolve().parents[2]
BASELINE = Row(
    "2938600", 1.6552, 0.5, "keep", "baseline", 0, math.nan, "c206ad1", 15.6, 0, 0.0, "", 0.0055, "42:1.6552"
)
TEXT = "remove the tanh softcap of the logits and make MATRIX_LR 0.08 -> 0.04, keys come from the token before"


def make_rows(count: int, seed: int = 0) -> list[Row]:
    """A search of so many rows: its best falls, some are far worse, some fail."""
    chance, rows = random.Random(seed), [BASELINE]
    best = BASELINE.val_bpb
    for number in range(1, count):
        status = chance.choices(("keep", "discard", "crash", "timeout", "invalid"), (12, 80, 4, 2, 2))[0]
        gain = chance.expovariate(80) * math.exp(-number / 150)
        gain = gain if status == "keep" else -chance.choice((1, 1, 1, 1, 30)) * gain
        text = " ".join(chance.choices(TEXT.split(), k=chance.randint(1, 20)))
        value = best - gain if status in ("keep", "discard") else 0.0
        rows.append(dataclasses.replace(BASELINE, number=number, status=status, gain=gain, description=text))
        rows[-1] = dataclasses.replace(rows[-1], val_bpb=value)
        best = value if status == "keep" else best
    return rows


def figure_of(rows: list[Row], confirmed: Estimate | None = None, baseline: float | None = None):
    """The picture of a search whose best has this value on fresh seeds, and its baseline that one."""
    known = knowledge(rows, {}, "cpu")
    if confirmed:
        gain = Gain(baseline or rows[0].val_bpb, confirmed.val_bpb, 0.001, "confirmed")
        known = dataclasses.replace(known, confirmed=confirmed, gain=gain)
    return progress_figure(rows, known)


def labels_of(figure) -> list:
    """The boxes of all labels, as they are drawn, without the thin lines to their dots."""
    figure.canvas.draw()
    (axes,) = figure.axes
    return [Text.get_window_extent(text) for text in axes.texts]


def marks(figure, name: str) -> list[tuple[float, float]]:
    """Where the marks are that the legend calls so."""
    (axes,) = figure.axes
    found = [dots for dots in axes.collections if str(dots.get_label()).startswith(name)]
    return [tuple(each) for dots in found for each in dots.get_offsets().tolist()]


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 2, 5, 43, 700])
@pytest.mark.parametrize("seed", [0, 1])
def test_labels_lie_in_the_frame_and_not_on_each_other(count, seed):
    rows = make_rows(count, seed)
    best = [row.val_bpb for row in rows if row.status == "keep"][-1]
    figure = figure_of(rows, Estimate(best + 0.002, 0.003, 3))
    boxes, frame = labels_of(figure), figure.axes[0].bbox
    assert boxes, "at least the confirmed value has room"
    assert all(frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1 for box in boxes)
    assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))
    points = [figure.axes[0].transData.transform(point) for point in marks(figure, "kept") + marks(figure, "disc")]
    assert not any(box.contains(*point) for box in boxes for point in points)


@pytest.mark.parametrize("count", [1, 2, 5, 43, 700])
def test_title_and_legend_lie_in_the_picture_and_not_on_each_other(count):
    figure = figure_of(make_rows(count), Estimate(1.6, 0.003, 3))
    figure.canvas.draw()
    boxes = [*(text.get_window_extent() for text in figure.texts), figure.axes[0].get_legend().get_window_extent()]
    boxes.append(figure.axes[0].bbox)
    assert all(box.x0 >= 0 and box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1 for box in boxes)
    assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))
    label = figure.axes[0].yaxis.label.get_window_extent()
    assert label.x0 >= 0


@pytest.mark.parametrize("count", [1, 2, 3, 5, 12, 43, 700])
def test_experiments_are_whole_numbers(count):
    axes = figure_of(make_rows(count)).axes[0]
    assert all(tick == int(tick) for tick in axes.get_xticks())
    assert min(axes.get_xlim()) < 0 and max(axes.get_xlim()) > count - 1


def test_failed_and_invalid_experiments_are_marked_at_the_bottom_edge():
    rows = make_rows(200)
    figure = figure_of(rows)
    for name, statuses in (("failed", {"crash", "timeout"}), ("invalid", {"invalid"})):
        assert [x for x, _ in marks(figure, name)] == [row.number for row in rows if row.status in statuses]
        assert {y for _, y in marks(figure, name)} == {0.02}  # of the height of the axes
    assert not {row.number for row in rows if not row.val_bpb} & {x for x, _ in marks(figure, "discarded")}


def test_the_axis_follows_the_best_and_marks_what_is_far_worse_at_the_upper_edge():
    rows = [*make_rows(43), dataclasses.replace(BASELINE, number=43, status="discard", val_bpb=9.0)]
    figure = figure_of(rows)
    low, high = figure.axes[0].get_ylim()
    best = [row.val_bpb for row in rows if row.status == "keep"]
    assert low < min(best) and max(best) < high < 2
    assert (max(best) - low) / (high - low) > 2 / 3, "the upper third is empty"
    assert (43, 0.985) in marks(figure, "far worse")
    seen = len(marks(figure, "kept") + marks(figure, "discarded") + marks(figure, "far"))
    assert seen == len([row for row in rows if row.val_bpb])


def test_the_band_is_one_noise_wide_and_the_confirmed_value_has_its_error_bar():
    figure = figure_of([BASELINE], Estimate(1.65, 0.004, 3))
    (axes,) = figure.axes
    band = axes.collections[0].get_paths()[0].get_extents()
    sigma = knowledge([BASELINE], {}, "cpu").paired_noise.sigma
    assert (band.y0, band.y1) == pytest.approx((1.6552 - sigma, 1.6552 + sigma))
    (bar,) = axes.containers
    assert bar[2][0].get_segments()[0][:, 1].tolist() == pytest.approx([1.646, 1.654])
    assert "1.6500 ± 0.0040" in axes.texts[0].get_text()


def test_the_line_steps_at_the_dot_of_what_was_kept_whatever_was_decided_before():
    """With two slots: 3 was dropped before 2 was kept."""
    found = {"keep": 1.8, "discard": 2.1}
    several = ((0, "keep"), (1, "discard"), (3, "discard"), (2, "keep"))
    rows = [dataclasses.replace(BASELINE, number=n, status=word, val_bpb=found[word]) for n, word in several]
    assert progress.best_line(rows).tolist() == [[0, 1.8], [2, 1.8], [3.4, 1.8]]


def test_a_label_ends_after_a_whole_word():
    text = "keys of half of each head's channels come from the token before (partial key offset): induction"
    assert label_text(text, 80) == "keys of half of each head's channels come from the token before"
    assert label_text(text, 48) == "keys of half of each head's channels come from…"
    assert label_text(text, 24) == "keys of half of each…"
    assert label_text("DEPTH 2 -> 1, ASPECT_RATIO 32 -> 64: faster", 31) == "DEPTH 2 -> 1, ASPECT_RATIO 32…"
    assert label_text("a_name_of_forty_characters_without_a_space", 20) == "a_name_of_forty_cha…"
    assert label_text("again: half of the channels: faster", 64) == "again: half of the channels"
    assert label_text("keys (half of them) come from before (copy)", 64) == "keys (half of them) come from before"
    assert label_text("no smear", 64) == "no smear" and label_text("", 64) == ""
    assert label_text("it won by much [suspiciously good]", 40) == "it won by much"
    assert label_text("second look at 0028: without backout: it serves deep models", 40) == "without backout"


def test_the_gain_in_the_title_is_between_two_means_of_fresh_seeds():
    kept = dataclasses.replace(BASELINE, number=1, val_bpb=1.60, gain=0.0552)
    texts = [text.get_text() for text in figure_of([BASELINE, kept], Estimate(1.61, 0.004, 3), 1.64).texts]
    assert texts[0] == "val_bpb 1.6400 → 1.6100 ± 0.0040"
    assert texts[1].endswith("1 kept, gain 0.0300 (1.8 %), confirmed on fresh seeds")


def test_text_that_no_font_has_and_text_like_a_formula_is_drawn(recwarn):
    rows = [dataclasses.replace(BASELINE, description="漢 $x_1 β2 0.95 → 0.9 \n\t $")]
    figure = figure_of(rows)
    labels_of(figure)
    assert figure.axes[0].texts[0].get_text() == "? $x_1 β2 0.95 → 0.9 $"
    assert not [warning for warning in recwarn if "missing from font" in str(warning.message)]


@pytest.mark.parametrize("rows", [[], [dataclasses.replace(BASELINE, status="crash", val_bpb=0.0, runs="")]])
def test_without_a_baseline_nothing_is_drawn(rows):
    assert figure_of(rows) is None and loss_figure([]) is None


def test_the_page_gets_the_same_figure_in_its_own_colours():
    """A dot leads to its row, and no text of a model's is in it as text."""
    rows = [BASELINE, dataclasses.replace(BASELINE, number=7, description="<script>alert(1)</script>")]
    svg = as_svg(figure_of(rows))
    assert svg.startswith("<svg") and 'href="#e7"' in svg and "<script" not in svg
    assert "var(--keep)" in svg and progress.GREEN not in svg


@pytest.mark.parametrize(("mfu", "panels"), [(40.0, 3), (0.0, 2)])
def test_losses_are_drawn_over_what_is_known_of_both_runs(mfu, panels):
    facts = {"training_seconds": 300.0, "num_steps": 950, "mfu_percent": mfu}
    curves = [Curve(name, progress.GREEN, [(50.0, 3.0), (100.0, 2.5)], facts) for name in ("baseline", "best")]
    axes = loss_figure(curves).axes
    assert len(axes) == panels and axes[0].lines[1].get_xdata().tolist() == [150.0, 300.0]


def test_pyplot_is_not_used():
    code = "import sys; from test_progress import *; figure_of([BASELINE]).canvas.draw(); "
    code += "sys.exit('matplotlib.pyplot' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent, check=True, env={"PYTHONPATH": str(ROOT)})
