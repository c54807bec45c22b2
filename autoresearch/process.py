"""
A process, run to its end under its guard (guard.py), and its output in a capped log. When run_process() returns, all
that it started is gone; so it is when the loop ends, however it ends.
"""

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from autoresearch import guard

LOG_LIMIT = 10_000_000  # bytes of a log that are kept, besides its end
TAIL = 100_000  # bytes of the end of a log: the summary, or the exception, which torch.compile makes long
GRACE = 5.0  # seconds between SIGTERM and SIGKILL
STOP_SIGNALS = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}


def stop_on_signals(stop: threading.Event) -> None:
    """Set `stop` when a signal asks for the end; a hang-up does not, where nohup has it ignored."""
    for number in STOP_SIGNALS:
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, lambda *_: stop.set())


@dataclass
class Ended:
    """The end of a process: by itself ("exit", with its code), at its limit ("timeout"), or on request ("stopped")."""

    how: str
    code: int | None
    tail: str
    seconds: float


class CappedLog:
    """A log file of at most LOG_LIMIT bytes, and the end of what was written however long it got."""

    def __init__(self, path: Path):
        self.file = open(path, "wb")  # noqa: SIM115 (close() is called in run_process)
        self.written, self.tail = 0, b""

    def write(self, chunk: bytes) -> None:
        self.file.write(chunk[: max(0, LOG_LIMIT - self.written)])
        self.file.flush()
        self.written += len(chunk)
        self.tail = (self.tail + chunk)[-TAIL:]

    def close(self) -> str:
        if self.written > LOG_LIMIT:
            self.file.write(b"\n[... cut: %d bytes in all, the last follow ...]\n" % self.written + self.tail)
        self.file.close()
        return self.tail.decode(errors="replace")


def read_pipe(pipe: IO[bytes], wait: float) -> bytes | None:
    """Read a pipe, after waiting for at most `wait` seconds: b"" if nothing came, None if it is closed."""
    ready, _, _ = select.select([pipe], [], [], wait)
    return (os.read(pipe.fileno(), 65536) or None) if ready else b""


def under_guard(command: list[str], grace: float, limits: dict[str, Any] | None = None) -> list[str]:
    """The command line that runs `command` under guard.py, which ends all that it started: also when this process is
    killed, and where it is over the limits, if any are given (run/sandbox.py makes them)."""
    plan = {"parent": os.getpid(), "grace": grace} | (limits or {})
    # -I -S: no user's code and no site-packages in the guard, and a start in 30 ms
    return [sys.executable, "-I", "-S", guard.__file__, json.dumps(plan), *command]


def run_process(
    command: list[str],
    cwd: Path,
    env: dict[str, str],
    log_path: Path,
    limit: float,
    should_stop: Callable[[], bool] = lambda: False,
    on_output: Callable[[str], None] = lambda tail: None,
) -> Ended:
    """Run `command`, which under_guard() has made, for at most `limit` seconds of wall-clock time.

    `should_stop` is asked about five times a second; `on_output` gets the end of the output whenever there is more.
    """
    started, how, log = time.monotonic(), "exit", CappedLog(log_path)
    process = subprocess.Popen(
        command,
        cwd=cwd,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    assert process.stdout
    try:
        while process.poll() is None:
            if time.monotonic() - started > limit:
                how = "timeout"
                break
            if should_stop():
                how = "stopped"
                break
            chunk = read_pipe(process.stdout, 0.2)
            if chunk is None:  # it ends now, or has closed its output and lives on
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(0.2)
            elif chunk:
                log.write(chunk)
                on_output(log.tail.decode(errors="replace"))
    finally:
        process.terminate()  # the guard, which gives the run GRACE seconds and then needs a moment
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(GRACE + 5)
        process.kill()
        process.wait()
        for _ in range(16):  # what it wrote before it died: a pipe holds no more than this
            log.write(read_pipe(process.stdout, 0) or b"")
        process.stdout.close()
        tail = log.close()
    return Ended(how, process.returncode, tail, time.monotonic() - started)
