"""What the tests of the data share: parquet files, and prepare_data.py as a command."""

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

import prepare_data

SCRIPT = Path(prepare_data.__file__)


def write_parquet(path: Path, texts: list, column: str = "text") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({column: texts}), path, compression="zstd", row_group_size=100)
    return path


def command(*arguments, **options) -> subprocess.CompletedProcess:
    options = {"capture_output": True, "text": True, "timeout": 60} | options
    return subprocess.run([sys.executable, SCRIPT, *arguments], **options)


def assert_refused(result: subprocess.CompletedProcess, *words: str) -> None:
    """One line on stderr that holds these words, exit code 2."""
    assert re.fullmatch(r"error: [^\n]+\n", result.stderr), result.stderr
    assert all(word in result.stderr for word in words), result.stderr
    assert result.returncode == 2


def read_meta(data: Path) -> dict:
    return json.loads((data / "cpu" / "meta.json").read_text())


def wait_for(condition, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 900
    while not condition():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.002)
