"""
What nvidia-smi says of the GPU, from outside a run: its limits, who else is on it, and how fast it is clocked just now.
"""

import math
import os
import shutil
import statistics
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

FIELDS = (
    *("name", "driver_version", "memory.total", "memory.used", "clocks.sm", "clocks.max.sm"),
    *("power.limit", "power.default_limit", "clocks_throttle_reasons.active"),
)
PEAK_TFLOPS = {"H100": 989.5, "H200": 989.5, "A100": 312, "4090": 165.2, "L40": 181}  # dense bf16, by the datasheets
# Bits of clocks_throttle_reasons.active that a healthy card does not show. The cap on power, 0x4, is usual under load.
SLOWDOWNS = {0x8: "hardware slowdown", 0x20: "too hot", 0x40: "too hot", 0x80: "power brake"}
EVERY = 10.0  # seconds between two looks at the clock while a run trains

# -----------------------------------------------------------------------------
# nvidia-smi


def ask(*arguments: str) -> list[list[str]]:
    """The rows of a query, as texts. Raises RuntimeError in one line where there is no nvidia-smi or it fails."""
    if not shutil.which("nvidia-smi"):
        raise RuntimeError("there is no nvidia-smi")
    command = ["nvidia-smi", *arguments, "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    except subprocess.TimeoutExpired:
        raise RuntimeError("nvidia-smi does not answer") from None
    if done.returncode:
        raise RuntimeError(f"nvidia-smi failed: {' '.join((done.stdout + done.stderr).split())[:200]}")
    return [[cell.strip() for cell in line.split(",")] for line in done.stdout.splitlines() if line.strip()]


def the_gpu(environment: Mapping[str, str] = os.environ) -> str:
    """The GPU that a run uses, as nvidia-smi -i takes it: the first of CUDA_VISIBLE_DEVICES, else number 0."""
    return (environment.get("CUDA_VISIBLE_DEVICES") or "0").split(",")[0]


def read_gpu(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """{field: text} of the GPU that a run in this environment uses. Raises RuntimeError."""
    rows = ask("-i", the_gpu(environment), f"--query-gpu={','.join(FIELDS)}")
    if not rows or len(rows[0]) != len(FIELDS):
        raise RuntimeError(f"nvidia-smi does not know {', '.join(FIELDS)}")
    return dict(zip(FIELDS, rows[0], strict=True))


def read_processes() -> list[str]:
    """What computes on that GPU: `pid name, MB`. Raises RuntimeError."""
    rows = ask("-i", the_gpu(), "--query-compute-apps=pid,process_name,used_memory")
    return [f"{row[0]} {row[1]}, {row[-1]} MB" for row in rows if len(row) >= 3]


def number(text: str) -> float:
    """A cell as a number; nan for [N/A] and the like."""
    try:
        return float(text)
    except ValueError:
        return math.nan


def slowdown(gpu: dict[str, str]) -> str:
    """Why the card holds its clock down against its will, or ""."""
    text = gpu["clocks_throttle_reasons.active"]
    bits = int(text, 16) if text.startswith("0x") else 0
    return ", ".join(dict.fromkeys(reason for bit, reason in SLOWDOWNS.items() if bits & bit))


# -----------------------------------------------------------------------------
# While a run trains


@dataclass
class Clocks:
    """The SM clock during a run, looked at now and then: a run at a lower clock is not to be compared with others."""

    asked: bool = True
    environment: Mapping[str, str] = field(default_factory=lambda: os.environ)  # of the run: its slot's GPU
    every: float = EVERY
    seen: list[float] = field(default_factory=list)  # MHz
    not_before: float = 0.0  # time.monotonic() of the next look

    def look(self) -> None:
        if not self.asked or time.monotonic() < self.not_before:
            return
        self.not_before = time.monotonic() + self.every
        try:
            self.seen.append(number(read_gpu(self.environment)["clocks.sm"]))
        except RuntimeError:  # a fact less of the run, no more
            self.asked = False

    def facts(self) -> dict[str, float]:
        """The median of the clocks seen."""
        seen = [clock for clock in self.seen if math.isfinite(clock)]
        return {"sm_clock_mhz": statistics.median(seen)} if seen else {}
