"""Nothing is lost: the loop is killed at random instants, fails by itself, its files are damaged, the disk fills up."""

import contextlib
import os
import random
import re
import shutil
import signal
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from faulty_loop import STAGES
from loop_helpers import (
    LEAVE_RECORD,
    append,
    check_invariants,
    git,
    make_repository,
    processes_in,
    proposer_script,
    rows_of,
    run_loop,
    set_level,
    start_loop,
    wait_for,
)

from autoresearch.row import row_line

FAULTY = Path(__file__).with_name("faulty_loop.py")

# A second of "training", and numbers to change.
TRAIN = f"""
import sys, time
A = 0.3
B = 0.5
C = 7.0
time.sleep(1)
LEVEL = 2.0 + 0.1 * (A + B) + 0.01 * C
sys.stdout.write(f"\\n---\\nval_bpb:          {{LEVEL:.6f}}\\ntraining_seconds: 20.0\\npeak_vram_mb:     512.0\\n")
{LEAVE_RECORD}"""


# -----------------------------------------------------------------------------
# Chaos


def kill_at_random(folder, kills: int, seed: int, longest: float = 4.0) -> int:
    """Start the loop so many times and kill it at any moment, now and then politely; then let it end.

    The first time it is killed once it has a row and has survived a fault. Later, within `longest` seconds of its start
    or of the next run that ends, however slow the machine is. Meanwhile all that the loop calls fails now and then
    (faulty_loop.py). Returns how often it did.
    """
    rng, options = random.Random(seed), ("--proposer", "constants", "--slots", str(seed))
    program = (folder / "program.md").read_text()
    (folder / "program.md").write_text(program.replace("baseline_repeats: 2", "baseline_repeats: 0"))
    git(folder, "commit", "-qam", "one run of the baseline")
    for number in range(kills):
        failing = ["0.06", *STAGES] if number else ["0", "propose:1"]
        faulty = [str(FAULTY), f"{seed}/{number}", *failing, "--"]
        loop = start_loop(folder, "--experiments", "1000", *options, program=faulty)
        if not number:
            wait_for(lambda: faults(folder) and rows_of(folder), 300)
        elif rng.random() < 0.5:
            wait_for_a_run(folder, loop)
        with contextlib.suppress(subprocess.TimeoutExpired):
            loop.communicate(timeout=rng.uniform(0.3, longest))
        loop.send_signal(rng.choice([signal.SIGKILL] * 4 + [signal.SIGTERM]))
        loop.communicate(timeout=900)
    before = [row_line(row) for row in rows_of(folder)]
    done = run_loop(folder, "--experiments", str(len(before) + 2), *options)
    assert done.returncode == 0, done.stderr
    after = [row_line(row) for row in rows_of(folder)]
    assert [line for line in after if line in before] == before  # one that was lost may stand between them
    check_invariants(folder)
    return faults(folder)


def wait_for_a_run(folder, loop) -> None:
    before = ended_runs(folder)
    wait_for(lambda: ended_runs(folder) > before or loop.poll() is not None, 300)


def ended_runs(folder) -> int:
    return (folder / "runs/t/journal.jsonl").read_text().count('"event": "run"')


def faults(folder) -> int:
    log = folder / "runs/t/loop.log"
    return log.read_text().count("(traceback in loop.log)") if log.exists() else 0


@pytest.mark.slow
def test_chaos_in_small(tmp_path, prepared):
    folder = make_repository(tmp_path / "repo", TRAIN, serial=False)
    assert kill_at_random(folder, 2, seed=2, longest=3)


@pytest.mark.slow
def test_chaos(tmp_path, prepared):
    """Forty kills, in four repositories at once: a fake training takes no processor."""
    folders = [make_repository(tmp_path / f"repo{n}", TRAIN, serial=False) for n in range(4)]
    with ThreadPoolExecutor(4) as pool:
        faults = sum(pool.map(kill_at_random, folders, [10] * 4, range(1, 5)))
    counts = [len(rows_of(folder)) for folder in folders]
    assert sum(counts) > 20 and faults >= 4, (counts, faults)
    print(f"40 kills, {faults} faults of the loop, {sum(counts)} experiments, none lost, none twice")


# -----------------------------------------------------------------------------
# Damage between two sessions


@pytest.fixture(scope="module")
def first_search(tmp_path_factory, prepared):
    repo = make_repository(tmp_path_factory.mktemp("searched") / "repo")
    edits = [set_level(1.9), set_level(1.8), set_level(1.85)]
    run_loop(repo, "--experiments", "3", "--command", proposer_script(repo, edits))
    return repo


@pytest.fixture
def searched(first_search, tmp_path):
    """A search of three experiments, the last of them discarded."""
    return shutil.copytree(first_search, tmp_path / "repo", symlinks=True)


def damage_line(folder):
    text = (folder / "results.tsv").read_text()
    (folder / "results.tsv").write_text(text.replace("\tlevel to 1.8", "\x00\x00", 1))


def lose_line(folder):
    lines = (folder / "results.tsv").read_text().splitlines(keepends=True)
    (folder / "results.tsv").write_text("".join(lines[:2] + lines[3:]))


def double_line(folder):
    lines = (folder / "results.tsv").read_text().splitlines(keepends=True)
    (folder / "results.tsv").write_text("".join([*lines, lines[-1]]))


def leave_locks(folder):
    for name in ("index.lock", "refs/heads/autoresearch/t.lock"):
        path = folder / ".git" / name
        path.touch()
        os.utime(path, (0, 0))


@pytest.mark.slow
@pytest.mark.xdist_group("damage")  # the search is made once
@pytest.mark.parametrize(
    "damage",
    [
        damage_line,
        lose_line,
        double_line,
        leave_locks,
        lambda folder: (folder / "results.tsv").unlink(),
        lambda folder: shutil.rmtree(folder / "runs/t"),
        lambda folder: shutil.rmtree(folder / "runs"),
        lambda folder: (folder / "runs/t/journal.jsonl").write_text('{"event": "run", "numb'),
        lambda folder: [shutil.rmtree(folder / "runs/t"), (folder / "results.tsv").unlink()],
    ],
    ids=["damaged", "lost", "double", "locks", "table", "runs_t", "runs", "journal", "all"],
)
def test_damage_is_mended(searched, damage):
    before = [row_line(row) for row in rows_of(searched)]
    damage(searched)
    done = run_loop(searched, "--experiments", "4", "--command", proposer_script(searched, [set_level(1.7)]))
    assert done.returncode == 0, done.stderr
    after = [row_line(row) for row in rows_of(searched)]
    assert after[:-1] == before and after[-1].split("\t")[5] == "4"
    check_invariants(searched)


@pytest.mark.slow
def test_the_lock_of_a_killed_loop_is_taken_over(repo):
    command = proposer_script(repo, ["touch thinking; sleep 600"])
    first = start_loop(repo, "--experiments", "3", "--command", command)
    while not (repo / "runs/t/proposals/0001/work/thinking").exists():
        assert first.poll() is None
        time.sleep(0.1)
    first.kill()
    first.communicate()
    done = run_loop(repo, "--experiments", "1", "--command", proposer_script(repo, [set_level(1.9)]))
    assert f"(process {first.pid} on {os.uname().nodename}) was killed; taking over its lock" in done.stdout
    again = run_loop(repo, "--experiments", "1", "--command", "false")
    assert "without a word" not in again.stdout


# -----------------------------------------------------------------------------
# Damage while it runs


def wait_until(condition, process, seconds=300):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline and process.poll() is None, process.communicate()
        time.sleep(0.1)


@pytest.mark.slow
def test_a_run_folder_deleted_in_mid_run_is_no_result(repo):
    sleeping = append("import time; time.sleep(3)", "sleeps")
    loop = start_loop(repo, "--experiments", "1", "--command", proposer_script(repo, [sleeping]))
    wait_until(lambda: processes_in(repo / "runs/t/0001/seed42"), loop)
    shutil.rmtree(repo / "runs/t/0001", ignore_errors=True)
    out, err = loop.communicate(timeout=900)
    assert loop.returncode == 0, err
    assert re.search("runs again +its folder is gone", out)
    assert [row.status for row in rows_of(repo)] == ["keep", "discard"]
    check_invariants(repo)


@pytest.mark.slow
def test_a_table_and_a_train_py_deleted_in_mid_search_are_written_again(repo):
    gone = f"rm {repo}/results.tsv {repo}/train.py; "
    steps = [gone + set_level(1.9), f"rm {repo}/results.tsv; touch thinking; sleep 600"]
    loop = start_loop(repo, "--experiments", "2", "--command", proposer_script(repo, steps))
    wait_until((repo / "runs/t/proposals/0002/work/thinking").exists, loop)
    loop.terminate()
    out, err = loop.communicate(timeout=900)
    assert (loop.returncode, err) == (0, "") and "fault" not in out, out
    check_invariants(repo)
    assert len(rows_of(repo)) == 2 and '"reason": "stopped on request"' in (repo / "runs/t/journal.jsonl").read_text()
    (repo / "results.tsv").unlink()
    other = run_loop(repo, "--tag", "other", "--experiments", "1", "--command", proposer_script(repo, [set_level(1.8)]))
    assert other.returncode == 0 and [row.val_bpb for row in rows_of(repo)] == [2.0, 1.8], other.stderr


@pytest.fixture
def small_disk(tmp_path):
    """A disk that has a little more room than the loop wants, where this machine lets one be made."""
    folder = tmp_path / "disk"
    folder.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1400M", "none", folder], capture_output=True)
    if made.returncode:
        pytest.skip("no file system can be mounted here")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


@pytest.mark.slow
def test_a_full_disk_is_waited_for(small_disk, prepared):
    repo = make_repository(small_disk / "repo")
    slow = append("import time; time.sleep(3); open('big', 'wb').write(b'0' * 10**6)", "writes")
    loop = start_loop(repo, "--experiments", "1", "--command", proposer_script(repo, [slow]))
    wait_until(lambda: processes_in(repo / "runs/t/0001/seed42"), loop)
    with open(small_disk / "filler", "wb") as filler:  # until next to nothing is left
        os.posix_fallocate(filler.fileno(), 0, shutil.disk_usage(small_disk).free - 100_000)
    wait_until(lambda: not processes_in(repo / "runs/t/0001/seed42"), loop)
    time.sleep(1)  # nothing shall happen
    assert len(rows_of(repo)) == 1 and loop.poll() is None
    (small_disk / "filler").unlink()
    out, err = loop.communicate(timeout=900)
    assert loop.returncode == 0, out + err
    assert "waiting: less than 1.25 GB" in out and "runs again" in out
    assert [row.status for row in rows_of(repo)] == ["keep", "discard"], out
    check_invariants(repo)
