"""
Runs on a Ray cluster: one Ray task a run. A slot calls it in place of train_and_score().

    pip install -e ".[ray]"
    ray start --head                              # on one machine; on each other: ray start --address=HEAD:6379
    python prepare_data.py                        # on every node, or copy the prepared folder there
    python agent_loop.py --hours 48 --ray auto    # on a node of the cluster

What a node needs: Python with this project's dependencies, and the prepared data (AUTORESEARCH_DATA_DIR in the
environment of its `ray start`, if it is not in the usual place). The files that make up a run travel there from here.
Before each run the node compares its data and its evaluator with the loop's; it refuses by name where they differ.

The run is a process in a sandbox on the node, like a local one, and its time limit starts there. Its model is
scored there too, by a scorer of its own, as it is larger than what should travel. Both end with their task:
when the loop stops it, and when the loop, the worker or the node dies. A run whose worker or node is lost begins again
where there is room, and waits for room as long as the loop lets it; the third loss is taken for its own doing.
"""

import contextlib
import dataclasses
import functools
import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

from autoresearch.files import DATA_FILES, MAP, RECORD, ROOT, data_root, file_hash, fingerprint, stamp
from autoresearch.nouns import RunResult
from autoresearch.process import GRACE, LOG_LIMIT
from autoresearch.run.scoring import Scorer, train_and_score
from autoresearch.run.training import RunOptions
from autoresearch.text import fail, one_line

# ray is imported where it is used: it is an optional extra, and to import it takes a second.

# What a run and its scorer are made of.
FILES = ("prepare_data.py", "autoresearch/*.py", "autoresearch/run/*.py", "autoresearch/judge/*.py")
RETURNED = ("run.log", RECORD, MAP)  # files that come back from a run
Yielded = tuple[str, str, Any]  # (node, progress line, outcome)
MAX_LOSSES = 3  # workers or nodes lost under one run, before it is taken for the cause
CANCEL_SECONDS = 2 * GRACE + 20  # for a stopped run to be gone; a node that takes longer is out of reach


class ClusterError(Exception):
    """One line that names the node that is not fit for runs, and why: a person has to mend that."""


# -----------------------------------------------------------------------------
# The cluster


def connect(address: str, scale: str) -> int:
    """Join the Ray cluster at `address`, HOST:PORT of its head or "auto", and give it our files.

    Returns how many runs it has room for now: its GPUs at the h100 scale, its CPUs at the cpu scale. Ends the program
    with one line where there is no Ray, no such cluster or no room.
    """
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", "^")  # Ray prints pages when a node dies; follow() says it
    try:
        import ray
    except ImportError:
        fail("--ray needs Ray; install it: pip install -e '.[ray]'")
    check_address(address)
    on_sigterm = signal.getsignal(signal.SIGTERM)
    with tempfile.TemporaryDirectory() as folder:
        copy_files(Path(folder))
        environment = {"working_dir": folder, "env_vars": run_variables(scale)}
        try:
            ray.init(address, log_to_driver=False, logging_level=logging.ERROR, runtime_env=environment)
        except (ConnectionError, RuntimeError, ValueError) as error:
            reason = one_line(str(error))[:300]
            fail(f"--ray {address}: {reason}; see `ray status`; this machine has to be a node of the cluster")
    signal.signal(signal.SIGTERM, on_sigterm)  # ray.init() has set its own
    return count_slots(scale) or fail(f"--ray {address}: the cluster has no {slot_kind(scale)}; see `ray status`")


def copy_files(folder: Path) -> None:
    """All that a node needs of this checkout."""
    for path in (path for pattern in FILES for path in ROOT.glob(pattern)):
        copy = folder / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copy)


def count_slots(scale: str) -> int:
    """How many runs the cluster has room for, as it is now: nodes may come and go."""
    import ray

    return int(ray.cluster_resources().get(slot_kind(scale), 0))


def check_address(address: str) -> None:
    """End the program if nobody listens there: Ray itself would try for many minutes."""
    if "://" in address:
        fail(f"--ray {address}: give HOST:PORT of the cluster's head, on a machine that is a node of it")
    # Written by `ray start`; a cluster that was killed leaves it behind.
    noted = Path(os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp", "ray", "ray_current_cluster")
    known = os.environ.get("RAY_ADDRESS") or (noted.read_text() if noted.is_file() else "")
    host, _, port = (known if address == "auto" else address).rpartition(":")
    if host and port.isdecimal():
        try:
            socket.create_connection((host, int(port)), timeout=10).close()
        except OSError as error:
            fail(f"--ray {address}: no cluster at {host}:{port} ({error.strerror or error}); begin: ray start --head")


def run_variables(scale: str) -> dict[str, str]:
    """The environment that is the same on all nodes."""
    threads = {"OMP_NUM_THREADS": "1"} if scale == "cpu" else {}
    workers = {
        "RAY_kill_child_processes_on_worker_exit": "0",  # the guard would be killed, before it has ended its run
        "RAY_worker_niceness": "0",  # by default 15, and a run would inherit that
    }
    return {"AUTORESEARCH_SCALE": scale} | threads | workers


def slot_kind(scale: str) -> str:
    """Ray's name of what a run takes one of."""
    return "GPU" if scale == "h100" else "CPU"


@functools.cache
def ray_task(scale: str) -> Any:
    """run_on_node() as a Ray task that streams what it yields. Ray is not to retry it: we do, and say so."""
    import ray

    needs = {"num_cpus": int(slot_kind(scale) == "CPU"), "num_gpus": int(slot_kind(scale) == "GPU")}
    return ray.remote(run_on_node).options(num_returns="streaming", max_retries=0, **needs)


# -----------------------------------------------------------------------------
# On the loop's machine


def run_on_cluster(
    source: str,
    folder: Path,
    options: RunOptions,
    should_stop: Callable[[], bool] = lambda: False,
    on_progress: Callable[[str], None] = lambda line: None,
    say: Callable[[str], None] = print,
    expected_fingerprint: str = "",
) -> RunResult:
    """Train the text `source` once on some node; train.py, run.log and record.json are left in `folder`.

    As train_and_score(), but for: `say` gets a line when a run has to begin again; `expected_fingerprint` is that of
    the loop's meta.json; how many runs share a machine is the node's to say. Raises ClusterError.
    """
    from ray.exceptions import NodeDiedError, ObjectLostError, OutOfMemoryError, RayError, WorkerCrashedError

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "train.py").write_text(source)
    evaluator = file_hash(ROOT / "prepare_data.py")
    arguments = (source, options, expected_fingerprint, evaluator)
    started, loss = time.monotonic(), ""
    for _ in range(MAX_LOSSES):
        if loss:
            say(f"{'/'.join(folder.parts[-2:])}: {loss}; the run begins again elsewhere")
        node = "a node"
        for name in RETURNED:  # of an earlier run
            (folder / name).unlink(missing_ok=True)
        on_progress("waiting for a node")
        try:
            for node, line, outcome in follow(ray_task(options.scale).remote(*arguments), should_stop):
                on_progress(f"{line} | on {node}")
                if outcome:
                    return receive(folder, *outcome)
            return RunResult("interrupted", time.monotonic() - started, error="stopped before it was done")
        except (NodeDiedError, WorkerCrashedError, ObjectLostError, OutOfMemoryError) as error:
            loss = f"{node} was lost ({type(error).__name__})"
        except RayError as error:
            raise explain(error, node) from error
    reason = f"its worker or node was lost {MAX_LOSSES} times, the last time: {loss}"
    return RunResult("crash", time.monotonic() - started, error=reason)


def follow(stream: Any, should_stop: Callable[[], bool]) -> Iterator[Yielded]:
    """Yield what a task yields, as it comes. Ends early, the task cancelled and gone, when `should_stop` says so.

    Raises what Ray makes of the task's end: a RayError.
    """
    import ray

    while not should_stop():
        if ray.wait([stream], timeout=0.2)[0]:
            try:
                item = next(stream)
            except StopIteration:
                return
            yield ray.get(item)
    ray.cancel(stream)  # a KeyboardInterrupt in the task; the stream ends when the task has
    deadline = time.monotonic() + CANCEL_SECONDS
    with contextlib.suppress(ray.exceptions.RayError, StopIteration):
        while time.monotonic() < deadline:
            if ray.wait([stream], timeout=0.2)[0]:
                ray.get(next(stream))


def explain(error: Exception, node: str) -> ClusterError:
    """What a task raised, or what Ray says that kept it from running, in one line."""
    cause = getattr(error, "cause", None) or error
    if isinstance(cause, ClusterError):
        return ClusterError(str(cause))
    return ClusterError(f"{node}: {type(cause).__name__}: {one_line(str(cause))[:300]}")


def receive(folder: Path, result: RunResult, files: dict[str, bytes]) -> RunResult:
    """Lay the files that came back where a local run would have left them."""
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return result


# -----------------------------------------------------------------------------
# On the node


def run_on_node(source: str, options: RunOptions, expected_fingerprint: str, evaluator: str) -> Iterator[Yielded]:
    """The Ray task: yields (node, progress line, None) about once a second, and (node, "", (result, files)) at the end.

    The run has a thread of its own; ray.cancel() interrupts this one, which then stops the run and waits for its end.
    """
    node = name_node()
    yield node, "starting", None
    check_node(node, options.scale, expected_fingerprint, evaluator)
    folder = make_scratch()
    stop, lines = threading.Event(), deque([""], maxlen=1)
    options = dataclasses.replace(options, runs_at_once=count_slots_here(options.scale))
    try:
        with contextlib.closing(Scorer()) as scorer, ThreadPoolExecutor(1) as pool:
            run = pool.submit(train_and_score, source, folder, options, stop.is_set, lines.append, scorer=scorer)
            try:
                while not run.done():
                    wait([run], timeout=1)
                    yield node, lines[-1], None
            finally:
                stop.set()
        yield node, "done", (run.result(), read_returned(folder))
    finally:
        remove(folder)


def name_node() -> str:
    """The host's name and the beginning of Ray's own for the node, as `ray status` shows it."""
    import ray

    return f"node {socket.gethostname()} ({ray.get_runtime_context().get_node_id()[:8]})"


def count_slots_here(scale: str) -> int:
    """How many runs share this node, when it is full."""
    import ray

    own = ray.get_runtime_context().get_node_id()
    return int(next(node["Resources"][slot_kind(scale)] for node in ray.nodes() if node["NodeID"] == own))


def make_scratch() -> Path:
    """A folder for a run, named after this process; those of workers that were killed are removed."""
    name = "autoresearch-run-"
    for folder in Path(tempfile.gettempdir()).glob(f"{name}*"):
        try:
            os.kill(int(folder.name.split("-")[2]), 0)
        except PermissionError:  # another user's, alive
            continue
        except ProcessLookupError:
            remove(folder)
    return Path(tempfile.mkdtemp(prefix=f"{name}{os.getpid()}-"))


def remove(folder: Path) -> None:
    subprocess.run(["rm", "-rf", folder])  # which bears any depth


def check_node(node: str, scale: str, expected_fingerprint: str, evaluator: str) -> None:
    """Raise ClusterError if a run here would not be measured as one on the loop's machine."""
    data = data_root() / scale
    mend = f"copy the loop's folder there, or run there: python prepare_data.py --scale {scale}"
    if missing := [name for name in DATA_FILES if not (data / name).is_file()]:
        raise ClusterError(f"{node} has no prepared data: {data / missing[0]} is missing; {mend}")
    found = data_fingerprint(data, str([stamp(data / name) for name in DATA_FILES]))
    if found != expected_fingerprint:
        raise ClusterError(f"{node} has other data in {data} (fingerprint {found}, not {expected_fingerprint}); {mend}")
    if file_hash(ROOT / "prepare_data.py") != evaluator:
        raise ClusterError(
            f"{node}: {ROOT / 'prepare_data.py'} was changed there; start the loop again to send it anew"
        )


@functools.lru_cache(1)
def data_fingerprint(data: Path, stamps: str) -> str:
    """The hash of the prepared files; a worker that stays reads them again only when their `stamps` differ."""
    return fingerprint(data, json.loads((data / "meta.json").read_text())["format"])


def read_returned(folder: Path) -> dict[str, bytes]:
    """What comes back of a run's folder, each file up to a size that no honest one has."""
    found = {}
    for name in RETURNED:
        if (folder / name).is_file() and not (folder / name).is_symlink():
            with open(folder / name, "rb") as file:
                found[name] = file.read(2 * LOG_LIMIT)
    return found
