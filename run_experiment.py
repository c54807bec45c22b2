"""
One run: the text of a train.py in, a RunResult out. Used by agent_loop.py; knows nothing of git, history or judgement.

The training is a process in a session of its own: nothing that it prints, forks or hangs on can reach the loop, and the
whole process group is gone when run_process() returns. Its environment holds what a training needs and no secret.
sandbox.py decides what else it may see, write and use up.
"""

import contextlib
import ctypes
import math
import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import sandbox

ROOT = Path(__file__).resolve().parent
LOG_LIMIT = 10_000_000  # bytes of a log that are kept, besides its end
TAIL = 20_000  # bytes of the end of a log: the summary, or the exception
LIBC = ctypes.CDLL(None)
GRACE = 5.0  # seconds between SIGTERM and SIGKILL
SAFE_VARIABLES = re.compile(
    r"PATH|HOME|USER|LANG|LC_\w+|TZ|TMPDIR|VIRTUAL_ENV|LD_LIBRARY_PATH|XDG_CACHE_HOME|AUTORESEARCH_\w+"
    r"|CUDA_\w+|NVIDIA_\w+|(PY)?TORCH(INDUCTOR)?_\w+|TRITON_\w+|OMP_\w+|MKL_\w+"
)

# -----------------------------------------------------------------------------
# Processes


def fail(message: str):
    """End the program with one line on stderr and exit code 2: the mistake is the user's to mend."""
    print(f"error: {message}", file=sys.stderr)
    raise SystemExit(2)


@dataclass
class Ended:
    """How a process ended: by itself ("exit", with its code), at its limit ("timeout"), or on request ("stopped")."""

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


def read_pipe(pipe, wait: float) -> bytes | None:
    """What a pipe holds now, after waiting at most `wait` seconds for it: b"" if nothing came, None if it is closed."""
    ready, _, _ = select.select([pipe], [], [], wait)
    return (os.read(pipe.fileno(), 65536) or None) if ready else b""


def die_with_loop() -> None:
    """Called in the child: Linux shall kill it if the loop is killed, or it would hold the GPU of the next loop."""
    if sys.platform == "linux":
        PR_SET_PDEATHSIG = 1
        LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def kill_group(process: subprocess.Popen, grace: float) -> None:
    """SIGTERM to the whole group, SIGKILL after `grace` seconds to what is left of it. The leader is reaped."""
    for number, wait in ((signal.SIGTERM, grace), (signal.SIGKILL, None)):
        try:
            os.killpg(process.pid, number)
        except (ProcessLookupError, PermissionError):  # nobody left (macOS says the latter of a zombie)
            break
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(wait)
    process.wait()


def run_process(
    command: list[str],
    cwd: Path,
    env: dict[str, str],
    log_path: Path,
    limit: float,
    should_stop: Callable[[], bool] = lambda: False,
    on_output: Callable[[str], None] = lambda tail: None,
    grace: float | None = None,
) -> Ended:
    """Run `command` for at most `limit` seconds of wall-clock time, its output in `log_path`, and kill its whole group.

    `should_stop` is asked about five times a second; `on_output` gets the end of the output whenever there is more.
    `grace`: seconds between SIGTERM and SIGKILL, GRACE by default.
    """
    started, how, log = time.monotonic(), "exit", CappedLog(log_path)
    options = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    process = subprocess.Popen(command, cwd=cwd, env=env, start_new_session=True, preexec_fn=die_with_loop, **options)
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
        kill_group(process, (GRACE if grace is None else grace) if process.poll() is None else 0)
        for _ in range(16):  # what it wrote before it died: a pipe holds no more than this
            log.write(read_pipe(process.stdout, 0) or b"")
        process.stdout.close()
        tail = log.close()
    return Ended(how, process.returncode, tail, time.monotonic() - started)


# -----------------------------------------------------------------------------
# Runs


@dataclass
class RunResult:
    """What came of one training. `status`: ok, crash, timeout, interrupted, or invalid if it is not believed."""

    status: str
    seconds: float  # wall-clock, of the whole process
    val_bpb: float = math.nan
    memory_gb: float = 0.0
    summary: dict[str, float] = field(default_factory=dict)  # the lines after the final ---
    error: str = ""  # one line: why there is no number
    tail: str = ""  # the last 30 lines of the log
    losses: list[tuple[float, float]] = field(default_factory=list)  # (percent of the budget, training loss), some


def last_lines(text: str, count: int = 30) -> str:
    """The last lines as a terminal would show them: of what a carriage return overwrote, only the end remains."""
    lines = [line.rstrip("\r").rpartition("\r")[2].rstrip() for line in text.split("\n")]
    return "\n".join([line for line in lines if line][-count:])


def parse_summary(text: str) -> dict[str, float]:
    """The `name: number` lines after the last --- line."""
    *before, summary = re.split(r"^---\r?$", text, flags=re.MULTILINE)
    pairs = re.findall(r"^(\w+):\s+(\S+)$", summary, re.MULTILINE) if before else []
    return {name: float(value) for name, value in pairs if re.fullmatch(r"[-+]?(\d+\.?\d*(e[-+]?\d+)?|nan|inf)", value)}


def find_error(tail: str) -> str:
    """The line that names the exception, or else the last line."""
    lines = [line.strip() for line in tail.splitlines() if line.strip()]
    named = [line for line in lines if re.match(r"[\w.]*(Error|Exception|Exit|Interrupt|Warning)\b", line)]
    return (named or lines or ["no output"])[-1][:300]


def parse_progress(tail: str) -> str:
    """The latest complete progress line of train.py, without its padding."""
    return tail.rpartition("\n")[2].rpartition("\r")[2].strip()


def parse_losses(log: str, points: int = 12) -> list[tuple[float, float]]:
    """(percent of the budget, loss) at about as many points of a training, evenly spaced, the last included."""
    steps = re.findall(r"\| +(\d+\.\d) % \| loss (\d+\.\d+)", log)
    every = max(1, len(steps) // points)
    return [(float(percent), float(loss)) for percent, loss in steps[::-1][::every][::-1]]


def safe_environment(scale: str, seed: int) -> dict[str, str]:
    """The variables that a training may see: a list of what is let through, so that no secret is forgotten."""
    env = {name: value for name, value in os.environ.items() if SAFE_VARIABLES.fullmatch(name)}
    own = {
        "AUTORESEARCH_SCALE": scale,
        "AUTORESEARCH_SEED": str(seed),
        "PYTHONPATH": str(ROOT),  # where prepare_data.py is
        "PYTHONUNBUFFERED": "1",
    }
    return env | sandbox.environment() | own


def run_experiment(
    source: str,
    seed: int,
    scale: str,
    folder: Path,
    kill_after: float,
    should_stop: Callable[[], bool] = lambda: False,
    on_progress: Callable[[str], None] = lambda line: None,
    sandbox_mode: str = "auto",
    limits: dict[str, int] | None = None,
    environment: dict[str, str] | None = None,
) -> RunResult:
    """Train the text `source` once, for at most `kill_after` seconds; train.py and run.log are left in `folder`.

    `limits`: those of sandbox.make_limits() that shall be others; `environment`: of the slot, like the GPU to use.
    """
    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    sandbox.tidy(folder)  # of an earlier run, whose loop was killed
    (folder / "train.py").write_text(source)
    command = [sys.executable, "-P", "train.py"]  # -P: no prepare_data.py or torch.py in its own folder is imported
    bounds = sandbox.make_limits(scale) | (limits or {})
    ended = run_process(
        sandbox.command_line(command, folder, scale, sandbox_mode, GRACE, bounds),
        folder,
        safe_environment(scale, seed) | (environment or {}),
        folder / "run.log",
        kill_after,
        should_stop,
        lambda tail: on_progress(parse_progress(tail)),
        grace=GRACE + 5,  # of the guard, which gives the run GRACE seconds and then needs a moment
    )
    sandbox.tidy(folder)
    sandbox.prune_caches()
    summary, tail = parse_summary(ended.tail), last_lines(ended.tail)
    losses = parse_losses((folder / "run.log").read_text(errors="replace"))
    result = RunResult("ok", ended.seconds, summary=summary, tail=tail, losses=losses)
    if ended.how == "timeout":
        result.status, result.error = "timeout", f"killed after {kill_after:.0f} s"
    elif ended.how == "stopped":
        result.status, result.error = "interrupted", "stopped before it was done"
    elif ended.code != 0:
        result.status, result.error = "crash", find_error(tail)
    elif "val_bpb" not in summary:
        result.status, result.error = "crash", "it ended without a val_bpb line"
    else:
        result.val_bpb, result.memory_gb = summary["val_bpb"], summary.get("peak_vram_mb", 0.0) / 1024
    return result
