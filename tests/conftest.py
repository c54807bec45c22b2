"""What all tests share: the cpu scale, a data folder of the session's own, and that folder prepared once."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
session_folder = tempfile.TemporaryDirectory(prefix="autoresearch-tests-")
# Read once, when prepare_data is imported: set before any test file does that.
os.environ["AUTORESEARCH_SCALE"] = "cpu"
os.environ["AUTORESEARCH_DATA_DIR"] = session_folder.name
for name in ("HF_ENDPOINT", "HF_TOKEN", "AUTORESEARCH_SEED", "AUTORESEARCH_STEPS"):
    os.environ.pop(name, None)


@pytest.fixture(scope="session")
def prepared() -> Path:
    """The cpu scale's folder, prepared from the standard library: what the imported prepare_data serves."""
    subprocess.run([sys.executable, ROOT / "prepare_data.py"], check=True, stdout=subprocess.DEVNULL)
    return Path(session_folder.name) / "cpu"
