"""
The lines that a person sees at the terminal and finds again in runs/<tag>/loop.log.
"""

import time
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console


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
