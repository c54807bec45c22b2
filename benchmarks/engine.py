"""
How busy the loop keeps its slots, and what it costs per experiment: the real engine, git and ledger; trainings and
proposals only sleep.

    python benchmarks/engine.py | tee benchmarks/engine.txt        # about seven minutes on two cores; no GPU, no key

First table: the fraction of the time in which a slot trains, experiments per hour, and unseen results, which came in
between the begin of a proposal and that of its run. Proposals take 0, 0.25, 0.5, 1 and 2 times as long as a run; next
to it the serial loop (one proposal at a time, none ahead). Run times vary by +- 30 %; the first rounds, in which the
slots fill, are left out. Second table: a search of so many experiments is resumed and goes on with trainings and
proposals of no length at all, so that only the loop's own work is left: git, judging, recording, drawing.
"""

import argparse
import dataclasses
import json
import math
import os
import random
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
PARTS = 60  # constants that a proposal can change
RUN_SECONDS = {1: 8.0, 8: 12.0}  # of a simulated training, by slots
ROUNDS = {1: 10, 8: 3}  # trainings per slot that are measured
LATENCIES = (0.0, 0.25, 0.5, 1.0, 2.0)  # of a proposal, in runs
FILLING = 4  # runs' time in which the slots fill, and the loop learns how long a proposal takes

# -----------------------------------------------------------------------------
# What is simulated, in a process of its own inside a repository of its own


def simulated_train(run_seconds: float, rng: random.Random, intervals: list[tuple[float, float, int]]):
    """A training that sleeps and measures the sum of the constants, with a little noise; `intervals`: when it slept,
    and as which experiment."""
    from autoresearch.nouns import RunResult

    lock = threading.Lock()

    def train(source, folder, options, should_stop, on_progress) -> RunResult:
        with lock:
            seconds, noise = run_seconds * rng.uniform(0.7, 1.3), rng.gauss(0, 0.001)
        started = time.monotonic()
        while time.monotonic() < started + seconds and not should_stop():
            time.sleep(max(0, min(0.2, started + seconds - time.monotonic())))
        intervals.append((started, time.monotonic(), int(folder.parent.name)))
        if should_stop():
            return RunResult("interrupted", time.monotonic() - started)
        parts = [float(value) for value in re.findall(r"^PART_\d+ = (\S+)", source, re.MULTILINE)]
        val_bpb = 2 + sum(parts) / 1000 + noise
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "run.log").write_text(f"{val_bpb}\n")
        return RunResult("ok", time.monotonic() - started, val_bpb, 0.5)

    return train


def simulated_proposer(seconds: float, rng: random.Random, asked: dict[int, float]):
    """One constant more or less: one in eight is better. `asked`: when, for which experiment."""
    from autoresearch.nouns import Proposal

    def propose(context) -> Proposal:
        asked[context.number] = time.monotonic()
        time.sleep(seconds)
        name, value = f"PART_{rng.randrange(PARTS)}", rng.choice([-5, *range(1, 8)])
        old = float(re.search(rf"^{name} = (\S+)", context.best_source, re.MULTILINE)[1])
        new = re.sub(rf"^{name} = \S+", f"{name} = {old + value:g}", context.best_source, flags=re.MULTILINE)
        return Proposal(f"{name} {old:g} -> {old + value:g}", new)

    return propose


def make_search(slots: int, serial: bool, train, latency: float, experiments: int, asked: dict[int, float]):
    """(session, ledger, queue) as agent_loop.py makes them, but for what trains and what proposes."""
    from rich.console import Console

    import prepare_data
    from autoresearch.judge import keep_rule
    from autoresearch.loop import proposers
    from autoresearch.loop.bench import Slot
    from autoresearch.loop.inflight import Queue, bench_of, restore_queue
    from autoresearch.loop.session import Options, Session
    from autoresearch.record.lines import Log
    from autoresearch.record.reading import read_ledger
    from autoresearch.record.repository import open_repository
    from autoresearch.record.restore import open_ledger
    from autoresearch.settings import Keep, Settings

    proposers.PROPOSERS["simulated"] = simulated_proposer(latency, random.Random(2), asked)
    options = Options(
        "t", "simulated", "", experiments, None, math.inf, "cpu", 42, prepare_data.TIME_BUDGET, 0, 128, 1024
    )
    keep_rule.MAX_RUNS, proposers.AT_WORK = 1, 64
    if serial:
        proposers.wants_proposal = lambda session, ledger, queue: (
            not queue.asking.at_work and queue.slots - len(queue.bench.running) > len(queue.waiting)
        )
    settings = Settings(keep=Keep(confirm_runs=0))
    log, program = Log(Console(quiet=True), ROOT / "runs/t/loop.log"), ROOT / "program.md"
    session = Session(options, log, settings, "", program.stat().st_mtime_ns)
    ledger, _ = read_ledger(open_repository(ROOT), "t")
    queue = Queue(bench_of(session, ledger, [Slot(str(n), train=train) for n in range(slots)]))
    open_ledger(ledger, "HEAD", log)
    restore_queue(ledger, queue, log)
    return session, ledger, queue


def run_search(session, ledger, queue) -> None:
    """The loop itself, to its end."""
    from agent_loop import loop
    from autoresearch.loop.live import Drawing

    loop(
        session, ledger, queue, Drawing(session.log, ledger.repo, ledger.tag, ledger.results.with_name("progress.png"))
    )


def measure_busy(slots: int, serial: bool, share: float) -> dict:
    """The part of the time in which slots train, experiments per hour, and results that were unseen when a proposal
    began, after the time in which the slots fill."""
    run_seconds, intervals, asked = RUN_SECONDS[slots], [], {}
    train = simulated_train(run_seconds, random.Random(1), intervals)
    run_search(*make_search(slots, serial, train, 0.0, 0, asked))  # the baseline
    session, ledger, queue = make_search(slots, serial, train, share * run_seconds, 10**6, asked)
    begun = time.monotonic() + FILLING * run_seconds * max(1, share)
    ended = begun + ROUNDS[slots] * run_seconds
    threading.Timer(ended - time.monotonic(), session.stop.set).start()
    run_search(session, ledger, queue)
    trained = sum(max(0.0, min(end, ended) - max(start, begun)) for start, end, _ in intervals)
    ends = [end for _, end, _ in intervals]
    finished = sum(begun < end < ended for end in ends)
    own = [(asked[number], start) for start, _, number in intervals if number in asked and begun < start < ended]
    unseen = statistics.fmean(sum(since < end <= start for end in ends) for since, start in own)
    return {"busy": trained / (ended - begun) / slots, "per_hour": 3600 * finished / (ended - begun), "unseen": unseen}


def write_history(ledger, experiments: int) -> None:
    """As many experiments as a long search leaves: commits with their rows, refs, journal, table."""
    from autoresearch.files import append_line
    from autoresearch.nouns import Run, RunResult
    from autoresearch.record.repository import commit_file, experiment_ref
    from autoresearch.row import row_line, row_message

    rng, baseline, source = random.Random(3), ledger.best, ledger.source_of(0)
    parent, journal, table = ledger.head, [], []
    for number in range(1, experiments):
        gain = rng.gauss(-0.002, 0.002)
        level, name = baseline.val_bpb - gain, f"PART_{number % PARTS}"
        values = {"number": number, "status": "discard", "gain": gain, "val_bpb": level, "parent": baseline.commit}
        values |= {"description": f"{name} 0 -> {number}", "runs": f"42:{level:.6f}"}
        row = dataclasses.replace(baseline, **values)
        text = re.sub(rf"^{name} = .*", f"{name} = {number}", source, flags=re.MULTILINE)
        message = row_message(f"{number:04d}: {row.description}", "discard", row)
        commit = commit_file(ledger.repo, parent, "train.py", text, message, experiment_ref("t", number))
        table.append(row_line(dataclasses.replace(row, commit=commit[:7])))
        run = Run(number, 42, RunResult("ok", 20.0, level, 0.5))
        own = {name: getattr(run, name) for name in ("number", "seed", "purpose", "attempt")}
        journal.append(json.dumps({"event": "run"} | own | dataclasses.asdict(run.result)) + "\n")
    append_line(ledger.results, "".join(table))
    append_line(ledger.folder / "journal.jsonl", "".join(journal))


def measure_overhead(experiments: int, more: int = 30) -> dict:
    """Seconds to come back to a search of so many experiments, and the loop's own seconds per further one."""
    from autoresearch.loop.live import Drawing

    train = simulated_train(0.0, random.Random(1), [])
    session, ledger, queue = make_search(1, False, train, 0.0, 0, {})
    run_search(session, ledger, queue)
    write_history(ledger, experiments)
    started = time.monotonic()
    session, ledger, queue = make_search(1, False, train, 0.0, experiments - 1 + more, {})
    resumed = time.monotonic()
    assert len(ledger.rows) == experiments
    run_search(session, ledger, queue)
    looped = time.monotonic()
    Drawing(session.log, ledger.repo, ledger.tag, ledger.results.with_name("progress.png")).draw()
    drawn = time.monotonic() - looped  # beside the loop, every time where trainings take more than half a minute
    return {"resume": resumed - started, "experiment": (looped - resumed) / more, "drawing": drawn}


# -----------------------------------------------------------------------------
# The measurements


def in_repository(measurement: str, *arguments) -> dict:
    """Run a measurement of this file as a process in a fresh repository; what it returns."""
    with tempfile.TemporaryDirectory() as folder:
        repo = Path(folder) / "repo"
        repo.mkdir()
        for path in [*ROOT.glob("*.py"), *ROOT.glob("autoresearch/**/*.py"), ROOT / "program.md", ROOT / ".gitignore"]:
            (repo / path.relative_to(ROOT)).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, repo / path.relative_to(ROOT))
        (repo / "benchmarks").mkdir()
        shutil.copy(__file__, repo / "benchmarks")
        constants = "".join(f"PART_{number} = 0\n# apart\n# from\n# the next\n" for number in range(PARTS))
        (repo / "train.py").write_text(constants)
        for command in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "start"]):
            subprocess.run(["git", "-c", "user.name=b", "-c", "user.email=b@localhost", *command], cwd=repo, check=True)
        command = [sys.executable, "benchmarks/engine.py", "--measure", json.dumps([measurement, *arguments])]
        done = subprocess.run(command, cwd=repo, check=True, stdout=subprocess.PIPE, text=True)
        return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    args = parser.parse_args()
    os.environ["AUTORESEARCH_SCALE"] = "cpu"
    if args.measure:
        measurement, *arguments = json.loads(args.measure)
        print(json.dumps(globals()[measurement](*arguments)))
        return
    subprocess.run([sys.executable, ROOT / "prepare_data.py"], check=True, stdout=subprocess.DEVNULL)
    print(f"{time.strftime('%Y-%m-%d')} | {os.cpu_count()} cores | Python {sys.version.split()[0]}\n")
    print("slots  proposal takes    serial: busy  per hour  unseen    engine: busy  per hour  unseen    ratio")
    for slots, at_once in ((1, 5), (8, 5)):
        cases = [("measure_busy", slots, serial, share) for share in LATENCIES for serial in (True, False)]
        with ThreadPoolExecutor(at_once) as pool:
            results = list(pool.map(lambda case: in_repository(*case), cases))
        for share, serial, engine in zip(LATENCIES, results[::2], results[1::2], strict=True):
            ratio = engine["per_hour"] / serial["per_hour"]
            figures = "".join(
                f"{each['busy']:16.1%}{each['per_hour']:10.0f}{each['unseen']:8.1f}" for each in (serial, engine)
            )
            print(f"{slots:5}  {share:8.2f} of a run{figures}{ratio:9.2f}", flush=True)
    print("\nexperiments  resumed in    loop's own time per experiment    drawing picture and page")
    for experiments in (10, 1000, 2000):
        cost = in_repository("measure_overhead", experiments)
        print(
            f"{experiments:11}{cost['resume']:10.2f} s{cost['experiment']:28.3f} s{cost['drawing']:26.2f} s", flush=True
        )


if __name__ == "__main__":
    main()
