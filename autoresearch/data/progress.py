"""
Progress bars for the long steps of prepare_data.py.
"""

from typing import Any

from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn


def progress_bars(**options: Any) -> Progress:
    """rich's bars, counting bytes: what, how far, how fast, how long still."""
    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn(elapsed_when_finished=True))
    return Progress("{task.description}", *columns, **options)
