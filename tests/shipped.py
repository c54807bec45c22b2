"""The train.py that tests are about: the committed one, from before any search, whatever a search makes of the file."""

import subprocess
from pathlib import Path

from autoresearch.row import row_of_message

ROOT = Path(__file__).resolve().parents[1]


def shipped_commit(folder: Path) -> str:
    """The commit that is checked out; on a search's branch the one below its first kept change. "" without git."""
    command = ["git", "log", "--format=%H%n%B%x00", "HEAD", "--", "train.py"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    changes = [text.strip().partition("\n") for text in done.stdout.split("\0")[:-1]]
    kept = [commit for commit, _, message in changes if row_of_message(commit, message)]
    return f"{kept[-1]}^" if kept else "HEAD" if changes else ""


def shipped_train(folder: Path = ROOT) -> str:
    commit = shipped_commit(folder)
    if not commit:
        return (folder / "train.py").read_text()
    return subprocess.check_output(["git", "show", f"{commit}:train.py"], cwd=folder, text=True)


TRAIN = shipped_train()
