"""What a run may see, write and use up: each test is a train.py that tries. Without bubblewrap its half is skipped."""

import contextlib
import os
import random
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from run_helpers import GOOD, ROOT, inside, needs_bubblewrap, sleepers
from shipped import TRAIN

from autoresearch.run import sandbox, training
from autoresearch.run.scoring import Scorer, train_and_score
from autoresearch.run.training import RunOptions, run_training

needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="/proc, prctl and the limits of Linux")
both = pytest.mark.parametrize("mode", [inside, "off"])
MB = 1_000_000


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Run a train.py text in tmp_path/runs/t/0001, with a data folder and a home of the test's own."""
    monkeypatch.setattr(training, "GRACE", 0.5)
    monkeypatch.setenv("AUTORESEARCH_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in ("data/cpu/meta.json", "home/.ssh/id_ed25519", "runs/t/0000/train.py"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text("precious")

    def run_source(source, mode="on", scale="cpu", kill_after=120, **limits):
        return run_training(source, tmp_path / "runs/t/0001", RunOptions(scale, 7, kill_after, mode, limits=limits))

    return run_source


@pytest.fixture
def nap():
    return f"{600 + random.random():.9f}"


def attempts(*statements: str) -> str:
    """A train.py that tries each statement and prints how many went well."""
    return f"""
import os, pathlib, shutil, signal, socket, sys
done = []
for statement in {statements}:
    try:
        exec(statement)
        done.append(statement)
    except OSError as error:
        print(error)
print("done:", done)
{GOOD}"""


# -----------------------------------------------------------------------------
# What a run sees and writes


@needs_bubblewrap
def test_there_is_no_network(run):
    with socket.create_server(("127.0.0.1", 0)) as server:
        connect = attempts(f"socket.create_connection(('127.0.0.1', {server.getsockname()[1]}), 2)")
        assert "done: []" in run(connect).tail
        assert 'done: ["socket' in run(connect, mode="off").tail  # the same text does reach it outside


@needs_bubblewrap
def test_home_repository_and_other_runs_are_hidden(run, tmp_path):
    secrets = [tmp_path / "home/.ssh/id_ed25519", tmp_path / "runs/t/0000/train.py", ROOT / "program.md", ROOT / ".git"]
    read = attempts(*(f"os.stat('{path}')" for path in [*secrets, "/root/.bashrc", "/etc/shadow"]))
    assert "done: []" in run(read).tail
    assert str(secrets[0]) in run(read, mode="off").tail.partition("done:")[2]


@needs_bubblewrap
def test_of_the_checkout_only_prepare_data_and_the_hand_over_are_there(run):
    """Its path is on sys.path, as `pip install -e` would put it there."""
    source = f"""
import importlib, os
for name in ("prepare_data", "autoresearch", "autoresearch.judge.keep_rule", "agent_loop"):
    try:
        importlib.import_module(name)
        print("imported:", name)
    except ImportError as error:
        print(error)
print("files:", [names for *_, names in os.walk({str(ROOT)!r})])
"""
    seen, outside = run(source).tail, run(source, mode="off").tail
    assert "imported: prepare_data\n" in seen and "'handover.py'" in seen and "'graph.py'" not in seen
    assert seen.count("imported: ") == 2 and seen.count("No module named") == 2
    assert "imported: autoresearch.judge.keep_rule\n" in outside  # the same text does reach it outside


@needs_bubblewrap
def test_the_environment_of_other_processes_is_hidden(run, nap):
    look = """
import pathlib
for path in pathlib.Path("/proc").glob("[0-9]*/environ"):
    try:
        if "hush-hush" in path.read_text():
            print("HUSH", path)
    except OSError:
        pass
"""
    loop = subprocess.Popen(["sleep", nap], env={"ANTHROPIC_API_KEY": "hush-hush"})
    try:
        assert "HUSH" not in run(look + GOOD).tail
        assert "HUSH" in run(look + GOOD, mode="off").tail
    finally:
        loop.kill()
        loop.wait()


@needs_bubblewrap
def test_no_other_process_can_be_killed(run, nap):
    other = subprocess.Popen(["sleep", nap])
    try:
        tail = run(attempts(f"os.kill({other.pid}, signal.SIGKILL)", f"os.kill({os.getpid()}, 0)")).tail
        assert "done: []" in tail and other.poll() is None
    finally:
        other.kill()
        other.wait()


@needs_bubblewrap
def test_only_its_own_folder_can_be_written(run, tmp_path):
    places = (
        "/",
        "/usr",
        "/etc",
        "/dev",
        "/opt",
        "/root",
        "/var/tmp",
        "/proc",
        "/sys",
        sys.prefix,
        ROOT,
        ROOT / "tests",
    )
    forbidden = [Path(place) / "intruder" for place in places]
    source = attempts(*(f"open('{path}', 'w')" for path in forbidden), "open('mine', 'w')", "open('/tmp/x', 'w')")
    assert re.search(r"done: .\"open\('mine', 'w'\)\", \"open\('/tmp/x', 'w'\)\".$", run(source).tail, re.MULTILINE)
    assert {path.name for path in (tmp_path / "runs/t/0001").iterdir()} == {"train.py", "run.log", "mine"}
    # Beside its folder is its own /tmp in this test: what it writes there is not here, and gone with it.
    beside = [tmp_path / place / "intruder" for place in (".", "home", "runs/t", "runs/t/0000")]
    run(attempts(*(f"open('{path}', 'w')" for path in beside)))
    assert not any(os.path.exists(path) for path in forbidden + beside)


@needs_bubblewrap
def test_the_kernel_cannot_be_tuned(run):
    files = ("/proc/sysrq-trigger", "/proc/sys/kernel/core_pattern", "/sys/fs/cgroup/cgroup.procs")
    assert "done: []" in run(attempts(*(f"open('{path}', 'r+b', buffering=0)" for path in files))).tail


@needs_bubblewrap
def test_data_can_be_read_and_not_changed(run, tmp_path):
    meta = tmp_path / "data/cpu/meta.json"
    source = attempts(
        f"open('{meta}')", f"open('{meta}', 'a')", f"os.remove('{meta}')", f"shutil.rmtree('{meta.parent}')"
    )
    assert f"done: [\"open('{meta}')\"]" in run(source).tail
    assert meta.read_text() == "precious"


@needs_bubblewrap
def test_the_validation_rows_are_not_there(run, tmp_path):
    for name in ("train.bin", "val.bin", "tokenizer.json"):
        (tmp_path / "data/cpu" / name).write_text("rows")
    look = f"import os\nprint(sorted(os.listdir({str(tmp_path / 'data/cpu')!r})))\n{GOOD}"
    assert "['meta.json', 'tokenizer.json', 'train.bin']" in run(look).tail
    assert "val.bin" in run(look, mode="off").tail  # the same text does see them outside


@needs_bubblewrap
@pytest.mark.parametrize("data", ["", "data"])
def test_the_validation_rows_are_not_in_a_folder_of_the_system_either(run, tmp_path, monkeypatch, data):
    """The data beside Python's packages, or below them: both folders are bound whole."""
    system = tmp_path / "system"
    scale = system / data / "cpu"
    scale.mkdir(parents=True)
    for name in ("meta.json", "train.bin", "val.bin", "test.bin"):
        (scale / name).write_text("rows")
    (system / "package.py").write_text("")
    monkeypatch.setattr(sandbox, "SYSTEM", (*sandbox.SYSTEM, str(system)))
    monkeypatch.setenv("AUTORESEARCH_DATA_DIR", str(system / data))
    reads = attempts(*(f"open('{path}')" for path in [system / "package.py", *scale.iterdir()]))
    seen = run(reads).tail.partition("done:")[2]
    assert "package.py" in seen and "train.bin" in seen and "val.bin" not in seen and "test.bin" not in seen
    assert "val.bin" in run(reads, mode="off").tail.partition("done:")[2]


@needs_bubblewrap
def test_the_repository_cannot_be_deleted(run, tmp_path, monkeypatch):
    repository = tmp_path / "repository"
    (repository / ".git").mkdir(parents=True)
    for name in ("prepare_data.py", "program.md"):
        (repository / name).write_text((ROOT / name).read_text())
    monkeypatch.setattr(sandbox, "ROOT", repository)
    targets = (repository / ".git", repository / "prepare_data.py", repository, tmp_path / "home")
    source = attempts(*(f"shutil.rmtree('{path}')" for path in targets), f"os.remove('{targets[1]}')")
    assert "done: []" in run(source).tail
    assert sorted(path.name for path in repository.iterdir()) == [".git", "prepare_data.py", "program.md"]


@needs_bubblewrap
def test_what_the_loop_keeps_in_the_folder_cannot_be_changed(run, tmp_path):
    changes = [f"open('{name}', 'w')" for name in ("train.py", "run.log")] + ["os.remove('run.log')"]
    assert "done: []" in run(attempts(*changes, "os.rename('train.py', 'x')")).tail
    assert (tmp_path / "runs/t/0001/run.log").read_text().count("done: []") == 1


@both
def test_no_link_or_pipe_is_left_for_the_reader(run, tmp_path, mode):
    (tmp_path / "outside").write_text("precious")
    source = attempts(f"os.symlink('{tmp_path}/outside', 'link')", "os.mkfifo('pipe')", "os.mkdir('deep')")
    assert run(source, mode).status == "ok"
    assert {path.name for path in (tmp_path / "runs/t/0001").iterdir()} == {"train.py", "run.log", "deep"}
    assert (tmp_path / "outside").read_text() == "precious"


# -----------------------------------------------------------------------------
# What outlives a run

DAEMON = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:  # a child of nobody, in a session of its own
        os.execvp("sleep", ["sleep", "NAP"])
    os._exit(0)
os.wait()
time.sleep(0.5)
"""


@needs_linux
@both
def test_a_daemon_ends_with_a_good_run(run, mode, nap):
    assert run(DAEMON.replace("NAP", nap) + GOOD, mode).status == "ok"
    assert sleepers(nap) == 0


@needs_linux
@both
@pytest.mark.slow
def test_a_daemon_ends_with_a_run_that_ignores_sigterm(run, mode, nap):
    assert run(DAEMON.replace("NAP", nap) + "time.sleep(600)", mode, kill_after=1.5).status == "timeout"
    assert sleepers(nap) == 0


@needs_linux
@both
def test_a_killed_loop_takes_its_run_along(tmp_path, mode, nap):
    (tmp_path / "loop.py").write_text(f"""
import sys; sys.path.insert(0, {str(ROOT)!r})
from pathlib import Path
from autoresearch.run.training import RunOptions, run_training
source = {DAEMON.replace("NAP", nap) + "time.sleep(600)"!r}
run_training(source, Path({str(tmp_path)!r}) / "run", RunOptions("cpu", 7, 600, {mode!r}))
""")
    loop = subprocess.Popen([sys.executable, tmp_path / "loop.py"])
    assert wait_for(lambda: sleepers(nap) == 1)
    loop.kill()
    loop.wait()
    assert wait_for(lambda: sleepers(nap) == 0)


def wait_for(condition, seconds: float = 900) -> bool:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    return condition()


@both
def test_a_run_killed_by_a_signal_says_which(run, mode):
    result = run("import os, signal; os.kill(os.getpid(), signal.SIGSEGV); import time; time.sleep(5)", mode)
    assert (result.status, result.error) == ("crash", "SandboxError: the run was killed by SIGSEGV")


# -----------------------------------------------------------------------------
# What a run uses up


@both
def test_one_file_has_a_limit(run, mode):
    result = run("file = open('big', 'wb')\nwhile True: file.write(bytes(1_000_000))", mode, disk=20 * MB)
    assert result.status == "crash" and "File too large" in result.error + result.tail


@both
@pytest.mark.parametrize("place", [".", "tmp", "os.environ['TRITON_CACHE_DIR']"])
def test_filling_the_disk_ends_a_run(run, tmp_path, mode, place):
    place = place if "os" in place else repr(place)
    source = f"""
import os, time
for i in range(2000):
    with open(os.path.join({place}, str(i)), "wb") as file: file.write(os.urandom(1_000_000))
    time.sleep(0.005)
"""
    result = run(source, mode, disk=20 * MB)
    assert (result.status, result.error) == ("crash", "SandboxError: the run wrote more than 0.0 GB")
    assert sandbox.folder_use(str(tmp_path))[0] < 1000 * MB


@pytest.mark.slow
@both
def test_many_small_files_end_a_run(run, mode):
    source = "import time\nfor i in range(3000):\n    open(f'{i}', 'w').close()\n    time.sleep(0.001)"
    assert run(source, mode, files=500).error == "SandboxError: the run wrote more than 500 files"


@both
def test_a_full_disk_ends_a_run(run, mode):
    assert run("import time; time.sleep(20)", mode, free=10**18).error.startswith(
        "SandboxError: the disk has less than"
    )


@needs_linux
@both
def test_a_huge_allocation_crashes_only_the_run(run, mode):
    result = run("x = bytearray(3_000_000_000)\n" + GOOD, mode, data=1000 * MB)
    assert (result.status, result.error) == ("crash", "MemoryError")


@needs_linux
@both
def test_memory_is_counted_over_all_processes_of_a_run(run, mode):
    source = """
import os, time
for i in range(8):
    if os.fork() == 0:
        block = bytearray(os.urandom(1)) * 50_000_000
        time.sleep(20)
time.sleep(20)
"""
    result = run(source, mode, scale="h100", memory=200 * MB)
    assert (result.status, result.error) == ("crash", "SandboxError: the run used more than 0.2 GB of memory")


@pytest.mark.slow
@needs_linux
@both
def test_a_fork_bomb_is_stopped(run, mode, nap):
    source = f"""
import os, signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
for i in range(300):
    if os.fork() == 0:
        if i % 2: os.setsid()  # out of the process group
        os.execvp("sleep", ["sleep", "{nap}"])
time.sleep(600)
"""
    result = run(source, mode, processes=100)
    assert (result.status, result.error) == ("crash", "SandboxError: the run had more than 100 processes")
    assert result.seconds < 300 and sleepers(nap) == 0


@needs_linux
@both
@pytest.mark.skipif(os.getuid() == 0, reason="the kernel exempts root from RLIMIT_NPROC")
def test_the_kernel_refuses_processes_over_the_limit(run, mode):
    running = int(Path("/proc/loadavg").read_text().split()[3].partition("/")[2])
    source = "import os, time\nfor i in range(60):\n    if os.fork() == 0: time.sleep(20)"
    result = run(source, mode, threads=30 - running)  # 30 in all
    assert result.status == "crash" and "Resource temporarily unavailable" in result.error


@both
def test_a_module_in_its_folder_does_not_replace_the_evaluator(run, tmp_path, mode):
    folder = tmp_path / "runs/t/0001"
    folder.mkdir()
    (folder / "prepare_data.py").write_text("SCALE = 'mine'")
    source = "import importlib.util\nprint(importlib.util.find_spec('prepare_data').origin)"
    assert str(ROOT / "prepare_data.py") in run(source, mode).tail


def test_compile_caches_are_kept_within_their_limit(tmp_path, monkeypatch):
    monkeypatch.setenv("AUTORESEARCH_DATA_DIR", str(tmp_path))
    for age, name in enumerate(("inductor/new", "triton/older", "triton/oldest")):
        folder = tmp_path / "compile" / name
        folder.mkdir(parents=True)
        (folder / "kernel").write_bytes(os.urandom(MB))
        for path in (folder / "kernel", folder):
            os.utime(path, (time.time() - 1000 * age,) * 2)
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious/file").write_bytes(os.urandom(MB))
    os.utime(tmp_path / "precious", (0, 0))
    (tmp_path / "compile/inductor/planted").symlink_to(tmp_path / "precious")
    (tmp_path / "compile/inductor/broken").symlink_to("nowhere")
    sandbox.prune_caches(4 * MB)
    assert (tmp_path / "compile/triton/oldest").exists()
    sandbox.prune_caches(2.5 * MB)
    assert not (tmp_path / "compile/triton/oldest").exists() and (tmp_path / "compile/inductor/new").exists()
    assert (tmp_path / "precious/file").exists()


@pytest.mark.parametrize(
    "variable",
    ["TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR", "CUDA_CACHE_PATH", "FLASH_ATTENTION_CUTE_DSL_CACHE_DIR"],
)
@both
def test_kernels_that_a_gpu_run_compiled_are_there_in_the_next(run, tmp_path, mode, variable):
    file = f"pathlib.Path(os.environ['{variable}'], 'version', 'kernel.o')"
    written = run(attempts(f"{file}.parent.mkdir()", f"{file}.write_text('compiled')"), mode, "h100")
    assert written.tail.count("pathlib") == 2
    assert "done: [" in run(attempts(f"assert {file}.read_text() == 'compiled'"), mode, "h100").tail
    assert [path.name for path in (tmp_path / "data/compile").glob("*/version/*")] == ["kernel.o"]


@needs_bubblewrap
def test_a_cache_cannot_be_replaced_by_a_link(run):
    cache = "os.environ['TRITON_CACHE_DIR']"
    assert "done: []" in run(attempts(f"os.rename({cache}, 'x')", f"os.rmdir({cache})")).tail


@needs_bubblewrap
def test_a_planted_tmp_is_not_followed_by_the_next_run(run, tmp_path):
    run(GOOD)
    (tmp_path / "runs/t/0001/tmp").symlink_to(tmp_path / "home")
    assert "done: []" in run(attempts("open('/tmp/.ssh/id_ed25519', 'w')")).tail
    assert (tmp_path / "home/.ssh/id_ed25519").read_text() == "precious"


# -----------------------------------------------------------------------------
# Choosing


@pytest.fixture
def no_bubblewrap(tmp_path, monkeypatch):
    sandbox.bubblewrap_problem.cache_clear()
    monkeypatch.setattr(sandbox.shutil, "which", lambda name: None)
    yield
    sandbox.bubblewrap_problem.cache_clear()


@needs_linux
def test_without_bubblewrap_on_is_refused_and_auto_says_what_is_missing(run, no_bubblewrap):
    assert sandbox.mode_problem("auto") == sandbox.mode_problem("off") == ""
    assert "apt install bubblewrap" in sandbox.mode_problem("on")
    with pytest.raises(RuntimeError, match="apt install bubblewrap"):
        run(GOOD, mode="on")
    assert run(GOOD, mode="auto").status == "ok"
    assert sandbox.describe()[0].startswith("sandbox: none, as bubblewrap is not installed")


@needs_bubblewrap
def test_a_bubblewrap_that_is_forbidden_to_work_is_noticed(tmp_path, monkeypatch):
    fake = tmp_path / "bwrap"
    fake.write_text("#!/bin/sh\necho 'bwrap: setting up uid map: Permission denied' >&2; exit 1\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    sandbox.bubblewrap_problem.cache_clear()
    assert "uid map: Permission denied" in sandbox.mode_problem("on")
    sandbox.bubblewrap_problem.cache_clear()


def test_the_start_says_which_protections_are_on():
    assert "program.md" in sandbox.describe("off")[0]
    assert re.search(r"512 processes, \d+ GB memory|files of", sandbox.describe("auto")[-1])


# -----------------------------------------------------------------------------
# Honest runs


@pytest.mark.slow
@both
def test_the_sandbox_costs_less_than_a_fifth_of_a_second(run, mode):
    def seconds(function) -> float:
        started = time.perf_counter()
        function()
        return time.perf_counter() - started

    plain = min(seconds(lambda: subprocess.run([sys.executable, "-c", ""])) for _ in range(5))
    whole = min(seconds(lambda: run(GOOD, mode)) for _ in range(5))
    print(f"{mode}: {whole - plain:.3f} s more than the bare command")
    assert whole - plain < max(0.5, 10 * plain)  # 0.1 on a quiet machine, where the bare command takes 0.02


@pytest.mark.slow
@needs_bubblewrap
def test_a_real_training_gives_the_same_number_inside(prepared, tmp_path, monkeypatch):
    monkeypatch.setenv("AUTORESEARCH_DATA_DIR", str(prepared.parent))
    source, results = TRAIN, []
    for mode in ("on", "off"):
        with contextlib.closing(Scorer()) as scorer:
            results.append(
                train_and_score(
                    source, tmp_path / mode, RunOptions("cpu", 7, 100, sandbox=mode, steps=3), scorer=scorer
                )
            )
    assert [result.status for result in results] == ["ok", "ok"], results
    assert results[0].val_bpb == results[1].val_bpb > 0
