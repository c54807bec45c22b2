"""
The guard: a small process between the loop and what the loop runs, a training or a --command. It ends that process.

It ends it and everything that it started, also what went into a session of its own, and also when the loop itself is
killed. Of a training it also limits processes, memory and disk. It is a process of its own, so that all orphans of one
run come back to it and to nobody else. It is started as a file, without site-packages, so it imports the standard
library only.
"""

import contextlib
import ctypes
import json
import os
import resource
import select
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

GB = 1_000_000_000
Plan = dict[str, Any]  # what process.under_guard() and run/sandbox.py ask for
CHECK = 0.2  # seconds between looks at a run, up to ten times as many where a look is slow


def on_linux(option: str, value: int) -> None:
    """prctl(option, value); other systems have no such thing."""
    numbers = {"PR_SET_PDEATHSIG": 1, "PR_SET_CHILD_SUBREAPER": 36}
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(numbers[option], value, 0, 0, 0)


def lower_limit(kind: int, value: int) -> None:
    _, hard = resource.getrlimit(kind)
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(kind, (value, value))


def start(plan: Plan, command: list[str]) -> int:
    """The command as a child in a session of its own, under limits that it inherits to all that it starts."""
    child = os.fork()
    if child:
        return child
    os.setsid()
    on_linux("PR_SET_PDEATHSIG", signal.SIGKILL)
    if "disk" in plan:
        limit_training(plan)
    os.execvp(command[0], command)


def limit_training(plan: Plan) -> None:
    """Called in the child: what the kernel itself can limit."""
    lower_limit(resource.RLIMIT_CORE, 0)
    lower_limit(resource.RLIMIT_FSIZE, plan["disk"])
    if sys.platform == "linux":
        if plan["data"]:
            lower_limit(resource.RLIMIT_DATA, plan["data"])
        # Counted per user, whatever started them, so: on top of all there are. The kernel exempts root.
        running = int(Path("/proc/loadavg").read_text().split()[3].partition("/")[2])
        lower_limit(resource.RLIMIT_NPROC, running + plan["threads"])
        Path("/proc/self/oom_score_adj").write_text("1000")  # if memory runs out, the kernel takes the run


def processes_below(top: int) -> dict[int, tuple[float, bool]]:
    """All descendants of a process: (its seconds of CPU time, whether it is at work); none without /proc."""
    children: dict[int, list[int]] = {}
    seen: dict[int, tuple[float, bool]] = {}
    for name in os.listdir("/proc") if sys.platform == "linux" else ():
        if name.isdecimal():
            with contextlib.suppress(OSError), open(f"/proc/{name}/stat", errors="replace") as file:
                state = file.read().rpartition(")")[2].split()
                children.setdefault(int(state[1]), []).append(int(name))
                seconds = (int(state[11]) + int(state[12])) / os.sysconf("SC_CLK_TCK")
                seen[int(name)] = seconds, state[0] == "R"
    found = [top]
    for pid in found:  # grows while it is gone through
        found += children.get(pid, [])
    return {pid: seen[pid] for pid in found[1:]}


def note_work(plan: Plan, pids: dict[int, tuple[float, bool]]) -> None:
    """Note the CPU time of each process: the kernel forgets those that nobody waits for. One that is new and at work
    stands for others like it, which came and went since the last look, with its share of the cores."""
    now, used = time.monotonic(), plan["used"]
    for pid, (seconds, at_work) in pids.items():
        if at_work and pid not in used:
            ready = int(Path("/proc/loadavg").read_text().split()[3].partition("/")[0])  # this process is one
            seconds = max(seconds, (now - plan["looked"]) * min(1.0, (os.cpu_count() or 1) / ready))
        used[pid] = max(used.get(pid, 0.0), seconds)
    plan["looked"] = now


def resident(pids: Iterable[int]) -> int:
    """Bytes of memory that these processes hold and share with no file."""
    pages = 0
    for pid in pids:
        with contextlib.suppress(OSError, ValueError), open(f"/proc/{pid}/statm") as file:
            _, total, shared, *_ = file.read().split()
            pages += int(total) - int(shared)
    return pages * resource.getpagesize()


def folder_use(path: str) -> tuple[int, int]:
    """Bytes on disk and number of entries below a folder, through no link."""
    size = count = 0
    waiting = [path]
    while waiting:
        with contextlib.suppress(OSError), os.scandir(waiting.pop()) as entries:
            for entry in entries:
                count += 1
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(entry.path)
                with contextlib.suppress(OSError):
                    size += entry.stat(follow_symlinks=False).st_blocks * 512
    return size, count


def processes_over(plan: Plan) -> str:
    """Which limit the run's processes are over, in words, or ""."""
    pids = processes_below(os.getpid())
    note_work(plan, pids)
    if len(pids) > plan["processes"]:
        return f"the run had more than {plan['processes']} processes"
    if resident(pids) > plan["memory"]:
        return f"the run used more than {plan['memory'] / GB:.1f} GB of memory"
    return ""


def disk_over(plan: Plan) -> str:
    """Which limit on the disk the run is over, in words, or ""."""
    size, files = folder_use(plan["folder"])
    if size + max(0, folder_use(plan["caches"])[0] - plan["cached"]) > plan["disk"]:
        return f"the run wrote more than {plan['disk'] / GB:.1f} GB"
    if files > plan["files"]:
        return f"the run wrote more than {plan['files']} files"
    if shutil.disk_usage(plan["folder"]).free < plan["free"]:
        return f"the disk has less than {plan['free'] / GB:.1f} GB free"
    return ""


def find_excess(plan: Plan, due: dict[Callable[[Plan], str], float]) -> str:
    """Look at what a run uses up, each thing when it is due; which limit it is over, or ""."""
    for look in due:
        if time.monotonic() >= due[look]:
            began = time.process_time()
            if reason := look(plan):
                return reason
            pause = 50 * (time.process_time() - began)  # at most 2 % of a core, as far as that is safe
            due[look] = time.monotonic() + min(max(CHECK, pause), 10 * CHECK)
    return ""


def reap(codes: dict[int, int]) -> bool:
    """Note the exit codes of children that have ended, orphans included. Is any child left?"""
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return False
        if not pid:
            return True
        codes[pid] = os.waitstatus_to_exitcode(status)


def send(number: int, child: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child, number)


def end(child: int, grace: float, codes: dict[int, int]) -> None:
    """SIGTERM to the run's group, SIGKILL after `grace` seconds to all that is left; returns when all are gone."""
    deadline = time.monotonic() + grace
    if grace:
        send(signal.SIGTERM, child)
    while reap(codes) and time.monotonic() < deadline:
        time.sleep(0.01)
    while reap(codes):
        send(signal.SIGKILL, child)
        pids = processes_below(os.getpid())
        for number in (signal.SIGSTOP, signal.SIGKILL):  # who is stopped does not fork while others are killed
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
        time.sleep(0.005)


def wake_on_signals(stopped: list[int]) -> int:
    """A file to wait on: readable when a child has ended, or a request to stop was added to `stopped`."""
    reader, writer = os.pipe()
    for file in (reader, writer):
        os.set_blocking(file, False)
    signal.set_wakeup_fd(writer)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda number, _: stopped.append(number))
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    return reader


def guard(plan: Plan, command: list[str]) -> int:
    """Run `command` within the plan's limits. Ends it, and all that it started, with the loop or at its request."""
    stopped: list[int] = []  # signals that asked for the end
    codes: dict[int, int] = {}  # of the children that have ended
    due: dict[Callable[[Plan], str], float] = {processes_over: 0.0, disk_over: 0.0} if "disk" in plan else {}
    reason = ""
    wake = wake_on_signals(stopped)
    on_linux("PR_SET_PDEATHSIG", 0)  # it notices by itself that the loop is gone, and has things to do then
    on_linux("PR_SET_CHILD_SUBREAPER", 1)
    plan |= {"used": {}, "looked": time.monotonic()}  # CPU seconds by process, and when: note_work()
    plan["cached"] = folder_use(plan["caches"])[0] if "caches" in plan else 0
    child = start(plan, command)
    while child not in codes and not reason and not stopped and os.getppid() == plan["parent"]:
        if select.select([wake], [], [], CHECK)[0]:
            os.read(wake, 4096)
        reap(codes)
        reason = find_excess(plan, due)
    ended_by_itself = child in codes
    end(child, plan["grace"] if stopped else 0, codes)
    number = -codes[child] if codes[child] < 0 else codes[child] - 128  # bubblewrap says 128 + signal
    if ended_by_itself and number in set(signal.Signals):
        memory = "; out of memory?" if number == signal.SIGKILL else ""
        reason = f"the run was killed by {signal.Signals(number).name}{memory}"
    if reason and "disk" in plan:
        print(f"\nSandboxError: {reason}", flush=True)
    elif "disk" in plan and not codes[child]:  # nobody of the run is left who could write this
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds = max(used.ru_utime + used.ru_stime, sum(plan["used"].values()))
        Path(plan["measured"]).unlink(missing_ok=True)
        with open(plan["measured"], "x") as file:  # never through a link that the run has left there
            json.dump({"cpu_seconds": round(seconds, 2)}, file)
    return 1 if reason or stopped else codes[child] & 255


if __name__ == "__main__":
    sys.exit(guard(json.loads(sys.argv[1]), sys.argv[2:]))
