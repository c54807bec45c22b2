"""
How busy the loop keeps its slots, and what it costs per experiment: the real engine, git and ledger; trainings and
proposals only sleep.

    python benchmarks/engine.py        # about five minutes on two cores; no GPU, no key

First table: the fraction of the time in which a slot trains, and experiments per hour, for proposals that take 0, 0.25,
0.5 and 0.9 of what the slots leave them (a run with one slot, an eighth of a run with eight: one proposer serves them
all), beside the serial loop (nothing is proposed ahead). Run times vary by +- 30 %; the first round, in which the slots
fill, is left out. Second table: a search of so many experiments is resumed and goes on with trainings and proposals of
no length at all, so that only the loop's own work is left: git, judging, recording, drawing.
"""

import argparse
import json
import math
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PARTS = 60  # constants that a proposal can change
RUN_SECONDS = {1: 4.0, 8: 12.0}  # of a simulated training, by slots
ROUNDS = {1: 10, 8: 3}  # trainings per slot that are measured
LATENCIES = (0.0, 0.25, 0.5, 0.9)

# -----------------------------------------------------------------------------
# What is simulated, in a process of its own inside a repository of its own


def simulated_train(run_seconds: float, rng: random.Random, intervals: list[tuple[float, float]]):
    """A training that sleeps and measures the sum of the constants, with a little noise; `intervals`: when it slept."""
    import audit
    from run_experiment import RunResult

    expected, lock = audit.measure_expected(), threading.Lock()

    def train(search, slot, source, seed, scale, folder, kill_after, should_stop, on_progress) -> RunResult:
        with lock:
            seconds, noise = run_seconds * rng.uniform(0.7, 1.3), rng.gauss(0, 0.001)
        started = time.monotonic()
        while time.monotonic() < started + seconds and not should_stop():
            time.sleep(max(0, min(0.2, started + seconds - time.monotonic())))
        intervals.append((started, time.monotonic()))
        if should_stop():
            return RunResult("interrupted", time.monotonic() - started)
        parts = [float(value) for value in re.findall(r"^PART_\d+ = (\S+)", source, re.MULTILINE)]
        val_bpb = 2 + sum(parts) / 1000 + noise
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "run.log").write_text(f"{val_bpb}\n")
        (folder / audit.RECORD).write_text(json.dumps(record(expected, val_bpb)))
        summary = {"val_bpb": round(val_bpb, 6), "training_seconds": 20.0}
        return RunResult("ok", time.monotonic() - started, val_bpb, 0.5, summary)

    return train


def record(expected: dict, val_bpb: float) -> dict:
    """What evaluate_bpb notes of an honest run."""
    moment = {"cpu": 0.0, "paced": 0.0, "wall": 0.0, "batches": 0, "optimizer_steps": 0}
    events = dict.fromkeys(("imported", "first_batch", "clock_started"), moment)
    events |= dict.fromkeys(("evaluated", "finished"), moment | {"paced": 20.0})
    counts = {"val_reads": 1, "batches": 100, "training_tokens": 200_000, "optimizer_steps": 0}
    measured = {"val_bpb": val_bpb, "nats": val_bpb * expected["bytes"] * math.log(2)}
    return {name: expected[name] for name in ("fingerprint", "bytes", "tokens")} | events | counts | measured


def simulated_proposer(seconds: float, rng: random.Random):
    """One constant more or less: one in eight is better."""
    from proposers import Proposal

    def propose(context) -> Proposal:
        time.sleep(seconds)
        name, value = f"PART_{rng.randrange(PARTS)}", rng.choice([-5, *range(1, 8)])
        old = float(re.search(rf"^{name} = (\S+)", context.best_source, re.MULTILINE)[1])
        new = re.sub(rf"^{name} = \S+", f"{name} = {old + value:g}", context.best_source, flags=re.MULTILINE)
        return Proposal(f"{name} {old:g} -> {old + value:g}", new)

    return propose


def make_search(slots: int, look_ahead: int | None, train, latency: float):
    """A Search as agent_loop.py makes it, but for what trains and what proposes."""
    import dataclasses

    from rich.console import Console
    from search import Search, Slot
    from settings import Settings

    import agent_loop
    import prepare_data

    agent_loop.PROPOSERS["simulated"] = simulated_proposer(latency, random.Random(2))
    rule = dataclasses.replace(Settings().keep, max_runs=1, confirm_runs=0)
    search = Search(
        repo=agent_loop.open_repository(agent_loop.ROOT),
        tag="t",
        scale="cpu",
        seed=42,
        time_budget=prepare_data.TIME_BUDGET,
        proposer="simulated",
        command="",
        experiments=None,
        max_cost=None,
        deadline=math.inf,
        console=Console(quiet=True),
        slots=[Slot(f"slot {number}") for number in range(slots)],
        train=train,
        settings=Settings(look_ahead=look_ahead, keep=rule),
        program_stamp=(agent_loop.ROOT / "program.md").stat().st_mtime_ns,  # keep these settings
    )
    agent_loop.enter_branch(search)
    agent_loop.load_measure(search)
    return search


def measure_busy(slots: int, look_ahead: int | None, share: float) -> dict:
    """The part of the time in which slots train, and experiments per hour, after a round in which the slots fill."""
    import agent_loop

    run_seconds, intervals = RUN_SECONDS[slots], []
    train = simulated_train(run_seconds, random.Random(1), intervals)
    search = make_search(slots, look_ahead, train, share * run_seconds / slots)
    search.experiments = 0
    agent_loop.loop(search)  # the baseline
    search.experiments, begun = 10**6, time.monotonic() + run_seconds
    timer = threading.Timer((1 + ROUNDS[slots]) * run_seconds, search.stop.set)
    timer.start()
    agent_loop.loop(search)
    ended = begun + ROUNDS[slots] * run_seconds
    trained = sum(max(0.0, min(end, ended) - max(start, begun)) for start, end in intervals)
    finished = sum(begun < end < ended for _, end in intervals)
    return {"busy": trained / (ended - begun) / slots, "per_hour": 3600 * finished / (ended - begun)}


def write_history(experiments: int) -> None:
    """As many experiments as a long search leaves: commits with their rows, refs, journal, table."""
    from ledger import Row, append_line, read_rows, row_message
    from repository import commit_file, experiment_ref

    import agent_loop

    repo, rng = agent_loop.open_repository(agent_loop.ROOT), random.Random(3)
    source, journal, table = (agent_loop.ROOT / "train.py").read_text(), [], []
    parent = agent_loop.commit_of(repo, "refs/heads/autoresearch/t")
    (row,), _ = read_rows(agent_loop.ROOT / "results.tsv")
    for number in range(1, experiments):
        gain, level = rng.gauss(-0.002, 0.002), row.val_bpb
        values = {"number": number, "status": "discard", "gain": gain, "val_bpb": level - gain, "parent": row.commit}
        values |= {"description": f"PART_{number % PARTS} 0 -> {number}", "runs": f"42:{level - gain:.6f}"}
        new = Row(**(vars(row) | values))
        text = re.sub(rf"^PART_{number % PARTS} = .*", f"PART_{number % PARTS} = {number}", source, flags=re.MULTILINE)
        message = row_message(f"{number:04d}: {new.description}", "discard", new)
        new.commit = commit_file(repo, parent, "train.py", text, message, experiment_ref("t", number))[:7]
        result = {"status": "ok", "seconds": 20.0, "val_bpb": new.val_bpb, "memory_gb": 0.5, "summary": {}, "error": ""}
        event = {
            "event": "run",
            "number": number,
            "purpose": "judge",
            "seed": 42,
            "attempt": 0,
            "tail": "",
            "losses": [],
        }
        journal.append(json.dumps(event | result) + "\n")
        table.append(new.line())
    append_line(agent_loop.ROOT / "results.tsv", "".join(table))
    append_line(agent_loop.ROOT / "runs/t/journal.jsonl", "".join(journal))


def measure_overhead(experiments: int, more: int = 30) -> dict:
    """Seconds to come back to a search of so many experiments, and the loop's own seconds per further one."""
    import agent_loop

    train = simulated_train(0.0, random.Random(1), [])
    search = make_search(1, None, train, 0.0)
    search.experiments = 0
    agent_loop.loop(search)
    write_history(experiments)
    started = time.monotonic()
    search = make_search(1, None, train, 0.0)
    resumed = time.monotonic()
    assert len(search.rows) == experiments
    search.experiments = experiments - 1 + more
    agent_loop.loop(search)
    looped = time.monotonic()
    agent_loop.draw_progress(search.rows, agent_loop.ROOT / "progress.png")
    drawn = time.monotonic() - looped  # every time, where trainings take more than half a minute
    return {"resume": resumed - started, "experiment": (looped - resumed) / more, "drawing": drawn}


# -----------------------------------------------------------------------------
# The measurements


def in_repository(measurement: str, *arguments) -> dict:
    """Run a measurement of this file as a process in a fresh repository; what it returns."""
    with tempfile.TemporaryDirectory() as folder:
        repo = Path(folder) / "repo"
        repo.mkdir()
        for path in [*ROOT.glob("*.py"), ROOT / "program.md", ROOT / ".gitignore", Path(__file__)]:
            shutil.copy(path, repo)
        constants = "".join(f"PART_{number} = 0\n# apart\n# from\n# the next\n" for number in range(PARTS))
        (repo / "train.py").write_text(constants)
        for command in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "start"]):
            subprocess.run(["git", "-c", "user.name=b", "-c", "user.email=b@localhost", *command], cwd=repo, check=True)
        command = [sys.executable, "engine.py", "--measure", json.dumps([measurement, *arguments])]
        done = subprocess.run(command, cwd=repo, check=True, stdout=subprocess.PIPE, text=True)
        return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    args = parser.parse_args()
    os.environ |= {"AUTORESEARCH_SCALE": "cpu", "AUTORESEARCH_RECORD": "record.json"}
    if args.measure:
        measurement, *arguments = json.loads(args.measure)
        print(json.dumps(globals()[measurement](*arguments)))
        return
    subprocess.run([sys.executable, ROOT / "prepare_data.py"], check=True, stdout=subprocess.DEVNULL)
    print(f"{time.strftime('%Y-%m-%d')} | {os.cpu_count()} cores | Python {sys.version.split()[0]}\n")
    print("slots  proposal takes    serial: busy  per hour    engine: busy  per hour    ratio")
    for slots, at_once in ((1, 4), (8, 4)):
        cases = [("measure_busy", slots, ahead, share) for share in LATENCIES for ahead in (0, None)]
        with ThreadPoolExecutor(at_once) as pool:
            results = list(pool.map(lambda case: in_repository(*case), cases))
        for share, serial, engine in zip(LATENCIES, results[::2], results[1::2], strict=True):
            ratio = engine["per_hour"] / serial["per_hour"]
            figures = "".join(f"{each['busy']:16.1%}{each['per_hour']:10.0f}" for each in (serial, engine))
            print(f"{slots:5}  {share:8.2f} of a run{figures}{ratio:9.2f}", flush=True)
    print("\nexperiments  resumed in    loop's own time per experiment    drawing progress.png")
    for experiments in (10, 1000, 2000):
        cost = in_repository("measure_overhead", experiments)
        print(
            f"{experiments:11}{cost['resume']:10.2f} s{cost['experiment']:28.3f} s{cost['drawing']:22.2f} s", flush=True
        )


if __name__ == "__main__":
    main()
