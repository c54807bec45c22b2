"""
Proposers of constants on the real cpu scale, from its untuned start: how far does each get with as many runs?

    pip install optuna cmaes && python prepare_data.py --scale cpu
    nice python benchmarks/proposers.py                # hours of a core; killed, the same command goes on
    nice python benchmarks/proposers.py --jobs 2       # two trainings at once, on two cores
    python benchmarks/proposers.py --runs 20 --table   # after 20 runs of each search, as far as it was measured

    random      four constants of the best by half a step or a whole one, either way: the bar
    constants   today's proposer: a linear bandit, Thompson sampling (autoresearch/propose/constants.py)
    tpe         Optuna's tree-structured Parzen estimator, multivariate; its first ten are like random's, on the start
    cma-es      CMA-ES of the package cmaes, from the start, with first steps about as long as the others'

A step is that of constants.py: twice or half, of a ratio its odds. tpe has one step either way of the start, the others
no bound. An integer moves from half a step on, and zero is either left or one small value.

Each method makes three searches of --runs trainings of BUDGET seconds, an experiment's second run included, after the
same three runs of the baseline. Each experiment is judged against the best as the loop does, but for second looks at
near misses; the methods are told its mean val_bpb, and of a failure the worst tenth's border. In the end every best and
the baseline run on the same fresh seeds. A training is a process, and --jobs of them run at once; each result is a line
of proposers.jsonl, and what stands there (by source, seed and budget) is not trained again: a search is played from its
start each time, so nothing else is kept. The table is printed, the picture goes to docs/proposers.png.
"""

import argparse
import contextlib
import hashlib
import json
import math
import os
import random
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import cmaes
import numpy
import optuna
from matplotlib.figure import Figure

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from autoresearch.judge.keep_rule import judge
from autoresearch.judge.noise import mean, paired, pooled_noise, seed_offsets, seed_share, without_seed
from autoresearch.loop.knowledge import USUAL_NOISE, USUAL_SHARE, replay
from autoresearch.nouns import Noise, Runs, Verdict
from autoresearch.propose.constants import moved, numeric_constants, propose_constants, replaced
from autoresearch.propose.context import Context
from autoresearch.row import Row, runs_of, runs_text
from autoresearch.settings import Settings

ROOT = Path(__file__).resolve().parents[1]
START = (ROOT / "train.py").read_text()
NAMES = [constant.name for constant in numeric_constants(START, "cpu")]
RESULTS, PICTURE = ROOT / "benchmarks/proposers.jsonl", ROOT / "docs/proposers.png"
BUDGET = 8  # seconds of training
SEEDS = (1, 2, 3)  # of the searches; their trainings have the seeds 100, 101, ..., 200, ..., 300, ...
FRESH = (901, 902, 903)  # of the trainings that confirm
CLEAR = 4.30  # Student's t of two degrees of freedom (three pairs of searches), 5 % two-sided
CHANGED = 4  # constants that random changes
FIRST = 10  # experiments of tpe before it has a model
SIGMA = 0.3  # steps of each constant that cma-es begins with
SETTINGS = Settings()
COLORS = "#a3abb0", "#1f7a5c", "#c4543a", "#7d5ba6"

# -----------------------------------------------------------------------------
# One training


def key(source: str, seed: int) -> tuple[str, int, int]:
    return hashlib.sha256(source.encode()).hexdigest()[:16], seed, BUDGET


def read_results() -> dict[tuple[str, int, int], float]:
    """val_bpb by source, seed and budget; nan for a failure."""
    lines = [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []
    return {(line["source"], line["seed"], line["budget"]): line.get("val_bpb", math.nan) for line in lines}


results, writing = read_results(), threading.Lock()


def train(source: str, seed: int, description: str) -> float:
    """The val_bpb of a train.py, nan if it fails: from proposers.jsonl, or by training."""
    if key(source, seed) not in results:
        started = time.monotonic()
        noted = dict(zip(("source", "seed", "budget"), key(source, seed), strict=True)) | run_script(source, seed)
        noted |= {"seconds": round(time.monotonic() - started, 1), "change": description}
        with writing, open(RESULTS, "a") as file:
            file.write(json.dumps(noted) + "\n")
        results[key(source, seed)] = noted.get("val_bpb", math.nan)
    return results[key(source, seed)]


def run_script(source: str, seed: int) -> dict[str, float | str]:
    """val_bpb and steps that a train.py printed, or its error."""
    own = {"SCALE": "cpu", "SEED": str(seed), "BUDGET": str(BUDGET)}
    env = os.environ | {"PYTHONPATH": str(ROOT)} | {f"AUTORESEARCH_{name}": value for name, value in own.items()}
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "train.py").write_text(source)
        run = subprocess.run([sys.executable, "-P", "train.py"], cwd=folder, env=env, capture_output=True, text=True)
    if run.returncode in (2, -2, -9, -15):  # no data to train on, or killed: says nothing of this train.py
        sys.exit(run.stderr or f"the training was killed by signal {-run.returncode}")
    printed = dict(re.findall(r"^(val_bpb|num_steps): +([\d.]+)$", run.stdout, re.M))
    if run.returncode or "val_bpb" not in printed:
        return {"error": (run.stderr.strip().splitlines() or ["no val_bpb"])[-1][:200]}
    return {"val_bpb": float(printed["val_bpb"]), "steps": int(printed["num_steps"])}


# -----------------------------------------------------------------------------
# One search

Request = tuple[str, int, str]  # a training: source, seed, what was changed
Proposed = tuple[str, str]  # source, what was changed


@dataclass
class Search:
    method: str
    seed: int
    left: int  # runs
    rows: list[Row] = field(default_factory=list)
    sources: list[str] = field(default_factory=list)  # by number
    curve: list[float] = field(default_factory=list)  # what was believed of the best after each run

    @property
    def best(self) -> Row:
        return [row for row in self.rows if row.status == "keep"][-1]


def play(search: Search) -> Iterator[Request]:
    """Asks for one training after the other, and is sent the val_bpb of each."""
    search.left += 1 + SETTINGS.keep.baseline_repeats
    yield from experiment(search, START, "baseline")
    for source, description in METHODS[search.method](search):
        yield from experiment(search, source, description)
        if not search.left:
            return


def experiment(search: Search, source: str, description: str) -> Iterator[Request]:
    """Run and judge one train.py, as often as the judge asks for it and the runs last; add its row."""
    runs: Runs = {}
    seed, verdict, left, before = 100 * search.seed, Verdict("discard", ""), search.left, search.curve[-1:]
    while seed and search.left:
        val_bpb = yield source, seed, description
        search.left -= 1
        if math.isnan(val_bpb):
            verdict, runs = Verdict("crash", "no val_bpb"), {}
            break
        runs[seed] = val_bpb
        noise, offsets, beliefs = known(search)
        belief = beliefs[search.best.commit] if search.rows else None
        verdict = judge(without_seed(runs, offsets), belief, noise, SETTINGS.keep)
        seed = verdict.next_seed
    if verdict.status == "crash" and not search.rows:
        sys.exit("error: the baseline does not train")
    search.rows.append(row_of(search, runs, verdict, description))
    search.sources.append(source)
    believed = known(search)[2][search.best.commit].best
    search.curve += [*before * (left - search.left - 1), believed]


def known(search: Search):
    """(noise of a run without its seed's offset, offsets, belief in every best): loop/knowledge.py of these rows."""
    rows = [row for row in search.rows if row.runs]
    sources = [runs_of(row) for row in rows]
    noise, share = pooled_noise(sources, USUAL_NOISE["cpu"]), seed_share(sources, USUAL_SHARE["cpu"])
    left, offsets = paired(noise, sources, share), seed_offsets(sources, share)
    return left, offsets, replay(rows, {}, offsets, left)


def row_of(search: Search, runs: Runs, verdict: Verdict, description: str) -> Row:
    status = "discard" if verdict.status == "again" else verdict.status  # its second run did not fit in
    parent, number = search.best.commit if search.rows else "", len(search.rows)
    value, noise = mean(runs) if runs else 0.0, known(search)[0].sigma
    start = (f"{number:04d}", value, 0.0, status, description, number, verdict.gain, parent, 0.0, 0, 0.0, "")
    return Row(*start, noise, runs_text(runs))


# -----------------------------------------------------------------------------
# Methods: each proposes without end; what became of a proposal is in the search's last row


def random_steps(search: Search) -> Iterator[Proposed]:
    rng = random.Random(search.seed)
    while True:
        yield changed(search.sources[search.best.number], few_steps(rng))


def todays(search: Search) -> Iterator[Proposed]:
    """propose/constants.py, told what the loop would tell it."""
    while True:
        best, number = search.sources[search.best.number], len(search.rows)
        given = Context(number, search.seed, "cpu", 128, BUDGET, 1024, SETTINGS, "", best, search.rows)
        proposal = propose_constants(given)
        yield proposal.source, proposal.description


def tpe(search: Search) -> Iterator[Proposed]:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    space = {name: optuna.distributions.FloatDistribution(-1, 1) for name in NAMES}
    sampler = optuna.samplers.TPESampler(seed=search.seed, multivariate=True, n_startup_trials=FIRST)
    study = optuna.create_study(sampler=sampler)
    start = {"params": dict.fromkeys(NAMES, 0.0), "distributions": space, "value": search.rows[0].val_bpb}
    study.add_trial(optuna.trial.create_trial(**start))
    rng = random.Random(search.seed)
    for _ in range(FIRST):
        study.enqueue_trial(dict.fromkeys(NAMES, 0.0) | few_steps(rng))
    while True:
        trial = study.ask(space)
        yield changed(START, trial.params)
        study.tell(trial, told(search))


def cma_es(search: Search) -> Iterator[Proposed]:
    optimizer = cmaes.CMA(mean=numpy.zeros(len(NAMES)), sigma=SIGMA, seed=search.seed)
    while True:
        generation = []
        for _ in range(optimizer.population_size):
            steps = optimizer.ask()
            yield changed(START, dict(zip(NAMES, steps.tolist(), strict=True)))
            generation.append((steps, told(search)))
        optimizer.tell(generation)


METHODS = {"random": random_steps, "constants": todays, "tpe": tpe, "cma-es": cma_es}


def few_steps(rng: random.Random) -> dict[str, float]:
    return {name: rng.choice((-1, 1)) * rng.choice((0.5, 1.0, 1.0)) for name in rng.sample(NAMES, CHANGED)}


def changed(source: str, steps: dict[str, float]) -> Proposed:
    """A train.py with its constants so many steps further."""
    changes = []
    for constant in numeric_constants(source, "cpu"):
        step, coarse = steps.get(constant.name, 0.0), isinstance(constant.value, int) or not constant.value
        far = abs(step) >= 0.5 if coarse else step
        text = moved(constant, step, random.Random(constant.name)) if far else constant.text
        changes += [(constant, text)] if text != constant.text else []
    return replaced(source, changes)


def told(search: Search) -> float:
    """The last experiment's val_bpb; of a failure, the border of the worst tenth so far."""
    values = [row.val_bpb for row in search.rows if row.runs]
    return search.rows[-1].val_bpb if search.rows[-1].runs else float(numpy.quantile(values, 0.9))


# -----------------------------------------------------------------------------
# All searches


def train_all(pool: Executor, requests: list[Request]) -> list[float]:
    """The val_bpb of each, the same training once."""
    list(pool.map(train, *zip(*{request[:2]: request for request in requests}.values(), strict=True)))
    return [train(*request) for request in requests]


def play_all(searches: list[Search], pool: Executor, train_nothing: bool) -> None:
    """One run of each in turn, so that they are equally far whenever this is stopped."""
    under_way = [(player, next(player)) for player in map(play, searches)]
    while under_way:
        print(f"{time.strftime('%H:%M')} {len(results)} trained", file=sys.stderr, flush=True)
        players, requests = zip(*under_way, strict=True)
        if train_nothing and any(key(*request[:2]) not in results for request in requests):
            sys.exit("error: the searches have not come so far; ask for the table of fewer --runs")
        under_way = []
        for player, val_bpb in zip(players, train_all(pool, list(requests)), strict=True):
            with contextlib.suppress(StopIteration):
                under_way.append((player, player.send(val_bpb)))


def confirm(searches: list[Search], pool: Executor, train_nothing: bool) -> dict[str, dict[int, float]]:
    """Gain over the baseline on fresh seeds, by method and seed of the search."""
    gains: dict[str, dict[int, float]] = {method: {} for method in METHODS}
    if not train_nothing:
        bests = [START, *(search.sources[search.best.number] for search in searches)]
        train_all(pool, [(source, seed, "confirm") for source in bests for seed in FRESH])
    for search in searches:
        best = search.sources[search.best.number]
        if not train_nothing or all(key(source, seed) in results for source in (START, best) for seed in FRESH):
            on_fresh = [train(START, seed, "baseline") - train(best, seed, "confirm") for seed in FRESH]
            gains[search.method][search.seed] = statistics.fmean(on_fresh)
    return gains


def students_t(some: dict[int, float], others: dict[int, float]) -> str:
    """Of the differences, paired by search; "" as long as one is missing."""
    if not len(some) == len(others) == len(SEEDS):
        return ""
    differences = [some[seed] - others[seed] for seed in SEEDS]
    error = statistics.stdev(differences) / math.sqrt(len(SEEDS))
    return f"{statistics.fmean(differences) / error:+.2f}" if error else ""


def print_table(searches: list[Search], gains: dict[str, dict[int, float]], runs: int) -> None:
    baseline = statistics.fmean(train(START, seed, "baseline") for seed in FRESH)
    repeated = {row.runs: runs_of(row) for search in searches for row in search.rows if row.runs}
    print(f"{time.strftime('%Y-%m-%d')}, optuna {optuna.__version__}, cmaes {cmaes.__version__}")
    print(f"{len(SEEDS)} searches of each method, {runs} runs of {BUDGET} s each, {len(NAMES)} constants")
    noise = pooled_noise([*repeated.values()], Noise(0, 0)).sigma
    print(f"baseline {baseline:.4f} on {len(FRESH)} fresh seeds, noise of a run {noise:.4f}\n")
    print("            experiments               mean gain    gain confirmed     of the    of each            t, vs")
    print("           in 3 searches  kept  crashed  per run    on fresh seeds   baseline    search           today's")
    for method, found in gains.items():
        mine = [search for search in searches if search.method == method]
        statuses = [row.status for search in mine for row in search.rows[1:]]
        area = statistics.fmean(search.curve[0] - statistics.fmean(search.curve[1:]) for search in mine)
        each = " ".join(f"{found[seed]:.3f}" if seed in found else "  -  " for seed in SEEDS)
        confirmed = f"{len(found)} of {len(SEEDS)} searches".rjust(27)  # whose mean would not compare
        if len(found) == len(SEEDS):
            middle, error = statistics.fmean(found.values()), statistics.stdev(found.values()) / math.sqrt(len(SEEDS))
            confirmed = f"{middle:9.4f} +-{error:.4f} {middle / baseline:8.2%}"
        counts = f"{len(statuses):12} {statuses.count('keep'):6} {statuses.count('crash'):8} {area:9.4f}"
        print(f"{method:10} {counts} {confirmed}    {each}  {students_t(found, gains['constants']):>6}")
    print(
        "\nmean gain per run: of what the judge believed to be the best, the area under the curve of docs/proposers.png"
    )
    print(f"t: of the paired differences in confirmed gain; clear from {CLEAR} on (5 %, two-sided, one comparison)")


def draw(searches: list[Search], gains: dict[str, dict[int, float]]) -> None:
    """The best so far, each search thin and each method's mean thick; at the right the confirmed gains."""
    figure = Figure(figsize=(9, 5), dpi=130)
    axes = figure.add_subplot(xlabel="runs", ylabel="gain in val_bpb over the baseline")
    axes.spines[["top", "right"]].set_visible(False)
    for (method, found), color in zip(gains.items(), COLORS, strict=True):
        beliefs = numpy.array([search.curve for search in searches if search.method == method])
        curves = beliefs[:, :1] - beliefs
        axes.plot(curves.T, color=color, linewidth=0.6, alpha=0.5)
        axes.plot(curves.mean(axis=0), color=color, linewidth=2, label=method)
        end = curves.shape[1] * (1.03 + 0.02 * list(gains).index(method))
        axes.scatter([end] * len(found), [*found.values()], 18, color)
    axes.set_title("Constants of the cpu scale: the best so far, and (dots) its gain on fresh seeds", fontsize=10)
    axes.legend(frameon=False)
    figure.savefig(PICTURE)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=60, help="trainings of each search (default: 60)")
    parser.add_argument("--table", action="store_true", help="train nothing: leave out what is not confirmed yet")
    parser.add_argument("--jobs", type=int, default=1, help="trainings at once (default: 1)")
    args = parser.parse_args()
    if args.runs < 1 or args.jobs < 1:
        parser.error("--runs and --jobs are 1 or more")
    searches = [Search(method, seed, args.runs) for seed in SEEDS for method in METHODS]
    with ThreadPoolExecutor(args.jobs) as pool:
        play_all(searches, pool, args.table)
        gains = confirm(searches, pool, args.table)
    print_table(searches, gains, args.runs)
    draw(searches, gains)


if __name__ == "__main__":
    main()
