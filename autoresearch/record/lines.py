"""
The lines at the terminal, which are in runs/<tag>/loop.log too: one per experiment, one per slot, and the summary that
the morning begins with.
"""

import math
import re
import time
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.text import Text

from autoresearch.files import ROOT
from autoresearch.record.ledger import Ledger
from autoresearch.record.reading import Now
from autoresearch.record.status import fact_lines, make_status
from autoresearch.row import Row
from autoresearch.text import cut, one_line, plural


@dataclass
class Log:
    """A terminal and a file."""

    console: Console
    path: Path

    @property
    def width(self) -> int | None:
        """Characters of a line of the terminal; None where nobody reads it at one, so that nothing need be cut."""
        return self.console.width if self.console.is_terminal else None

    def show(self, text: str) -> None:
        """A line for the terminal only."""
        self.console.print(text, markup=False, highlight=False, soft_wrap=not self.console.is_terminal)

    def write(self, text: str) -> None:
        """A line for the file only."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "a", encoding="utf-8", errors="backslashreplace") as file:
            file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")

    def say(self, text: str) -> None:
        """A line for both; the file comes first, as it is there for whoever looks later."""
        self.write(text)
        self.show(text)


def result_line(row: Row, width: int | None = None) -> str:
    """One experiment on one line. Where it has to fit a terminal's `width`, the description gives way."""
    narrow = width is not None and width < 110
    value = f"{row.val_bpb:.6f}" if row.val_bpb else " " * 8
    times = f"{row.gain / row.noise:+5.1f} x noise" if math.isfinite(row.gain) else ""
    gain = f"{times:13}" if narrow else f"{f'{row.gain:+.6f} ({times})' if times else '':26}"
    judged = row.status in ("keep", "discard")  # it has a number; of what was better, the reason says why it is dropped
    reason = row.reason.partition("; but ")[2] if judged else row.reason
    why = f"  ({reason})" if reason else ""
    line = f"{row.number:4d}  {row.status:11}  {value}  {gain}  "
    if why and not judged and width is not None:  # there is no number: its place is the reason's
        line = f"{row.number:4d}  {row.status:11}  "
    return line + fitted(one_line(row.description), why, width and width - len(line))


def fitted(title: str, why: str, width: int | None) -> str:
    """A title and the reason behind it within `width`: the reason, which is shorter and tells more, is cut last."""
    if width is None or len(title) + len(why) <= width:
        return title + why
    return cut(title, max(width - len(why), width // 3)) + cut(why, width - max(width - len(why), width // 3))


def say_result(log: Log, row: Row) -> None:
    """A result: as wide as the terminal there, whole in loop.log."""
    log.write(result_line(row))
    log.show(result_line(row, log.width))


def progress_parts(line: str, seconds: float, scale: str) -> list[str]:
    """Return train.py's progress, the most important first; a line that is no progress line, as it is.

    Its seconds are those of its clock. At the cpu scale they are paced, as long as on the machine that the scale was
    made on, so the real `seconds` of the run so far are shown too.
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
    """Return what runs now; each line is cut to the width of the terminal."""
    return Text("\n".join(lines), no_wrap=True, overflow="ellipsis")


# -----------------------------------------------------------------------------
# The end of a session


def summary(ledger: Ledger, reason: str) -> str:
    """Return what the morning's reader wants first: why it ended, the head of `status`, and where to look further."""
    number = ledger.best.number if ledger.kept else 0
    picture = ledger.results.with_name("progress.png").relative_to(ROOT)
    lines = [
        "",
        f"{ledger.branch}: {reason}.",
        *fact_lines(make_status(ledger, Now())),
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
