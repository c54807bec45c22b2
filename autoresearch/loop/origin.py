"""
The commit that a new search begins from: of the branch that the user was on before any search, or of --from.
"""

import re

from autoresearch.files import ROOT
from autoresearch.judge.trust import scale_of_search
from autoresearch.record.reading import search_tags
from autoresearch.record.repository import (
    Repository,
    commit_of,
    current_branch,
    experiment_ref,
    file_at,
    run_git,
    same_file,
)
from autoresearch.text import fail

SEARCH = "autoresearch/"  # what the name of every search's branch begins with


def find_origin(repo: Repository, wanted: str | None, scale: str) -> tuple[str, str]:
    """(commit, a line that names it) of where a new search begins. `wanted`: --from.

    What one scale found is no baseline for the other, unless --from names it: most constants belong to both.
    """
    name = wanted or users_branch(repo)
    commit = commit_of(repo, name)
    if not commit or not file_at(repo, commit, "train.py"):
        fail(f"--from {name} is not a commit with a train.py; name a branch, a tag or a hash that git log shows")
    line = f"begins from {name}, commit {run_git(repo, 'log', '-1', '--format=%h %s', commit)[:80]}"
    tag = search_within(repo, commit)
    if not tag:
        return commit, line
    found_at = scale_of_search(ROOT / "runs" / tag) or "not known any more"
    if found_at != scale and not wanted:
        before = run_git(repo, "rev-parse", "--short", f"{experiment_ref(tag, 0)}^")
        fail(
            f"train.py of {name} has what the search {tag} kept, whose scale is {found_at}, not {scale}; begin from it "
            f"with --from {name}, or from what was there before with --from {before}"
        )
    return commit, f"{line}; its train.py has what the search {tag} kept (scale {found_at})"


def users_branch(repo: Repository) -> str:
    """The branch that is checked out; where that is a search's, the one before any search, or the commit there."""
    current = current_branch(repo)
    if not current.startswith(SEARCH):
        return current or "HEAD"
    moves = run_git(repo, "reflog", "show", "--format=%gs", "HEAD", check=False)
    for name in re.findall(rf"^checkout: moving from (?!{SEARCH})(\S+) to ", moves, re.MULTILINE):
        is_experiment = run_git(repo, "for-each-ref", "--points-at", name, "refs/autoresearch/", check=False)
        if commit_of(repo, name) and not is_experiment:
            return name
    baselines = ["log", "--first-parent", "--grep=^0000: baseline", "--format=%p", current]  # a clone has no reflog
    if below := run_git(repo, *baselines).splitlines():
        return below[-1]
    fail(f"git does not know any more which branch was checked out before {current}; name it: --from main, for example")


def search_within(repo: Repository, commit: str) -> str:
    """The tag of the search whose kept changes the train.py of a commit has, "" if there is none.

    They are in its history, or it is the same file as a search's best.
    """
    merged = run_git(repo, "for-each-ref", "--merged", commit, "--sort=-committerdate", "refs/autoresearch/")
    numbers = re.findall(r"refs/autoresearch/([^/]+)/(\d+)$", merged, re.MULTILINE)
    within = [tag for tag, number in numbers if int(number)]
    same = [tag for tag in search_tags(repo) if same_file(repo, commit, f"refs/heads/{SEARCH}{tag}", "train.py")]
    found = (tag for tag in [*within, *same] if not same_file(repo, commit, experiment_ref(tag, 0), "train.py"))
    return next(found, "")
