"""
The loop: propose an edit of train.py, train it, judge the number, let git keep or drop it. Again, until time is up.

    python agent_loop.py --demo                       # no GPU, no key, no download: about five minutes
    python agent_loop.py --hours 48                   # the real thing; needs ANTHROPIC_API_KEY and prepared data
    python agent_loop.py --hours 8 --proposer mutate  # no LLM: random changes of constants, the baseline to beat
    python agent_loop.py --hours 8 --proposer command --command 'claude -p "improve train.py as program.md says"'

The same command again goes on where the last one stopped, however it stopped. Steer by editing program.md at any time.

What is written, and in which order, so that a kill at any point loses nothing:
  1. the candidate as a commit object, parent = the best so far, and refs/autoresearch/<tag>/NNNN on it
  2. the run, in runs/<tag>/NNNN/
  3. the same commit with the result in its message, and the ref on that
  4. a row in results.tsv: from here on the experiment counts
  5. for a keep: the branch autoresearch/<tag> moves to the commit, train.py follows
A ref without a row is trained again; a kept row that the branch does not have yet is caught up with.
"""

import argparse
import dataclasses
import fcntl
import json
import math
import os
import re
import signal
import subprocess
import sys
import threading
import time
import traceback
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import git
from rich.console import Console
from rich.text import Text

import audit
import sandbox
from judge import (
    Belief,
    Noise,
    Runs,
    Verdict,
    after_best_run,
    fresh_seeds,
    judge,
    mean,
    paired,
    plausible,
    pooled_noise,
    reconsider,
    replay,
    seed_offsets,
    without_seed,
)
from ledger import HEADER, Row, append_row, append_run, one_line, read_rows, read_runs, runs_of, runs_text
from mutate import propose_mutation
from proposers import CannotPropose, Context, Proposal, ProposalFailed, Usage, propose_by_command
from report import draw_progress, gain_text, result_line, summary
from researcher import check_key, propose_by_claude
from run_experiment import GRACE, ROOT, RunResult, fail, run_experiment
from settings import Settings, flat, parse_program

PROPOSERS = {"anthropic": propose_by_claude, "command": propose_by_command, "mutate": propose_mutation}

# -----------------------------------------------------------------------------
# Git: commits are made as objects; the user's index and working tree are left alone

STOP_SIGNALS = {signal.SIGINT, signal.SIGTERM}


@contextmanager
def signals_held():
    """Ctrl-C reaches every process of the terminal: git, started with these signals blocked, finishes what it does."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def run_git(repo: git.Git, *arguments: str, strip: bool = True, check: bool = True, env: dict | None = None) -> str:
    """The output of a git command. Raises git.GitCommandError, or with check=False gives what there is, maybe ""."""
    with signals_held():
        options = {"strip_newline_in_stdout": strip, "with_exceptions": check, "env": env}
        return repo.execute(["git", *arguments], **options)


def open_repository() -> git.Git:
    """The git repository of this folder, able to commit even where no user.name is set."""
    repo = git.Git(ROOT)
    if not run_git(repo, "rev-parse", "-q", "--verify", "HEAD", check=False):
        fail(f"{ROOT} is not a git repository with a commit; run: git init && git add -A && git commit -m start")
    if not run_git(repo, "config", "user.email", check=False):
        names = {"NAME": "autoresearch", "EMAIL": "autoresearch@localhost"}
        env = {f"GIT_{who}_{key}": value for who in ("AUTHOR", "COMMITTER") for key, value in names.items()}
        repo.update_environment(**env)
    return repo


def current_branch(repo: git.Git) -> str:
    """The branch that is checked out, "" for a detached HEAD."""
    return run_git(repo, "symbolic-ref", "-q", "--short", "HEAD", check=False)


def commit_of(repo: git.Git, revision: str) -> str:
    """The full hash of a commit, "" if there is none."""
    return run_git(repo, "rev-parse", "-q", "--verify", revision + "^{commit}", check=False)


def changed(repo: git.Git, name: str) -> bool:
    """Whether a file differs from the checked-out commit, or is not in it."""
    return bool(run_git(repo, "status", "--porcelain", "--", name))


def commit_file(repo: git.Git, parent: str, name: str, text: str, message: str) -> str:
    """A commit object: the tree of `parent` with `text` as its file `name`. Nothing else changes. Returns its hash."""
    folder = Path(run_git(repo, "rev-parse", "--absolute-git-dir"))
    scratch, env = folder / "autoresearch.blob", {"GIT_INDEX_FILE": str(folder / "autoresearch.index")}
    scratch.write_text(text)
    blob = run_git(repo, "hash-object", "-w", "--no-filters", "--", str(scratch))
    run_git(repo, "read-tree", parent, env=env)
    run_git(repo, "update-index", "--add", "--cacheinfo", f"100644,{blob},{name}", env=env)
    return run_git(repo, "commit-tree", run_git(repo, "write-tree", env=env), "-p", parent, "-m", message)


def file_at(repo: git.Git, commit: str, name: str) -> str:
    """The text of a file in a commit, "" if it is not there."""
    return run_git(repo, "cat-file", "blob", f"{commit}:{name}", strip=False, check=False)


SECOND_LOOK = re.compile(r"second look at (\d{4}): ")  # what the description of such an experiment begins with


def experiment_ref(tag: str, number: int) -> str:
    return f"refs/autoresearch/{tag}/{number:04d}"


# -----------------------------------------------------------------------------
# The search and its state on disk

# What val_bpb differs by from run to run, until this search has measured it: the published figure for the h100 scale
# (seven degrees of freedom), benchmarks/cpu_noise.txt for the cpu scale.
USUAL_NOISE = {"h100": Noise(0.00032, 2), "cpu": Noise(0.015, 2)}


@dataclass
class Search:
    """One tag's search: what is on disk, and what this session was asked for."""

    repo: git.Git
    tag: str
    scale: str
    seed: int
    time_budget: int
    proposer: str
    command: str
    experiments: int | None
    deadline: float  # time.time() at which everything has to be over
    console: Console
    stop: threading.Event = field(default_factory=threading.Event)
    settings: Settings = field(default_factory=Settings)
    instructions: str = ""
    rows: list[Row] = field(default_factory=list)
    note: str = ""  # for the next proposal: how the last one failed
    unbooked: Usage = field(default_factory=Usage)  # of failed proposals; booked on the next experiment
    failures: int = 0  # proposals failed in a row
    blocked: str = ""  # what only a person can mend
    measure: dict = field(default_factory=dict)  # load_measure()

    @property
    def branch(self) -> str:
        return f"autoresearch/{self.tag}"

    @property
    def results(self) -> Path:
        return ROOT / "results.tsv"

    @property
    def folder(self) -> Path:
        return ROOT / "runs" / self.tag

    def experiment_folder(self, number: int) -> Path:
        return self.folder / f"{number:04d}"

    @property
    def head(self) -> str:
        """The commit of the branch, wherever the user's HEAD is."""
        return commit_of(self.repo, f"refs/heads/{self.branch}")

    @property
    def kept(self) -> list[Row]:
        return [row for row in self.rows if row.status == "keep"]

    @property
    def best(self) -> float:
        """The best seen: chosen for its number, so a little too good."""
        return self.kept[-1].val_bpb if self.kept else math.inf

    @property
    def run_log(self) -> Path:
        return self.folder / "runs.jsonl"

    @property
    def confirming(self) -> Runs:
        """The best's runs on fresh seeds."""
        return read_runs(self.run_log, self.kept[-1].number, "confirm") if self.kept else {}

    @property
    def judged(self) -> list[Row]:
        """The experiments that have a number, each change once: where it was judged last."""
        rows = [row for row in self.rows if row.status in ("keep", "discard")]
        replaced = {int(match[1]) for row in rows if (match := SECOND_LOOK.match(row.description))}
        return [row for row in rows if row.number not in replaced]

    @property
    def sources(self) -> list[Runs]:
        """The runs of each, with the best's on fresh seeds."""
        best = self.kept[-1].number if self.kept else None
        return [runs_of(row) | (self.confirming if row.number == best else {}) for row in self.judged]

    @property
    def noise(self) -> Noise:
        """Of a run on any seed."""
        return pooled_noise(self.sources, USUAL_NOISE[self.scale])

    @property
    def paired_noise(self) -> Noise:
        """Of a run whose seed's offset is taken off: what a gain is measured against."""
        return paired(self.noise)

    @property
    def offsets(self) -> dict[int, float]:
        """What each seed is known to add."""
        return seed_offsets(self.sources)

    @property
    def belief(self) -> Belief | None:
        """What the ledger says of the best; None before the baseline."""
        if not self.kept:
            return None
        offsets, noise = self.offsets, self.paired_noise
        baseline, *later = [row for row in self.judged if row.number >= self.kept[0].number]
        history = [(without_seed(runs_of(row), offsets), row.status == "keep") for row in later]
        belief = replay(without_seed(runs_of(baseline), offsets), history, noise)
        for seed, val_bpb in without_seed(self.confirming, offsets).items():
            belief = after_best_run(belief, seed, val_bpb, noise)
        return belief

    @property
    def kill_after(self) -> float:
        return self.settings.kill_after or max(2 * self.time_budget, self.time_budget + 60)

    def say(self, text: str) -> None:
        """Show a line and add it to the log."""
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)
        self.log(text)

    def log(self, text: str) -> None:
        with open(self.folder / "loop.log", "a") as file:
            file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")


def enter_branch(search: Search) -> None:
    """Check out autoresearch/<tag>, new from HEAD or as it was left, and bring branch, train.py and ledger together."""
    repo, branch = search.repo, search.branch
    rescue_results(search)
    fresh = not search.head
    try:
        run_git(repo, "switch", *(["-c", branch] if fresh else [branch]))
    except git.GitCommandError as error:
        fail(f"git cannot switch to {branch}: {' '.join(error.stderr.split())}")
    search.folder.mkdir(parents=True, exist_ok=True)
    if fresh or not search.results.exists():
        search.results.write_text(HEADER)
    search.rows = read_rows(search.results)
    if search.kept:
        ref = experiment_ref(search.tag, search.kept[-1].number)
        if commit_of(repo, f"{ref}^") == search.head:  # killed between row and branch
            run_git(repo, "update-ref", f"refs/heads/{branch}", ref)
    restore_train(search)


def rescue_results(search: Search) -> None:
    """Commit rows that a killed loop left uncommitted on the branch of another tag, before leaving that branch."""
    branch = current_branch(search.repo)
    if branch.startswith("autoresearch/") and branch != search.branch:
        commit_results(search.repo, branch, f"Results of {branch}")


def restore_train(search: Search) -> None:
    """train.py is the branch's. A kill between the branch's move and the file's leaves the parent's text: caught up."""
    if not changed(search.repo, "train.py"):
        return
    on_disk = (ROOT / "train.py").read_text()
    if on_disk != file_at(search.repo, "HEAD^", "train.py"):
        fail(f"train.py differs from the best of {search.branch}; commit your edit or undo it: git restore train.py")
    follow_best(search, on_disk)


def follow_best(search: Search, before: str) -> None:
    """train.py becomes the branch's, unless someone edited it meanwhile: a user's edit is never overwritten."""
    if current_branch(search.repo) != search.branch or (ROOT / "train.py").read_text() != before:
        search.say(f"train.py was changed by hand and is left alone; the best is: git show {search.branch}:train.py")
        return
    run_git(search.repo, "checkout", "HEAD", "--", "train.py")


def commit_results(repo: git.Git, branch: str, message: str) -> None:
    """results.tsv as it is on disk, as a commit on top of `branch`."""
    head, text = commit_of(repo, f"refs/heads/{branch}"), (ROOT / "results.tsv").read_text()
    if file_at(repo, head, "results.tsv") == text:
        return
    commit = commit_file(repo, head, "results.tsv", text, message)
    run_git(repo, "update-ref", f"refs/heads/{branch}", commit)
    if current_branch(repo) == branch:
        run_git(repo, "add", "results.tsv")


def reload_program(search: Search) -> None:
    """Read program.md again. A change is said; a broken file keeps the last good settings and says so."""
    try:
        settings, instructions = parse_program((ROOT / "program.md").read_text())
    except (ValueError, OSError) as error:
        search.say(f"program.md is not valid ({error}); going on with the last good one")
        return
    if instructions != search.instructions:
        search.say("program.md: new instructions")
    before, after = flat(search.settings), flat(settings)
    for name in before:
        if before[name] != after[name]:
            search.say(f"program.md: {name} {before[name]} -> {after[name]}")
    search.settings, search.instructions = settings, instructions


# -----------------------------------------------------------------------------
# One experiment


@dataclass
class Candidate:
    """An experiment with its commit and ref, ready to run."""

    number: int
    source: str
    proposal: Proposal
    is_baseline: bool = False


def next_number(search: Search) -> int:
    refs = run_git(search.repo, "for-each-ref", "--format=%(refname)", f"refs/autoresearch/{search.tag}/").split()
    return max([row.number for row in search.rows] + [int(ref.rpartition("/")[2]) for ref in refs], default=-1) + 1


def unfinished(search: Search) -> Candidate | None:
    """The experiment that has a ref but no row: a kill came in between, and it runs again."""
    number = next_number(search) - 1
    if number < 0 or any(row.number == number for row in search.rows):
        return None
    source = file_at(search.repo, experiment_ref(search.tag, number), "train.py")
    stored = search.experiment_folder(number) / "proposal.json"
    if stored.exists():
        values = json.loads(stored.read_text())
        proposal = Proposal(values["description"], source, usage=Usage(**values["usage"]))
    else:
        subject = run_git(search.repo, "log", "-1", "--format=%s", experiment_ref(search.tag, number))
        proposal = Proposal("baseline" if not search.kept else re.sub(r"^\d+: ", "", subject), source)
    search.say(f"{number:4d}  was left without a result and runs now")
    return Candidate(number, source, proposal, is_baseline=not search.kept)


def propose(search: Search) -> Proposal:
    """Ask the proposer, in a thread that is left behind if the user wants to stop."""
    context = Context(
        number=next_number(search),
        seed=search.seed,
        scale=search.scale,
        settings=search.settings,
        instructions=search.instructions,
        best_source=file_at(search.repo, search.head, "train.py"),
        rows=search.rows,
        note=search.note,
        folder=search.experiment_folder(next_number(search)),
        deadline=min(search.deadline - run_seconds(search), time.time() + search.settings.proposal_timeout),
        command=search.command,
        should_stop=search.stop.is_set,
    )
    outcome: list[Proposal | ProposalFailed] = []

    def work():
        try:
            outcome.append(PROPOSERS[search.proposer](context))
        except ProposalFailed as failure:
            outcome.append(failure)
        except Exception as error:  # a fault of ours or of a library costs one proposal, not the night
            search.log(traceback.format_exc())
            outcome.append(ProposalFailed(f"{type(error).__name__}: {error} (traceback in loop.log)"))

    thread = threading.Thread(target=work, daemon=True)
    with search.console.status(f"{context.number:4d}  {search.proposer} is thinking"):
        thread.start()
        while thread.is_alive() and not search.stop.is_set() and time.time() < context.deadline:
            thread.join(0.2)
        thread.join(2 * GRACE)  # a command is being killed; a request in flight is left behind
    if not outcome:
        raise ProposalFailed("stopped" if search.stop.is_set() else "it took too long")
    if isinstance(outcome[0], ProposalFailed):
        raise outcome[0]
    return outcome[0]


def next_candidate(search: Search) -> Candidate | None:
    """The next experiment: the baseline first, then what the proposer has; None if it had nothing."""
    number = next_number(search)
    if not search.kept:
        run_git(search.repo, "update-ref", experiment_ref(search.tag, number), search.head)
        source = file_at(search.repo, search.head, "train.py")
        return Candidate(number, source, Proposal("baseline", source), is_baseline=True)
    if candidate := second_look(search, number):
        return candidate
    try:
        proposal = propose(search)
    except ProposalFailed as failure:
        proposal_failed(search, failure)
        return None
    search.failures = 0
    proposal.usage, search.unbooked = proposal.usage + search.unbooked, Usage()
    return register(search, number, proposal)


def register(search: Search, number: int, proposal: Proposal) -> Candidate:
    """Give a proposal its commit and its ref: from here on it is not lost."""
    folder = search.experiment_folder(number)
    folder.mkdir(parents=True, exist_ok=True)
    stored = {"description": proposal.description, "usage": vars(proposal.usage)}
    (folder / "proposal.json").write_text(json.dumps(stored, indent=1))
    message = f"{number:04d}: {one_line(proposal.description)}"
    commit = commit_file(search.repo, search.head, "train.py", proposal.source, message)
    run_git(search.repo, "update-ref", experiment_ref(search.tag, number), commit)
    return Candidate(number, proposal.source, proposal)


def second_look(search: Search, number: int) -> Candidate | None:
    """A near miss on the present best, if what came after has shown that best to be a lucky one. Its runs count on."""
    limit = search.settings.memory_limit_gb or math.inf
    last_keep = search.kept[-1].number
    near = [row for row in search.judged if row.number > last_keep and row.memory_gb <= limit]
    offsets = search.offsets
    runs = [without_seed(runs_of(row), offsets) for row in near]
    chosen = reconsider(runs, search.belief, search.paired_noise, search.settings.keep)
    if not chosen:
        return None
    row = near[chosen[0]]
    for seed, val_bpb in runs_of(row).items():
        append_run(search.run_log, number, "judge", seed, val_bpb, row.memory_gb)
    source = file_at(search.repo, experiment_ref(search.tag, row.number), "train.py")
    description = SECOND_LOOK.sub("", row.description)
    return register(search, number, Proposal(f"second look at {row.number:04d}: {description}", source))


def proposal_failed(search: Search, failure: ProposalFailed) -> None:
    """Say it, remember it for the next proposal, wait a little longer each time. CannotPropose ends the session."""
    search.unbooked = search.unbooked + failure.usage
    if search.stop.is_set():
        return
    search.failures += 1
    search.note = f"The last proposal failed: {failure}"
    search.say(f"   -  no proposal: {failure}")
    if isinstance(failure, CannotPropose):
        search.blocked = str(failure)
        return
    search.stop.wait(min(2 ** (search.failures - 2), 300, max(0, search.deadline - time.time())))


def run(search: Search, number: int, source: str, seed: int, title: str) -> RunResult:
    """Train a text once, showing what goes on."""
    best = f"best {search.best:.6f}" if search.kept else ""
    folder = search.experiment_folder(number)
    (folder / audit.RECORD).unlink(missing_ok=True)  # of a run on another seed
    with search.console.status(Text(title)) as status:
        result = run_experiment(
            source,
            seed,
            search.scale,
            folder,
            search.kill_after,
            lambda: search.stop.is_set() or time.time() > search.deadline,
            lambda line: status.update(Text(f"{title} | {line} | {best}")),
            sandbox_mode=search.settings.sandbox,
            limits=sandbox.make_limits(search.scale, search.settings.memory_gb),
        )
    return believe(search, result, folder) if result.status == "ok" else result


def believe(search: Search, result: RunResult, folder: Path) -> RunResult:
    """A result with the evaluator's own number, or as invalid with the reason why it is not believed."""
    record, expected = audit.read_record(folder), search.measure["expected"]
    limits = audit.LIMITS[search.scale]
    if reason := audit.check_result(result.summary, record, expected, limits, result.seconds):
        return dataclasses.replace(result, status="invalid", error=reason)
    if expected["before_clock"] is None:  # the baseline's: what start and compilation take here
        expected["before_clock"] = audit.before_clock(record, result.seconds, expected["clock"])
        write_measure(search)
    return dataclasses.replace(result, val_bpb=record["val_bpb"])


def load_measure(search: Search) -> None:
    """What this search is measured with, from its first session on: evaluator and data, and what their record says."""
    data = sandbox.data_root() / search.scale
    if problem := audit.check_fingerprint(data):
        fail(problem)
    stored = search.folder / "measure.json"
    if stored.exists():
        search.measure = json.loads(stored.read_text())
        return
    search.measure = {"expected": audit.measure_expected(), "files": audit.measure_files(audit.protected_files(data))}
    write_measure(search)


def write_measure(search: Search) -> None:
    (search.folder / "measure.json").write_text(json.dumps(search.measure, indent=1))


def measure_intact(search: Search) -> bool:
    """Whether evaluator and data are what they were; if not, the search is blocked: its numbers would not compare."""
    paths = [Path(path) for path in search.measure["files"]]
    if problem := audit.check_integrity(paths, search.measure["files"]):
        search.blocked = f"{problem}; undo that, or start another --tag"
    return not search.blocked


def measure(search: Search, candidate: Candidate) -> tuple[Verdict, RunResult | None]:
    """Run a candidate on as many seeds as its verdict takes. `again` comes back when there is no time for it now."""
    number, result = candidate.number, None
    if reason := forbidden(search, candidate):
        return Verdict("invalid", reason), None
    runs = read_runs(search.run_log, number, "judge")
    verdict = verdict_of(search, candidate, runs, result) if runs else Verdict("again", "", next_seed=search.seed)
    while verdict.status == "again" and measure_intact(search) and not reason_to_stop(search):
        seed = verdict.next_seed
        title = f"{number:4d}  {one_line(candidate.proposal.description)[:60]}"
        result = run(search, number, candidate.source, seed, f"{title} (seed {seed})" if runs else title)
        if result.status != "ok":
            return Verdict(result.status, result.error), result
        runs[seed] = result.val_bpb
        verdict = verdict_of(search, candidate, runs, result)
        if verdict.status != "invalid":
            append_run(search.run_log, number, "judge", seed, result.val_bpb, result.memory_gb)
        if verdict.status == "again":
            why = "the noise is measured on further seeds" if candidate.is_baseline else verdict.reason
            search.say(f"{number:4d}  measured     {result.val_bpb:.6f}  seed {seed}; again, {why}")
    return verdict, result


def forbidden(search: Search, candidate: Candidate) -> str:
    """What a candidate does that the search's first train.py does not do and no training has to do, or ""."""
    if candidate.is_baseline:
        return ""
    baseline = file_at(search.repo, experiment_ref(search.tag, search.kept[0].number), "train.py")
    return audit.audit_source(candidate.source, baseline)


def verdict_of(search: Search, candidate: Candidate, runs: Runs, result: RunResult | None) -> Verdict:
    """judge() with what this search knows."""
    best_source = file_at(search.repo, search.head, "train.py")
    return judge(
        without_seed(runs, search.offsets),
        None if candidate.is_baseline else search.belief,
        search.paired_noise,
        search.settings.keep,
        memory_gb=result.memory_gb if result else 0.0,
        memory_limit_gb=search.settings.memory_limit_gb or math.inf,
        lines_removed=code_lines(best_source) - code_lines(candidate.source),
    )


def code_lines(source: str) -> int:
    """Lines that are neither empty nor comments."""
    return sum(bool(line.strip()) and not line.strip().startswith("#") for line in source.splitlines())


def confirm_best(search: Search) -> None:
    """Run the best on fresh seeds, none of which it was chosen for, as far as time allows."""
    while search.kept and len(search.confirming) < search.settings.keep.confirm_runs:
        needs = run_seconds(search)
        if search.stop.is_set() or not measure_intact(search) or time.time() + needs > search.deadline:
            return
        best = search.kept[-1]
        (seed,) = fresh_seeds(runs_of(best) | search.confirming, 1)
        source = file_at(search.repo, experiment_ref(search.tag, best.number), "train.py")
        result = run(search, best.number, source, seed, f"{best.number:4d}  confirming the best (seed {seed})")
        if result.status != "ok" or not plausible(result.val_bpb):
            search.say(f"{best.number:4d}  not confirmed: {result.error or result.val_bpb}")
            return
        append_run(search.run_log, best.number, "confirm", seed, result.val_bpb, result.memory_gb)
        search.say(f"{best.number:4d}  confirmed    {result.val_bpb:.6f}  seed {seed}, a fresh one")


def record(search: Search, candidate: Candidate, result: RunResult | None, verdict: Verdict, started: float) -> None:
    """Commit message, ref, row, branch, train.py, picture: in the order that the module's docstring gives."""
    repo, ref = search.repo, experiment_ref(search.tag, candidate.number)
    runs = read_runs(search.run_log, candidate.number, "judge")
    commit = commit_of(repo, ref)
    best_commit = search.kept[-1].commit if search.kept else commit[:7]
    noise = search.paired_noise.sigma
    if not candidate.is_baseline:
        message = result_message(search, candidate, result, verdict, runs)
        commit = commit_file(repo, search.head, "train.py", candidate.source, message)
        run_git(repo, "update-ref", ref, commit)
    usage = candidate.proposal.usage
    row = Row(
        commit=commit[:7],
        val_bpb=mean(runs) if verdict.status in ("keep", "discard") else 0.0,
        memory_gb=result.memory_gb if result else 0.0,
        status=verdict.status,
        description=candidate.proposal.description + (" [suspiciously good]" if verdict.suspicious else ""),
        number=candidate.number,
        gain=verdict.gain,
        parent=best_commit,
        seconds=result.seconds if result else 0.0,
        tokens=usage.tokens,
        cost=usage.cost,
        started=time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(started)),
        noise=noise,
        runs=runs_text(runs),
    )
    append_row(search.results, row)
    search.rows.append(row)
    if verdict.status == "keep" and not candidate.is_baseline:
        before = file_at(repo, search.head, "train.py")
        run_git(repo, "update-ref", f"refs/heads/{search.branch}", commit)
        follow_best(search, before)
    crashed = verdict.status in ("crash", "timeout", "invalid")
    tail = result.tail if result else ""
    search.note = f"{row.description}\n{verdict.status}: {verdict.reason}\n{tail}" if crashed else ""
    search.say(result_line(row, verdict.reason))
    draw_progress(search.rows, ROOT / "progress.png")


def result_message(search: Search, candidate: Candidate, result: RunResult | None, verdict: Verdict, runs: Runs) -> str:
    """The commit message of a finished experiment: its number in the subject, the measurement below."""
    subject = f"{candidate.number:04d}: {one_line(candidate.proposal.description)}"
    if verdict.status not in ("keep", "discard"):
        return f"{subject} ({verdict.status})\n\n{verdict.reason}"
    values = result.summary if result else {}
    facts = "\n".join(f"{name}: {value:g}" for name, value in values.items() if name != "val_bpb")
    return (
        f"{subject} (val_bpb {mean(runs):.6f}, {gain_text(verdict.gain, search.paired_noise.sigma)})\n\n"
        f"{verdict.status}: {verdict.reason}; best before {search.best:.6f}\nruns: {runs_text(runs)}\n{facts}"
    )


# -----------------------------------------------------------------------------
# The loop


def run_seconds(search: Search) -> float:
    """Wall-clock seconds that a run is expected to take: the longest of the last five that ended by themselves."""
    ended = [row.seconds for row in search.rows if row.status in ("keep", "discard")]
    return 1.05 * max(ended[-5:]) if ended else 1.2 * search.time_budget + 10


def reason_to_stop(search: Search) -> str:
    """Why no further experiment may start, or ""."""
    first = search.kept[0].number if search.kept else math.inf
    done = sum(row.number > first and row.status != "interrupted" for row in search.rows)
    spent = sum(row.cost for row in search.rows) + search.unbooked.cost
    if search.stop.is_set():
        return "stopped on request"
    if search.blocked:
        return search.blocked
    if search.experiments is not None and search.kept and done >= search.experiments:
        return f"{done} experiments are done"
    fresh = search.settings.keep.confirm_runs - len(search.confirming) if search.kept else 0
    if time.time() + run_seconds(search) * (1 + max(0, fresh)) > search.deadline:
        return "no time is left for another run"
    if search.settings.max_cost is not None and spent >= search.settings.max_cost and search.kept:
        return f"max_cost is reached: ${spent:.2f} spent"
    if search.failures >= 8 and math.isinf(search.deadline):  # with --hours it goes on trying, ever more slowly
        return f"{search.failures} proposals in a row failed"
    return ""


def loop(search: Search) -> str:
    """Experiment after experiment until there is a reason to stop, which is returned."""
    candidate = unfinished(search)
    while not (reason := reason_to_stop(search)):
        reload_program(search)
        candidate = candidate or next_candidate(search)
        if not candidate or reason_to_stop(search):  # what was proposed too late runs first in the next session
            continue
        started = time.time()
        verdict, result = measure(search, candidate)
        if verdict.status == "again":
            continue
        record(search, candidate, result, verdict, started)
        if not search.kept and verdict.status != "interrupted":
            search.blocked = f"the baseline does not train; see {search.folder}/{candidate.number:04d}/run.log"
        candidate = None
    return reason


# -----------------------------------------------------------------------------
# Command line


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hours", type=float, help="stop in time: no run starts that cannot finish within this")
    parser.add_argument("--experiments", type=int, help="stop when the tag has this many, earlier sessions included")
    parser.add_argument(
        "--tag", help="name of the search and of its branch autoresearch/TAG (default: today, like nov22)"
    )
    parser.add_argument("--proposer", choices=PROPOSERS, help="who proposes the edits (default: anthropic)")
    parser.add_argument("--command", default="", help="with --proposer command: the shell command that edits train.py")
    parser.add_argument("--demo", action="store_true", help="5 experiments at the cpu scale: no GPU, key or download")
    args = parser.parse_args()
    os.environ["AUTORESEARCH_RECORD"] = audit.RECORD  # before prepare_data is imported, like the next
    if args.demo:
        os.environ["AUTORESEARCH_SCALE"] = "cpu"
        args.experiments = args.experiments or 5
    args.tag = args.tag or ("demo" if args.demo else time.strftime("%b%d").lower())
    args.proposer = args.proposer or ("mutate" if args.demo else "command" if args.command else "anthropic")
    return args


def check_arguments(args: argparse.Namespace) -> None:
    if args.hours is None and args.experiments is None:
        fail("how long? give --hours H or --experiments N (or --demo to try it)")
    if args.hours is not None and not args.hours > 0:
        fail(f"--hours {args.hours} is not more than 0")
    if args.experiments is not None and args.experiments < 1:
        fail(f"--experiments {args.experiments} is not 1 or more")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", args.tag):
        fail(f"--tag {args.tag} should be letters, digits, - and _")
    if args.proposer == "command" and not args.command:
        fail("--proposer command needs --command '...'")


def check_start(args: argparse.Namespace, repo: git.Git) -> tuple[Settings, str]:
    """Everything that a search needs, checked before anything is touched; each missing thing is one line.

    Returns program.md's settings and instructions.
    """
    import prepare_data

    for name in ("train.py", "prepare_data.py", "program.md"):
        if not (ROOT / name).exists():
            fail(f"{ROOT / name} is missing; restore it with: git restore {name}")
    current = current_branch(repo)
    must_be_clean = ["prepare_data.py"]
    if current != f"autoresearch/{args.tag}":  # there, enter_branch looks closer
        must_be_clean += ["train.py"] if current.startswith("autoresearch/") else ["train.py", "results.tsv"]
    for name in must_be_clean:
        if changed(repo, name):
            fail(f"{name} has uncommitted changes; commit them first: git add {name} && git commit")
    try:
        settings, instructions = parse_program((ROOT / "program.md").read_text())
    except ValueError as error:
        fail(f"program.md: {error}")
    if prepare_data.SCALE == "h100" and prepare_data.default_device() != "cuda":
        fail("scale h100 needs an NVIDIA GPU and there is none; use AUTORESEARCH_SCALE=cpu")
    if args.demo and not (prepare_data.DATA_DIR / "meta.json").exists():
        print("preparing data from this Python's own standard library, once")
        subprocess.run([sys.executable, ROOT / "prepare_data.py"], check=True)
    prepare_data.read_meta()
    if args.proposer == "anthropic":
        if not (os.environ.get("ANTHROPIC_API_KEY") or os.environ.get("ANTHROPIC_AUTH_TOKEN")):
            fail(
                "ANTHROPIC_API_KEY is not set; set it, or use --proposer mutate, or --proposer command --command '...'"
            )
        if problem := check_key(settings.model):
            fail(problem)
    return settings, instructions


def take_lock():
    """One loop per working tree: an open file that is locked until this process is gone, however it goes."""
    (ROOT / "runs").mkdir(exist_ok=True)
    file = open(ROOT / "runs" / "lock", "a+")  # noqa: SIM115 (open as long as the process)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        fail(
            f"another loop runs in this folder (process {file.read().strip()}); wait for it, or clone to another folder"
        )
    file.truncate(0)
    file.write(str(os.getpid()))
    file.flush()
    return file


def main() -> None:
    started = time.time()
    args = parse_arguments()
    check_arguments(args)
    repo = open_repository()
    lock = take_lock()
    settings, instructions = check_start(args, repo)
    import prepare_data

    search = Search(
        repo=repo,
        tag=args.tag,
        scale=prepare_data.SCALE,
        seed=prepare_data.SEED,
        time_budget=prepare_data.TIME_BUDGET,
        proposer=args.proposer,
        command=args.command,
        experiments=args.experiments,
        deadline=started + args.hours * 3600 if args.hours else math.inf,
        console=Console(),
        settings=settings,
        instructions=instructions,
    )
    enter_branch(search)
    load_measure(search)
    for number in STOP_SIGNALS:
        signal.signal(number, lambda *_: search.stop.set())
    until = " and ".join(
        ([f"{args.experiments} experiments"] if args.experiments else [])
        + ([time.strftime("%a %H:%M", time.localtime(search.deadline))] if args.hours else [])
    )
    search.say(f"{search.branch} | scale {search.scale} | proposer {search.proposer} | until {until}")
    for row in search.rows:
        search.console.print(result_line(row), markup=False, highlight=False, soft_wrap=True)
    for line in sandbox.describe(search.settings.sandbox, search.scale, search.settings.memory_gb):
        search.say(line)
    reason = loop(search)
    confirm_best(search)
    commit_results(repo, search.branch, results_message(search))
    search.say(summary(search, reason))
    lock.close()
    if search.blocked:
        sys.exit(1)


def results_message(search: Search) -> str:
    numbers = f": val_bpb {search.kept[0].val_bpb:.6f} -> {search.best:.6f}" if search.kept else ""
    return f"Results of {search.branch}: {len(search.rows) - 1} experiments{numbers}"


if __name__ == "__main__":
    main()
