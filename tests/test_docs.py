"""The pages say what is there: links, paths, options, the settings; and the code keeps to the sizes of the house."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
from shipped import TRAIN

from autoresearch import settings
from autoresearch.propose.command import README

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
CODE = [*sorted(ROOT.glob("*.py")), *sorted((ROOT / "autoresearch").rglob("*.py"))]
LINES = {"agent_loop.py": 300, "prepare_data.py": 450, "train.py": 650}  # others: 400
FUNCTION_LINES = 60
WHOLE = 15_049
EXAMPLE = "autoresearch/propose/NAME.py"  # a file for the reader to write
IN_A_COMMANDS_FOLDER = set(re.findall(r"^\| `([\w.]+)`", README, re.MULTILINE))
FOLDERS = "autoresearch|tests|benchmarks|docs|\\.ci"


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def code_of(path: Path) -> str:
    return TRAIN if path.name == "train.py" else path.read_text()


def anchors(page: Path) -> set[str]:
    """What a link can name in a page: its headings, as GitHub writes them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_readme_can_be_finished():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 175


def test_the_settings_page_is_that_of_the_definitions():
    printed = settings.PAGE + "\n".join(settings.table()) + "\n"
    assert (ROOT / "docs" / "settings.md").read_text() == printed, "python -m autoresearch.settings > docs/settings.md"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page):
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        path, _, anchor = target.partition("#")
        there = page.parent / path if path else page
        if not target.startswith("https://") and not (there.exists() and (not anchor or anchor in anchors(there))):
            broken.append(target)
    assert not broken, f"{name_of(page)}: {broken}"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_files_that_a_page_names_are_there(page):
    text = page.read_text()
    named = re.findall(rf"`((?:{FOLDERS})/[\w./-]*)`", text) + re.findall(r"`([\w-]+\.(?:py|toml|md|yaml))`", text)
    named += re.findall(rf"(?:python|pytest)(?: -\w+(?: \d)?)* ((?:{FOLDERS})/[\w./-]+)", text)
    found = {
        path.name for path in [*ROOT.iterdir(), *(ROOT / "autoresearch").rglob("*.py"), *(ROOT / "docs").iterdir()]
    }
    missing = [
        name for name in named if not (ROOT / name).exists() and name not in found | {EXAMPLE} | IN_A_COMMANDS_FOLDER
    ]
    modules = re.findall(r"python -m (autoresearch[\w.]+)", text)
    missing += [module for module in modules if not (ROOT / f"{module.replace('.', '/')}.py").exists()]
    assert not missing, f"{name_of(page)}: {missing}"


def help_of(*words: str) -> str:
    command = [sys.executable, *words, "--help"]
    return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout


@pytest.mark.slow
def test_options_that_the_readme_names_are_there():
    text, known = (ROOT / "README.md").read_text(), help_of("agent_loop.py") + help_of("prepare_data.py")
    known += "".join(
        help_of("agent_loop.py", verb) for verb in re.findall(r"^    python agent_loop.py (\w+)", text, re.M)
    )
    ours = "\n".join(line for line in text.splitlines() if not re.match(r" +(claude|codex|aider) ", line))
    missing = sorted({name for name in re.findall(r"(?<![\w-])--[a-z][a-z-]*", ours) if f"{name} " not in f"{known} "})
    assert not missing, missing
    chosen = set(re.findall(r"--proposer (\w+)", text))
    assert chosen <= set(re.findall(r"\w+", re.search(r"--proposer \{(.*?)\}", known)[1]))


def test_files_are_of_a_size_that_can_be_read():
    sizes = {name_of(path): len(code_of(path).splitlines()) for path in CODE}
    too_long = {name: size for name, size in sizes.items() if size > LINES.get(name, 400)}
    assert not too_long, too_long


def test_the_whole_does_not_grow():
    files = [ROOT / "agent_loop.py", *(ROOT / "autoresearch").rglob("*.py")]
    lines = sum(len(path.read_text().splitlines()) for path in files)
    assert lines <= WHOLE, f"{lines} lines: take something out"


def test_functions_are_of_a_size_that_can_be_read():
    too_long = {}
    for path in CODE:
        for node in ast.walk(ast.parse(code_of(path))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                size = node.end_lineno - node.lineno + 1
                if size > FUNCTION_LINES:
                    too_long[f"{name_of(path)}: {node.name}"] = size
    assert not too_long, too_long
