"""
What a person sees at the terminal: one line per experiment, one per slot, and the summary that the morning begins with.
"""

import math

from rich.text import Text

from autoresearch.nouns import Estimate, Noise
from autoresearch.record.ledger import Ledger
from autoresearch.row import Row, runs_of
from autoresearch.text import gain_text, one_line


def result_line(row: Row) -> str:
    """One experiment on one line of the screen."""
    number = f"{row.val_bpb:.6f}" if row.val_bpb else " " * 8
    gain = f"{row.gain:+.6f} ({row.gain / row.noise:+5.1f} x noise)" if math.isfinite(row.gain) else " " * 26
    why = f"  ({row.reason})" if row.reason and row.status not in ("keep", "discard") else ""
    return f"{row.number:4d}  {row.status:11}  {number}  {gain}  {one_line(row.description)}{why}"


def live_view(lines: list[str]) -> Text:
    """What runs now; each line is cut to the width of the terminal."""
    return Text("\n".join(lines), no_wrap=True, overflow="ellipsis")


# -----------------------------------------------------------------------------
# The end of a session


def best_lines(ledger: Ledger, noise: Noise, confirmed: Estimate | None) -> list[str]:
    """The best as it was seen, and as fresh seeds confirm it; the baseline; the noise."""
    baseline, best = ledger.kept[0], ledger.best
    gain = gain_text(baseline.val_bpb - best.val_bpb, noise.sigma)
    lines = [
        f"baseline        {baseline.val_bpb:.6f}  ({len(runs_of(baseline))} runs)",
        f"best seen       {best.val_bpb:.6f}  (experiment {best.number}; gain {gain})",
    ]
    if confirmed:
        better = baseline.val_bpb - confirmed.val_bpb
        lines += [
            f"best confirmed  {confirmed.val_bpb:.6f}  (+- {confirmed.standard_error:.6f}, {confirmed.runs} fresh "
            f"seeds; gain {better:+.6f}, {100 * better / baseline.val_bpb:.2f} % of the baseline)"
        ]
    return [
        *lines,
        f"noise of a run  {noise.sigma:.6f}  (standard deviation, {noise.degrees_of_freedom:.0f} degrees of freedom)",
        f"kept            {len(ledger.kept) - 1} of {ledger.tried} experiments",
    ]


def summary(ledger: Ledger, reason: str, noise: Noise, confirmed: Estimate | None, spent: float) -> str:
    """What the morning's reader wants first."""
    lines = ["", f"{ledger.branch}: {reason}."]
    if ledger.kept:
        lines += best_lines(ledger, noise, confirmed)
    if spent:
        lines += [f"spent           ${spent:.2f} on {ledger.tokens:,} tokens"]
    number = ledger.best.number if ledger.kept else 0
    lines += [
        "",
        "look further:",
        f"  git log --oneline {ledger.branch}",
        f"  git show {ledger.ref(number)}      # any experiment by its number, kept or not",
        "  column -ts $'\\t' results.tsv | less -S",
        f"  runs/{ledger.tag}/loop.log, runs/{ledger.tag}/{number:04d}/seed*/run.log, progress.png",
    ]
    return "\n".join(lines)


def results_message(ledger: Ledger) -> str:
    """The subject of the commit that a session ends with."""
    numbers = f": val_bpb {ledger.kept[0].val_bpb:.6f} -> {ledger.best.val_bpb:.6f}" if ledger.kept else ""
    return f"Results of {ledger.branch}: {ledger.tried} experiments{numbers}"
