"""
Several hosts on one machine: network namespaces on a bridge, each with its own address, name, processes and disk.

    with Hosts(["head", "one", "two"]) as hosts:     # within own_world()
        hosts["head"].start_ray()
        hosts["one"].cut()

A host is a holder process with namespaces of its own (network, mounts, processes, host name). Its disk is a tmpfs at
/mnt/NAME, which no other host sees; its /tmp lies there, and this checkout is hidden from it. All of it lives in
namespaces of this script's own, so nothing is left when the script ends, however it ends: the kernel takes it down.
"""

import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
UNSHARED = ["unshare", "--mount", "--uts", "--ipc", "--pid", "--fork", "--kill-child", "--mount-proc"]
NAMESPACES = (0x00020000, 0x04000000, 0x08000000, 0x20000000, 0x40000000)  # mounts, names, IPC, processes, network
NETWORK, PORT = "10.97.0", 6379
DISK = "4G"

# -----------------------------------------------------------------------------
# The world


def problem() -> str:
    """Why hosts cannot be made here, or ""."""
    if os.geteuid():
        return "only root may make network namespaces"
    for tool in ("ip", "unshare", "nsenter"):
        if not shutil.which(tool):
            return f"{tool} is not installed: apt install iproute2 util-linux"
    trial = "mount -t tmpfs none /run && ip netns add a && ip link add link1 type veth peer name eth0 netns a"
    trial += " && ip link add hosts type bridge && ip netns exec a mount -t tmpfs none /mnt"
    ended = subprocess.run([*UNSHARED, "--net", "sh", "-c", trial], capture_output=True, text=True)
    return f"namespaces cannot be made here: {ended.stderr.strip()[:200]}" if ended.returncode else ""


def own_world() -> None:
    """Go on in a child with namespaces of its own; they end with it, and it ends with this process, also by a kill."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(sum(NAMESPACES)):
        raise OSError(ctypes.get_errno(), "unshare")
    if child := os.fork():
        os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) & 255)
    libc.prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    call("mount", "--make-rprivate", "/")
    call("mount", "-t", "proc", "proc", "/proc")
    call("mount", "-t", "tmpfs", "none", "/run")  # ip's names of namespaces
    call("mount", "-t", "tmpfs", "none", "/mnt")
    call("ip", "link", "set", "lo", "up")
    call("ip", "link", "add", "hosts", "type", "bridge")
    call("ip", "address", "add", f"{NETWORK}.254/24", "dev", "hosts")
    call("ip", "link", "set", "hosts", "up")


def call(*words: str | Path) -> str:
    ended = subprocess.run(words, capture_output=True, text=True)
    assert ended.returncode == 0, f"{' '.join(map(str, words))}: {ended.stdout}{ended.stderr}"
    return ended.stdout


def wait_until(condition: Callable[[], object], seconds: float, what: str = "it") -> float:
    """Wait for it, and return how many seconds that took."""
    started = time.monotonic()
    while not condition():
        assert time.monotonic() < started + seconds, f"{what} did not happen within {seconds:.0f} s"
        time.sleep(0.1)
    return time.monotonic() - started


# -----------------------------------------------------------------------------
# A host


class Host:
    """A machine with a name, an address and a disk."""

    def __init__(self, name: str, number: int, others: list[str]):
        self.name, self.number, self.others = name, number, others
        self.address, self.disk = f"{NETWORK}.{number}", Path("/mnt", name)
        self.holder: subprocess.Popen | None = None
        call("ip", "netns", "add", name)
        call("ip", "link", "add", self.link, "type", "veth", "peer", "name", "eth0", "netns", name)
        call("ip", "link", "set", self.link, "master", "hosts", "up")
        call("ip", "-n", name, "address", "add", f"{self.address}/24", "dev", "eth0")
        for device in ("eth0", "lo"):
            call("ip", "-n", name, "link", "set", device, "up")
        call("ip", "-n", name, "route", "add", "default", "via", f"{NETWORK}.254")  # Ray finds its address by it

    @property
    def link(self) -> str:
        return f"link{self.number}"

    def boot(self) -> None:
        """Start it: a shell that waits, in namespaces of its own."""
        hidden = [f"mount -t tmpfs none /mnt/{name}" for name in self.others]
        hidden += [f"hostname {self.name}", "mount -t tmpfs none /dev/shm"]
        for number, place in enumerate((Path("/tmp"), ROOT)):  # a Python that lies in there stays visible
            cover = self.disk / f"cover{number}"
            hidden.append(f"mkdir -p {cover}")
            if Path(sys.prefix).is_relative_to(place):
                copy = cover / Path(sys.prefix).relative_to(place)
                hidden.append(f"mkdir -p {copy} && mount --bind {sys.prefix} {copy}")
            hidden.append(f"if [ -d {place} ]; then mount --rbind {cover} {place}; fi")
        script = " && ".join([*hidden, "touch /run/up"]) + "; while :; do sleep 1000; done"
        (self.disk / "home").mkdir(parents=True, exist_ok=True)
        enter = ["ip", "netns", "exec", self.name, *UNSHARED]
        command = [*enter, "sh", "-c", f"mount -t tmpfs none /run; {script}"]
        self.holder = subprocess.Popen(command, stderr=subprocess.DEVNULL)  # unshare complains when its child is killed
        wait_until(lambda: self.run("test", "-e", "/run/up").returncode == 0, 60, f"the start of {self.name}")

    @property
    def shell(self) -> int:
        """The process number of its holder's shell, as it is out here."""
        assert self.holder
        children = Path(f"/proc/{self.holder.pid}/task/{self.holder.pid}/children").read_text().split()
        return int(children[0]) if children else self.holder.pid

    def command(self, words: tuple[str | Path, ...], env: dict[str, str] | None = None) -> list[str]:
        values = {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "HOME": str(self.disk / "home"),
            "AUTORESEARCH_SCALE": "cpu",
            "OMP_NUM_THREADS": "1",
            "PYTHONUNBUFFERED": "1",
            "RAY_USAGE_STATS_ENABLED": "0",
        }
        pairs = [f"{name}={value}" for name, value in (values | (env or {})).items()]
        enter = ["nsenter", "--target", str(self.shell), "--mount", "--uts", "--ipc", "--net", "--pid", "--"]
        there = ["sh", "-c", 'cd "$HOME/repo" 2> /dev/null || cd; exec "$@"', "sh"]
        return [*enter, "env", "-i", *pairs, *there, *map(str, words)]

    def run(self, *words: str | Path, env: dict[str, str] | None = None) -> subprocess.CompletedProcess:
        return subprocess.run(self.command(words, env), capture_output=True, text=True)

    def start(self, *words: str | Path, env: dict[str, str] | None = None) -> subprocess.Popen:
        pipe = subprocess.PIPE
        return subprocess.Popen(self.command(words, env), stdout=pipe, stderr=subprocess.STDOUT, text=True)

    def start_ray(self, head: str = "", cpus: int = 1) -> None:
        """What docs/clusters.md says; a host that was cut off comes back by itself."""
        usual = ["--num-cpus", str(cpus), "--object-store-memory", "80000000"]
        if not head:
            ended = self.run("ray", "start", "--head", "--include-dashboard=false", *usual)
            assert ended.returncode == 0, ended.stdout + ended.stderr
            return
        again = 'while :; do "$@"; sleep 3; done > $HOME/ray.log 2>&1'
        self.start("sh", "-c", again, "sh", "ray", "start", f"--address={head}:{PORT}", "--block", *usual)

    def cover(self, file: Path, copy: Path) -> None:
        """Let it see another file in the place of this one."""
        ended = self.run("mount", "--bind", copy, file)
        assert ended.returncode == 0, ended.stderr

    @property
    def joined(self) -> int:
        """The number of times that it has joined the cluster."""
        log = self.disk / "home/ray.log"
        return log.read_text().count("Ray runtime started") if log.exists() else 0

    def cut(self) -> None:
        """Pull its plug out of the network."""
        call("ip", "link", "set", self.link, "down")

    def connect(self) -> None:
        call("ip", "link", "set", self.link, "up")

    def kill(self) -> None:
        """Cut its power: it can tell nobody."""
        self.cut()
        os.kill(self.shell, signal.SIGKILL)
        assert self.holder
        self.holder.wait()


class Hosts(dict):
    """Some hosts by their names; the first is for the head."""

    def __init__(self, names: list[str], disks: dict[str, str] | None = None):
        super().__init__()
        for name in names:
            Path("/mnt", name).mkdir(exist_ok=True)
            call("mount", "-t", "tmpfs", "-o", f"size={(disks or {}).get(name, DISK)}", name, f"/mnt/{name}")
        for number, name in enumerate(names, 1):
            self[name] = Host(name, number, [other for other in names if other != name])
            self[name].boot()

    def __enter__(self) -> "Hosts":
        return self

    def __exit__(self, *_: object) -> None:
        for host in self.values():
            with contextlib.suppress(ProcessLookupError, FileNotFoundError):
                host.kill()
            call("ip", "link", "delete", host.link)
            call("ip", "netns", "delete", host.name)
            call("umount", "-l", host.disk)
