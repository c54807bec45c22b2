"""
Git, as the loop uses it: commits are objects kept by refs; the user's index and working tree are left alone.

Every call is a short git process of its own, so a kill at any point leaves a valid repository.
"""

import functools
import os
import re
import shlex
import shutil
import signal
import tempfile
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")  # a git that is missing is told by open_repository()
import git

from autoresearch.files import stamp
from autoresearch.process import STOP_SIGNALS
from autoresearch.text import fail, one_line

LOCK_PATIENCE = 10.0  # seconds after which a lock file of git that no git process holds is taken for left behind
# Of the user's configuration: no program of theirs runs inside our calls, and what we read looks the same everywhere.
CONFIGURATION = {
    "core.hooksPath": "/dev/null",
    "core.fsmonitor": "false",
    "core.safecrlf": "false",
    "color.ui": "false",
    "color.diff": "false",
    "diff.noprefix": "false",
    "diff.mnemonicPrefix": "false",
    "diff.context": "3",
    "diff.interHunkContext": "0",
    "diff.orderFile": "/dev/null",
    "log.showSignature": "false",
    "i18n.logOutputEncoding": "UTF-8",
    "branch.autoSetupMerge": "false",
}
OPTIONS = [word for key, value in CONFIGURATION.items() for word in ("-c", f"{key}={value}")]
PLAIN = dict.fromkeys(("log", "show"), ("--no-ext-diff", "--no-textconv"))
# Of git's variables: a hook or an alias that the loop is started from sets others, which lead to another repository.
OURS = re.compile(
    r"GIT_((AUTHOR|COMMITTER)_(NAME|EMAIL)|CONFIG_(GLOBAL|SYSTEM|NOSYSTEM|COUNT|KEY_.*|VALUE_.*)|EXEC_PATH|ASKPASS|SS[HL].*)"
)
# Git's own language, no question at the terminal, no lock for a look.
ENVIRONMENT = {"LC_ALL": "C", "LANGUAGE": "C", "GIT_TERMINAL_PROMPT": "0", "GIT_OPTIONAL_LOCKS": "0"}
NO_SUCH_FILE = re.compile("does not exist in|exists on disk, but not in|[Nn]ot a valid object name|invalid object name")

# -----------------------------------------------------------------------------
# Running git


@dataclass(eq=False)
class Repository:
    """A git repository, by its working tree."""

    folder: Path
    say: Callable[[str], None] = print


class GitError(Exception):
    """Git could not do what it was asked for, and said so in one line."""


@contextmanager
def signals_held():
    """Ctrl-C reaches every process of the terminal: git, started with these signals blocked, finishes what it does."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def run_git(repo: Repository, *arguments: str, strip: bool = True, check: bool = True, data: bytes = b"") -> str:
    """The output of a git command that reads `data`. Raises GitError, or with check=False gives what there is.

    Where a git command of the user's holds the index or a ref just now, it waits for that. A lock that a killed git
    left behind is removed: git names it, wherever it is.
    """
    waited: dict[tuple[Any, ...], float] = {}  # locks as they were seen first -> when
    command = ["git", *OPTIONS, arguments[0], *PLAIN.get(arguments[0], ()), *arguments[1:]]
    while True:
        with signals_held(), tempfile.TemporaryFile() as stdin:
            stdin.write(data)
            stdin.seek(0)
            code, out, said = git.Git(repo.folder).execute(
                command,
                istream=stdin,
                env=ENVIRONMENT,
                with_extended_output=True,
                with_exceptions=False,
                stdout_as_string=False,
                strip_newline_in_stdout=False,
            )
        lock = code and re.search(r"Unable to create '(.+?\.lock)': File exists", said)
        if not lock or not wait_for_lock(repo, repo.folder / lock[1], waited):
            break
    if check and code:
        raise GitError(f"git {arguments[0]}: {one_line(said) or f'exit code {code}'}")
    text = bytes(out).decode(errors="surrogateescape")
    return text.removesuffix("\n") if strip else text


def wait_for_lock(repo: Repository, lock: Path, waited: dict[tuple[Any, ...], float]) -> bool:
    """Wait a moment for a lock to go; once nobody can hold it any more, remove it. Returns whether to try again."""
    seconds = time.monotonic() - waited.setdefault((lock, *stamp(lock)), time.monotonic())
    if seconds > LOCK_PATIENCE and (not lock.exists() or git_works_in(repo)):
        return seconds < 2 * LOCK_PATIENCE
    if seconds > LOCK_PATIENCE:
        lock.unlink(missing_ok=True)
        repo.say(f"git's lock {lock} was left behind by a git that is gone; it is removed")
    time.sleep(0.2)
    return True


def open_repository(folder: Path) -> Repository:
    """The git repository of a folder. Ends the program with a way out where there is none that a search can use.

    Variables of git's that lead to another repository are taken out of this process's environment.
    """
    for name in [name for name in os.environ if name.startswith("GIT_") and not OURS.fullmatch(name)]:
        del os.environ[name]
    if not shutil.which("git"):
        fail("there is no git in PATH; install it (apt install git)")
    repo = Repository(folder)
    begin = "git init && git add -A && git commit -m start"
    try:
        inside = run_git(repo, "rev-parse", "--show-prefix").rstrip("/")
    except GitError as error:
        if line := re.search(r"git config --global --add safe\.directory .+", str(error)):
            fail(f"{folder} belongs to another user, so git does not read it; if you trust it: {line[0]}")
        if "not a git repository" in str(error):
            fail(f"{folder} is not a git repository; run there: {begin}")
        fail(f"{folder}: {error}")
    if inside:
        outer = run_git(repo, "rev-parse", "--show-toplevel")
        own = f"cd {shlex.quote(str(folder))} && {begin}"
        fail(f"{folder} is a folder inside the git repository {outer}; make it a repository of its own: {own}")
    if not commit_of(repo, "HEAD"):
        fail(f"{folder} is a git repository without a commit; run there: git add -A && git commit -m start")
    return repo


def git_works_in(repo: Repository) -> bool:
    """Return whether a git process works in a working tree of the repository (on Linux; elsewhere False)."""
    listed = run_git(repo, "worktree", "list", "--porcelain", check=False)
    trees = [repo.folder, *map(Path, re.findall(r"^worktree (.+)$", listed, re.MULTILINE))]
    for process in Path("/proc").glob("[0-9]*"):
        try:
            works = (process / "comm").read_text().startswith("git") and os.readlink(process / "cwd")
        except OSError:  # it ended just now, or is another user's
            continue
        if works and any(Path(works).is_relative_to(tree) for tree in trees):
            return True
    return False


# -----------------------------------------------------------------------------
# What keeps a search from beginning

UNFINISHED = {  # in git's folder -> what the user has not ended
    "MERGE_HEAD": "merge",
    "CHERRY_PICK_HEAD": "cherry-pick",
    "REVERT_HEAD": "revert",
    "rebase-apply/applying": "am",
    "rebase-apply": "rebase",
    "rebase-merge": "rebase",
    "BISECT_LOG": "bisect",
}


def unfinished(repo: Repository) -> str:
    """A merge, a rebase or the like that the user has not ended, with the way out, or ""."""
    folder = Path(run_git(repo, "rev-parse", "--absolute-git-dir"))
    found = next((what for name, what in UNFINISHED.items() if (folder / name).exists()), "")
    end = "reset" if found == "bisect" else "abort"
    return found and f"a git {found} is not ended here; end it first, or: git {found} {'--' * (end == 'abort')}{end}"


def in_the_way(repo: Repository, wanted: str) -> str:
    """The ref that git cannot have together with a wanted one, with the way out, or "": refs are files and folders."""
    parts = wanted.split("/")
    above = ["/".join(parts[:count]) for count in range(2, len(parts))]
    listed = run_git(repo, "for-each-ref", "--format=%(refname)", *above, f"{wanted}/").splitlines()
    found = next((ref for ref in listed if ref in above or ref.startswith(f"{wanted}/")), "")
    if not found:
        return ""
    name = found.removeprefix("refs/heads/")
    fix = f"git branch -m {name} old-{name.replace('/', '-')}" if name != found else f"git update-ref -d {found}"
    return f"{name} is in the way of {wanted.removeprefix('refs/heads/')}; rename or delete it: {fix}"


# -----------------------------------------------------------------------------
# Reading


def current_branch(repo: Repository) -> str:
    """The branch that is checked out, "" for a detached HEAD."""
    return run_git(repo, "symbolic-ref", "-q", "--short", "HEAD", check=False)


def commit_of(repo: Repository, revision: str) -> str:
    """The full hash of a commit, "" if there is none."""
    return run_git(repo, "rev-parse", "-q", "--verify", revision + "^{commit}", check=False)


def changed(repo: Repository, name: str) -> bool:
    """Return whether a file differs from the checked-out commit, or is not in it."""
    return bool(run_git(repo, "status", "--porcelain", "--untracked-files=all", "--ignored", "--", name))


def file_at(repo: Repository, commit: str, name: str) -> str:
    """The text of a file in a commit, "" if it is not there."""
    try:
        return run_git(repo, "cat-file", "blob", f"{commit}:{name}", strip=False)
    except GitError as error:
        if NO_SUCH_FILE.search(str(error)):
            return ""
        raise  # a partial clone cannot reach its remote, an object is damaged


def is_within(repo: Repository, commit: str, ref: str) -> bool:
    """Return whether a commit is in the history of a ref."""
    return run_git(repo, "merge-base", commit, ref, check=False) == commit


def experiment_ref(tag: str, number: int) -> str:
    return f"refs/autoresearch/{tag}/{number:04d}"


def repair_ref(tag: str, number: int, attempt: int) -> str:
    """Return where the train.py that crashed is kept when a repair takes its place."""
    return f"refs/autoresearch-repairs/{tag}/{number:04d}-{attempt}"


def home_ref(tag: str) -> str:
    """The ref that a search has in its own working tree only: git takes it into no other worktree and no clone."""
    return f"refs/worktree/autoresearch/{tag}"


def experiment_refs(repo: Repository, tag: str) -> list[int]:
    """The numbers of all experiments of a tag that have a commit, in order."""
    refs = run_git(repo, "for-each-ref", "--format=%(refname)", f"refs/autoresearch/{tag}/").split()
    return [int(ref.rpartition("/")[2]) for ref in refs]


# -----------------------------------------------------------------------------
# Writing


def commit_file(
    repo: Repository, parent: str, name: str, text: str, message: str, ref: str, merged: str = "", after: str = ""
) -> str:
    """Commit the tree of `parent` with `text` as its file `name`, and let `ref` point there. Returns the full hash.

    `merged`: a second parent, whose tree has no part in it. `after`: a commit whose date is earlier, also where the
    clock was set back. One git process does it all (git fast-import): no index and no working tree changes.
    """
    dates = run_git(repo, "show", "-s", "--format=%ct", parent, *([after] if after else [])).split()
    date = max(int(time.time()), max(map(int, dates)) + bool(after))
    head = f"commit {ref}\nmark :1\ncommitter {committer(repo)} {date} +0000\n".encode()
    parents = f"from {parent}\n" + (f"merge {merged}\n" if merged else "")
    body = f"{parents}M 100644 inline {name}\n".encode()
    stream = head + data_block(message) + body + data_block(text) + b"get-mark :1\ndone\n"
    return run_git(repo, "fast-import", "--quiet", "--force", "--done", data=stream)


@functools.cache
def committer(repo: Repository) -> str:
    """The name and address that commits are made under; where git knows only one of them, or none, ours fills in."""
    ident = run_git(repo, "var", "GIT_COMMITTER_IDENT", check=False)
    if not ident:
        known = {
            key: run_git(repo, "config", f"user.{key}", check=False) or os.environ.get(f"GIT_COMMITTER_{key.upper()}")
            for key in ("name", "email")
        }
        name, email = known["name"] or "autoresearch", known["email"] or "autoresearch@localhost"
        ident = run_git(repo, "-c", f"user.name={name}", "-c", f"user.email={email}", "var", "GIT_COMMITTER_IDENT")
    return ident.rsplit(" ", 2)[0]


def same_file(repo: Repository, one: str, other: str, name: str) -> bool:
    """Return whether a file is the same in two commits."""
    blobs = run_git(repo, "rev-parse", "-q", f"{one}:{name}", f"{other}:{name}", check=False).split()
    return len(blobs) == 2 and blobs[0] == blobs[1]


def data_block(text: str) -> bytes:
    encoded = text.encode()
    return b"data %d\n%s\n" % (len(encoded), encoded)
