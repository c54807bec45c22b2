"""
Git, as the loop uses it: commits are objects kept by refs; the user's index and working tree are left alone.

Every call is a short git process of its own, so a kill at any point leaves a valid repository.
"""

import functools
import os
import re
import signal
import tempfile
import time
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import git

from autoresearch.text import fail

STOP_SIGNALS = {signal.SIGINT, signal.SIGTERM}
LOCK_PATIENCE = 10.0  # seconds after which a lock file of git that no git process holds is taken for left behind

# -----------------------------------------------------------------------------
# Running git


@contextmanager
def signals_held():
    """Ctrl-C reaches every process of the terminal: git, started with these signals blocked, finishes what it does."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def run_git(repo: git.Git, *arguments: str, strip: bool = True, check: bool = True, istream: Any = None) -> str:
    """The output of a git command. Raises git.GitCommandError, or with check=False gives what there is, maybe "".

    Where a git command of the user's holds the index or a ref just now, it waits for that.
    """
    deadline = time.monotonic() + LOCK_PATIENCE
    while True:
        try:
            with signals_held():
                return repo.execute(
                    ["git", *arguments], istream=istream, strip_newline_in_stdout=strip, with_exceptions=check
                )
        except git.GitCommandError as error:
            if not re.search(r"\.lock'?: File exists", error.stderr) or time.monotonic() > deadline or istream:
                raise
        time.sleep(0.2)


def open_repository(folder: Path) -> git.Git:
    """The git repository of a folder, able to commit even where no user.name is set."""
    repo = git.Git(folder)
    if not run_git(repo, "rev-parse", "-q", "--verify", "HEAD", check=False):
        fail(f"{folder} is not a git repository with a commit; run: git init && git add -A && git commit -m start")
    if not run_git(repo, "config", "user.email", check=False):
        names = {"NAME": "autoresearch", "EMAIL": "autoresearch@localhost"}
        env = {f"GIT_{who}_{key}": value for who in ("AUTHOR", "COMMITTER") for key, value in names.items()}
        repo.update_environment(**env)
    return repo


def clear_stale_locks(repo: git.Git, say: Callable[[str], None]) -> None:
    """Delete the lock files that a killed git left behind, once they are old and no git process works here."""
    folder = Path(run_git(repo, "rev-parse", "--absolute-git-dir"))
    names = ("index.lock", "HEAD.lock", "packed-refs.lock", "refs/**/*.lock")
    for lock in [path for name in names for path in folder.glob(name)]:
        deadline = lock.stat().st_mtime + LOCK_PATIENCE
        while lock.exists() and (time.time() < deadline or git_works_in(folder)):
            time.sleep(0.2)
        if lock.exists():
            lock.unlink()
            say(f"git's lock {lock.relative_to(folder.parent)} was left behind by a git that is gone; it is removed")


def git_works_in(folder: Path) -> bool:
    """Whether a git process has its working directory at or below the working tree (Linux; elsewhere never)."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            works = (process / "comm").read_text().startswith("git") and os.readlink(process / "cwd")
        except OSError:  # it ended just now, or is another user's
            continue
        if works and Path(works).is_relative_to(folder.parent):
            return True
    return False


# -----------------------------------------------------------------------------
# Reading


def current_branch(repo: git.Git) -> str:
    """The branch that is checked out, "" for a detached HEAD."""
    return run_git(repo, "symbolic-ref", "-q", "--short", "HEAD", check=False)


def commit_of(repo: git.Git, revision: str) -> str:
    """The full hash of a commit, "" if there is none."""
    return run_git(repo, "rev-parse", "-q", "--verify", revision + "^{commit}", check=False)


def changed(repo: git.Git, name: str) -> bool:
    """Whether a file differs from the checked-out commit, or is not in it."""
    return bool(run_git(repo, "status", "--porcelain", "--", name))


def file_at(repo: git.Git, commit: str, name: str) -> str:
    """The text of a file in a commit, "" if it is not there."""
    return run_git(repo, "cat-file", "blob", f"{commit}:{name}", strip=False, check=False)


def is_within(repo: git.Git, commit: str, ref: str) -> bool:
    """Whether a commit is in the history of a ref."""
    return run_git(repo, "merge-base", commit, ref, check=False) == commit


def experiment_ref(tag: str, number: int) -> str:
    return f"refs/autoresearch/{tag}/{number:04d}"


def repair_ref(tag: str, number: int, attempt: int) -> str:
    """Where the train.py that crashed is kept when a repair takes its place."""
    return f"refs/autoresearch-repairs/{tag}/{number:04d}-{attempt}"


def experiment_refs(repo: git.Git, tag: str) -> dict[int, int]:
    """The numbers of all experiments of a tag that have a commit, in order, and the second that each is of."""
    lines = run_git(repo, "for-each-ref", "--format=%(refname) %(committerdate:unix)", f"refs/autoresearch/{tag}/")
    pairs = [line.split() for line in lines.splitlines()]
    return {int(ref.rpartition("/")[2]): int(second) for ref, second in pairs}


# -----------------------------------------------------------------------------
# Writing


def commit_file(repo: git.Git, parent: str, name: str, text: str, message: str, ref: str, merged: str = "") -> str:
    """Commit the tree of `parent` with `text` as its file `name`, and let `ref` point there. Returns the full hash.

    `merged`: a second parent, whose tree has no part in it.
    One git process does it all (git fast-import); nothing else changes: no index, no working tree. Where the clock was
    set back, its date is a second later than the parent's: what was kept is read in this order.
    """
    now, before = int(time.time()), int(run_git(repo, "show", "-s", "--format=%ct", parent))
    date = now if now >= before else before + 1
    head = f"commit {ref}\nmark :1\ncommitter {committer(repo)} {date} +0000\n".encode()
    parents = f"from {parent}\n" + (f"merge {merged}\n" if merged else "")
    body = f"{parents}M 100644 inline {name}\n".encode()
    with tempfile.TemporaryFile() as stream:
        stream.write(head + data_block(message) + body + data_block(text) + b"get-mark :1\ndone\n")
        stream.seek(0)
        return run_git(repo, "fast-import", "--quiet", "--force", "--done", istream=stream)


@functools.cache
def committer(repo: git.Git) -> str:
    """Name and address that commits are made under."""
    return run_git(repo, "var", "GIT_COMMITTER_IDENT").rsplit(" ", 2)[0]


def same_file(repo: git.Git, one: str, other: str, name: str) -> bool:
    """Whether a file is the same in two commits."""
    blobs = run_git(repo, "rev-parse", "-q", f"{one}:{name}", f"{other}:{name}", check=False).split()
    return len(blobs) == 2 and blobs[0] == blobs[1]


def data_block(text: str) -> bytes:
    encoded = text.encode()
    return b"data %d\n%s\n" % (len(encoded), encoded)
