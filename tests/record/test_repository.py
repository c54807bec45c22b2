"""Git with all that users have in its way: hooks, settings, inherited variables, locks, other people's folders."""

import os
import shutil
import subprocess
import sys
import threading

import pytest
from loop_helpers import git, make_row

from autoresearch.record.ledger import Ledger, commit_results, write_result
from autoresearch.record.reading import read_experiment
from autoresearch.record.repository import (
    GitError,
    Repository,
    changed,
    commit_file,
    current_branch,
    file_at,
    in_the_way,
    open_repository,
    run_git,
    unfinished,
)
from autoresearch.row import HEADER

HOOKS = (
    "pre-commit",
    "post-commit",
    "post-checkout",
    "reference-transaction",
    "post-index-change",
    "fsmonitor-watchman",
)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A small repository whose user has no configuration of their own yet."""
    home = tmp_path / "home"
    home.mkdir()
    for name in [name for name in os.environ if name.startswith(("GIT_", "XDG_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    git(tmp_path, "config", "--global", "user.name", "Ada")
    git(tmp_path, "config", "--global", "user.email", "ada@localhost")
    return make(tmp_path / "repo")


def make(folder):
    folder.mkdir()
    (folder / "train.py").write_text("DEPTH = 2\n")
    (folder / "results.tsv").write_text(HEADER)
    git(folder, "init", "-q", "-b", "main")
    git(folder, "add", "-A")
    git(folder, "commit", "-qm", "start")
    return folder


def refused(folder, capsys) -> str:
    """The one line that open_repository() ends the program with."""
    with pytest.raises(SystemExit) as ended:
        open_repository(folder)
    said = capsys.readouterr().err
    assert ended.value.code == 2 and said.count("\n") == 1, said
    return said


# -----------------------------------------------------------------------------
# What is the user's


def test_no_hook_of_the_users_runs(folder, tmp_path):
    """Each would fail, and says that it ran: as git-lfs and husky do where their program is not installed."""
    hooks = tmp_path / "hooks"
    hooks.mkdir()
    for name in HOOKS:
        (hooks / name).write_text(f"#!/bin/sh\ntouch {tmp_path}/ran-{name}\nexit 1\n")
        (hooks / name).chmod(0o755)
    shutil.copytree(hooks, folder / ".git/hooks", dirs_exist_ok=True)
    git(folder, "config", "core.hooksPath", str(hooks))
    git(folder, "config", "core.fsmonitor", str(hooks / "fsmonitor-watchman"))
    repo = open_repository(folder)
    run_git(repo, "switch", "-c", "autoresearch/t")
    commit_file(repo, "HEAD", "train.py", "DEPTH = 3\n", "deeper", "refs/heads/autoresearch/t")
    run_git(repo, "checkout", "HEAD", "--", "train.py")
    run_git(repo, "update-ref", "refs/autoresearch/t/0001", "HEAD")
    assert not changed(repo, "train.py") and (folder / "train.py").read_text() == "DEPTH = 3\n"
    assert not list(tmp_path.glob("ran-*"))


@pytest.mark.parametrize(
    "settings",
    [
        {"color.ui": "always", "color.diff": "always", "diff.noprefix": "true", "diff.mnemonicPrefix": "true"},
        {"core.pager": "false", "pager.log": "false", "pager.show": "false", "log.showSignature": "true"},
        {"i18n.logOutputEncoding": "latin1", "i18n.commitEncoding": "latin1", "core.quotePath": "true"},
        {"status.showUntrackedFiles": "no", "status.short": "true", "status.branch": "true"},
        {"commit.gpgsign": "true", "gpg.program": "false", "core.autocrlf": "true", "core.safecrlf": "true"},
        {"diff.external": "false", "diff.python.textconv": "false", "diff.context": "0", "log.decorate": "full"},
        {"user.useConfigOnly": "true", "format.pretty": "oneline", "log.date": "relative", "log.follow": "true"},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_no_setting_of_the_users_changes_what_is_read(folder, settings, monkeypatch):
    (folder / ".gitattributes").write_text("*.py diff=python\n")
    git(folder, "add", ".gitattributes")
    git(folder, "commit", "-qm", "attributes")
    monkeypatch.setattr("autoresearch.record.ledger.ROOT", folder)
    for key, value in settings.items():
        git(folder, "config", "--global", key, value)
    repo = open_repository(folder)
    run_git(repo, "switch", "-c", "autoresearch/t")
    ledger = Ledger(repo, "t")
    write_result(ledger, make_row(description="müßig 测试"), -1, "DEPTH = 3\n", "müßig 测试", "keep")
    assert "0000: müßig 测试" in ledger.message_of(0)[1]
    diff = "diff --git a/train.py b/train.py\n"
    assert read_experiment(ledger, 0, "diff").startswith(diff) and "\n+DEPTH = 3" in read_experiment(ledger, 0, "diff")
    commit_results(ledger, "results")
    assert not changed(repo, "results.tsv") and not changed(repo, "train.py")
    (folder / "new.py").write_text("")
    assert changed(repo, "new.py")


@pytest.mark.parametrize(
    "variables",
    [
        {"GIT_DIR": "{other}/.git"},
        {"GIT_DIR": "{other}/.git", "GIT_WORK_TREE": "{other}", "GIT_PREFIX": "sub/"},
        {"GIT_INDEX_FILE": "{other}/.git/index"},
        {"GIT_OBJECT_DIRECTORY": "{other}/.git/objects", "GIT_QUARANTINE_PATH": "{other}/.git/objects"},
        {"GIT_COMMON_DIR": "{other}/.git"},
        {"GIT_NAMESPACE": "other", "GIT_LITERAL_PATHSPECS": "1"},
        {"GIT_CONFIG_PARAMETERS": "'core.worktree={other}'"},
        {"GIT_CEILING_DIRECTORIES": "/", "GIT_EXTERNAL_DIFF": "false", "GIT_PAGER": "false", "GIT_TRACE": "1"},
    ],
    ids=str,
)
def test_a_hook_or_an_alias_that_starts_us_leads_to_no_other_repository(folder, tmp_path, variables, monkeypatch):
    other = make(tmp_path / "other")
    before = subprocess.run(["git", "show-ref"], cwd=other, capture_output=True).stdout, (other / ".git/index").stat()
    for name, value in variables.items():
        monkeypatch.setenv(name, value.format(other=other))
    repo = open_repository(folder)
    run_git(repo, "switch", "-c", "autoresearch/t")
    commit_file(repo, "HEAD", "results.tsv", f"{HEADER}x\n", "row", "refs/heads/autoresearch/t")
    (folder / "results.tsv").write_text(f"{HEADER}x\n")
    run_git(repo, "add", "results.tsv")
    for name in variables:
        monkeypatch.delenv(name, raising=False)
    assert git(folder, "log", "--format=%s") == "row\nstart" and git(folder, "status", "--porcelain") == ""
    assert git(folder, "branch", "--show-current") == "autoresearch/t"
    after = subprocess.run(["git", "show-ref"], cwd=other, capture_output=True).stdout, (other / ".git/index").stat()
    assert after[0] == before[0] and after[1].st_mtime_ns == before[1].st_mtime_ns


@pytest.mark.parametrize(
    ("known", "name"),
    [
        ({}, "autoresearch <autoresearch@localhost>"),
        ({"user.email": "ada@localhost"}, "autoresearch <ada@localhost>"),
        ({"user.name": "Ada"}, "Ada <autoresearch@localhost>"),
        ({"user.name": "Ada <&> Co", "user.email": "ada@localhost"}, "Ada & Co <ada@localhost>"),
        ({"committer.name": "Bot", "user.email": "ada@localhost"}, "Bot <ada@localhost>"),
    ],
    ids=str,
)
def test_half_an_identity_is_enough(folder, known, name):
    for key in ("user.name", "user.email"):
        git(folder, "config", "--global", "--unset", key)
    git(folder, "config", "--global", "user.useConfigOnly", "true")
    for key, value in known.items():
        git(folder, "config", "--global", key, value)
    commit_file(open_repository(folder), "HEAD", "train.py", "DEPTH = 3\n", "deeper", "refs/heads/other")
    assert git(folder, "log", "-1", "--format=%cn <%ce>", "other") == name


def test_an_ignored_table_is_committed_and_an_ignored_train_py_counts_as_not_there(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("autoresearch.record.ledger.ROOT", folder)
    git(folder, "rm", "-q", "--cached", "results.tsv", "train.py")
    git(folder, "commit", "-qm", "without")
    (tmp_path / "ignored").write_text("*.tsv\ntrain.py\n")
    git(folder, "config", "--global", "core.excludesFile", str(tmp_path / "ignored"))
    repo = open_repository(folder)
    assert changed(repo, "train.py") and changed(repo, "results.tsv")
    run_git(repo, "switch", "-c", "autoresearch/t")
    commit_results(Ledger(repo, "t"), "results")
    assert not changed(repo, "results.tsv") and file_at(repo, "HEAD", "results.tsv") == HEADER


# -----------------------------------------------------------------------------
# What cannot be used


def test_a_folder_inside_another_repository_is_refused_and_the_line_says_how_to_go_on(folder, capsys):
    (folder / "sub dir").mkdir()
    inside = folder / "sub dir"
    shutil.copy(folder / "train.py", inside)
    said = refused(inside, capsys)
    assert f"is a folder inside the git repository {folder}; make it a repository of its own: " in said
    subprocess.run(said.partition("of its own: ")[2], shell=True, check=True, capture_output=True)
    assert file_at(open_repository(inside), "HEAD", "train.py") == "DEPTH = 2\n"


def test_a_worktree_and_a_submodule_are_repositories(folder, tmp_path):
    git(folder, "worktree", "add", "-q", "-b", "side", str(tmp_path / "tree"))
    super_folder = make(tmp_path / "super")
    git(super_folder, "-c", "protocol.file.allow=always", "submodule", "--quiet", "add", str(folder), "sub")
    for checkout, branch in ((tmp_path / "tree", "side"), (super_folder / "sub", "main")):
        repo = open_repository(checkout)
        assert current_branch(repo) == branch
        commit_file(repo, "HEAD", "train.py", "DEPTH = 3\n", "deeper", "refs/autoresearch/t/0001")
        assert file_at(repo, "refs/autoresearch/t/0001", "train.py") == "DEPTH = 3\n"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder to another user")
def test_the_folder_of_another_user_is_refused_with_the_line_to_paste(folder, capsys):
    os.chown(folder, 12345, 12345)
    os.chown(folder / ".git", 12345, 12345)
    said = refused(folder, capsys)
    assert "belongs to another user" in said
    subprocess.run(said.partition("if you trust it: ")[2], shell=True, check=True)
    assert current_branch(open_repository(folder)) == "main"


def test_what_is_no_repository_is_refused_in_one_line(folder, tmp_path, capsys, monkeypatch):
    (tmp_path / "none").mkdir()
    assert "is not a git repository; run there: git init" in refused(tmp_path / "none", capsys)
    git(tmp_path / "none", "init", "-q")
    assert "without a commit; run there: git add -A && git commit" in refused(tmp_path / "none", capsys)
    with open(folder / ".git/config", "a") as file:
        file.write("[broken\n")
    assert "bad config line" in refused(folder, capsys)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "there is no git in PATH; install it" in refused(folder, capsys)


def test_without_git_nothing_is_imported_that_needs_it(tmp_path):
    import_all = "import agent_loop; import autoresearch.verbs.status, autoresearch.verbs.check"
    done = subprocess.run(
        [sys.executable, "-c", import_all], env=os.environ | {"PATH": str(tmp_path)}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("begin", "end"),
    [
        ("git merge side", "git merge --abort"),
        ("git rebase side", "git rebase --abort"),
        ("git cherry-pick side", "git cherry-pick --abort"),
        ("git format-patch -1 --stdout side | git am", "git am --abort"),
        ("git bisect start", "git bisect reset"),
    ],
)
def test_what_the_user_has_not_ended_is_named_with_the_way_out(folder, begin, end):
    git(folder, "switch", "-qc", "side")
    (folder / "train.py").write_text("DEPTH = 3\n")
    git(folder, "commit", "-qam", "side")
    git(folder, "switch", "-q", "main")
    (folder / "train.py").write_text("DEPTH = 4\n")
    git(folder, "commit", "-qam", "main")
    repo = open_repository(folder)
    assert unfinished(repo) == ""
    subprocess.run(begin, shell=True, cwd=folder, capture_output=True)
    assert unfinished(repo).endswith(f"is not ended here; end it first, or: {end}")
    subprocess.run(end, shell=True, cwd=folder, check=True, capture_output=True)
    assert unfinished(repo) == ""


@pytest.mark.parametrize("there", ["refs/heads/autoresearch", "refs/heads/autoresearch/t/x", "refs/autoresearch/t"])
def test_a_ref_in_the_way_is_named_with_the_way_out(folder, there):
    repo = open_repository(folder)
    wanted = ["refs/heads/autoresearch/t", "refs/autoresearch/t/0000"]
    run_git(repo, "update-ref", "refs/heads/autoresearch-of-mine", "HEAD")
    assert not any(in_the_way(repo, ref) for ref in wanted)
    run_git(repo, "update-ref", there, "HEAD")
    said = next(filter(None, (in_the_way(repo, ref) for ref in wanted)))
    assert f"{there.removeprefix('refs/heads/')} is in the way of " in said
    subprocess.run(said.partition("delete it: ")[2], shell=True, cwd=folder, check=True)
    for ref in wanted:
        assert not in_the_way(repo, ref)
        run_git(repo, "update-ref", ref, "HEAD")


def test_a_blob_that_a_partial_clone_cannot_fetch_is_an_error_and_no_empty_file(folder, tmp_path):
    git(folder, "config", "uploadpack.allowFilter", "true")
    clone = tmp_path / "clone"
    (folder / "train.py").write_text("DEPTH = 3\n")
    git(folder, "commit", "-qam", "deeper")
    git(tmp_path, "clone", "-q", "--filter=blob:none", f"file://{folder}", str(clone))
    repo = open_repository(clone)
    assert file_at(repo, "HEAD", "train.py") == "DEPTH = 3\n" and file_at(repo, "HEAD", "other.py") == ""
    git(clone, "remote", "set-url", "origin", f"file://{tmp_path}/gone")
    with pytest.raises(GitError):
        file_at(repo, "HEAD^", "train.py")
    assert file_at(repo, "no-such-ref", "train.py") == ""


def test_a_shallow_clone_and_a_detached_head_are_good_enough(folder, tmp_path):
    git(folder, "commit", "-q", "--allow-empty", "-m", "second")
    git(tmp_path, "clone", "-q", "--depth", "1", f"file://{folder}", "shallow")
    git(tmp_path / "shallow", "switch", "-q", "--detach")
    repo = open_repository(tmp_path / "shallow")
    assert current_branch(repo) == ""
    run_git(repo, "switch", "-c", "autoresearch/t")
    commit_file(repo, "HEAD", "train.py", "DEPTH = 3\n", "deeper", "refs/heads/autoresearch/t")
    assert file_at(repo, "autoresearch/t", "train.py") == "DEPTH = 3\n"


# -----------------------------------------------------------------------------
# Locks


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["plain", "worktree", "submodule"])
def test_stale_locks_are_removed_wherever_they_are(folder, tmp_path, kind, monkeypatch):
    monkeypatch.setattr("autoresearch.record.repository.LOCK_PATIENCE", 0.5)
    checkout = {"plain": folder, "worktree": tmp_path / "tree", "submodule": tmp_path / "super/sub"}[kind]
    if kind == "worktree":
        git(folder, "worktree", "add", "-q", "-b", "side", str(checkout))
    elif kind == "submodule":
        git(make(tmp_path / "super"), "-c", "protocol.file.allow=always", "submodule", "add", str(folder), "sub")
    said: list[str] = []
    repo = Repository(checkout, said.append)
    common = checkout / run_git(repo, "rev-parse", "--git-common-dir")
    own = checkout / run_git(repo, "rev-parse", "--git-dir")
    (common / "refs/autoresearch/t").mkdir(parents=True)
    branch = current_branch(repo)
    locks = [own / "index.lock", own / "HEAD.lock", common / "refs/autoresearch/t/0001.lock"]
    locks += [common / f"refs/heads/{branch}.lock", common / "packed-refs.lock"]
    for lock in locks:
        lock.touch()
    commit_file(repo, "HEAD", "train.py", "DEPTH = 3\n", "deeper", "refs/autoresearch/t/0001")
    commit_file(repo, "HEAD", "train.py", "DEPTH = 3\n", "deeper", f"refs/heads/{branch}")
    run_git(repo, "checkout", "HEAD", "--", "train.py")
    run_git(repo, "switch", "-c", "autoresearch/t")
    run_git(repo, "pack-refs", "--all")
    assert [lock for lock in locks if lock.exists()] == [] and len(said) == len(locks)
    assert all("was left behind by a git that is gone; it is removed" in line for line in said)


def test_the_lock_of_a_git_that_works_is_waited_for(folder, monkeypatch):
    monkeypatch.setattr("autoresearch.record.repository.LOCK_PATIENCE", 0.5)
    repo, lock = Repository(folder, pytest.fail), folder / ".git/index.lock"
    lock.touch()
    git_at_work = subprocess.Popen(["git", "cat-file", "--batch"], cwd=folder, stdin=subprocess.PIPE)
    try:
        with pytest.raises(GitError, match=r"index\.lock"):
            run_git(repo, "add", "train.py")
        remover = threading.Timer(0.3, lock.unlink)
        remover.start()
        run_git(repo, "add", "train.py")
        remover.join()
    finally:
        git_at_work.communicate()
    assert not lock.exists()
