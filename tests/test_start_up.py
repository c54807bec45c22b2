"""What a command does not need is not imported for it: it answers at once, also on a slow machine."""

import os
import subprocess
import sys

import pytest
from loop_helpers import ROOT, make_repository

HEAVY = {"numpy", "scipy", "torch", "matplotlib", "pyarrow", "anthropic", "ray", "jinja2", "prepare_data", "tiktoken"}


def imported(folder, *words) -> set[str]:
    """The modules that a command line has imported when it ends."""
    command = [sys.executable, "-X", "importtime", "agent_loop.py", *words]
    done = subprocess.run(command, cwd=folder, env=os.environ | {"PYTHONPATH": ""}, capture_output=True, text=True)
    assert done.stdout or done.returncode == 2, done.stderr
    return {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}


@pytest.mark.parametrize("verb", ["", "status", "report", "check", "propose", "profile"])
def test_help_imports_nothing_heavy(verb):
    modules = imported(ROOT, *verb.split(), "--help")
    assert not modules & HEAVY
    assert ("autoresearch.loop.session" in modules) == (verb not in ("status", "report")), "the loop's own parts"


def test_a_demo_imports_nothing_heavy_before_it_has_looked_at_the_folder(tmp_path):
    repo = make_repository(tmp_path / "repo")
    with open(repo / "prepare_data.py", "a") as file:
        file.write("# changed\n")
    modules = imported(repo, "--demo")
    assert "autoresearch.loop.start" in modules and not modules & HEAVY
