"""What all tests share: the cpu scale, a data folder of the session's own, and that folder prepared once."""

import atexit
import fcntl
import gc
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
from shipped import shipped_commit, shipped_train  # noqa: E402

# One for all of pytest's processes: the first makes it, tells the others, and removes it at the end.
if "AUTORESEARCH_TESTS" not in os.environ:
    os.environ["AUTORESEARCH_TESTS"] = tempfile.mkdtemp(prefix="autoresearch-tests-")
    atexit.register(shutil.rmtree, os.environ["AUTORESEARCH_TESTS"], ignore_errors=True)
folder_of_session = os.environ["AUTORESEARCH_TESTS"]
os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}  # pytest's processes share the cores already
# Read once, when prepare_data is imported: set before any test file does that.
os.environ["AUTORESEARCH_SCALE"] = "cpu"
os.environ["AUTORESEARCH_DATA_DIR"] = folder_of_session
for name in ("HF_ENDPOINT", "HF_TOKEN", "AUTORESEARCH_SEED", "AUTORESEARCH_BUDGET", "AUTORESEARCH_STEPS"):
    os.environ.pop(name, None)


@pytest.fixture(scope="session")
def prepared() -> Path:
    """The cpu scale's folder, prepared from the standard library: what the imported prepare_data serves."""
    folder = Path(folder_of_session) / "cpu"
    with open(Path(folder_of_session) / "lock", "w") as lock:  # by whichever of pytest's processes comes first
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "meta.json").exists():  # written last
            subprocess.run([sys.executable, ROOT / "prepare_data.py"], check=True, stdout=subprocess.DEVNULL)
    return folder


@pytest.fixture
def repo(tmp_path: Path, prepared: Path) -> Path:
    """A repository with the loop's files and a train.py that does not train."""
    from loop_helpers import make_repository

    return make_repository(tmp_path / "repo")


def pytest_report_header() -> str:
    """Say so where the train.py that is tested is not the one in the folder."""
    if shipped_train() == (ROOT / "train.py").read_text():
        return ""
    return f"train.py is tested as it is in commit {shipped_commit(ROOT)}; the file in the folder is another"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes longest begins first, so that no process of pytest is left alone with it in the end: groups, which
    one process has to itself, and a few tests."""
    longest = ("test_chaos", "hours_is_stopped", "is_mended_by_its_agent", "scored_on_the_test_rows")
    items.sort(key=lambda item: not item.get_closest_marker("xdist_group") and not item.name.endswith(longest))


def pytest_collection_finish() -> None:
    """What was imported by now stays: a collection of garbage, seconds with torch's millions of objects, skips it."""
    gc.freeze()
