"""
When the proposer is asked: how busy the slots are and how many results are unseen, by the loop's own rule in simulated
time.

    python benchmarks/asking.py | tee benchmarks/asking.txt        # half a minute of one core

Unlike engine.py it has no git, no threads and no load of the machine, so the figures are those of the rule alone. Runs
take 1 +- 30 %. Proposals take a share of a run: always the same, or log-normal with a deviation of one half. `before`:
the rule until 2026-11-29, which had a number of proposals ahead.
"""

import math
import random
import statistics
import sys
import time
from collections import deque
from pathlib import Path
from types import SimpleNamespace

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from autoresearch.loop import proposers
from autoresearch.nouns import Run, RunResult

STEP, RUNS, LEFT_OUT = 0.02, 400, 40  # of a run's time between two looks; runs that are begun, and not counted
SHARES = (0.1, 0.25, 0.5, 0.8, 1.0, 1.5, 2.0)


def before(session, ledger, queue) -> bool:
    """As many as the slots begin while one is written, times 1.4, and one more or a quarter of the slots."""
    seconds = 1.05 * max([run.result.seconds for run in ledger.runs[-5:]] or [1.0])
    begun = statistics.fmean(queue.asking.seconds or [0.0]) * queue.slots / seconds
    ahead = 0 if begun < 0.02 else math.ceil(1.4 * begun) + max(1, queue.slots // 4)
    wanted = sum(slot.task is None for slot in queue.bench.slots) + ahead
    return len(queue.asking.at_work) < 8 and wanted > len(queue.waiting) + len(queue.asking.at_work)


def simulate(rule, slots: int, share: float, spread: float) -> tuple[float, float]:
    """(part of the time in which the slots train, results that were unseen when a proposal began)."""
    rng, now, busy, finished, unseen = random.Random(1), 0.0, 0, 0, []
    asking = SimpleNamespace(at_work=[], seconds=deque(maxlen=5))
    places = [SimpleNamespace(task=None, since=0.0, ends=0.0) for _ in range(slots)]
    queue = SimpleNamespace(slots=slots, waiting=deque(), asking=asking)
    queue.bench = SimpleNamespace(slots=places, tasks=deque())
    session = SimpleNamespace(options=SimpleNamespace(proposer="anthropic", time_budget=1))
    ledger, steps = SimpleNamespace(runs=[]), 0
    proposers.time = SimpleNamespace(monotonic=lambda: now)
    while len(unseen) < RUNS:
        now, steps = now + STEP, steps + 1
        for slot in places:
            if slot.task and slot.ends <= now:
                ledger.runs.append(Run(0, 42, RunResult("ok", now - slot.since)))
                slot.task, finished = None, finished + 1
        for ends, begun, seen in [each for each in asking.at_work if each[0] <= now]:
            asking.at_work.remove((ends, begun, seen))
            asking.seconds.append(now - begun)
            queue.waiting.append(seen)
        for slot in places:
            if not slot.task and queue.waiting:
                unseen.append(finished - queue.waiting.popleft())
                slot.task, slot.since, slot.ends = True, now, now + rng.uniform(0.7, 1.3)
        while rule(session, ledger, queue):
            takes = share * rng.lognormvariate(-(spread**2) / 2, spread)
            asking.at_work.append((now + takes, now, finished))
        busy += sum(slot.task is not None for slot in places)
    return busy / steps / slots, statistics.fmean(unseen[LEFT_OUT:])


def main() -> None:
    print(f"{time.strftime('%Y-%m-%d')} | busy, unseen results, by the time of a proposal in runs\n")
    print(f"{'':32}" + "".join(f"{share:>13}" for share in SHARES))
    for slots in (1, 2, 8):
        for spread in (0.0, 0.5):
            for name, rule in (("before", before), ("today", proposers.wants_proposal)):
                figures = [simulate(rule, slots, share, spread) for share in SHARES]
                told = "".join(f"{busy:7.1%}{unseen:6.1f}" for busy, unseen in figures)
                lengths = "they vary" if spread else "one length"
                print(f"{slots} slots, {lengths:10}, {name:10}{told}", flush=True)


if __name__ == "__main__":
    main()
