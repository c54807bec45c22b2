"""
The places of things; files, written and compared.
"""

import hashlib
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]  # the checkout
RECORD = "record.json"  # in a run's folder: what prepare_data saw of it; AUTORESEARCH_RECORD names it to the run
GUARDED = "guard.json"  # in a run's folder: what the guard measured of it, written when nobody of the run is left
MAP = "parts.txt"  # there, too, and kept: judge/parts.py
GRAPH = ("graph.json", "tensors.bin")  # in a run's folder: the trained model, handed over to the scorer
EVALUATOR = (  # of the checkout: what train.py imports, and what that imports in a run
    "prepare_data.py",
    "autoresearch/__init__.py",
    "autoresearch/judge/__init__.py",
    "autoresearch/judge/handover.py",
    "autoresearch/judge/parts.py",
)
SHOWN_TO_RUNS = ("meta.json", "tokenizer.json", "train.bin")  # of the prepared data
PACKED = ("tokenizer.json", "train.bin", "val.bin")  # of the prepared data: all that val_bpb depends on
DATA_FILES = ("meta.json", *PACKED)
TEST_FILES = ("test.bin", "test.json")  # rows that no search is shown, and what they are

# -----------------------------------------------------------------------------
# Writing


def append_line(path: Path, line: str) -> None:
    """Add a line that is on disk when this returns. After a line that a kill cut short it begins a new one."""
    with open(path, "ab+") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            line = line if file.read(1) == b"\n" else "\n" + line
        file.write(line.encode())
        file.flush()
        os.fsync(file.fileno())


def append_event(path: Path, event: str, values: dict[str, Any]) -> str:
    """Add an event to a journal, with the time. Returns its line, as it will be read again."""
    line = json.dumps({"event": event, "at": round(time.time(), 2)} | values)
    append_line(path, line + "\n")
    return line


def read_events(path: Path) -> Iterator[dict[str, Any]]:
    """The events of a journal, oldest first; what a kill cut short is left out."""
    for line in path.read_text(errors="replace").splitlines() if path.exists() else []:
        try:
            event = json.loads(line)
        except ValueError:
            continue
        yield event


def replace_file(path: Path, text: str) -> None:
    """A text file, written whole or not at all."""
    scratch = path.with_name(path.name + ".tmp")
    with open(scratch, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    scratch.replace(path)


# -----------------------------------------------------------------------------
# Prepared data and fingerprints


def data_root() -> Path:
    """Return where prepare_data.py puts its scales, by the same rule."""
    return Path(os.path.expanduser(os.environ.get("AUTORESEARCH_DATA_DIR") or "~/.cache/autoresearch")).resolve()


def stamp(path: Path) -> list[int]:
    """Return what changes whenever a file does; the ctime can't be set back."""
    if not path.is_file():
        return []
    status = path.stat()
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]


def file_hash(path: Path) -> str:
    if not path.is_file():
        return "missing"
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fingerprint(directory: Path, data_format: int) -> str:
    """A hash of all that val_bpb depends on besides train.py: tokenizer, training rows, validation rows."""
    digest = hashlib.sha256(f"format {data_format}".encode())
    for name in PACKED:
        digest.update(bytes.fromhex(file_hash(directory / name)))
    return digest.hexdigest()[:16]
