"""
Runs on a Ray cluster: one Ray task a run. A slot calls it in place of train_and_score().

    pip install -e ".[ray]"
    ray start --head                              # on one machine; on each other: ray start --address=HEAD:6379
    python prepare_data.py                        # on every node, or copy the prepared folder there
    python agent_loop.py --hours 48 --ray auto    # on a node of the cluster

What a node needs: Python with this project's dependencies, and the prepared data (AUTORESEARCH_DATA_DIR in the
environment of its `ray start`, if it is not in the usual place). The files that make up a run travel there from here.
Before each run the node compares its torch, its data and its evaluator with the loop's, and looks for room on its disk.
A node that is not fit is named and left out for a while; the others go on.

The run is a process in a sandbox on the node, like a local one, and its time limit starts there. Its model is
scored there too, by a scorer of its own, as it is larger than what should travel. Both end with their task:
when the loop stops it, and when the loop, the worker or the node dies. A run whose worker or node is lost begins again
where there is room, and waits for room as long as the loop lets it; the third loss is taken for its own doing. The loss
of several nodes at once is not: the network did that.
"""

import contextlib
import dataclasses
import functools
import importlib.metadata
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
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from autoresearch.files import DATA_FILES, MAP, RECORD, ROOT, data_root, file_hash, fingerprint, stamp
from autoresearch.nouns import RunResult
from autoresearch.process import GRACE, LOG_LIMIT
from autoresearch.run import sandbox
from autoresearch.run.scoring import Scorer, train_and_score
from autoresearch.run.training import RunOptions
from autoresearch.text import fail, one_line

# ray is imported where it is used: it is an optional extra, and to import it takes a second.

# What a run and its scorer are made of.
FILES = ("prepare_data.py", "autoresearch/*.py", "autoresearch/run/*.py", "autoresearch/judge/*.py")
RETURNED = ("run.log", RECORD, MAP)  # files that come back from a run
Yielded = tuple[str, str, Any]  # (node, progress line, outcome)
NODE = "ray.io/node-id"  # Ray's label of every node
MAX_LOSSES = 3  # workers or nodes lost under one run, before it is taken for the cause
AT_ONCE = 60.0  # seconds between two losses that may have one cause
LEFT_OUT = 60.0  # seconds for which a node that is not fit gets no run; then it is looked at again
ANSWER = 120.0  # seconds for a node to say at the start whether it is fit: its Python starts, its data is read
SILENCE = 10.0  # seconds without a word from a run, which says something each second: is its node still there?
CANCEL_SECONDS = 2 * GRACE + 20  # for a stopped run to be gone; a node that takes longer is out of reach


class NodeUnfit(Exception):
    """(Ray's name for a node, one line that says why no run can be made there)."""


@dataclass
class Nodes:
    """The cluster's nodes, as the runs of all slots know them."""

    expected: dict[str, str]  # of each: what a number depends on
    slots: int = 0  # runs that the fit ones had room for at the start
    refused: dict[str, tuple[float, str]] = field(default_factory=dict)  # until when (time.monotonic()), and why
    lost: list[tuple[float, str]] = field(default_factory=list)  # when, and which

    @property
    def left_out(self) -> list[str]:
        return [node for node, (until, _) in list(self.refused.items()) if until > time.monotonic()]

    def refuse(self, node: str, reason: str, say: Callable[[str], None]) -> None:
        """Leave a node out for a while, and say so once."""
        if self.refused.get(node, (0, ""))[1] != reason:
            say(f"{reason}; no run goes there until that is solved")
        self.refused[node] = (time.monotonic() + LEFT_OUT, reason)


# -----------------------------------------------------------------------------
# The cluster


def connect(address: str, scale: str, fingerprint: str, say: Callable[[str], None] = print) -> Nodes:
    """Join the Ray cluster at `address`, HOST:PORT of its head or "auto", and give it our files.

    `fingerprint`: of this machine's meta.json. Ends the program with one line where there is no Ray, no such cluster,
    or no node that is fit and has room.
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
    nodes = Nodes(measured_here() | {"fingerprint": fingerprint})
    count_slots(nodes, scale, say)
    reason = next((why for _, why in nodes.refused.values()), f"the cluster has no {slot_kind(scale)}")
    return nodes if nodes.slots else fail(f"--ray {address}: {reason}; see `ray status`")


def count_slots(nodes: Nodes, scale: str, say: Callable[[str], None]) -> None:
    """Ask each node whether it is fit, and count the runs that those have room for which are."""
    import ray

    kind, check, deadline = slot_kind(scale), ray.remote(problem_here), time.monotonic() + ANSWER
    asked = []
    for node in [node for node in ray.nodes() if node["Alive"] and node["Resources"].get(kind)]:
        there = check.options(num_cpus=0, max_retries=0, label_selector={NODE: node["NodeID"]})
        asked.append((node, there.remote(scale, nodes.expected)))
    for node, answer in asked:
        try:
            problem = ray.get(answer, timeout=max(1, deadline - time.monotonic()))
        except ray.exceptions.RayError as error:
            problem = f"does not answer ({type(error).__name__})"
        if problem:
            nodes.refuse(node["NodeID"], f"{name_node(node)} {problem}", say)
        else:
            nodes.slots += int(node["Resources"][kind])


def measured_here() -> dict[str, str]:
    """What a number depends on besides the data. Python, too: but Ray lets no node with another one in."""
    torch = importlib.metadata.version("torch").partition("+")[0]
    return {"torch": torch, "evaluator": file_hash(ROOT / "prepare_data.py")}


def copy_files(folder: Path) -> None:
    """All that a node needs of this checkout."""
    for path in (path for pattern in FILES for path in ROOT.glob(pattern)):
        copy = folder / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copy)


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
def ray_task(scale: str, left_out: tuple[str, ...]) -> Any:
    """run_on_node() as a Ray task that streams what it yields. Ray is not to retry it: we do, and say so."""
    import ray

    needs: dict[str, Any] = {"num_cpus": int(slot_kind(scale) == "CPU"), "num_gpus": int(slot_kind(scale) == "GPU")}
    needs |= {"label_selector": {NODE: f"!in({', '.join(left_out)})"}} if left_out else {}
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
    *,
    nodes: Nodes,
) -> RunResult:
    """Train the text `source` once on some node; train.py, run.log and record.json are left in `folder`.

    As train_and_score(), but for: `say` gets a line when a run has to begin again or a node is not fit; how many runs
    share a machine is the node's to say. Raises RuntimeError, with the node's name, for whatever else failed there.
    """
    from ray.exceptions import NodeDiedError, ObjectLostError, OutOfMemoryError, RayError, WorkerCrashedError

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "train.py").write_text(source)
    started, losses = time.monotonic(), list[tuple[float, str]]()
    while not should_stop():
        for name in RETURNED:  # of an earlier run
            (folder / name).unlink(missing_ok=True)
        on_progress("waiting for a node")
        node, left_out = "a node", nodes.left_out
        stream = ray_task(options.scale, tuple(left_out)).remote(source, options, nodes.expected)
        try:
            for node, line, outcome in follow(stream, should_stop, nodes, left_out):
                on_progress(f"{line} | on {node}")
                if outcome:
                    result, files = outcome
                    for name, content in files.items():
                        (folder / name).write_bytes(content)
                    return result
        except (NodeDiedError, WorkerCrashedError, ObjectLostError, OutOfMemoryError) as error:
            loss = f"{node} was lost ({type(error).__name__})"
            losses.append((time.monotonic(), node))
            nodes.lost.append(losses[-1])
            if sum(was_alone(nodes, *each) for each in losses) >= MAX_LOSSES:
                reason = f"its worker or node was lost {MAX_LOSSES} times, the last time: {loss}"
                return RunResult("crash", time.monotonic() - started, error=reason)
            say(f"{'/'.join(folder.parts[-2:])}: {loss}; the run begins again elsewhere")
        except RayError as error:
            cause = getattr(error, "cause", None) or error
            if not isinstance(cause, NodeUnfit):
                raise RuntimeError(f"{node}: {type(cause).__name__}: {one_line(str(cause))[:300]}") from error
            nodes.refuse(cause.args[0], cause.args[1], say)
    return RunResult("interrupted", time.monotonic() - started, error="stopped before it was done")


def was_alone(nodes: Nodes, when: float, node: str) -> bool:
    """Return whether no other node was lost at about that time: else that was the network."""
    return not any(other != node and abs(when - at) < AT_ONCE for at, other in nodes.lost)


def follow(stream: Any, should_stop: Callable[[], bool], nodes: Nodes, left_out: list[str]) -> Iterator[Yielded]:
    """Yield what a task yields, as it comes. Ends early, the task cancelled and gone, when `should_stop` says so, or
    when the task still waits for a node and no longer the same ones are left out.

    Raises what Ray makes of the task's end: a RayError.
    """
    import ray

    node, heard, awaited = "", time.monotonic(), stream
    while not should_stop() and (node or nodes.left_out == left_out):
        if not ray.wait([awaited], timeout=0.2)[0]:
            if node and time.monotonic() > heard + SILENCE:  # Ray itself waits minutes for a host that lost its power
                if not any(node == name_node(each) and each["Alive"] for each in ray.nodes()):
                    raise ray.exceptions.NodeDiedError(f"{node} is dead")
                heard = time.monotonic()
        elif awaited is stream:
            try:
                awaited = next(stream)  # which may lie on a node that is out of reach
            except StopIteration:
                return
        else:
            item = ray.get(awaited)
            node, heard, awaited = item[0], time.monotonic(), stream
            yield item
    ray.cancel(stream)  # a KeyboardInterrupt in the task; the stream ends when the task has
    deadline = time.monotonic() + CANCEL_SECONDS
    with contextlib.suppress(ray.exceptions.RayError, StopIteration):
        while time.monotonic() < deadline:
            if ray.wait([stream], timeout=0.2)[0]:
                ray.get(next(stream))


# -----------------------------------------------------------------------------
# On the node


def run_on_node(source: str, options: RunOptions, expected: dict[str, str]) -> Iterator[Yielded]:
    """The Ray task: yields (node, progress line, None) about once a second, and (node, "", (result, files)) at the end.

    The run has a thread of its own; ray.cancel() interrupts this one, which then stops the run and waits for its end.
    """
    own = own_node()
    node = name_node(own)
    yield node, "starting", None
    if problem := problem_here(options.scale, expected):
        raise NodeUnfit(own["NodeID"], f"{node} {problem}")
    folder = make_scratch()
    stop, lines = threading.Event(), deque([""], maxlen=1)
    options = dataclasses.replace(options, runs_at_once=int(own["Resources"][slot_kind(options.scale)]))
    try:
        with contextlib.closing(Scorer()) as scorer, ThreadPoolExecutor(1) as pool:
            run = pool.submit(train_and_score, source, folder, options, stop.is_set, lines.append, scorer=scorer)
            try:
                while not run.done():
                    wait([run], timeout=1)
                    yield node, lines[-1], None
            finally:
                stop.set()
        files, failed = read_returned(folder), bool(run.exception()) or run.result().status not in ("ok", "interrupted")
    finally:
        remove(folder)
    if failed and (problem := lack_of_room()):  # without what it wrote itself: else that failed it
        raise NodeUnfit(own["NodeID"], f"{node} {problem}")
    yield node, "done", (run.result(), files)


def own_node() -> dict[str, Any]:
    """What Ray knows of this node."""
    import ray

    own = ray.get_runtime_context().get_node_id()
    return next(node for node in ray.nodes() if node["NodeID"] == own)


def name_node(node: dict[str, Any]) -> str:
    """The host's name and the beginning of Ray's own for the node, as `ray status` shows it."""
    return f"node {node['NodeManagerHostname']} ({node['NodeID'][:8]})"


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


def problem_here(scale: str, expected: dict[str, str]) -> str:
    """The reason why a run here would not be measured as one on the loop's machine, or would have no room; or ""."""
    data, found, torch = data_root() / scale, measured_here(), expected["torch"]
    fix = f"copy the loop's folder there, or run there: python prepare_data.py --scale {scale}"
    if found["torch"] != torch:
        return f"has torch {found['torch']}, not {torch} as the loop; run there: pip install torch=={torch}"
    if missing := [name for name in DATA_FILES if not (data / name).is_file()]:
        return f"has no prepared data: {data / missing[0]} is missing; {fix}"
    hashed = data_fingerprint(data, str([stamp(data / name) for name in DATA_FILES]))
    if hashed != expected["fingerprint"]:
        return f"has other data in {data} (fingerprint {hashed}, not {expected['fingerprint']}); {fix}"
    if found["evaluator"] != expected["evaluator"]:
        return f"has another {ROOT / 'prepare_data.py'}, changed there; start the loop again to send it once more"
    return lack_of_room()


def lack_of_room() -> str:
    problems = map(sandbox.lack_of_room, (Path(tempfile.gettempdir()), data_root()))
    return next((f"has a full disk: {problem}" for problem in problems if problem), "")


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
