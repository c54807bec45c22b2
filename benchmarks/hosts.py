"""
Searches, an ablation and a promotion on several hosts that fail: cut off, killed, full, unfit.

    sudo python benchmarks/hosts.py | tee benchmarks/hosts.txt     # all cases; needs root, iproute2 and Ray
    sudo python benchmarks/hosts.py killed disk                    # some of them

The hosts are network namespaces on this machine (tests/run/hosts.py), each with its own address, disk and processes.
Ray and the loop run on them as docs/clusters.md says. Each case checks that no experiment is lost, made twice or a
crash, and prints a line of what was measured. Trainings are stubs that sleep, but for those of `real`.
"""

import argparse
import contextlib
import importlib.metadata
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import time
import traceback
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests/prove"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests/run"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from hosts import Host, Hosts, own_world, problem, wait_until
from loop_helpers import LEAVE_RECORD, check_invariants, git, make_repository, rows_of
from prove_helpers import make_stub, report_in, runs_in, switched, write_kept
from shipped import TRAIN

ROOT = Path(__file__).resolve().parents[1]
FORMULA = "2 - 0.1*math.log(BUDGET/20) - 0.2*math.log(DEPTH) - 0.2*A - 0.1*B + 0.04*C"
LONG = 300.0  # seconds for anything to happen; the machine may be busy
NAMES = ["head", "one", "two"]

# Says where it runs, sleeps, and has numbers to change.
STUB = f"""
import socket, sys, time
A = 0.3
B = 0.5
C = 7.0
print("at", socket.gethostname(), flush=True)
time.sleep(SECONDS)
LEVEL = 2.0 + 0.1 * (A + B) + 0.01 * C
sys.stdout.write(f"\\n---\\nval_bpb:          {{LEVEL:.6f}}\\ntraining_seconds: 20.0\\npeak_vram_mb:     512.0\\n")
{LEAVE_RECORD}"""


# -----------------------------------------------------------------------------
# A cluster with a search on it


class Search:
    """A search in head's own checkout, and what it said."""

    def __init__(self, hosts: Hosts, train: str = "", seconds: float = 8.0):
        self.hosts, self.head = hosts, hosts["head"]
        self.repo = self.head.disk / "home/repo"
        self.tests = self.head.disk / "home/tests"
        shutil.copytree(ROOT / "tests", self.tests, ignore=shutil.ignore_patterns("__pycache__"))
        if train is not None:
            make_repository(self.repo, train or STUB.replace("SECONDS", str(seconds)), serial=False)
            program = (self.repo / "program.md").read_text()
            (self.repo / "program.md").write_text(program.replace("baseline_repeats: 2", "baseline_repeats: 0"))
            git(self.repo, "commit", "-qam", "one run of the baseline")
        self.log, self.process = self.head.disk / "home/printed.txt", None

    def start(self, *options: str, verb: str = "", env: dict[str, str] | None = None) -> None:
        usual = ["--tag", "t", "--ray", "auto", *options]
        program = ["python", self.tests / "printed_loop.py", *([verb] if verb else ["--proposer", "constants"])]
        with open(self.log, "w") as log:
            command = self.head.command((*program, *usual), env)
            self.process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)

    @property
    def said(self) -> str:
        return self.log.read_text()

    def expect(self, pattern: str, seconds: float = LONG) -> float:
        """Wait until it has said this; how many seconds that took."""
        return wait_until(lambda: re.search(pattern, self.said) or (self.ended and not self.stop()), seconds, pattern)

    @property
    def ended(self) -> bool:
        return self.process.poll() is not None

    def stop(self) -> None:
        raise AssertionError(f"the loop has ended: {self.said[-3000:]}")

    def finish(self, seconds: float = LONG, code: int = 0) -> float:
        """Wait for its end, and see that all is there and nothing twice."""
        took = wait_until(lambda: self.ended, seconds, f"the end of the loop: {self.said[-3000:]}")
        assert self.process.returncode == code, self.said
        assert "fault of the loop" not in self.said and "Traceback" not in self.said, self.said
        return took

    def check(self, experiments: int) -> None:
        """See that no experiment was lost or ran twice, and that none is a crash."""
        rows, runs = rows_of(self.repo), self.runs()
        assert len(rows) == experiments + 1, self.said
        assert {row.status for row in rows} <= {"keep", "discard"}, self.said
        counts = Counter((run["number"], run["seed"], run["purpose"]) for run in runs)
        twice = [key for key, count in counts.items() if count > 1]
        assert not twice, f"run twice: {twice}"
        check_invariants(self.repo)

    def runs(self) -> list[dict]:
        journal = self.repo / "runs/t/journal.jsonl"
        lines = journal.read_text().splitlines() if journal.exists() else []
        return [event for event in map(json.loads, lines) if event["event"] == "run"]

    def places(self) -> Counter:
        """How many runs' logs came back from each host."""
        logs = [path.read_text() for path in self.repo.glob("runs/t/*/seed*/run.log")]
        return Counter(found[1] for log in logs if (found := re.search(r"^at (\w+)$", log, re.MULTILINE)))


def runs_at(host: Host) -> bool:
    """Whether a stub has begun there and not ended."""
    return any("at" in path.read_text() for path in (host.disk / "cover0").glob("autoresearch-run-*/run.log"))


@contextlib.contextmanager
def cluster(names: list[str] = NAMES, head_cpus: int = 0, disks: dict[str, str] | None = None, **search):
    """Hosts with Ray on them and the data prepared, and a search that can start."""
    with Hosts(names, disks) as hosts:
        made = Search(hosts, **search)
        for name in names:
            shutil.copytree(prepared(), hosts[name].disk / "home/.cache/autoresearch/cpu")
        join(hosts, head_cpus)
        try:
            yield hosts, made
        except BaseException:
            print(f"--- the loop said\n{made.said if made.log.exists() else ''}", file=sys.stderr)
            raise


def join(hosts: Hosts, head_cpus: int) -> None:
    """Start Ray on all hosts, the head's first."""
    head = hosts["head"]
    head.start_ray(cpus=head_cpus)
    workers = [host for host in hosts.values() if host is not head]
    for host in workers:
        host.start_ray(head.address)
    wait_until(lambda: all(host.joined for host in workers), LONG, "Ray on all hosts")


def prepared() -> Path:
    """The cpu scale's data, prepared once."""
    folder = Path("/mnt/prepared")
    if not (folder / "cpu/meta.json").exists():
        environment = os.environ | {"AUTORESEARCH_DATA_DIR": str(folder), "AUTORESEARCH_SCALE": "cpu"}
        subprocess.run([sys.executable, ROOT / "prepare_data.py"], env=environment, check=True, capture_output=True)
    return folder / "cpu"


# -----------------------------------------------------------------------------
# The cases


def case_search() -> str:
    """A slot per host: each gets runs, and their logs and results come back."""
    with cluster(head_cpus=1, seconds=2) as (_, search):
        search.start("--experiments", "9")
        search.finish()
        search.check(9)
        places = search.places()
        assert "| 3 slots |" in search.said and set(places) == set(NAMES), search.said
        return f"{len(search.runs())} runs, on {dict(sorted(places.items()))}"


def case_real() -> str:
    """Real trainings of five steps, prepared on each host by itself, scored there."""
    with cluster(["head", "one", "two"], train=TRAIN) as (hosts, search):
        shutil.rmtree(hosts["two"].disk / "home/.cache")
        copy = hosts["two"].disk / "home/checkout"
        shutil.copytree(search.repo, copy)
        own = hosts["two"].start("python", copy / "prepare_data.py")
        assert own.wait() == 0, own.stdout.read()
        search.start("--experiments", "2", env={"AUTORESEARCH_STEPS": "5"})
        search.finish()
        values = [row.val_bpb for row in rows_of(search.repo)]
        assert len(values) == 3 and all(2 < value < 12 for value in values if value), search.said
        return f"val_bpb {', '.join(f'{value:.4f}' for value in values)}"


def case_short_cut() -> str:
    """A link that is down for some seconds in mid-run: the run goes on, and none is made again."""
    with cluster(seconds=12) as (hosts, search):
        search.start("--experiments", "4")
        for _ in range(2):
            wait_until(lambda: runs_at(hosts["one"]), LONG, "a run on one")
            hosts["one"].cut()
            time.sleep(6)
            hosts["one"].connect()
            time.sleep(8)
        search.finish()
        search.check(4)
        assert "was lost" not in search.said, search.said
        return f"2 cuts of 6 s, {len(search.runs())} runs, none begun again"


def case_long_cut() -> str:
    """A host is cut off until Ray gives it up, then comes back: its run begins again, once, and it gets others."""
    with cluster(seconds=8) as (hosts, search):
        search.start("--experiments", "8")
        wait_until(lambda: runs_at(hosts["one"]), LONG, "a run on one")
        hosts["one"].cut()
        noticed = search.expect(r"node one \(\w+\) was lost \(\w+\); the run begins again elsewhere")
        hosts["one"].connect()
        back = wait_until(lambda: hosts["one"].joined > 1, LONG, "one's return")
        again = wait_until(lambda: runs_at(hosts["one"]), LONG, "another run on one")
        search.finish()
        search.check(8)
        return f"noticed after {noticed:.0f} s; back {back:.0f} s after the link, with a run {again:.0f} s later"


def case_killed() -> str:
    """A host loses its power in mid-run."""
    with cluster(seconds=8) as (hosts, search):
        search.start("--experiments", "5")
        wait_until(lambda: runs_at(hosts["two"]), LONG, "a run on two")
        hosts["two"].kill()
        noticed = search.expect(r"node two \(\w+\) was lost \(\w+\); the run begins again elsewhere")
        search.finish()
        search.check(5)
        return f"noticed after {noticed:.0f} s, the other went on: {dict(sorted(search.places().items()))}"


def case_head_flaps() -> str:
    """The link of the loop's host goes down and comes up, for moments and for minutes."""
    with cluster(seconds=10) as (hosts, search):
        search.start("--experiments", "6")
        wait_until(lambda: runs_at(hosts["one"]) and runs_at(hosts["two"]), LONG, "runs on both")
        for seconds in (3, 5, 8):
            hosts["head"].cut()
            time.sleep(seconds)
            hosts["head"].connect()
            time.sleep(4)
        short = search.said.count("was lost")
        for _ in range(3):
            wait_until(lambda: runs_at(hosts["one"]) and runs_at(hosts["two"]), LONG, "runs on both")
            before = search.said.count("was lost")
            hosts["head"].cut()
            wait_until(lambda before=before: search.said.count("was lost") >= before + 2, LONG, "the loss of both")
            hosts["head"].connect()
        search.finish(2 * LONG)
        search.check(6)
        lost = search.said.count("was lost") - short
        return f"3 to 8 s: {short} runs begun again; three times for longer: {lost} begun again, none a crash"


def case_disk() -> str:
    """The disk of a host fills up in mid-run, and has room again later."""
    with cluster(seconds=5) as (hosts, search):
        search.start("--experiments", "8")
        wait_until(lambda: runs_at(hosts["two"]), LONG, "a run on two")
        filler = hosts["two"].disk / "filler"
        subprocess.run(["fallocate", "-l", "3200M", filler], check=True)
        search.expect(r"node two \(\w+\) has a full disk: less than 1.25 GB")
        count = len(search.runs())
        wait_until(lambda: len(search.runs()) > count + 1, LONG, "runs of the other")
        filler.unlink()
        back = wait_until(lambda: runs_at(hosts["two"]), LONG, "a run on two again")
        search.finish()
        search.check(8)
        return f"refused by name; a run there again {back:.0f} s after there was room"


def case_unfit() -> str:
    """Hosts with other data, another torch, another Python: named, while the other goes on."""
    names = ["head", "one", "data", "torch", "python"]
    with Hosts(names) as hosts:
        search = Search(hosts, seconds=2)
        for name in names:
            shutil.copytree(prepared(), hosts[name].disk / "home/.cache/autoresearch/cpu")
        with open(hosts["data"].disk / "home/.cache/autoresearch/cpu/train.bin", "ab") as file:
            file.write(b"more")
        pretend_torch(hosts["torch"], "2.12.1")
        pretend_python(hosts["python"], "3.12.7")
        head = hosts["head"]
        head.start_ray(cpus=0)
        for name in names[1:]:
            hosts[name].start_ray(head.address)
        wait_until(lambda: all(hosts[name].joined for name in ("one", "data", "torch")), LONG, "Ray on all hosts")
        refused = hosts["python"].disk / "home/ray.log"
        wait_until(lambda: "Version mismatch" in refused.read_text(), LONG, "Ray's refusal")
        search.start("--experiments", "3")
        search.finish()
        search.check(3)
        assert re.search(r"node data \(\w+\) has other data in \S+ \(fingerprint", search.said), search.said
        assert re.search(r"node torch \(\w+\) has torch 2.12.1, not", search.said), search.said
        assert set(search.places()) == {"one"}, search.said
        return "other data and another torch: by the loop; another Python: by `ray start`"


def pretend_torch(host: Host, version: str) -> None:
    """Let a host's torch say that it is of another version."""
    [metadata] = [file.locate() for file in importlib.metadata.files("torch") or () if file.name == "METADATA"]
    text = re.sub("^Version: .*$", f"Version: {version}", Path(metadata).read_text(), count=1, flags=re.MULTILINE)
    copy = host.disk / "METADATA"
    copy.write_text(text)
    host.cover(Path(metadata).resolve(), copy)


def pretend_python(host: Host, version: str) -> None:
    """Let a host's Python tell Ray that it is of another version."""
    package = Path(importlib.util.find_spec("ray").origin).parent
    copy = host.disk / "utils.py"
    copy.write_text(
        (package / "_private/utils.py").read_text()
        + f"\ncompute_version_info = lambda: (ray.__version__, {version!r})\n"
    )
    host.cover(package / "_private/utils.py", copy)


def case_hours() -> str:
    """The session's hours end while a host is cut off, with a run on it."""
    with cluster(seconds=600) as (hosts, search):
        search.start("--hours", str(60 / 3600))
        began = time.monotonic()
        wait_until(lambda: runs_at(hosts["one"]) or runs_at(hosts["two"]), LONG, "a run")
        for name in ("one", "two"):
            hosts[name].cut()
        search.finish()
        late = time.monotonic() - began - 60
        assert late < 60, f"{late:.0f} s late"
        for name in ("one", "two"):
            hosts[name].connect()
        wait_until(lambda: not any(training(host) for host in hosts.values()), LONG, "the end of the trainings")
        return f"ended {late:.0f} s after its minute; no training is left behind"


def training(host: Host) -> bool:
    return "train.py" in host.run("sh", "-c", "cat /proc/[0-9]*/cmdline").stdout


def case_proofs() -> str:
    """`ablate` and `promote`; a host is killed under the first, the other's link is down for moments in the second."""
    with cluster(["head", "one", "two", "three"], train=None) as (hosts, search):
        sources = [make_stub("ABC", FORMULA).replace("# A\n", "# A\nDEPTH = 2\n", 1)]
        sources += [switched(sources[0], *"ABC"[:count]) for count in (1, 2, 3)]
        make_repository(search.repo, sources[0])
        write_kept(search.repo, sources, ["baseline", "A on", "B on", "C on"])
        search.start(verb="ablate")
        wait_until(lambda: len(runs_in(search.repo, "ablation")) >= 6, LONG, "six runs")
        hosts["one"].kill()
        search.finish(3 * LONG)
        verdicts = {each["name"]: each["verdict"] for each in report_in(search.repo, "ablation.json")["factors"]}
        assert verdicts == {"1": "real", "2": "real", "3": "harmful"}, search.said
        ablated = runs_in(search.repo, "ablation")
        search.start(verb="promote")
        wait_until(lambda: runs_in(search.repo, "promotion"), LONG, "a run")
        hosts["two"].cut()
        time.sleep(5)
        hosts["two"].connect()
        search.finish(3 * LONG)
        promoted = runs_in(search.repo, "promotion")
        for runs in (ablated, promoted):
            assert len({run["key"] for run in runs}) == len(runs), "run twice"
        return f"{len(ablated)} runs of ablate, {len(promoted)} of promote, none twice; {verdicts}"


CASES = {name.removeprefix("case_"): case for name, case in list(globals().items()) if name.startswith("case_")}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", metavar="case", help=f"of: {', '.join(CASES)} (default: all)")
    args = parser.parse_args()
    if unknown := set(args.cases) - set(CASES):
        parser.error(f"no such case: {', '.join(sorted(unknown))}")
    if why := problem():
        parser.error(why)
    own_world()
    failed = 0
    for name in args.cases or CASES:
        started = time.monotonic()
        try:
            said = CASES[name]()
        except Exception:
            traceback.print_exc()
            said, failed = "FAILED", failed + 1
        print(f"{name:12} {time.monotonic() - started:4.0f} s  {said}", flush=True)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
