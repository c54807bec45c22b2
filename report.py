"""
What a person sees: one line per experiment, progress.png, and the summary that the morning's reader wants first.
"""

import math
from pathlib import Path

from rich.text import Text

from judge import Noise, Runs, confirmed_best
from ledger import Row, one_line, runs_of


def gain_text(gain: float, noise: float) -> str:
    """A gain and how many times the noise of one run it is."""
    return f"{gain:+.6f}, {gain / noise:+.1f} x noise"


def result_line(row: Row) -> str:
    """One experiment on one line of the screen."""
    number = f"{row.val_bpb:.6f}" if row.val_bpb else " " * 8
    gain = f"{row.gain:+.6f} ({row.gain / row.noise:+5.1f} x noise)" if math.isfinite(row.gain) else " " * 26
    why = f"  ({row.reason})" if row.reason and row.status not in ("keep", "discard") else ""
    return f"{row.number:4d}  {row.status:11}  {number}  {gain}  {one_line(row.description)}{why}"


def live_view(search) -> Text:
    """What runs now, a line per slot, and what the proposer does."""
    best = f" | best {search.best:.6f}" if search.kept else ""
    lines = []
    for slot in search.slots:
        if slot.task:
            seed = f" (seed {slot.task.seed})" if slot.task.seed != search.seed else ""
            name = f"{slot.name}  " if slot.name else ""
            lines.append(f"{name}{slot.task.candidate.title}{seed} | {slot.line}{best}")
    if search.asking:
        lines.append(f"{search.asking.number:4d}  {search.proposer} is thinking")
    if search.waiting and len(search.slots) > 1:
        lines.append(f"      proposals that wait for a slot: {len(search.waiting)}")
    return Text("\n".join(lines), no_wrap=True, overflow="ellipsis")


def draw_progress(rows: list[Row], path: Path) -> None:
    """The best val_bpb so far as a line, every experiment as a dot; written whole or not at all."""
    from matplotlib.figure import Figure

    measured = [row for row in rows if row.val_bpb]
    kept = [row for row in measured if row.status == "keep"]
    if not kept:
        return
    figure = Figure(figsize=(10, 5), layout="constrained")  # not pyplot's: this may be another thread
    axes = figure.subplots()
    others = [row for row in measured if row.status != "keep"]
    axes.scatter([row.number for row in others], [row.val_bpb for row in others], s=14, c="0.7", label="discarded")
    last = max(row.number for row in rows)
    steps = [*((row.number, row.val_bpb) for row in kept), (last, kept[-1].val_bpb)]
    axes.step(*zip(*steps, strict=True), where="post", c="tab:green")
    axes.scatter([row.number for row in kept], [row.val_bpb for row in kept], s=28, c="tab:green", label="kept")
    for row in kept:
        text = one_line(row.description)[:40].encode("ascii", "replace").decode()  # no font has every glyph
        place = {"xytext": (4, 5), "textcoords": "offset points", "fontsize": 7, "rotation": 20}
        axes.annotate(text, (row.number, row.val_bpb), **place, parse_math=False)
    span = kept[0].val_bpb - kept[-1].val_bpb or 0.01 * kept[0].val_bpb
    lowest = min(row.val_bpb for row in measured)
    axes.set_ylim(lowest - 0.3 * span, kept[0].val_bpb + span)  # far worse ones would flatten the curve
    axes.set(
        xlabel="experiment",
        ylabel="val_bpb (lower is better)",
        title=f"{len(rows) - 1} experiments, {len(kept) - 1} kept",
    )
    axes.legend(loc="upper right")
    figure.savefig(path.with_suffix(".tmp"), format="png", dpi=110)
    path.with_suffix(".tmp").replace(path)


def best_lines(search, noise: Noise, fresh: Runs) -> list[str]:
    """The best as it was seen, and as fresh seeds confirm it; the baseline; the noise."""
    baseline, best = search.kept[0], search.kept[-1]
    after = len([row for row in search.rows if row.number > baseline.number])
    confirmed = confirmed_best(fresh, {}, noise)
    gain = baseline.val_bpb - best.val_bpb
    lines = [
        f"baseline        {baseline.val_bpb:.6f}  ({len(runs_of(baseline))} runs)",
        f"best seen       {best.val_bpb:.6f}  (experiment {best.number}; gain {gain_text(gain, noise.sigma)})",
    ]
    if confirmed:
        gain = baseline.val_bpb - confirmed.val_bpb
        lines += [
            f"best confirmed  {confirmed.val_bpb:.6f}  (+- {confirmed.standard_error:.6f}, {confirmed.runs} fresh "
            f"seeds; gain {gain:+.6f}, {100 * gain / baseline.val_bpb:.2f} % of the baseline)"
        ]
    return [
        *lines,
        f"noise of a run  {noise.sigma:.6f}  (standard deviation, {noise.degrees_of_freedom:.0f} degrees of freedom)",
        f"kept            {len(search.kept) - 1} of {after} experiments",
    ]


def summary(search, reason: str, noise: Noise, fresh: Runs) -> str:
    """What the morning's reader wants first."""
    lines = ["", f"{search.branch}: {reason}."]
    if search.kept:
        lines += best_lines(search, noise, fresh)
    if search.spent:
        lines += [f"spent           ${search.spent:.2f} on {search.tokens:,} tokens"]
    number = search.kept[-1].number if search.kept else 0
    lines += [
        "",
        "look further:",
        f"  git log --oneline {search.branch}",
        f"  git show refs/autoresearch/{search.tag}/{number:04d}      # any experiment by its number, kept or not",
        "  column -ts $'\\t' results.tsv | less -S",
        f"  runs/{search.tag}/loop.log, runs/{search.tag}/{number:04d}/seed*/run.log, progress.png",
    ]
    return "\n".join(lines)
