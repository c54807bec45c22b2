"""
Keep rules on a simulated stream of candidates: what they find, what they keep for nothing, what they report.

    python benchmarks/keep_rule.py > benchmarks/keep_rule.txt      # two minutes of one core; no GPU, no torch

All in units of sigma, the noise of one run. The stream: 60 % of the candidates do harm, -(0.5 + Exp(4)); 28 % do next
to nothing, N(-0.3, 0.6); 12 % are good, Exp(2.5 * d), by less the longer the search: d = max(0.15, 1 - runs / 700).
Every run counts against the budget: those of candidates, repeats of the baseline, and the fresh seeds at the end.
Rules meet the same candidates in the same order. `shipped` is judge() itself, with its noise measured as it goes.
"""

import argparse
import math
import random
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from autoresearch.judge import keep_rule
from autoresearch.judge.belief import after_candidate, start
from autoresearch.judge.keep_rule import confirmed_best, fresh_seeds, judge, reconsider
from autoresearch.judge.noise import paired, pooled_noise, seed_offsets, seed_share, winsorized, without_seed
from autoresearch.nouns import Noise
from autoresearch.settings import Keep

SIGMA = 0.0003  # val_bpb; the published order of magnitude, and small enough for all numbers to be plausible
BASELINE = 0.998
SEEDS = 64
REPLICATIONS = {125: 700, 700: 120}  # of the first table
KEEP = Keep()
NEAR_MISS = 0.3  # a discard as probable as this is worth another look while the same best stands
PRIOR = Noise(SIGMA, 7)  # as published for the h100 scale

# -----------------------------------------------------------------------------
# The world: candidates, runs, a budget


@dataclass(frozen=True)
class Stream:
    good: float = 0.12  # share of good candidates
    heavy: bool = False  # losses and gains with a tail like Student's t of 3 degrees of freedom
    size: float = 1.0  # all true gains times this: how large effects are next to the noise
    correlation: float = 0.0  # of the noise of two sources run on one seed
    share: float = 0.3  # of the noise that is the seed's, as the shipped rule is told
    prior: Noise | None = PRIOR  # what the shipped rule is told of the noise; None: only its baseline's runs


class World:
    """One search: it hands out candidates, measures them until the budget is spent, and knows the truth."""

    def __init__(self, replication: int, budget: int, stream: Stream):
        self.stream, self.budget, self.spent = stream, budget, 0
        self.draws, self.noise = random.Random(2 * replication), random.Random(2 * replication + 1)
        self.shared = [self.noise.gauss(0, math.sqrt(stream.correlation)) for _ in range(SEEDS)]
        self.own = math.sqrt(1 - stream.correlation)
        self.best = 0.0  # true value of the best, in sigma over the baseline
        self.candidates = self.kept = self.false = 0

    @property
    def left(self) -> int:
        return self.budget - self.spent

    def candidate(self) -> float:
        """The true gain of the next candidate."""
        self.candidates += 1
        kind, size, other = self.draws.random(), self.draws.expovariate(1), self.draws.gauss(0, 1)
        stretch = self.stream.size * (abs(other) / 0.8 / math.sqrt(size + 0.5) if self.stream.heavy else 1)
        if kind < self.stream.good:
            return 2.5 * max(0.15, 1 - self.spent / 700) * size * stretch
        rest = (kind - self.stream.good) / (1 - self.stream.good)
        return (-0.3 + 0.6 * other) * self.stream.size if rest < 28 / 88 else -(0.5 + 4 * size) * stretch

    def run(self, gain: float, seed: int) -> float:
        """The val_bpb of a source with this gain over the best."""
        self.spent += 1
        error = self.shared[seed] + self.own * self.noise.gauss(0, 1)
        return BASELINE - SIGMA * (self.best + gain + error)

    def keep(self, gain: float) -> None:
        self.kept += 1
        self.false += gain <= 0
        self.best += gain

    def error(self, val_bpb: float) -> float:
        """How much too good a reported best is, in sigma."""
        return (BASELINE - val_bpb) / SIGMA - self.best


# -----------------------------------------------------------------------------
# Rules: each plays a world to its end and returns (reported best, confirmed best or None)


def greedy(world: World):
    best = world.run(0, 0)
    while world.left:
        gain = world.candidate()
        if (val_bpb := world.run(gain, 0)) < best:
            world.keep(gain)
            best = val_bpb
    return best, None


def three_seeds(world: World):
    best = statistics.fmean(world.run(0, seed) for seed in range(3))
    while world.left >= 3:
        gain = world.candidate()
        if (val_bpb := statistics.fmean(world.run(gain, seed) for seed in range(3))) < best:
            world.keep(gain)
            best = val_bpb
    return best, None


def again_if_better(world: World, most: int = 3):
    """Worse: dropped. Better by two standard errors: kept. Else run again, up to `most`; the better mean wins."""
    best, best_runs = world.run(0, 0), 1
    while world.left:
        gain, runs = world.candidate(), []
        while world.left and len(runs) < most:
            runs.append(world.run(gain, len(runs)))
            measured = best - statistics.fmean(runs)
            if not 0 < measured <= 2 * SIGMA * math.sqrt(1 / len(runs) + 1 / best_runs):
                break
        if measured > 0:
            world.keep(gain)
            best, best_runs = statistics.fmean(runs), len(runs)
    return best, None


def sequential_test(world: World, alpha: float = 0.03, beta: float = 0.1, gain_sought: float = 2.0):
    """Wald's sequential probability ratio test of gain 0 against gain 2 sigma, on runs paired with the best's."""
    best = {0: world.run(0, 0)}
    while world.left:
        gain, evidence, runs = world.candidate(), 0.0, {}
        while world.left >= 2 and math.log(beta / (1 - alpha)) < evidence < math.log((1 - beta) / alpha):
            seed = len(runs)
            runs[seed] = world.run(gain, seed)
            if seed not in best:
                best[seed] = world.run(0, seed)
            evidence += gain_sought * ((best[seed] - runs[seed]) / SIGMA - gain_sought / 2) / 2
        if not runs:
            break
        if evidence >= math.log((1 - beta) / alpha):
            world.keep(gain)
            best = runs
    return statistics.fmean(best.values()), None


def shipped(world: World, keep: Keep = KEEP):
    noise, _, belief = play(world, keep)
    confirmed = confirmed_best({seed: world.run(0, seed) for seed in fresh_seeds(belief.runs, world.left)}, noise)
    return belief.best, confirmed and confirmed.val_bpb


def play(world: World, keep: Keep):
    """The search under judge(), until only the confirming runs are left. Returns the noise and the belief."""
    baseline = {seed: world.run(0, seed) for seed in range(1 + keep.baseline_repeats)}
    history, near = [], []  # all (runs, kept); the (true gain, runs) of near misses since the last keep
    noise, offsets, belief = learn(world, baseline, history)
    while world.left > keep.confirm_runs:
        seen = [without_seed(runs, offsets) for _, runs in near]
        second_look = reconsider(seen, belief, noise)
        if second_look:
            gain, runs = near.pop(second_look[0])
            history = [entry for entry in history if entry[0] is not runs]
        else:
            gain = world.candidate()
            runs = {0: world.run(gain, 0)}
        verdict = finish(world, gain, runs, belief, noise, offsets, keep)
        kept = verdict.status == "keep"
        history.append((runs, kept))
        if second_look or len(runs) > 1:
            noise, offsets, belief = learn(world, baseline, history)
        else:
            runs = without_seed(runs, offsets)
            belief = after_candidate(belief, runs, kept, noise)
        if kept:
            world.keep(gain)
        near = [] if kept else [*near, (gain, history[-1][0])] if verdict.better >= NEAR_MISS else near
    return noise, offsets, belief


def learn(world: World, baseline, history):
    """(noise, seed offsets, belief) of a whole history, as agent_loop.py has them from its ledger."""
    sources = [baseline, *(runs for runs, _ in history)]
    sources = winsorized(sources, world.stream.prior) if world.stream.prior else sources
    repeated = [runs for runs in sources if len(runs) > 1]
    share = seed_share(repeated, world.stream.share)
    noise = pooled_noise(repeated, world.stream.prior or Noise(0, 0))
    noise = paired(noise, sources, share)
    offsets = seed_offsets(repeated, share)
    belief = start(without_seed(baseline, offsets), noise)
    for runs, kept in history:
        belief = after_candidate(belief, without_seed(runs, offsets), kept, noise)
    return noise, offsets, belief


def finish(world: World, gain: float, runs, belief, noise: Noise, offsets, keep: Keep, statements_less: int = 0):
    """Run a candidate as often as judge() asks for it and the budget allows. Adds to `runs`, returns the verdict."""
    while True:
        seen = without_seed(runs, offsets)
        verdict = judge(seen, belief, noise, statements_less=statements_less)
        if verdict.status != "again" or world.left == keep.confirm_runs:
            return verdict
        runs[verdict.next_seed] = world.run(gain, verdict.next_seed)


# -----------------------------------------------------------------------------
# Tables


@dataclass(frozen=True)
class Score:
    gain: float
    standard_error: float
    kept: float
    false: float  # share of what was kept
    bias: float  # of the reported best, too good is positive
    confirmed: float  # mean absolute error of the confirmed best
    confirmed_bias: float
    runs: float  # per candidate


def score(rule, budget: int, stream: Stream = Stream(), share: float = 1.0) -> Score:
    """A rule's averages over replications."""
    worlds = [World(replication, budget, stream) for replication in range(round(share * REPLICATIONS[budget]))]
    reports = [rule(world) for world in worlds]
    gains = [world.best for world in worlds]
    kept = sum(world.kept for world in worlds)
    seen = [world.error(best) for world, (best, _) in zip(worlds, reports, strict=True)]
    fresh = [world.error(best) for world, (_, best) in zip(worlds, reports, strict=True) if best is not None]
    return Score(
        statistics.fmean(gains),
        statistics.stdev(gains) / math.sqrt(len(gains)),
        kept / len(worlds),
        sum(world.false for world in worlds) / max(kept, 1),
        statistics.fmean(seen),
        statistics.fmean(map(abs, fresh)) if fresh else math.nan,
        statistics.fmean(fresh) if fresh else math.nan,
        sum(world.spent for world in worlds) / sum(world.candidates for world in worlds),
    )


def print_rules() -> None:
    rules = {"greedy": greedy, "always three seeds": three_seeds, "sequential test": sequential_test}
    rules |= {"again if better, up to 3": again_if_better, "shipped": shipped}
    print("rule                       runs    true gain  of greedy's  kept   false  best too  confirmed best  runs per")
    print("                                                                  keeps   good by  off by (bias)  candidate")
    greedy_scores = {}
    for budget in REPLICATIONS:
        for name, rule in rules.items():
            s = score(rule, budget)
            base = greedy_scores.setdefault(budget, s)
            off = f"{s.confirmed:.2f} ({s.confirmed_bias:+.2f})" if math.isfinite(s.confirmed) else ""
            print(
                f"{name:26} {budget:4} {s.gain:7.1f} +-{s.standard_error:4.1f} {s.gain / base.gain:11.1%} {s.kept:6.1f}"
                f" {s.false:7.1%} {s.bias:+9.2f} {off:>15} {s.runs:10.2f}"
            )
        print()


def print_chances(replications: int = 400) -> None:
    """P(keep) by true gain, in the middle of a search."""
    print("true gain (sigma)               -2     -1      0    0.5      1      2      4")
    gains = (-2, -1, 0, 0.5, 1, 2, 4)
    for name, less in (("P(keep)", 0), ("P(keep), 10 statements less", 10)):
        kept, runs = dict.fromkeys(gains, 0), dict.fromkeys(gains, 0)
        for replication in range(replications):
            world = World(10_000 + replication, 63, Stream())
            noise, offsets, belief = play(world, KEEP)
            world.budget = 1000
            for gain in gains:
                measured = {0: world.run(gain, 0)}
                verdict = finish(world, gain, measured, belief, noise, offsets, KEEP, less)
                kept[gain] += verdict.status == "keep"
                runs[gain] += len(measured)
        print(f"{name:26}" + "".join(f"{count / replications:7.0%}" for count in kept.values()))
        print(f"{'  runs spent':26}" + "".join(f"{count / replications:7.2f}" for count in runs.values()))
    print()


def print_unstable(replications: int = 200) -> None:
    """P(keep) after 25 candidates, one of which is good on one seed and bad on another; noise 0.008, as in val_bpb."""
    print("P(keep) of a true gain (noise 0.008) of     0.01    0.02    0.05    0.10")
    gains, prior = (0.01, 0.02, 0.05, 0.10), Noise(0.0085, 2)
    for name, unstable, trim in (
        ("no unstable candidate", False, True),
        ("one with runs 1.62 and 1.95, as it was", True, False),
        ("the same, winsorized", True, True),
    ):
        kept = dict.fromkeys(gains, 0)
        for replication in range(replications):
            rng = random.Random(replication)
            sources = [{seed: 1.9 + rng.gauss(0, 0.008) for seed in range(42, 45)}]
            sources += [{42: 1.9 + rng.expovariate(1 / 0.03) + rng.gauss(0, 0.008)} for _ in range(25)]
            sources += [{42: 1.62, 43: 1.95}] if unstable else []
            sources = winsorized(sources, prior) if trim else sources
            share = seed_share(sources, 0.5)
            noise = paired(pooled_noise(sources, prior), sources, share)
            offsets = seed_offsets(sources, share)
            belief = start(without_seed(sources[0], offsets), noise)
            for gain in gains:
                runs = {}
                for seed in (42, 43):
                    runs[seed] = 1.9 - gain + rng.gauss(0, 0.008)
                    if (verdict := judge(without_seed(runs, offsets), belief, noise)).status != "again":
                        break
                kept[gain] += verdict.status == "keep"
        print(f"{name:40}" + "".join(f"{count / replications:8.0%}" for count in kept.values()))
    print()


ROBUSTNESS = {
    "as above": Stream(),
    "half as many good ones": Stream(good=0.06),
    "twice as many": Stream(good=0.24),
    "no good ones": Stream(good=0.0),
    "heavy tails": Stream(heavy=True),
    "effects a third": Stream(size=1 / 3),
    "effects three times": Stream(size=3.0),
    "sigma told 30 % too low": Stream(prior=Noise(0.7 * SIGMA, PRIOR.degrees_of_freedom)),
    "sigma told 30 % too high": Stream(prior=Noise(1.3 * SIGMA, PRIOR.degrees_of_freedom)),
    "sigma from 3 baseline runs": Stream(prior=None),
    "seeds correlate, rho 0.5": Stream(correlation=0.5),
    "rho 0.7, told 0.6": Stream(correlation=0.7, share=0.6),
}


def print_robustness() -> None:
    print("other streams                   true gain, greedy -> shipped      false keeps, greedy -> shipped  confirmed")
    print("                                 125 runs          700 runs        125 runs       700 runs          off by")
    for name, stream in ROBUSTNESS.items():
        scores = [score(rule, budget, stream, share=0.15) for budget in REPLICATIONS for rule in (greedy, shipped)]
        gains, false = [s.gain for s in scores], [f"{s.false:.0%}" for s in scores]
        print(
            f"{name:28} {gains[0]:8.1f} -> {gains[1]:5.1f} {gains[2]:8.1f} -> {gains[3]:5.1f} "
            f"{false[0]:>9} -> {false[1]:>3} {false[2]:>10} -> {false[3]:>3} {scores[1].confirmed:12.2f}"
        )
    print()


FRONTIER = [(0.6, 0.5), (0.7, 0.6), (0.7, 0.7), (0.8, 0.7), (0.9, 0.7), (0.9, 0.8), (0.95, 0.9)]


def print_frontier() -> None:
    """What the two thresholds trade: 125 runs."""
    base = score(greedy, 125, share=0.25)
    print("the frontier, 125 runs:  keep_at_once  keep_at_last   of greedy's gain   of greedy's false keeps (share)")
    for at_once, at_last in FRONTIER:
        keep_rule.KEEP_AT_ONCE, keep_rule.KEEP_AT_LAST = at_once, at_last
        s = score(shipped, 125, share=0.25)
        print(f"{at_once:37.2f} {at_last:13.2f} {s.gain / base.gain:18.1%} {s.false / base.false:18.0%}")
    print()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--times", type=int, default=1, help="so many times the replications, and the time (default: 1)"
    )
    for budget in REPLICATIONS:
        REPLICATIONS[budget] *= parser.parse_args().times
    started = time.process_time()
    print(f"{time.strftime('%Y-%m-%d')}, replications: {REPLICATIONS} (other streams: 15 % of them, frontier: 25 %)\n")
    print_rules()
    print_chances()
    print_unstable()
    print_robustness()
    print_frontier()
    print(f"{time.process_time() - started:.0f} s of one core")


if __name__ == "__main__":
    main()
