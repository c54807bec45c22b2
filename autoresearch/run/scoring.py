"""
From a train.py to its number: the training, then the scorer, which alone is shown the validation rows.

The scorer (autoresearch/judge/scorer.py) is a process in a sandbox of its own. It stays warm from run to run, one for
each slot, as importing torch takes longer than to score at the cpu scale.
"""

import contextlib
import json
import math
import os
import select
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from autoresearch.files import GRAPH, ROOT, data_root
from autoresearch.nouns import Json, RunResult
from autoresearch.run import sandbox
from autoresearch.run.training import RunOptions, run_training, safe_environment

MODULE = "autoresearch.judge.scorer"


class Scorer:
    """A handle on the scorer's process, which is started when it is first needed."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[bytes] | None = None
        self.socket: socket.socket | None = None
        self.folder: tempfile.TemporaryDirectory[str] | None = None

    def start(self, options: RunOptions) -> None:
        self.close()
        self.folder = tempfile.TemporaryDirectory(prefix="autoresearch-scorer-")
        folder = Path(self.folder.name).resolve()
        self.socket, its_end = socket.socketpair()
        caches = folder / "compile"
        command = [sys.executable, "-P", "-m", MODULE]
        limits = sandbox.make_limits(options.scale, options.memory_gb, options.runs_at_once)
        shown = [ROOT / "prepare_data.py", ROOT / "autoresearch", data_root() / options.scale]
        environment = safe_environment(options, caches)
        with open(folder / "scorer.log", "wb") as log:
            self.process = subprocess.Popen(
                sandbox.command_line(command, folder, shown, caches, options.sandbox, 0, limits),
                cwd=folder,
                env=environment,
                stdin=its_end.fileno(),
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        its_end.close()

    def watch(self, options: RunOptions) -> None:
        """Tell it that a run begins: from now on it sees how slow the machine is."""
        if self.process is None or self.process.poll() is not None:
            self.start(options)
        assert self.socket
        self.socket.sendall(b"watch\n")

    def score(self, folder: Path, options: RunOptions, should_stop: Callable[[], bool] = lambda: False) -> Json:
        """What the scorer says of the model in a folder: {"val_bpb": ...} or {"refused": why}; {} if it was stopped."""
        if self.process is None or self.process.poll() is not None:
            self.start(options)
        assert self.socket and self.process and self.folder
        with contextlib.ExitStack() as stack:
            files = [os.open(folder / name, os.O_RDONLY | os.O_NOFOLLOW) for name in GRAPH]
            for file in files:
                stack.callback(os.close, file)
            socket.send_fds(self.socket, [b"score test\n" if options.test else b"score\n"], files)
        said, deadline = b"", time.monotonic() + options.score_seconds
        while not said.endswith(b"\n"):
            if should_stop() or time.monotonic() > deadline:
                self.close()
                late = f"not scored within {options.score_seconds:.0f} s"
                return {} if time.monotonic() < deadline else {"refused": late}
            if select.select([self.socket], [], [], 0.2)[0]:
                chunk = b""
                with contextlib.suppress(ConnectionError):
                    chunk = self.socket.recv(65536)
                if not chunk:
                    raise RuntimeError(f"the scorer has ended: {self.last_words()}")
                said += chunk
        return json.loads(said)

    def last_words(self) -> str:
        """The last line of its log."""
        assert self.folder
        lines = Path(self.folder.name, "scorer.log").read_text(errors="replace").strip().splitlines()
        self.close()
        return lines[-1] if lines else "it printed nothing"

    def close(self) -> None:
        """End the process, if there is one."""
        if self.socket:
            self.socket.close()
        if self.process:
            self.process.terminate()  # the guard, which ends all that it started
            self.process.wait()
        if self.folder:
            self.folder.cleanup()
        self.process = self.socket = self.folder = None


def train_and_score(
    source: str,
    folder: Path,
    options: RunOptions,
    should_stop: Callable[[], bool] = lambda: False,
    on_progress: Callable[[str], None] = lambda line: None,
    *,
    scorer: Scorer,
) -> RunResult:
    """Train the text `source` once, and have its model scored; train.py, run.log and record.json are left in `folder`.

    A run that asks for another start, as it began with a long compilation, gets it once, on the cache that it filled,
    and at the cpu scale filled in a start without training rows. Nothing else is left of the starts before.
    """
    started = time.monotonic()
    if options.scale == "cpu":
        scorer.watch(options)
    result = run_training(source, folder, options, should_stop, on_progress)
    if result.status == "again" and options.scale == "cpu":  # filled once more, where there is nothing to learn
        sandbox.remove_own_caches(folder)
        result = run_training(source, folder, replace(options, start_limit=1, rows=False), should_stop, on_progress)
    if result.status == "again":
        result = run_training(source, folder, replace(options, start_limit=0), should_stop, on_progress)
    try:
        result = scored(result, folder, options, should_stop, scorer) if result.status == "ok" else result
        return replace(result, extra_seconds=time.monotonic() - started - result.seconds)
    finally:
        for name in GRAPH:
            (folder / name).unlink(missing_ok=True)


def scored(
    result: RunResult, folder: Path, options: RunOptions, should_stop: Callable[[], bool], scorer: Scorer
) -> RunResult:
    """A training that ended well, with its number."""
    if not all((folder / name).is_file() for name in GRAPH):
        return replace(result, status="crash", error="it ended without evaluate_bpb()")
    said = scorer.score(folder, options, should_stop)
    if not said:
        return replace(result, status="interrupted", error="stopped before it was scored")
    if "refused" in said:
        return replace(result, status="invalid", error=said["refused"])
    numbers: dict[str, float] = {name: said[name] for name in ("val_bpb", "test_bpb", "pace_seconds") if name in said}
    numbers |= {"scoring_seconds": said["seconds"]} if "seconds" in said else {}
    return replace(result, val_bpb=said["val_bpb"], measured=result.measured | numbers)


def score_once(folder: Path, scale: str) -> float:
    """The number of a model that was handed over in a folder, for a train.py that is run by hand. Raises ValueError."""
    with contextlib.closing(Scorer()) as scorer:
        said = scorer.score(folder, RunOptions(scale, 0, math.inf))
    if "refused" in said:
        raise ValueError(said["refused"])
    return said["val_bpb"]
