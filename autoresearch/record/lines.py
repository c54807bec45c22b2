"""
What a person sees at the terminal: one line per experiment, one per slot, and the summary that the morning begins with.
"""

import math
import re
import statistics

from rich.text import Text

from autoresearch.files import ROOT
from autoresearch.nouns import Estimate, Noise
from autoresearch.record.ledger import Ledger
from autoresearch.record.log import Log
from autoresearch.row import Row, runs_of
from autoresearch.text import gain_text, one_line, plural


def result_line(row: Row, width: int | None = None) -> str:
    """One experiment on one line. Where it has to fit a terminal's `width`, the description gives way."""
    narrow = width is not None and width < 110
    value = f"{row.val_bpb:.6f}" if row.val_bpb else " " * 8
    times = f"{row.gain / row.noise:+5.1f} x noise" if math.isfinite(row.gain) else ""
    gain = f"{times:13}" if narrow else f"{f'{row.gain:+.6f} ({times})' if times else '':26}"
    why = f"  ({row.reason})" if row.reason and row.status not in ("keep", "discard") else ""
    line = f"{row.number:4d}  {row.status:11}  {value}  {gain}  "
    if why and width is not None:  # there is no number: its place is the reason's
        line = f"{row.number:4d}  {row.status:11}  "
    return line + fitted(one_line(row.description), why, width and width - len(line))


def fitted(title: str, why: str, width: int | None) -> str:
    """A title and the reason behind it within `width`: the reason, which is shorter and tells more, is cut last."""
    if width is None or len(title) + len(why) <= width:
        return title + why
    return cut(title, max(width - len(why), width // 3)) + cut(why, width - max(width - len(why), width // 3))


def cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: max(0, width - 1)] + "…"


def say_result(log: Log, row: Row) -> None:
    """A result: as wide as the terminal there, whole in loop.log."""
    log.write(result_line(row))
    log.show(result_line(row, log.width))


def progress_parts(line: str, seconds: float, scale: str) -> list[str]:
    """What train.py says of its progress, the most important first; what is no progress line, as it is.

    Its seconds are those of its clock. At the cpu scale they are paced, as long as on the machine that the scale was
    made on, so the real `seconds` of the run so far stand beside them.
    """
    found = [re.search(pattern, line) for pattern in (r"([\d.]+) %", r"(\d+) s left", r"loss (\S+)")]
    if not all(found):
        return [line] if line else []
    percent, left, loss = (match[1] for match in found if match)
    left = f"{left} paced s left, {seconds:.0f} s so far" if scale == "cpu" else f"{left} s left"
    return [f"{float(percent):3.0f} %", left, f"loss {loss}"]


def speed_parts(line: str) -> list[str]:
    """Tokens per second, and how much of the device's peak that is, where the peak is known."""
    parts = re.findall(r"[\d.]+ k tok/s|mfu [\d.]+ %", line)
    return [part for part in parts if part != "mfu 0.0 %"]


def live_view(lines: list[str]) -> Text:
    """What runs now; each line is cut to the width of the terminal."""
    return Text("\n".join(lines), no_wrap=True, overflow="ellipsis")


# -----------------------------------------------------------------------------
# The end of a session


def best_lines(ledger: Ledger, noise: Noise, confirmed: Estimate | None, sure: Estimate | None) -> list[str]:
    """Baseline, best as it was seen and as fresh seeds confirm it, `sure`: the gain there; the noise."""
    baseline, best = ledger.kept[0], ledger.best
    gain = gain_text(baseline.val_bpb - best.val_bpb, noise.sigma)
    lines = [
        f"baseline        {baseline.val_bpb:.6f}  ({plural(len(runs_of(baseline)), 'run')})",
        f"best seen       {best.val_bpb:.6f}  (experiment {best.number}; gain {gain})",
    ]
    if confirmed:
        about = f"+- {confirmed.standard_error:.6f}, {plural(confirmed.runs, 'fresh seed')}"
        lines += [f"best confirmed  {confirmed.val_bpb:.6f}  ({about})"]
    if sure:
        beside = statistics.fmean(ledger.beside.values())
        about = f"+- {sure.standard_error:.6f}, {100 * sure.val_bpb / beside:.2f} %"
        lines += [f"gain           {sure.val_bpb:+.6f}  ({about} of the baseline's {beside:.6f} on these seeds)"]
    if ledger.tested:  # what was fitted to the validation rows is the difference to the gain there
        first, tested = (statistics.fmean(runs.values()) for runs in ledger.tested)
        lines += [f"on test rows    {tested:.6f}  (the baseline's {first:.6f}; gain {first - tested:+.6f})"]
    return [
        *lines,
        f"noise of a run  {noise.sigma:.6f}  (standard deviation, {noise.degrees_of_freedom:.0f} degrees of freedom)",
        f"kept            {len(ledger.kept) - 1} of {plural(ledger.tried, 'experiment')}",
    ]


def summary(
    ledger: Ledger, reason: str, noise: Noise, confirmed: Estimate | None, sure: Estimate | None, spent: float
) -> str:
    """What the morning's reader wants first."""
    lines = ["", f"{ledger.branch}: {reason}."]
    if ledger.kept:
        lines += best_lines(ledger, noise, confirmed, sure)
    if spent:
        lines += [f"spent           ${spent:.2f} on {ledger.tokens:,} tokens"]
    number = ledger.best.number if ledger.kept else 0
    picture = ledger.results.with_name("progress.png").relative_to(ROOT)
    lines += [
        "",
        "look further:",
        f"  git log --oneline {ledger.branch}",
        f"  git show {ledger.ref(number)}      # any experiment by its number, kept or not",
        f"  python agent_loop.py report --tag {ledger.tag} --open      # all of it as a page",
        f"  runs/{ledger.tag}/loop.log, runs/{ledger.tag}/{number:04d}/seed*/run.log, {picture}",
    ]
    return "\n".join(lines)


def results_message(ledger: Ledger) -> str:
    """The subject of the commit that a session ends with."""
    numbers = f": val_bpb {ledger.kept[0].val_bpb:.6f} -> {ledger.best.val_bpb:.6f}" if ledger.kept else ""
    return f"Results of {ledger.branch}: {plural(ledger.tried, 'experiment')}{numbers}"
