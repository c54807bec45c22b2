"""Starts that a repository does not allow: one line with the way out, exit code 2, and nothing is touched."""

import errno
import fcntl
import os
import re
import shutil
import socket
import subprocess
import sys
import threading

import pytest
from loop_helpers import (
    ROOT,
    check_invariants,
    git,
    proposer_script,
    rows_of,
    run_loop,
    set_level,
)

from autoresearch.loop.start import locked

VERBS = [
    ["--experiments", "1", "--tag", "t", "--command", "x"],
    ["check", "--tag", "t", "--proposer", "constants"],
    ["status"],
    ["report"],
    ["ablate"],
    ["promote"],
    ["profile"],
    ["propose"],
]


def state(folder) -> dict[str, str]:
    """All that a start could change: files, refs, the branch, the index."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    files = {str(path): path.read_bytes().hex() for path in paths if path.name != "lock"}
    return files | {"refs": git(folder, "show-ref", "--head"), "status": git(folder, "status", "--porcelain")}


def start(folder, *words, **env) -> subprocess.CompletedProcess:
    command = [sys.executable, "agent_loop.py", *words]
    return subprocess.run(command, cwd=folder, env=os.environ | env, capture_output=True, text=True, timeout=900)


def refused(folder, *words, **env) -> str:
    """The one line that a command is refused with."""
    done = start(folder, *words, **env)
    said = done.stdout if words[0] == "check" else done.stderr
    assert done.returncode == 2 and "Traceback" not in done.stdout + done.stderr, done.stdout + done.stderr
    assert words[0] == "check" or said.count("\n") == 1, said
    return re.sub(r"\n +fix: ", "; ", said)


@pytest.mark.slow
@pytest.mark.parametrize("words", VERBS, ids=lambda words: words[0])
def test_a_folder_inside_another_repository_is_refused(repo, words):
    shutil.rmtree(repo / ".git")
    outer = repo.parent
    git(outer, "init", "-q")
    git(outer, "-c", "user.name=t", "-c", "user.email=t@t", "commit", "-q", "--allow-empty", "-m", "outer")
    before = state(outer)
    assert f"{repo} is a folder inside the git repository {outer}; make it a" in refused(repo, *words)
    assert {name for name, value in state(outer).items() - before.items()} <= {"status"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("breakage", "message"),
    [
        ("git branch autoresearch", "autoresearch is in the way of autoresearch/t; "),
        ("git update-ref refs/autoresearch/t HEAD", "refs/autoresearch/t is in the way of refs/autoresearch/t/0000; "),
        ("git bisect start", "a git bisect is not ended here; end it first, or: git bisect reset"),
        ("git rm -q --cached train.py; echo train.py > .git/info/exclude; git commit -qm x", "git add -f train.py"),
    ],
)
def test_a_repository_that_is_not_ready_is_left_as_it_is(repo, breakage, message):
    subprocess.run(breakage, shell=True, cwd=repo, check=True, capture_output=True)
    before = state(repo)
    assert message in refused(repo, *VERBS[0])
    assert state(repo) == before


@pytest.mark.parametrize("words", [VERBS[0], VERBS[1]], ids=["start", "check"])
def test_a_tag_that_no_file_can_be_named_by_is_refused(repo, words):
    words = [word if word != "t" else "t" * 300 for word in words]
    done = start(repo, *words)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1) and "should be letters, digits, - and _" in done.stderr


@pytest.mark.slow
def test_a_search_goes_on_where_users_have_hooks_settings_and_an_ignored_table(repo, tmp_path):
    """And in a worktree, from a detached HEAD, with half an identity, called by a hook of another repository."""
    (tmp_path / "ignored").write_text("*.tsv\n")
    config = tmp_path / "config"
    config.write_text(
        f"[core]\nhooksPath = {tmp_path}/hooks\nexcludesFile = {tmp_path}/ignored\n[commit]\ngpgsign = true\n"
        "[color]\nui = always\n[user]\nemail = ada@localhost\nuseConfigOnly = true\n[log]\nshowSignature = true\n"
    )
    (tmp_path / "hooks").mkdir()
    for name in ("post-checkout", "reference-transaction", "pre-commit"):
        (tmp_path / "hooks" / name).write_text("#!/bin/sh\nexit 1\n")
        (tmp_path / "hooks" / name).chmod(0o755)
    git(repo, "config", "--unset", "user.email")
    git(repo, "config", "--unset", "user.name")
    git(repo, "worktree", "add", "-q", "--detach", str(tmp_path / "tree"))
    env = {"GIT_CONFIG_GLOBAL": str(config), "GIT_DIR": str(ROOT / ".git"), "GIT_INDEX_FILE": str(ROOT / ".git/index")}
    tree = tmp_path / "tree"
    done = run_loop(tree, "--experiments", "1", "--command", proposer_script(tree, [set_level(1.9)]), env=env)
    assert done.returncode == 0 and "fault" not in done.stdout, done.stdout + done.stderr
    check_invariants(tree)
    assert git(tree, "log", "-1", "--format=%cn <%ce>") == "autoresearch <ada@localhost>"


# -----------------------------------------------------------------------------
# Another machine


def lines_of_the_page(tag: str, url: str, folder: str) -> list[str]:
    """The commands of docs/git.md, word for word but for its words in capitals."""
    page = (ROOT / "docs/git.md").read_text().partition("## Move a search")[2]
    lines = re.findall(r"^    (.+)$", page, re.MULTILINE)
    return [
        line.replace("TAG", tag).replace("URL", url).replace("MACHINE:FOLDER", folder).replace("--hours 8", "")
        for line in lines
    ]


@pytest.fixture
def moved(repo, tmp_path):
    """(a search on one machine, what it pushed to, where a clone of that will be), and the lines that make it."""
    done = run_loop(repo, "--experiments", "1", "--command", proposer_script(repo, [set_level(1.9)]))
    assert done.returncode == 0, done.stderr
    git(tmp_path, "clone", "-q", "--bare", str(repo), "hub.git")
    git(repo, "remote", "add", "origin", f"file://{tmp_path}/hub.git")
    (tmp_path / "new").mkdir()
    return lines_of_the_page("t", f"file://{tmp_path}/hub.git", str(repo))


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("rsync"), reason="rsync is not installed")
def test_a_search_moves_to_another_machine_by_the_lines_of_the_page(repo, moved, tmp_path):
    new, (push, clone, fetch, copy, go_on) = tmp_path / "new/autoresearch", moved
    subprocess.run(push, shell=True, cwd=repo, check=True, capture_output=True)
    subprocess.run(clone, shell=True, cwd=tmp_path / "new", check=True, capture_output=True)
    for name in ("user.email", "user.name"):
        git(new, "config", name, "test@localhost")
    repo.rename(tmp_path / "elsewhere")  # on another machine, nothing is where it was
    for line in (fetch, copy.replace(str(repo), str(tmp_path / "elsewhere"))):
        subprocess.run(line, shell=True, cwd=new, check=True, capture_output=True)
    assert go_on == "python agent_loop.py  --tag t"
    done = run_loop(new, "--experiments", "2", "--command", proposer_script(new, [set_level(1.9), set_level(1.8)]))
    assert done.returncode == 0 and "left out" not in done.stdout, done.stdout + done.stderr
    assert [row.val_bpb for row in rows_of(new)] == [2.0, 1.9, 1.8]
    check_invariants(new)


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("rsync"), reason="rsync is not installed")
@pytest.mark.parametrize("done", [[], ["fetch"], ["copy"], ["switch"], ["fetch", "copy"]], ids=str)
def test_a_clone_that_lacks_a_part_is_refused_with_the_commands_that_bring_it(repo, moved, tmp_path, done):
    new, (push, clone, fetch, copy, _) = tmp_path / "new/autoresearch", moved
    subprocess.run(push, shell=True, cwd=repo, check=True, capture_output=True)
    git(repo, "push", "-q", "origin", "main")
    git(tmp_path / "hub.git", "symbolic-ref", "HEAD", "refs/heads/main")  # so a clone begins there
    lines = {"fetch": fetch, "copy": f"mkdir -p runs && {copy}", "switch": clone.rpartition(" && ")[2]}
    subprocess.run(clone.rpartition(" && ")[0], shell=True, cwd=tmp_path / "new", check=True, capture_output=True)
    for name in done:
        subprocess.run(lines[name], shell=True, cwd=new, check=True, capture_output=True)
    before = state(new)
    for words in (VERBS[0], ["status", "--tag", "t"], ["ablate", "--tag", "t"]):
        said = refused(new, *words)
        assert fetch in said and "rsync -a MACHINE:FOLDER/runs/t runs/" in said
        assert ("git switch autoresearch/t" in said) == ("switch" not in done)
    assert state(new) == before
    bring = said.partition("another --tag: ")[2].replace("MACHINE:FOLDER", str(repo))
    subprocess.run(bring, shell=True, cwd=new, check=True, capture_output=True)
    assert "best" in start(new, "status").stdout
    for name in ("user.email", "user.name"):
        git(new, "config", name, "test@localhost")
    command = proposer_script(new, [set_level(1.9), set_level(1.8)])
    assert run_loop(new, "--experiments", "2", "--command", command).returncode == 0
    assert [row.val_bpb for row in rows_of(new)] == [2.0, 1.9, 1.8]


@pytest.mark.slow
def test_a_worktree_without_runs_is_another_machine_and_a_folder_whose_runs_are_gone_is_not(repo, moved, tmp_path):
    git(repo, "switch", "-q", "main")
    git(repo, "worktree", "add", "-q", str(tmp_path / "tree"), "autoresearch/t")
    assert "runs/t are not in this one" in refused(tmp_path / "tree", *VERBS[0])
    git(repo, "worktree", "remove", "--force", str(tmp_path / "tree"))
    shutil.rmtree(repo / "runs")
    command = proposer_script(repo, [set_level(1.9), set_level(1.8)])
    assert run_loop(repo, "--experiments", "2", "--command", command).returncode == 0
    assert [row.val_bpb for row in rows_of(repo)] == [2.0, 1.9, 1.8]


# -----------------------------------------------------------------------------
# A machine without what others have


@pytest.mark.skipif(not shutil.which("bwrap"), reason="bubblewrap is not installed")
@pytest.mark.parametrize("script", [["prepare_data.py"], ["agent_loop.py", *VERBS[0]], ["agent_loop.py", "status"]])
def test_a_user_without_a_home_is_told_what_to_set(repo, script):
    nobody = [
        "bwrap",
        "--dev-bind",
        "/",
        "/",
        "--unshare-user",
        "--uid",
        "54321",
        "--gid",
        "54321",
        "--unsetenv",
        "HOME",
    ]
    env = {name: value for name, value in os.environ.items() if name != "AUTORESEARCH_DATA_DIR"}
    command = [*nobody, sys.executable, *script]
    done = subprocess.run(command, cwd=repo, env=env, capture_output=True, text=True, timeout=900)
    assert "Traceback" not in done.stderr and (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert script[-1] == "status" or done.stderr.endswith("set AUTORESEARCH_DATA_DIR\n")


@pytest.mark.skipif(not shutil.which("bwrap"), reason="bubblewrap is not installed")
@pytest.mark.parametrize("words", [VERBS[0], VERBS[2], VERBS[3]], ids=["start", "status", "report"])
def test_a_read_only_disk_is_one_line(repo, words):
    command = ["bwrap", "--dev-bind", "/", "/", "--ro-bind", str(repo), str(repo), sys.executable, "agent_loop.py"]
    done = subprocess.run([*command, *words], cwd=repo, capture_output=True, text=True, timeout=900)
    assert "Traceback" not in done.stderr and (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert words != VERBS[0] or "Read-only file system" in done.stderr


def test_a_file_system_without_locks_is_told(tmp_path, monkeypatch, capsys):
    def refuse(file, how):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", refuse)
    with locked(tmp_path, print):
        assert "cannot be locked (No locks available): nothing keeps a second loop out" in capsys.readouterr().out
        assert (tmp_path / "lock").read_text() == f"{os.getpid()} on {socket.gethostname()}"


def test_one_loop_at_a_time_and_a_look_of_status_is_waited_out(tmp_path):
    with locked(tmp_path, print), pytest.raises(SystemExit), locked(tmp_path, print):
        pass
    with open(tmp_path / "lock") as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        threading.Timer(0.15, fcntl.flock, (file, fcntl.LOCK_UN)).start()
        with locked(tmp_path, print):
            pass
