"""autoresearch/machine.py: limits of control groups, as files of a folder in their place; the affinity for real."""

import os

import pytest

from autoresearch import machine

GB = 10**9


@pytest.fixture
def groups(tmp_path, monkeypatch):
    """A function that makes this process's control groups: the lines of /proc/self/cgroup, and {file: text}."""

    def make(lines: str, files: dict[str, str]) -> None:
        (tmp_path / "own").write_text(lines)
        for name, text in files.items():
            (tmp_path / "fs" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "fs" / name).write_text(text + "\n")

    monkeypatch.setattr(machine, "CGROUPS", tmp_path / "fs")
    monkeypatch.setattr(machine, "OWN", tmp_path / "own")
    return make


@pytest.mark.parametrize(
    ("lines", "file"),
    [
        ("0::/system.slice/job_7/step_0/task_1\n", "system.slice/job_7/memory.max"),  # Slurm: a parent's limit
        ("0::/a/b\n", "a/b/memory.max"),
        ("0::/a/b\n", "memory.max"),  # a container's own root
        ("0::/../../b\n", "b/memory.max"),
        ("4:memory:/slurm/uid_0/job_7\n2:cpu,cpuacct:/x\n", "memory/slurm/uid_0/memory.limit_in_bytes"),
        ("4:memory:/docker/0123\n0::/docker/0123\n", "memory/memory.limit_in_bytes"),
        ("0::/a\n", "unified/a/memory.max"),
    ],
)
def test_memory_is_limited_wherever_the_limit_stands(groups, lines, file):
    groups(lines, {file: str(GB)})
    assert machine.machine_memory() == GB


def test_no_limit_is_the_whole_memory(groups):
    whole = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    groups("0::/a\n", {"a/memory.max": "max"})
    assert machine.machine_memory() == whole
    groups("4:memory:/a\n", {"memory/a/memory.limit_in_bytes": "9223372036854771712"})
    assert machine.machine_memory() == whole


def test_cores_follow_the_affinity_and_the_quota(groups):
    groups("0::/a/b\n", {"a/b/cpu.max": "max 100000"})
    allowed = os.sched_getaffinity(0)
    assert machine.cores() == len(allowed)
    try:
        os.sched_setaffinity(0, {min(allowed)})
        assert machine.cores() == 1
    finally:
        os.sched_setaffinity(0, allowed)
    groups("0::/a/b\n", {"a/cpu.max": "150000 100000"})
    assert machine.cores() == 1
    groups("3:cpu,cpuacct:/j\n", {"cpu/j/cpu.cfs_quota_us": "50000", "cpu/j/cpu.cfs_period_us": "100000"})
    assert machine.cores() == 1
