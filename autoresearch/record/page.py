"""
report.html: what a search found, as one self-contained page. page.html is its template; here is what that shows.
"""

from pathlib import Path
from typing import Any

from markupsafe import Markup

from autoresearch.files import replace_file
from autoresearch.judge.noise import mean
from autoresearch.nouns import Json, RunResult
from autoresearch.record.charts import GREEN, GREY, Curve, as_svg, loss_figure, save
from autoresearch.record.ledger import Ledger
from autoresearch.record.progress import progress_figure
from autoresearch.record.reading import read_diffs, read_if_there, read_search
from autoresearch.record.repository import Repository
from autoresearch.record.status import FAILED, facts, found_tables, headline, make_status
from autoresearch.row import Row
from autoresearch.source import code_lines
from autoresearch.text import Table, say

# -----------------------------------------------------------------------------
# Tables


def best_runs(ledger: Ledger) -> list[RunResult]:
    """The first good run of the baseline and of the best, as far as the journal has them."""
    numbers = sorted({ledger.kept[0].number, ledger.best.number}) if ledger.kept else []
    runs = [[run.result for run in ledger.runs_by_number.get(number, [])] for number in numbers]
    return [good[0] for some in runs if (good := [result for result in some if result.status == "ok"])]


def loss_curves(ledger: Ledger) -> list[Curve]:
    """The training loss of these."""
    names = zip(best_runs(ledger), (("baseline", GREY), ("best", GREEN)), strict=False)
    return [Curve(*name, run.losses[1:], run.printed) for run, name in names if len(run.losses) > 2]


def links(rows: list[Row]) -> Markup:
    """The numbers of experiments, each leading to its row."""
    return Markup(", ").join(Markup('<a href="#e{0}">{0}</a>').format(row.number) for row in rows)


def page_tables(ledger: Ledger, status: Json) -> list[Table]:
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


def kept_changes(ledger: Ledger, diffs: dict[int, str]) -> list[tuple[Row, list[str], list[tuple[str, str]]]]:
    """(row, cells, lines of the diff with their css classes) of the kept changes, in their order."""
    kept = []
    for row in ledger.kept:
        diff = diffs.get(row.number, "").partition("\n@@")
        lines = f"@@{diff[2]}".splitlines() if diff[1] else []
        added, removed = (code_lines("\n".join(line[1:] for line in lines if line.startswith(sign))) for sign in "+-")
        fresh, times = ledger.good_runs(row.number, "confirm"), row.gain / row.noise if row.noise else None
        cells = [say("{:.6f}", row.val_bpb), say("{:+.6f}", row.gain), say("{:+.1f}", times)]
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


def render_page(ledger: Ledger, status: Json, diffs: dict[int, str], progress: Any) -> str:
    """The whole page. What comes from models and logs is escaped, like everything that is put into the template."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    options: dict[str, Any] = {
        "autoescape": True,
        "undefined": StrictUndefined,
        "trim_blocks": True,
        "lstrip_blocks": True,
    }
    environment = Environment(loader=FileSystemLoader(Path(__file__).parent), **options)
    losses = loss_figure(loss_curves(ledger))
    return environment.get_template("page.html").render(
        ledger=ledger,
        status=status,
        facts=facts(status),
        headline=headline(status),
        progress=progress and as_svg(progress),
        kept=kept_changes(ledger, diffs),
        losses=losses and as_svg(losses),
        tables=page_tables(ledger, status),
        removals=removals(status["ablation"]),
        notebook=read_if_there(ledger.folder / "notebook.md"),
        columns=columns(ledger),
    )


def write_page(repo: Repository, tag: str, picture: Path | None = None) -> Path:
    """Write the page of a search from what is on disk, whole or not at all, and its progress as a picture.

    Returns the path of the page.
    """
    ledger, now = read_search(repo, tag)
    diffs = read_diffs(ledger, [row.number for row in ledger.kept[1:]])
    path, progress = ledger.folder / "report.html", progress_figure(ledger.rows, ledger.known)
    if picture and progress:
        save(progress, picture)
    replace_file(path, render_page(ledger, make_status(ledger, now), diffs, progress))
    return path
