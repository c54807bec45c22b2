"""
The sandbox of a run: from a command to the command line that really runs, with what it may see, write and use up.

    python -m autoresearch.run.sandbox        # say which protections work on this machine

Two layers. bubblewrap, where it is installed and works, decides what a run *sees*: the system and Python read-only, the
training rows and the tokenizer read-only, its own folder, the GPU; no network, no other process, no home, and of the
checkout only prepare_data.py and what that imports. The guard (guard.py), a small process between loop and run,
decides what it *uses up*: processes, memory, disk. It also ends whatever the run started. Without bubblewrap the guard
is what remains: it stops accidents, not a train.py that sets out to do harm.
"""

import contextlib
import functools
import os
import shutil
import site
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

from autoresearch.files import EVALUATOR, GUARDED, ROOT, SHOWN_TO_RUNS, data_root
from autoresearch.guard import GB, folder_use
from autoresearch.machine import machine_memory
from autoresearch.nouns import Json
from autoresearch.process import under_guard

INSTALL = "apt install bubblewrap"

PROCESSES = 512  # of one run at a time; compile workers and data loaders are some dozens
THREADS = 4096  # besides what the machine runs already
DISK_GB = 5  # written by one run, into its folder and the compile caches
FILES = 200_000  # in a run's folder
FREE_GB = 1  # less free disk than this ends a run
ROOM_GB = 1.25  # less free disk than this, and none begins
CACHE_GB = 10  # of compile caches kept between runs
SHM_GB = 2  # of /dev/shm inside bubblewrap

# -----------------------------------------------------------------------------
# What a run sees

SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/opt", "/sys", "/nix/store", "/run/opengl-driver")
# Of the kernel's own: root may write here in any namespace, and become the machine's root by it.
KERNEL = ("/proc/bus", "/proc/driver", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")
ETC = ("alternatives", "group", "ld.so.cache", "ld.so.conf", "ld.so.conf.d", "localtime", "nsswitch.conf", "passwd")
USER = "run"  # a run's own name for its user, which inductor names a folder after
DEVICES = ("nvidia*", "dri", "kfd", "dxg")
# In a run's folder, but not the run's to change.
LOOP_FILES = ("train.py", "run.log", "proposal.json", "proposal.log", "exchange.json")


def compile_caches(folder: Path, scale: str) -> Path:
    """The folder of a run's compiled kernels. On a GPU runs share them, or each would compile for a minute; at the cpu
    scale, where a whole model would not be noticed among them, each run has its own."""
    return folder / "compile" if scale == "cpu" else data_root() / "compile"


def cache_folders(caches: Path) -> list[Path]:
    return [caches / name for name in ("inductor", "triton", "cuda", "cute")]


def environment(caches: Path) -> dict[str, str]:
    """Variables that a run needs besides those of training.py."""
    fa4 = "FLASH_ATTENTION_CUTE_DSL_CACHE_"  # of FlashAttention-4, which keeps its kernels only when it is told to
    names = ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR", "CUDA_CACHE_PATH", f"{fa4}DIR")
    folders = dict(zip(names, map(str, cache_folders(caches)), strict=True))
    return {"AUTORESEARCH_DATA_DIR": str(data_root()), f"{fa4}ENABLED": "1", **folders}


def shown_to_runs(scale: str) -> list[Path]:
    """All that a training needs of this project: neither the validation rows nor the rest of the checkout."""
    return [*(ROOT / name for name in EVALUATOR), *(data_root() / scale / name for name in SHOWN_TO_RUNS)]


def python_folders() -> list[Path]:
    """Return where this Python and its packages are: a virtual environment, its base, a user's site-packages ..."""
    prefixes = {Path(prefix) for prefix in (sys.prefix, sys.exec_prefix, sys.base_prefix, sys.base_exec_prefix)}
    prefixes |= {prefix.resolve() for prefix in prefixes} | {Path(sys.executable).resolve().parent.parent}
    packages = {Path(entry) for entry in sys.path if entry.endswith(("site-packages", "dist-packages"))}
    libraries = {Path(entry) for entry in os.environ.get("LD_LIBRARY_PATH", "").split(":") if entry.startswith("/")}
    hidden = (Path.home(), ROOT)  # an entry that holds all of these would show them
    shown = [path for path in packages | libraries if not any(place.is_relative_to(path) for place in hidden)]
    return [path for path in [*prefixes, *shown] if path.is_dir() and path != Path("/")]


def bubblewrap(folder: Path, shown: list[Path], caches: Path) -> list[str]:
    """bwrap and its arguments: a file system of a run's own, put together from what it needs and nothing else."""
    read_only = [Path(path) for path in SYSTEM + KERNEL] + [Path("/etc") / name for name in ETC] + python_folders()
    # Of the data only `shown`, wherever they lie: whole folders of the system are bound.
    places = {Path.home(), ROOT, data_root(), *(path.parent for path in shown)}
    hidden = {place for place in places if place.exists()} - {Path("/"), Path("/tmp"), *read_only}
    views: dict[Path, tuple[str | Path, ...]] = {path: ("--ro-bind-try", path) for path in read_only}
    views |= dict.fromkeys(hidden, ("--tmpfs",))
    views |= {path: ("--ro-bind-try", path) for path in shown}
    views |= {path: ("--bind", path) for path in (folder, *cache_folders(caches))}
    views |= {Path("/tmp"): ("--bind", folder / "tmp")}  # on disk, so that the disk's limit holds for it
    # Inductor keeps its precompiled headers there, whatever TORCHINDUCTOR_CACHE_DIR says: a second start needs them.
    views |= {Path(f"/tmp/torchinductor_{USER}"): ("--bind", cache_folders(caches)[0])}
    views |= {folder / name: ("--ro-bind-try", folder / name) for name in LOOP_FILES}
    views |= {path: ("--dev-bind-try", path) for pattern in DEVICES for path in Path("/dev").glob(pattern)}
    in_order = sorted(views, key=lambda path: len(path.parts))  # what is mounted later lies over what is there
    variables = {"HOME": "/tmp", "TMPDIR": "/tmp", "LOGNAME": USER}
    variables["PYTHONUSERBASE"] = site.getuserbase()  # named, as HOME is another one inside
    if "LD_LIBRARY_PATH" in os.environ:  # which a setuid bwrap would lose
        variables["LD_LIBRARY_PATH"] = os.environ["LD_LIBRARY_PATH"]
    return [
        *("bwrap", "--unshare-all", "--die-with-parent", "--new-session", "--cap-drop", "ALL"),
        *("--proc", "/proc", "--dev", "/dev", *shared_memory()),
        *[str(word) for path in in_order for word in (*views[path], path)],
        *[str(word) for path in (*hidden, "/dev", "/") for word in ("--remount-ro", path)],
        *[word for pair in variables.items() for word in ("--setenv", *pair)],
        *("--chdir", str(folder), "--"),
    ]


@functools.cache
def shared_memory() -> list[str]:
    """A bounded /dev/shm where this bubblewrap can bound it; else the kernel's own bound holds, half the memory."""
    text = subprocess.run(["bwrap", "--help"], capture_output=True, text=True).stdout
    setuid = os.stat(shutil.which("bwrap") or "bwrap").st_mode & stat.S_ISUID
    return [*(("--size", str(SHM_GB * GB)) if "--size" in text and not setuid else ()), "--tmpfs", "/dev/shm"]


# -----------------------------------------------------------------------------
# What there is


@functools.cache
def bubblewrap_problem() -> str:
    """Return why bubblewrap can't be used on this machine, or "" if a trial run went well."""
    if sys.platform != "linux":
        return "bubblewrap needs Linux"
    if not shutil.which("bwrap"):
        return f"bubblewrap is not installed; install it: {INSTALL}"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        make_folders([folder / "tmp", *cache_folders(folder / "compile")])
        trial = [*bubblewrap(folder, shown_to_runs("cpu"), folder / "compile"), sys.executable, "-I", "-S", "-c", ""]
        ended = subprocess.run(trial, capture_output=True, text=True)
    reason = (ended.stderr.strip().splitlines() or [f"exit code {ended.returncode}"])[-1]
    return f"bubblewrap is installed but not allowed to work here ({reason[:150]})" if ended.returncode else ""


def mode_problem(mode: str) -> str:
    """One line that says why the setting `sandbox: mode` cannot be had, or ""."""
    problem = bubblewrap_problem() if mode == "on" else ""
    return f"`sandbox: on`, but {problem}" if problem else ""


def describe(mode: str = "auto", scale: str = "cpu", memory_gb: float | None = None, runs: int = 1) -> list[str]:
    """The plain lines that say at the start of a search what a run is kept from, and what not."""
    limits = make_limits(scale, memory_gb, runs)
    bounds = (
        f"{limits['processes']} processes, {limits['memory'] / GB:.0f} GB memory, {limits['disk'] / GB:.0f} GB disk"
    )
    if sys.platform != "linux":
        bounds = f"files of {limits['disk'] / GB:.0f} GB, {limits['disk'] / GB:.0f} GB disk in its folder"
    guard = f"limits of a run: {bounds}; its children end with it"
    if mode != "off" and not bubblewrap_problem():
        seen = (
            "sees the system, Python and the training rows read-only, writes only its own folder and the compile caches"
        )
        return [f"sandbox: bubblewrap; a run has no network, {seen}", guard]
    why = "program.md says so" if mode == "off" else bubblewrap_problem()
    return [f"sandbox: none, as {why}", "a run can read and write what you can, and use the network", guard]


# -----------------------------------------------------------------------------
# Before and after a run


def make_limits(scale: str, memory_gb: float | None = None, runs: int = 1) -> dict[str, int]:
    """Return what one run may use up, in bytes and numbers. `memory_gb` None: half the machine's, for all `runs`."""
    memory = int(memory_gb * GB) if memory_gb else machine_memory() // (2 * runs)
    return {
        "processes": PROCESSES,
        "threads": THREADS,
        "memory": memory,
        "data": memory if scale == "cpu" else 0,  # as an rlimit too: but CUDA maps far more than it uses
        "disk": DISK_GB * GB,
        "files": FILES,
        "free": FREE_GB * GB,
    }


def command_line(
    command: list[str], folder: Path, shown: list[Path], caches: Path, mode: str, grace: float, limits: Json
) -> list[str]:
    """Return what runs for `command` in `folder`: the guard, in it bubblewrap (unless off), in it the command."""
    if problem := mode_problem(mode):
        raise RuntimeError(problem)
    make_folders([folder / "tmp", *cache_folders(caches)])
    plan = limits | {"folder": str(folder), "caches": str(caches), "measured": str(folder / GUARDED)}
    inside = bubblewrap(folder, shown, caches) if mode != "off" and not bubblewrap_problem() else []
    return under_guard([*inside, *command], grace, plan)


def lack_of_room(place: Path) -> str:
    """The reason why no run may begin that writes there, or ""."""
    left = shutil.disk_usage(place).free
    return f"less than {ROOM_GB:.2f} GB of disk are left at {place}" if left < ROOM_GB * GB else ""


def make_folders(paths: list[Path]) -> None:
    for path in paths:
        path.mkdir(parents=True, exist_ok=True)


def tidy(folder: Path) -> None:
    """Remove a run's /tmp, and links, pipes and sockets: who reads the folder later shall not be led elsewhere."""
    special = ("!", "-type", "f", "!", "-type", "d", "-delete")
    for command in (["rm", "-rf", str(folder / "tmp")], ["find", str(folder), *special]):  # both bear any depth
        subprocess.run(command, stderr=subprocess.DEVNULL)


def empty(folder: Path) -> None:
    """Remove what an earlier run left in a folder, but for the loop's files and compile_caches()."""
    tidy(folder)
    kept = [word for name in (*LOOP_FILES, "compile") for word in ("!", "-name", name)]
    subprocess.run(["find", str(folder), "-mindepth", "1", "-maxdepth", "1", *kept, "-exec", "rm", "-rf", "{}", "+"])


def remove_own_caches(folder: Path) -> None:
    """Of the cpu scale: compile_caches()."""
    subprocess.run(["rm", "-rf", str(folder / "compile")])


def prune_caches(limit: float = CACHE_GB * GB) -> None:
    """Delete the compile caches' oldest entries until they are within `limit` bytes."""
    caches = data_root() / "compile"
    if folder_use(str(caches))[0] <= limit:
        return
    folders = [folder for folder in cache_folders(caches) if folder.is_dir()]
    entries = [entry for folder in folders for entry in folder.iterdir() if not entry.is_symlink()]
    sized = sorted((newest(entry), folder_use(str(entry))[0], str(entry)) for entry in entries if entry.is_dir())
    excess = sum(size for _, size, _ in sized) - limit
    for _, size, path in sized:
        if excess > 0:
            shutil.rmtree(path, ignore_errors=True)  # which goes through no link
            excess -= size


def newest(folder: Path) -> float:
    """When something was last put into a cache entry; 0 if it is gone meanwhile."""
    with contextlib.suppress(OSError):
        return max(path.lstat().st_mtime for path in [folder, *folder.iterdir()])
    return 0.0


if __name__ == "__main__":
    print("\n".join(describe()))
