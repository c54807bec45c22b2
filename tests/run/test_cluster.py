"""Runs on a real Ray cluster of several nodes on this machine: its nodes die, hold other data, or have no room."""

import contextlib
import dataclasses
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from loop_helpers import (
    ROOT,
    STUB,
    check_invariants,
    make_repository,
    rows_of,
    start_loop,
    wait_for,
)
from shipped import TRAIN

import prepare_data
from autoresearch.files import RECORD
from autoresearch.judge import trust
from autoresearch.run import cluster
from autoresearch.run.scoring import Scorer, train_and_score
from autoresearch.run.training import RunOptions

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install -e '.[ray]'")
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("cluster")]  # one cluster, in one process
NODE = {"num_cpus": 1, "object_store_memory": 80_000_000}


@pytest.fixture(scope="module")
def scratch() -> Iterator[Path]:
    """Where the nodes' runs have their folders, and Ray its sockets: of these the path must not be long."""
    with tempfile.TemporaryDirectory(prefix="ar-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


@pytest.fixture(scope="module")
def machines(prepared, scratch):
    """A cluster whose head has no CPU but two (pretended) GPUs to offer, and one node with a CPU; we are connected."""
    from ray.cluster_utils import Cluster

    patch, machines = pytest.MonkeyPatch(), Cluster()
    patch.setenv("TMPDIR", str(scratch))
    try:
        machines.add_node(**NODE | {"num_cpus": 0, "num_gpus": 2}, include_dashboard=False)
        machines.add_node(**NODE)
        assert cluster.connect(machines.address, "cpu", fingerprint()).slots == 1
        yield machines
    finally:
        ray.shutdown()
        machines.shutdown()
        patch.undo()


def fingerprint() -> str:
    return prepare_data.read_meta()["fingerprint"]


def known_nodes() -> cluster.Nodes:
    return cluster.Nodes(cluster.measured_here() | {"fingerprint": fingerprint()})


@pytest.fixture
def run(machines, tmp_path):
    def run_source(source, folder=tmp_path / "run", **options):
        callbacks = {name: options.pop(name) for name in ("should_stop", "on_progress", "say") if name in options}
        made = RunOptions(**{"scale": "cpu", "seed": 7, "kill_after": 600, "steps": 2} | options)
        return cluster.run_on_cluster(source, folder, made, nodes=known_nodes(), **callbacks)

    return run_source


@pytest.fixture
def nap() -> str:
    """Seconds for `sleep` that no other process has as its argument, so that it can be told by them."""
    return f"{600 + random.random():.9f}"


def sleeping(nap: str) -> bool:
    lines = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            lines.append(path.read_text())
        except OSError:  # it ended meanwhile
            continue
    return f"sleep\0{nap}\0" in lines


def ended(result) -> bool:
    """Whether a run of the stub came to its end: it has no model to hand over, so that is a crash."""
    return (result.error, result.printed.get("val_bpb")) == ("it ended without evaluate_bpb()", 2.0)


def sleeper(nap: str) -> str:
    """A train.py that sleeps in a child process of its own, deaf to SIGTERM."""
    return f"import signal, subprocess\nsignal.signal(15, signal.SIG_IGN)\nsubprocess.run(['sleep', '{nap}'])\n"


def test_a_result_is_the_one_that_a_local_run_has(run, tmp_path):
    source = "import os\nprint('priority', os.nice(0))" + STUB
    with contextlib.closing(Scorer()) as scorer:
        here = train_and_score(source, tmp_path / "here", RunOptions("cpu", 7, 600, steps=2), scorer=scorer)
    there = run(source)
    assert there.measured.pop("cpu_seconds") > 0 and here.measured.pop("cpu_seconds") > 0
    same = {"seconds": 0, "extra_seconds": 0, "tail": "", "val_bpb": 0}  # of a stub, which has no model: NaN
    assert dataclasses.replace(there, **same) == dataclasses.replace(here, **same)
    for name in ("train.py", "run.log"):
        texts = [(tmp_path / place / name).read_text() for place in ("run", "here")]
        assert texts[0] == texts[1]


def test_a_training_on_a_node_is_scored_and_believed(run, tmp_path):
    shown = []
    result = run(TRAIN, kill_after=120, on_progress=shown.append)
    record, expected = trust.read_record(tmp_path / "run"), trust.measure_expected(0)
    assert (result.status, result.printed["num_steps"]) == ("ok", 2), result.error
    assert trust.check_result(result, record, expected, trust.LIMITS["cpu"]) == ""
    assert shown[0] == "waiting for a node"


def test_a_traceback_comes_back(run, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / RECORD).write_text("of an earlier run")
    result = run("print('step 1')\n1 / 0\n")
    assert (result.status, result.error) == ("crash", "ZeroDivisionError: division by zero")
    assert "Traceback" in (tmp_path / "run/run.log").read_text()
    assert not (tmp_path / "run" / RECORD).exists()


def test_the_time_limit_holds_on_the_node(run, nap):
    result = run(sleeper(nap), kill_after=2)
    assert (result.status, result.error) == ("timeout", "killed after 2 s")
    assert not sleeping(nap)


def test_a_stop_ends_the_run_on_its_node_and_frees_it(run, nap):
    shown = []
    source, step = "print('step 1', end='', flush=True)\n" + sleeper(nap), f"step 1 | on node {os.uname().nodename} ("
    result = run(source, on_progress=shown.append, should_stop=lambda: shown and shown[-1].startswith(step))
    assert result.status == "interrupted" and not sleeping(nap)
    assert ended(run(STUB))


def test_a_run_waits_for_room_and_can_be_stopped_there(run, nap, tmp_path):
    stop, shown = threading.Event(), []
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(run, sleeper(nap), should_stop=stop.is_set)
        wait_for(lambda: sleeping(nap))
        began = time.monotonic()
        options = {"should_stop": lambda: time.monotonic() > began + 2, "on_progress": shown.append}
        second = run(STUB, folder=tmp_path / "second", **options)
        stop.set()
        assert (second.status, first.result().status) == ("interrupted", "interrupted")
    assert shown == ["waiting for a node"]


def test_a_run_whose_node_dies_begins_again_on_another(run, machines, nap, tmp_path):
    begun, said = tmp_path / "begun", []
    source = f"import os\nif not os.path.exists('{begun}'):\n    open('{begun}', 'w')\n"
    source += "".join(f"    {line}\n" for line in sleeper(nap).splitlines()) + STUB
    with ThreadPoolExecutor(1) as pool:
        result = pool.submit(run, source, sandbox="off", say=said.append)
        wait_for(lambda: sleeping(nap))
        [node] = machines.worker_nodes
        machines.remove_node(node, allow_graceful=False)  # SIGKILL; the run has no other node to go to
        wait_for(lambda: said)
        machines.add_node(**NODE)
        assert ended(result.result())
    assert len(said) == 1 and f"({node.node_id[:8]}) was lost (NodeDiedError); the run begins again" in said[0]
    assert not sleeping(nap)


def test_a_run_that_takes_its_worker_down_again_and_again_is_a_crash(run, scratch):
    said = []
    kill = "import os\nguard = open(f'/proc/{os.getppid()}/stat').read()\nos.kill(int(guard.split()[3]), 9)\n"
    result = run(kill + STUB, sandbox="off", say=said.append)
    assert result.status == "crash" and "WorkerCrashedError" in result.error
    assert len(said) == cluster.MAX_LOSSES - 1
    wait_for(lambda: ended(run(STUB)) and not list(scratch.glob("autoresearch-run-*")))  # it tidies up


def refusal(run, tmp_path) -> str:
    """What is said of a run that waits, as the one node that has room for it is not fit."""
    said: list[str] = []
    result = run(STUB, folder=tmp_path / "odd", say=said.append, should_stop=lambda: bool(said))
    assert result.status == "interrupted" and len(said) == 1
    return said[0]


def test_a_node_with_other_data_is_named_while_the_others_go_on(run, machines, prepared, monkeypatch, nap, tmp_path):
    data, stop = tmp_path / "data/cpu", threading.Event()
    shutil.copytree(prepared, data)
    with open(data / "train.bin", "ab") as file:
        file.write(b"more")
    with ThreadPoolExecutor(1) as pool:
        honest = pool.submit(run, sleeper(nap), should_stop=stop.is_set)
        wait_for(lambda: sleeping(nap))
        monkeypatch.setenv("AUTORESEARCH_DATA_DIR", str(data.parent))
        odd = machines.add_node(**NODE)
        name = rf"^node \S+ \({odd.node_id[:8]}\) has "
        why = rf"other data in {data} \(fingerprint \w+, not \w+\);.*no run goes there until that is solved$"
        try:
            assert re.search(name + why, refusal(run, tmp_path))
            (data / "train.bin").unlink()
            assert re.search(name + rf"no prepared data: {data}/train.bin is missing;", refusal(run, tmp_path))
            assert sleeping(nap)
        finally:
            stop.set()
            machines.remove_node(odd)
        assert honest.result().status == "interrupted"


def test_a_run_waits_for_a_node_that_is_fit_again(run, machines, prepared, monkeypatch, tmp_path):
    monkeypatch.setattr(cluster, "LEFT_OUT", 3.0)
    [node] = machines.worker_nodes
    said: list[str] = []
    moved = prepared / "train.bin", prepared / "moved.bin"
    moved[0].rename(moved[1])

    def put_back(line: str) -> None:
        said.append(line)
        moved[1].rename(moved[0])

    assert ended(run(STUB, say=put_back))
    assert len(said) == 1 and f"({node.node_id[:8]}) has no prepared data" in said[0]


def test_no_fit_node_is_one_line_at_the_start(machines, prepared):
    code = f"from autoresearch.run import cluster; cluster.connect('{machines.address}', 'cpu', 'another')"
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert ended.returncode == 2 and "has other data in" in ended.stderr and "not another)" in ended.stderr


def test_each_run_on_a_gpu_node_has_a_gpu_of_its_own(run, prepared, tmp_path):
    shutil.copytree(prepared, prepared.parent / "h100")
    source = "import os, time\ntime.sleep(2)\nprint(os.environ['CUDA_VISIBLE_DEVICES'])\n"
    with ThreadPoolExecutor(2) as pool:
        options = [{"scale": "h100", "folder": tmp_path / name} for name in ("a", "b")]
        results = list(pool.map(lambda option: run(source, **option), options))
    shutil.rmtree(prepared.parent / "h100")
    assert sorted(result.tail[:1] for result in results) == ["0", "1"]


def test_an_evaluator_that_was_changed_on_a_node_is_noticed(run, tmp_path):
    result = run("import os; raise SystemExit(os.environ['PYTHONPATH'])", sandbox="off")
    sent = Path(result.tail.splitlines()[-1], "prepare_data.py")
    text = sent.read_text()
    assert text == (ROOT / "prepare_data.py").read_text() and sent.parent != ROOT
    sent.write_text(text + "# mine\n")
    assert f"has another {sent}, changed there;" in refusal(run, tmp_path)
    sent.write_text(text)
    assert ended(run(STUB))


def test_what_a_task_raises_is_one_line_with_its_node(run):
    with pytest.raises(RuntimeError, match=r"^node \S+ \(\w+\): TypeError: .*NoneType"):
        run(STUB, kill_after=None)  # which no setting can be


def test_a_run_ends_when_the_loop_is_killed(machines, nap, tmp_path):
    (tmp_path / "train.py").write_text(sleeper(nap))
    code = f"""
import pathlib
from autoresearch.run import cluster
from autoresearch.run.training import RunOptions
nodes = cluster.connect("{machines.address}", "cpu", "{fingerprint()}")
source, folder = pathlib.Path("{tmp_path}/train.py").read_text(), pathlib.Path("{tmp_path}/run")
cluster.run_on_cluster(source, folder, RunOptions("cpu", 7, 600, sandbox="off"), nodes=nodes)
"""
    loop = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT)
    wait_for(lambda: sleeping(nap))
    loop.kill()
    loop.wait()
    wait_for(lambda: not sleeping(nap))


def test_the_whole_loop_goes_on_when_a_node_dies(machines, scratch, tmp_path):
    repo = make_repository(tmp_path / "repo")
    other = machines.add_node(**NODE)
    edit = '(echo "import time; time.sleep(5); N = $$"; cat train.py) > new; mv new train.py; echo "sleeps $$"'
    options = ("--experiments", "4", "--ray", machines.address, "--command", edit)
    loop = start_loop(repo, *options, env={"PYTHONUNBUFFERED": "1"})
    try:
        wait_for(lambda: (repo / "runs/t/0002/seed42/train.py").exists())
        wait_for(lambda: len(list(scratch.glob("autoresearch-run-*/run.log"))) == 2)  # one on each node
        machines.remove_node(other, allow_graceful=False)
        out, err = loop.communicate(timeout=900)
    finally:
        loop.kill()
    assert loop.returncode == 0, out + err
    assert "| 2 slots |" in out and "was lost (NodeDiedError); the run begins again" in out, out
    assert len(rows_of(repo)) == 5 and {row.status for row in rows_of(repo)[1:]} == {"discard"}, out
    check_invariants(repo)


def test_the_loss_of_several_nodes_at_once_is_no_doing_of_a_run():
    nodes = cluster.Nodes({}, lost=[(0.0, "node a"), (9.0, "node b"), (900.0, "node a"), (905.0, "node a")])
    assert [cluster.was_alone(nodes, *each) for each in nodes.lost] == [False, False, True, True]


@pytest.mark.parametrize("address", ["127.0.0.1:1", "auto"])
def test_an_address_without_a_cluster_is_one_line(address, tmp_path):
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray/ray_current_cluster").write_text("127.0.0.1:1")  # left by a cluster that was killed
    command = [sys.executable, "-c", f"from autoresearch.run import cluster; cluster.connect('{address}', 'cpu', '')"]
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900)
    message = f"error: --ray {address}: no cluster at 127.0.0.1:1 (Connection refused); begin: ray start --head\n"
    assert (ended.returncode, ended.stderr) == (2, message)
