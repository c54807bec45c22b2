"""
The memory and the cores that this process may use, by the limits on its whole path of control groups.
"""

import math
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

CGROUPS, OWN = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def limits(controller: str, name: str, old_name: str) -> Iterator[tuple[Path, str]]:
    """(folder, text) of a limit's file in this process's control group and in each above it; v2 and v1."""
    for line in OWN.read_text().splitlines() if OWN.exists() else []:
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        mounts = [CGROUPS / controllers, CGROUPS / controller] if controllers else [CGROUPS, CGROUPS / "unified"]
        own = PurePosixPath("/", *[part for part in PurePosixPath(path).parts if part not in ("/", "..")])
        for folder in [mount / str(each).lstrip("/") for mount in mounts for each in (own, *own.parents)]:
            file = folder / (old_name if controllers else name)
            if file.is_file():
                yield folder, file.read_text().strip()


def machine_memory() -> int:
    """Bytes of memory that this process may use: the machine's, or what a container or a batch job was given."""
    sizes = [text for _, text in limits("memory", "memory.max", "memory.limit_in_bytes")]
    own = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min([own, *(int(text) for text in sizes if text.isdecimal())])


def cores() -> int:
    """Cores that this process may use, by its affinity and the quota of its control groups."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quotas = [float(allowed)]
    for folder, text in limits("cpu", "cpu.max", "cpu.cfs_quota_us"):
        old = folder / "cpu.cfs_period_us"
        quota, period = (text, old.read_text()) if old.is_file() else text.split()
        quotas += [int(quota) / int(period)] if quota.isdecimal() else []
    return max(1, math.floor(min(quotas)))
