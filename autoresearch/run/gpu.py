"""
The GPU from outside a run: whether torch can use it, its limits, who else is on it, how fast it is clocked just now.
"""

import contextlib
import math
import os
import re
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from autoresearch.text import fail

FIELDS = (
    *("name", "driver_version", "memory.total", "memory.used", "clocks.sm", "clocks.max.sm"),
    *("power.limit", "power.default_limit", "clocks_throttle_reasons.active"),
)
# TFLOP/s of dense bf16, as in train.py: the first name that a card's contains counts.
PEAK_TFLOPS = {"H100 PCIe": 756, "H100 NVL": 835, "H100": 989.5, "H200": 989.5, "H20": 148, "B200": 2250, "A100": 312}
PEAK_TFLOPS |= {"A10G": 70, "A10": 125, "A30": 165, "A40": 149.7, "A6000": 154.8, "6000 Ada": 364.2, "L40S": 362}
PEAK_TFLOPS |= {"L40": 181, "L4": 121, "Laptop": math.inf, "5090": 209.5, "4090": 165.2, "3090": 71}
OLDEST_DRIVER = {"11": 450, "12": 525, "13": 580}  # that runs a CUDA of this major version, by its release notes
WHEELS = "https://download.pytorch.org/whl"
DRIVER, PCI = Path("/sys/module/nvidia/version"), Path("/sys/bus/pci/devices")
NODES = (Path("/proc/driver/nvidia/gpus"), Path("/dev"))
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
    """Return what computes on that GPU: `pid name, MB`. Raises RuntimeError."""
    rows = ask("-i", the_gpu(), "--query-compute-apps=pid,process_name,used_memory")
    return [f"{row[0]} {row[1]}, {row[-1]} MB" for row in rows if len(row) >= 3]


def number(text: str) -> float:
    """A cell as a number; nan for [N/A] and the like."""
    try:
        return float(text)
    except ValueError:
        return math.nan


def slowdown(gpu: dict[str, str]) -> str:
    """Return why the card holds its clock down against its will, or ""."""
    text = gpu["clocks_throttle_reasons.active"]
    bits = int(text, 16) if text.startswith("0x") else 0
    return ", ".join(dict.fromkeys(reason for bit, reason in SLOWDOWNS.items() if bits & bit))


# -----------------------------------------------------------------------------
# Whether torch can use it


def find_gpu() -> tuple[str, str]:
    """(name, version of the driver) of an NVIDIA GPU that this machine has, found without torch; ("", "") if none."""
    with contextlib.suppress(RuntimeError):
        rows = ask("--query-gpu=name,driver_version")
        if version := re.search(r"\b\d{3}\.\d[\d.]*\b", " ".join(" ".join(row) for row in rows)):
            return rows[0][0] if len(rows[0]) == 2 else "NVIDIA GPU", version[0]
    nodes = [*NODES[0].glob("*"), *NODES[1].glob("nvidia[0-9]*")]
    nodes += [path for path in PCI.glob("*") if is_nvidia(path)]
    driver = DRIVER.read_text().strip() if DRIVER.exists() else ""
    return ("NVIDIA GPU", driver) if nodes else ("", "")


def is_nvidia(device: Path) -> bool:
    """Return whether a PCI device is an NVIDIA display or 3D controller."""
    with contextlib.suppress(OSError):
        vendor, kind = ((device / name).read_text() for name in ("vendor", "class"))
        return vendor.startswith("0x10de") and kind.startswith("0x03")
    return False


def default_scale() -> str:
    """The scale where none is named: h100 where torch can use a GPU, cpu where there is none."""
    if problem := unusable_gpu():
        words = sys.argv[1:] if Path(sys.argv[0]).name == "prepare_data.py" else []
        if not any(word.startswith(("--scale", "-h", "--help")) for word in words):
            fail(problem)
        return "cpu"
    import torch

    return "h100" if torch.cuda.is_available() else "cpu"


def unusable_gpu(environment: Mapping[str, str] = os.environ) -> str:
    """One line: why torch cannot use the GPU that is there, and the way out. "": it can, or there is none."""
    import torch

    if torch.cuda.is_available():
        return ""
    name, driver = find_gpu()
    if not name:
        return ""
    cuda, hidden = torch.version.cuda or "", environment.get("CUDA_VISIBLE_DEVICES")
    needed = OLDEST_DRIVER.get(cuda.partition(".")[0], 0)
    wheel = "cu130" if driver and int(driver.split(".")[0]) >= OLDEST_DRIVER["13"] else "cu126"
    install = f"pip install --force-reinstall torch --index-url {WHEELS}/{wheel}"
    if hidden is not None and not re.match(r"\d|GPU-|MIG-", hidden.strip()):
        why = f"CUDA_VISIBLE_DEVICES={hidden!r} hides it; unset CUDA_VISIBLE_DEVICES"
    elif not cuda:
        why = f"this torch is built without CUDA; {install}"
    elif driver and int(driver.split(".")[0]) < needed:
        why = f"CUDA {cuda} needs driver {needed} or later; install one, or torch for older ones: {install}"
    elif not driver:
        why = "no driver is loaded; install it (modprobe nvidia), or start the container with --gpus all"
    else:
        why = f"{torch_error()}; see to that (CUDA_VISIBLE_DEVICES is {hidden or 'not set'})"
    build = f"CUDA {cuda}" if cuda else "no CUDA"
    said = f"torch {torch.__version__} ({build}) cannot use the {name} here (driver {driver or 'none'}): {why}"
    return f"{said}, or go on without it: AUTORESEARCH_SCALE=cpu"


def torch_error() -> str:
    """Return what torch says when it is made to use the GPU, in one line."""
    import torch

    closed = [str(path) for path in NODES[1].glob("nvidia*") if path.is_char_device() and not os.access(path, os.W_OK)]
    if closed:
        return f"{closed[0]} may not be opened by you"
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:
        return " ".join(str(error).replace(";", ",").split())[:200]
    return "it sees no device"


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
