"""
report.html: what a search found, as one self-contained page. page.html is its template; here is what that shows.

The charts are SVG by hand: a few hundred dots with texts need no library.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from markupsafe import Markup

from autoresearch.files import replace_file
from autoresearch.judge.noise import mean
from autoresearch.nouns import RunResult
from autoresearch.record.ledger import Ledger
from autoresearch.record.reading import read_diffs, read_if_there, read_search
from autoresearch.record.repository import Repository
from autoresearch.record.status import FAILED, facts, found_tables, headline, make_status
from autoresearch.record.table import Table, say
from autoresearch.row import Row
from autoresearch.source import code_lines
from autoresearch.text import plural

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 720, 314, 58, 708, 10, 264  # of a chart, and of what its axes enclose
Point = tuple[float, float]

# -----------------------------------------------------------------------------
# Charts


def scale(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    """From values to places; what lies beyond the range is drawn at its edge."""
    per_unit = (end - start) / ((high - low) or 1)
    return lambda value: round(start + per_unit * (min(max(value, low), high) - low), 1)


def ticks(low: float, high: float) -> list[str]:
    """Four to nine round numbers between two, with as many digits as they need."""
    exponent = math.floor(math.log10((high - low) / 4))
    step = next(each * 10.0**exponent for each in (5, 2, 1) if (high - low) / (each * 10.0**exponent) >= 4)
    return [f"{step * n:.{max(0, -exponent)}f}" for n in range(math.ceil(low / step), math.floor(high / step) + 1)]


def chart(names: tuple[str, str], x: Point, y: Point, lines: list[tuple], dots: list[tuple]) -> Markup:
    """An SVG over the ranges x and y of lines (css class, points) and dots (css class, x, y, text)."""
    across, up = scale(*x, LEFT, RIGHT), scale(*y, BOTTOM, TOP)
    label = Markup('<text class="{}" x="{}" y="{}">{}</text>')
    mark = Markup('<path class="{}" d="{}"/>')
    head, size = Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{} over {}" class="{}">'), (WIDTH, HEIGHT)
    parts = [head.format(*size, *names[::-1], "many" if len(dots) > 200 else "few")]
    for text in ticks(*y):
        parts.append(mark.format("grid", f"M{LEFT} {up(float(text))}H{RIGHT}"))
        parts.append(label.format("y", LEFT - 6, up(float(text)), text))
    parts += [label.format("x", across(float(text)), BOTTOM + 20, text) for text in ticks(*x)]
    parts += [label.format("x", (LEFT + RIGHT) // 2, HEIGHT - 6, names[0])]
    for css, points in lines:
        parts.append(mark.format(css, "M" + "L".join(f"{across(one)} {up(other)}" for one, other in points)))
    dot = Markup('<circle class="{}" cx="{}" cy="{}"><title>{}</title></circle>')
    parts += [dot.format(css, across(one), up(other), text) for css, one, other, text in dots]
    return Markup("").join([*parts, Markup("</svg>")])


def progress_chart(ledger: Ledger) -> Markup:
    """Every experiment, the best so far and the noise; what failed at the lower edge, what is far off at the upper."""
    noise, sure = ledger.known.paired_noise.sigma, ledger.known.confirmed
    values, start = [row.val_bpb for row in ledger.rows if row.val_bpb], ledger.kept[0].val_bpb
    room = max(0.15 * (start - min(values)), 5 * noise) or 0.01 * start
    low, high, last = min(values) - noise - 0.2 * room, min(max(*values, start), start + room) + 0.04 * room, 0
    corners: list[Point] = []
    dots: list[tuple] = []
    for row in ledger.rows:
        last = max(last, row.number)  # with several slots a later number may be decided first
        kind = "failed" if row.status in FAILED or not row.val_bpb else "far" if row.val_bpb > high else row.status
        found = f"{row.val_bpb:.6f}{say(', gain {:+.6f}', row.gain)}" if row.val_bpb else row.reason
        said = f"{row.number} {row.status} ({found}): {row.description}"
        dots.append((kind, row.number, row.val_bpb, said))
        if row.status == "keep":
            corners += [(last, corners[-1][1] if corners else row.val_bpb), (last, row.val_bpb)]
    corners.append((last + 1, corners[-1][1]))
    band = [(x, y + noise) for x, y in corners] + [(x, y - noise) for x, y in corners[::-1]]
    lines = [("band", band), ("best", corners)]
    if sure:
        said = f"confirmed: {sure.val_bpb:.6f} ± {sure.standard_error:.6f}, {plural(sure.runs, 'fresh seed')}"
        lines += [("sure", [(last + 1, sure.val_bpb + side * sure.standard_error) for side in (-1, 1)])]
        dots += [("sure", last + 1, sure.val_bpb, said)]
    dots.sort(key=lambda each: each[0] in ("keep", "sure"))  # these on top
    return chart(("experiment", "val_bpb"), (-0.02 * last - 0.1, 1.02 * last + 1), (low, high), lines, dots)


def loss_charts(ledger: Ledger) -> list[Markup]:
    """Training loss of baseline and best over time, steps and compute, as far as their runs told."""
    runs = [run for run in best_runs(ledger) if len(run.losses) > 2]
    seconds, steps, mfu = (
        [run.printed.get(key, 0) for run in runs] for key in ("training_seconds", "num_steps", "mfu_percent")
    )
    work = [share * time for share, time in zip(mfu, seconds, strict=True)]
    curves = [run.losses[1:] for run in runs]
    heights = [loss for curve in curves for _, loss in curve]
    charts = []
    for name, ends in (("seconds of training", seconds), ("steps", steps), ("FLOPs, share of the baseline's", work)):
        if len(ends) == 2 and min(ends) > 0:
            ends = [end / work[0] for end in ends] if ends is work else ends
            scaled = [
                [(part / 100 * end, loss) for part, loss in curve] for curve, end in zip(curves, ends, strict=True)
            ]
            y = (min(heights), max(heights) + 1e-6)
            charts.append(
                chart((name, "loss"), (0, 1.02 * max(ends)), y, [*zip(("base", "best"), scaled, strict=True)], [])
            )
    return charts


# -----------------------------------------------------------------------------
# Tables


def best_runs(ledger: Ledger) -> list[RunResult]:
    """The first good run of the baseline and of the best, as far as the journal has them."""
    numbers = {ledger.kept[0].number, ledger.best.number} if ledger.kept else ()
    runs = [
        [run.result for run in ledger.runs_by_number.get(n, []) if run.result.status == "ok"] for n in sorted(numbers)
    ]
    return [some[0] for some in runs if some]


def links(rows: list[Row]) -> Markup:
    """The numbers of experiments, each leading to its row."""
    return Markup(", ").join(Markup('<a href="#e{0}">{0}</a>').format(row.number) for row in rows)


def page_tables(ledger: Ledger, status: dict) -> list[Table]:
    """Best against baseline, near misses, what failed and why; then what `status` has, too."""
    gains = ledger.known.believed_gains()
    near = [(*gains[row.number], row) for row in ledger.rows if row.status == "discard" and row.number in gains]
    near = sorted(near, key=lambda each: -each[0])[:8]
    causes: dict[tuple[str, str], list[Row]] = {}
    for row in ledger.rows:
        if row.status in FAILED:
            causes.setdefault((row.status, row.reason), []).append(row)
    failed = [[len(rows), kind, links(rows), reason] for (kind, reason), rows in causes.items()]
    failed_heads = [">times", "status", "experiments", "cause"]
    runs = best_runs(ledger) if len(best_runs(ledger)) == 2 else []
    names = runs[1].facts if runs else ()
    both = [[name, *(say("{:,g}", run.facts.get(name)) for run in runs)] for name in names]
    missed = [[links([row]), f"{p:.2f}", f"{row.gain:+.6f}", f"{gain:+.6f}", row.description] for p, gain, row in near]
    near_heads = [">number", ">probability", ">measured", ">believed", "dropped, but may be truly better"]
    lost = [[each.after - 1, f"{each.cost:.2f}", f"{each.tokens:,}", each.reason] for each in ledger.failures]
    return [
        ("best against baseline", ["of its first run", ">baseline", ">best"], both),
        ("near misses", near_heads, missed),
        ("crashes and invalid results", failed_heads, sorted(failed, key=lambda row: -row[0])),
        ("proposals that failed", [">after", ">$", ">tokens", "why"], lost),
        *found_tables(status),
    ]


def kept_changes(ledger: Ledger, diffs: dict[str, str]) -> list[tuple[Row, list[str], list[tuple[str, str]]]]:
    """(row, cells, lines of the diff with their css classes) of the kept changes, in their order."""
    kept = []
    for row in ledger.kept:
        diff = diffs.get(row.commit, "").partition("\n@@")
        lines = f"@@{diff[2]}".splitlines() if diff[1] else []
        added, removed = (code_lines("\n".join(line[1:] for line in lines if line.startswith(sign))) for sign in "+-")
        fresh, noise = ledger.good_runs(row.number, "confirm"), row.noise or math.nan
        cells = [say("{:.6f}", row.val_bpb), say("{:+.6f}", row.gain), say("{:+.1f}", row.gain / noise)]
        cells += [say("{:.6f}", mean(fresh) if fresh else None), say("{:.1f}", row.seconds or None)]
        cells += [say("{:,.0f}", row.tokens_per_second), f"{added - removed:+d}" if lines else ""]
        kept.append((row, cells, coloured(lines)))
    return kept


def coloured(lines: list[str]) -> list[tuple[str, str]]:
    """The lines of a diff with their css classes."""
    kinds = {"+": "plus", "-": "minus", "@": "hunk"}
    return [(kinds.get(line[:1], ""), line) for line in lines]


def removals(ablation: dict[str, Any] | None) -> list[tuple[str, list[tuple[str, str]]]]:
    """(name, lines of the diff) of what an ablation took out: a person sees whether that undoes what it should."""
    return [(each["name"], coloured(each["diff"].splitlines()[2:])) for each in ablation["factors"]] if ablation else []


def columns(ledger: Ledger) -> dict[str, list[str]]:
    """The numbers of all experiments by column, without the columns that are empty."""
    rows, gains = ledger.rows, ledger.known.believed_gains()
    found = {
        "val_bpb": [say("{:.6f}", row.val_bpb or None) for row in rows],
        "gain": [say("{:+.6f}", row.gain) for row in rows],
        "P(better)": [say("{:.2f}", gains.get(row.number, (None,))[0]) for row in rows],
        "steps": [say("{}", row.steps or None) for row in rows],
        "tokens/s": [say("{:.0f}", row.tokens_per_second) for row in rows],
        "GB": [say("{:.1f}", row.memory_gb or None) for row in rows],
        "seconds": [say("{:.1f}", row.seconds or None) for row in rows],
        "$": [say("{:.2f}", row.cost or None) for row in rows],
    }
    return {head: cells for head, cells in found.items() if any(cells)}


# -----------------------------------------------------------------------------
# The page


def render_page(ledger: Ledger, status: dict, diffs: dict[str, str]) -> str:
    """The whole page. What comes from models and logs is escaped, like everything that is put into the template."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    options: dict[str, Any] = {
        "autoescape": True,
        "undefined": StrictUndefined,
        "trim_blocks": True,
        "lstrip_blocks": True,
    }
    environment = Environment(loader=FileSystemLoader(Path(__file__).parent), **options)
    return environment.get_template("page.html").render(
        ledger=ledger,
        status=status,
        facts=facts(status),
        headline=headline(status),
        progress=progress_chart(ledger) if ledger.kept else "",
        kept=kept_changes(ledger, diffs),
        losses=loss_charts(ledger),
        tables=page_tables(ledger, status),
        removals=removals(status["ablation"]),
        notebook=read_if_there(ledger.folder / "notebook.md"),
        columns=columns(ledger),
    )


def write_page(repo: Repository, tag: str) -> Path:
    """Write the page of a search from what is on disk, whole or not at all. Returns its path."""
    ledger, now = read_search(repo, tag)
    path = ledger.folder / "report.html"
    replace_file(path, render_page(ledger, make_status(ledger, now), read_diffs(ledger)))
    return path
