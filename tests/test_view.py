"""Whoever looks, and however, costs a search nothing: on the real loop, with real terminals, pipes and a full disk."""

import contextlib
import os
import pty
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from loop_helpers import (
    PRINTED_LOOP,
    check_invariants,
    git,
    proposer_script,
    rows_of,
    set_level,
    wait_for,
)

STOP, GO_ON = b"\x13", b"\x11"  # Ctrl-S, Ctrl-Q
NIGHT = 300  # seconds after which a test has hung


def loop_line(repo: Path, *edits: str, experiments: int = 2) -> str:
    """The command line of a search, for a shell."""
    command = proposer_script(repo, list(edits) or [set_level(1.9), set_level(1.8)])
    arguments = [sys.executable, PRINTED_LOOP, "--tag", "t", "--experiments", str(experiments), "--command", command]
    return shlex.join(arguments)


def in_shell(repo: Path, line: str, **options) -> subprocess.Popen:
    return subprocess.Popen(["/bin/bash", "-c", line], cwd=repo, start_new_session=True, **options)


def log_of(repo: Path) -> str:
    path = repo / "runs/t/loop.log"
    return path.read_text(encoding="utf-8") if path.exists() else ""


def check_whole(repo: Path, said: str = "") -> None:
    """The search went to its end, and told loop.log all of it."""
    assert [row.val_bpb for row in rows_of(repo)] == [2.0, 1.9, 1.8], log_of(repo)
    check_invariants(repo)
    log = log_of(repo)
    assert "autoresearch/t: 2 experiments done." in log and re.search(r"best seen +1\.8", log)
    assert log.count("the view is gone") == (1 if said else 0) and said in log, log


@contextlib.contextmanager
def terminal(repo: Path, line: str):
    """(process, master) of a shell's line in a terminal of its own, which is its controlling one."""
    master, slave = pty.openpty()
    take = "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execvp('bash', sys.argv[1:])"
    command = [sys.executable, "-c", take, "bash", "-c", line]
    process = subprocess.Popen(command, cwd=repo, stdin=slave, stdout=slave, stderr=slave, start_new_session=True)
    os.close(slave)
    try:
        yield process, master
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        with contextlib.suppress(OSError):
            os.close(master)


def look(master: int, seen: list[bytes]) -> threading.Thread:
    """Read what a terminal shows, until it is gone."""

    def work() -> None:
        with contextlib.suppress(OSError):
            while chunk := os.read(master, 65536):
                seen.append(chunk)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


# -----------------------------------------------------------------------------
# A search


@pytest.mark.slow
@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{} | head -n 1", "stdout cannot be written (Broken pipe)"),
        ("{} > /dev/full 2>&1", "No space left on device"),
        ("{} >&- 2>&-", "Bad file descriptor"),
        ("{} | tee >(sleep 2; kill -9 $(pgrep -P $$ tee)) > /dev/null", "stdout cannot be written (Broken pipe)"),
        ("nohup {} & sleep 6; kill -HUP $!; wait $!", ""),
    ],
    ids=["head", "full", "closed", "tee", "nohup"],
)
def test_a_search_goes_on_whatever_becomes_of_its_output(repo, line, said):
    process = in_shell(repo, line.format(loop_line(repo)), stdin=subprocess.DEVNULL)
    process.wait(NIGHT)
    check_whole(repo, said)


@pytest.mark.slow
def test_a_search_outlives_its_terminal(repo):
    """As under setsid: nobody tells it that the terminal is gone, but every write gives EIO."""
    with terminal(repo, f"exec setsid -w {loop_line(repo)}") as (_, master):
        wait_for(lambda: rows_of(repo), NIGHT)
        os.close(master)
        wait_for(lambda: "best seen" in log_of(repo), NIGHT)
    check_whole(repo, "Input/output error")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_search_whose_terminal_is_suspended_goes_on_and_ends_at_a_signal(repo, number):
    thinking = repo.parent / "thinking"
    line = loop_line(repo, set_level(1.9), f"touch {thinking}; sleep 600")
    seen: list[bytes] = []
    with terminal(repo, f"exec {line}") as (process, master):
        look(master, seen)
        wait_for(lambda: b"autoresearch/t" in b"".join(seen), NIGHT)
        os.write(master, STOP)
        wait_for(thinking.exists, NIGHT)  # nothing that it had to say on the way could be shown
        began = time.monotonic()
        process.send_signal(number)
        assert process.wait(300) == 0
        assert time.monotonic() - began < 300
    assert [row.val_bpb for row in rows_of(repo)] == [2.0, 1.9]
    assert "stopped on request" in log_of(repo) and "it takes nothing at present" in log_of(repo)
    assert git(repo, "status", "--porcelain") == ""


@pytest.mark.slow
def test_what_an_llm_writes_need_not_be_printable_here(repo):
    words = "Größe² → ∞"
    edits = [set_level(1.9) + f"; printf '{words}' > description.txt"]
    env = os.environ | {"LC_ALL": "C", "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    process = in_shell(repo, loop_line(repo, *edits, experiments=1), env=env, stdout=subprocess.PIPE)
    out, _ = process.communicate(timeout=NIGHT)
    assert process.returncode == 0 and b"Gr??e? ? ?" in out, out
    assert words in log_of(repo)
    assert rows_of(repo)[1].description == f"{words} [suspiciously good]"
    assert git(repo, "log", "-1", "--format=%s", "refs/autoresearch/t/0001").startswith(f"0001: {words}")


# -----------------------------------------------------------------------------
# The other verbs


@pytest.mark.slow
def test_short_verbs_end_quietly(repo):
    git(repo, "branch", "autoresearch/t")
    loop = f"{sys.executable} agent_loop.py"
    for line in (f"{loop} --help | true", f"{loop} status --help | true", f"{loop} report --tag none | true"):
        ended = subprocess.run(["bash", "-c", line], cwd=repo, capture_output=True, text=True, timeout=NIGHT)
        assert "Traceback" not in ended.stderr and "Exception" not in ended.stderr
    ended = subprocess.run(f"{loop} status --help > /dev/full", shell=True, cwd=repo, capture_output=True, text=True)
    assert ended.returncode == 2 and ended.stderr.startswith("error: [Errno 28] No space left on device")
    assert ended.stderr.count("\n") == 1
