"""The first evening in a fresh clone, in the README's order: install, demo, tests, a search, what came of it."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from loop_helpers import commit_all, git
from shipped import ROOT, TRAIN, shipped_commit

# What a demo may well find: the first helps at the cpu scale, the second is a constant of both scales.
FOUND = "s/UNEMBEDDING_LR = 0.004/UNEMBEDDING_LR = 0.016/; s/X0_LR, SMEAR_LR = 0.005/X0_LR, SMEAR_LR = 0.01/"
QUICK = ["tests/test_source.py", "tests/test_shipped.py"]


def fresh_clone(folder: Path) -> Path:
    """A clone of this repository, from before any search, with what is not committed here committed there."""
    git(ROOT, "clone", "-q", "--no-hardlinks", str(ROOT), str(folder))
    git(folder, "switch", "-qC", "main", git(ROOT, "rev-parse", shipped_commit(ROOT)))
    for name in git(ROOT, "ls-files", "-co", "--exclude-standard").splitlines():
        if name not in ("train.py", "results.tsv") and (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    program = (folder / "program.md").read_text()  # fewer runs than a user's: they take most of the time
    for before, after in {"confirm_runs: 3": "confirm_runs: 0", "baseline_repeats: 2": "baseline_repeats: 0"}.items():
        program = program.replace(before, after)
    program = program.replace("---\n", "---\nkill_after: 900\n", 1)  # however slow the machine is
    (folder / "program.md").write_text(program)
    commit_all(folder, "as it is here")
    return folder


@pytest.fixture
def evening(tmp_path):
    """A function that runs a line of the README in a fresh clone, and gives what it shows."""
    clone, installed = fresh_clone(tmp_path / "autoresearch"), tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", installed], check=True)
    packages = sysconfig.get_path("purelib", vars={"base": str(installed)})
    Path(packages, "of_this_environment.pth").write_text(sysconfig.get_path("purelib"))  # no network is needed
    env = {name: value for name, value in os.environ.items() if not name.startswith(("AUTORESEARCH", "PYTEST"))}
    env |= {"AUTORESEARCH_DATA_DIR": str(tmp_path / "data"), "AUTORESEARCH_SCALE": "cpu"}
    env |= {"PATH": f"{installed}/bin:{env['PATH']}"}

    def run(*words: str, **variables: str) -> str:
        done = subprocess.run(words, cwd=clone, env=env | variables, capture_output=True, text=True, timeout=3000)
        assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
        return done.stdout

    run.folder = clone
    return run


@pytest.mark.slow
def test_the_first_evening(evening):
    loop, clone = ("python", "agent_loop.py"), evening.folder
    evening("python", "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "-e", ".")
    assert str(clone) in evening("python", "-P", "-c", "import autoresearch; print(autoresearch.__file__)")

    edit = f"sed -i.old '{FOUND}' train.py && rm train.py.old"
    out = evening(*loop, "--demo", "--experiments", "1", "--command", edit, AUTORESEARCH_STEPS="20")  # by no clock
    assert "autoresearch/demo begins from main, commit " in out and "--hours 1 --proposer constants" in out
    assert git(clone, "status", "--porcelain") == "" and git(clone, "branch", "--show-current") == "main"
    assert "SMEAR_LR = 0.01," in git(clone, "show", "autoresearch/demo:train.py"), out  # it was kept

    assert " passed" in evening("python", "-m", "pytest", "-q", "-n", "0", "-m", "not slow", *QUICK)

    search = ("--tag", "first", "--experiments", "1", "--proposer", "constants")
    out = evening(*loop, *search, AUTORESEARCH_BUDGET="4")
    assert "autoresearch/first begins from main, commit " in out and "search demo" not in out
    assert git(clone, "show", "refs/autoresearch/first/0000:train.py") == TRAIN.rstrip("\n")

    status = json.loads(evening(*loop, "status", "--json"))
    assert status["search"] == "autoresearch/first" and status["experiments"]["tried"] == 1
    assert json.loads(evening(*loop, "status", "--tag", "demo", "--json"))["experiments"]["kept"] == 1
    for tag in ("demo", "first"):
        assert "val_bpb" in Path(evening(*loop, "report", "--tag", tag).strip()).read_text()
