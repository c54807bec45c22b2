"""
Many slots on one best: what becomes of a change that beat the best it was made for, while another was kept meanwhile.

    python benchmarks/slots.py > benchmarks/slots.txt       # about ten minutes of one core; no GPU, no torch

The candidates are those of benchmarks/keep_rule.py, in units of the noise of a run, and judge() decides. Each slot
takes a new candidate for the best of that moment as soon as it is free; a run takes 0.9 to 1.1 units of time. Where a
change comes back to another best than its own, the two edits conflict with a given probability. Without a conflict it
runs again on top. With one, the rules differ:
  today            it is dropped. Half of the dropped ideas are proposed again on the new best.
  better of two    it takes the best's place if it is probably better, by what is believed of both; half of the replaced
                   changes are proposed again on it. Else as today.
  always again     as today, but every dropped idea is proposed again at once.
  both             better of two, and every idea that was dropped or replaced is proposed again at once.
"""

import argparse
import heapq
import math
import random
import statistics
import sys
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from keep_rule import BASELINE, SIGMA, Stream, World

from autoresearch.judge.belief import Belief, after_candidate, start
from autoresearch.judge.keep_rule import better_of_two, judge
from autoresearch.nouns import Noise, Runs

NOISE = Noise(SIGMA, 1000)
RULES = ("today", "better of two", "always again", "both")


@dataclass
class Best:
    """A best that there was, and the changes that it consists of."""

    value: float  # true, in sigma over the baseline
    gains: list[float]  # of the changes since the baseline
    belief: Belief


@dataclass
class Candidate:
    gain: float
    base: int  # which best
    on_top: bool = False
    runs: Runs = field(default_factory=dict)


class Search:
    """One search with a number of slots, until its runs or its time are over."""

    def __init__(self, replication: int, slots: int, conflict: float, rule: str, runs: float, hours: float):
        self.world = World(replication, 700, Stream())
        self.chance = random.Random(replication)
        self.slots, self.conflict, self.rule, self.limit, self.end = slots, conflict, rule, runs, hours
        baseline = {seed: self.measure(0.0) for seed in range(3)}
        self.bests = [Best(0.0, [], start(baseline, NOISE))]
        self.waiting: list[Candidate] = []  # further runs of a candidate
        self.ideas: list[float] = []  # dropped changes that are proposed again
        self.busy: list[tuple[float, int, Candidate]] = []
        self.replaced = 0

    def measure(self, value: float) -> float:
        self.world.spent += 1
        return BASELINE - SIGMA * (value + self.chance.gauss(0, 1))

    def begin(self, now: float) -> None:
        """Give each idle slot a run."""
        while len(self.busy) < self.slots and self.world.spent < self.limit and now < self.end:
            if self.waiting:
                candidate = self.waiting.pop(0)
            else:
                gain = self.ideas.pop(0) if self.ideas else self.world.candidate()
                candidate = Candidate(gain, len(self.bests) - 1)
            candidate.runs[len(candidate.runs)] = self.measure(self.bests[candidate.base].value + candidate.gain)
            heapq.heappush(self.busy, (now + self.chance.uniform(0.9, 1.1), self.world.spent, candidate))

    def play(self) -> float:
        """The true value of the last best."""
        now = 0.0
        self.begin(now)
        while self.busy:
            now, _, candidate = heapq.heappop(self.busy)
            if now <= self.end:
                self.decide(candidate)
            self.begin(now)
        return self.bests[-1].value

    def decide(self, candidate: Candidate) -> None:
        base, newest = self.bests[candidate.base], self.bests[-1]
        belief = replace(base.belief, usual=newest.belief.usual)
        verdict = judge(candidate.runs, belief, NOISE)
        if verdict.status == "again":
            self.waiting.append(candidate)
            return
        is_newest, kept = base is newest, verdict.status == "keep"
        after = after_candidate(belief, candidate.runs, kept, NOISE)
        if kept and is_newest:
            self.keep(candidate, after)
            return
        if not kept:
            base.belief = after
        newest.belief = replace(newest.belief, usual=after.usual)
        if kept and self.chance.random() >= self.conflict:
            self.waiting.append(Candidate(candidate.gain, len(self.bests) - 1, on_top=True))
        elif kept:
            self.conflicting(candidate, after, newest)

    def conflicting(self, candidate: Candidate, after: Belief, newest: Best) -> None:
        if self.rule in ("better of two", "both"):
            status, _ = better_of_two(after, newest.belief, len(candidate.runs))
            if status == "again":
                self.waiting.append(candidate)
                return
            if status == "keep":
                base = self.bests[candidate.base]
                lost = newest.gains[len(base.gains) :]
                self.ideas += [gain for gain in lost if self.rule == "both" or self.chance.random() < 0.5]
                self.replaced += 1
                self.keep(candidate, after)
                return
        if self.rule in ("always again", "both") or self.chance.random() < 0.5:
            self.ideas.append(candidate.gain)

    def keep(self, candidate: Candidate, belief: Belief) -> None:
        base = self.bests[candidate.base]
        self.bests.append(Best(base.value + candidate.gain, [*base.gains, candidate.gain], belief))


def score(slots: int, conflict: float, rule: str, runs: float, hours: float, replications: int) -> list[float]:
    return [Search(number, slots, conflict, rule, runs, hours).play() for number in range(replications)]


def row(name: str, slots: int, runs: float, hours: float, replications: int) -> None:
    for conflict in (0.1, 0.3, 0.6) if slots > 1 else (0.3,):
        today, *others = (score(slots, conflict, rule, runs, hours, replications) for rule in RULES)
        cells = f"{name:10} {slots:5} {conflict:9.0%} {statistics.fmean(today):9.1f}"
        for other in others if slots > 1 else ():
            gains = [new - old for new, old in zip(other, today, strict=True)]
            cells += f"  {statistics.fmean(gains):+7.2f} +-{statistics.stdev(gains) / math.sqrt(len(gains)):5.2f}"
        print(cells, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--replications", type=int, default=200, help="searches in each cell (default: 200)")
    replications = parser.parse_args().replications
    print(f"{time.strftime('%Y-%m-%d')}, {replications} searches in each cell; a quarter of them with 700 runs\n")
    print("                conflicting   true gain   better of two    always again            both")
    print("            slots  edits         today    (more than today)")
    started = time.process_time()
    for runs, share in ((125, 1.0), (700, 0.25)):
        for slots in (1, 8, 32):
            row(f"{runs} runs", slots, runs, math.inf, round(share * replications))
    for slots in (1, 8, 32):
        row("20 units", slots, math.inf, 20.0, replications)
    print(f"\n{time.process_time() - started:.0f} s of one core")


if __name__ == "__main__":
    main()
