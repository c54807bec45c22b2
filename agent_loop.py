"""
The loop: propose an edit of train.py, train it, judge the number, let git keep or drop it. Again, until time is up.

    python agent_loop.py --demo                       # no GPU, no key, no download: about five minutes
    python agent_loop.py --hours 48                   # the real thing; needs ANTHROPIC_API_KEY and prepared data
    python agent_loop.py --hours 48 --gpus all        # one experiment per GPU at a time; or --gpus 0,1,3
    python agent_loop.py --hours 48 --ray auto        # one per GPU of a Ray cluster
    python agent_loop.py --hours 8 --proposer mutate  # no LLM: random changes of constants, the baseline to beat
    python agent_loop.py --hours 8 --proposer command --command 'claude -p "improve train.py as program.md says"'

The same command again goes on where the last one stopped, however it stopped. Steer by editing program.md at any time.

One engine for every size: a queue of proposals and N slots. The proposer writes ahead while the slots train. Threads
only wait for a training or for the proposer; all decisions are made one after the other, in the order of the journal.

What is written, and in which order, so that a kill at any point loses nothing:
  1. a proposal, in runs/<tag>/proposals/NNNN/, where it waits for a slot
  2. the experiment as a commit object, parent = the best so far, and refs/autoresearch/<tag>/NNNN on it
  3. each run that ended, as a line of runs/<tag>/journal.jsonl: the verdict follows from these alone
  4. the commit again, with the whole row in its message, and the ref on that: from here on the experiment counts
  5. the row in results.tsv
  6. for a keep: the branch autoresearch/<tag> moves to the commit, train.py follows
What a kill left out is caught up with from what was written before it: a row from its commit, a verdict from the
journal; a commit without a verdict trains again, a proposal without a commit waits on.
"""

import argparse
import dataclasses
import fcntl
import functools
import math
import os
import queue
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

import git
from rich.console import Console
from rich.live import Live

import audit
import sandbox
from experiments import (
    cannot_write,
    commit_candidate,
    decide,
    forbidden,
    load_measure,
    may_run,
    next_candidate,
    record,
    runs_so_far,
    train_here,
    train_on_cluster,
    verdict_of_failed,
    work_on,
)
from judge import fresh_seeds
from ledger import one_line, runs_of
from mutate import propose_mutation
from proposers import CannotPropose, Context, Crash, Proposal, ProposalFailed, Refused, Training, propose_by_command
from report import draw_progress, live_view, result_line, summary
from repository import (
    STOP_SIGNALS,
    changed,
    clear_stale_locks,
    commit_of,
    current_branch,
    experiment_ref,
    open_repository,
    repair_ref,
    run_git,
)
from researcher import check_key, propose_by_claude
from run_experiment import GRACE, ROOT, fail
from search import (
    Candidate,
    Search,
    Slot,
    Task,
    Waiting,
    commit_results,
    confirming,
    done_experiments,
    enter_branch,
    experiments_left,
    knowledge,
    may_go_on,
    message_of,
    new_proposal_folder,
    over_budget,
    run_seconds,
    store_proposal,
    time_for_more,
)
from settings import Settings, flat, parse_program

PROPOSERS = {"anthropic": propose_by_claude, "command": propose_by_command, "mutate": propose_mutation}
DRAW_EVERY = 30.0  # seconds between two drawings of progress.png
LOCK_STALE = 120.0  # seconds without a sign of life, after which another machine's lock counts as left behind
POLL = 0.2  # seconds between two looks at whether the user wants to stop

# -----------------------------------------------------------------------------
# Propose


def keep_proposing(search: Search, reason: str) -> None:
    """Have the proposer write what is missing: first repairs, then an edit per idle slot and those to look ahead.

    With a reason to stop, repairs only.
    """
    if search.asking or time.time() < search.ask_after or not search.kept or cannot_write(search):
        return
    if search.crashed:
        ask(search, search.crashed.popleft())
    if search.asking or reason:
        return
    idle = sum(slot.task is None for slot in search.slots) - len(search.tasks)
    if idle + look_ahead(search) > len(search.waiting):
        ask(search)


def look_ahead(search: Search) -> int:
    """How many proposals may wait for a slot. What waits knows less than what is written later, so few are enough."""
    if search.settings.look_ahead is not None:
        return search.settings.look_ahead
    share = search.proposal_seconds * len(search.slots) / run_seconds(search)  # of the time that the slots leave it
    if share < 0.02:
        return 0
    return max(1, len(search.slots) // 2) + (share > 0.5)  # benchmarks/engine.py shows that the slots stay busy


def ask(search: Search, crashed: Candidate | None = None) -> None:
    """Ask the proposer in a thread, to mend what crashed or for something new; then proposal_came() is called."""
    search.asking = context = make_context(search, crashed)
    search.asked = time.time()

    def work():
        try:
            outcome = PROPOSERS[search.proposer](context)
        except ProposalFailed as failure:
            outcome = failure
        except Exception as error:  # a fault of ours or of a library costs one proposal, not the night
            search.log(traceback.format_exc())
            outcome = ProposalFailed(f"{type(error).__name__}: {error} (traceback in loop.log)")
        search.events.put(functools.partial(proposal_came, search, context, outcome))

    threading.Thread(target=work, daemon=True).start()


def make_context(search: Search, crashed: Candidate | None) -> Context:
    """All that the proposer may know at this moment."""
    number = search.next_number + len(search.waiting)
    running = [each.proposal.description for each in search.candidates.values()]
    return Context(
        number=number,
        seed=search.seed,
        scale=search.scale,
        settings=search.settings,
        instructions=search.instructions,
        best_source=search.source_of(search.kept[-1].number),
        rows=list(search.rows),
        failures=[(event["after"], event["reason"]) for event in search.journal if event["event"] == "failed"],
        noise=knowledge(search).paired_noise.sigma,
        waiting=running + [waiting.proposal.description for waiting in search.waiting],
        trainings=recent_trainings(search),
        note=search.note,
        crash=crashed and crash_of(search, crashed),
        folder=search.experiment_folder(crashed.number) if crashed else new_proposal_folder(search),
        notebook=search.folder / "notebook.md",
        spent=search.spent,
        deadline=min(search.deadline - run_seconds(search), time.time() + search.settings.proposal_timeout),
        command=search.command,
        read=functools.partial(read_experiment, search),
        forbidden=functools.partial(forbidden, search),
        should_stop=lambda: search.stop.is_set() or bool(search.blocked),
        log=search.say,
    )


def recent_trainings(search: Search, count: int = 3) -> list[Training]:
    """How training went: the best's first run, then the last experiments'."""
    best = search.kept[-1].number
    last = [row.number for row in search.rows if row.number != best and search.runs.get(row.number)][-count:]
    runs = [search.runs[number][0] for number in [best, *last] if search.runs.get(number)]
    return [Training(run["number"], run["losses"], run["summary"]) for run in runs if run["losses"]]


def crash_of(search: Search, crashed: Candidate) -> Crash:
    (*_, run) = runs_so_far(search, crashed)
    return Crash(crashed.number, crashed.proposal.source, run["tail"], crashed.repairs + 1)


def read_experiment(search: Search, number: int, what: str) -> str:
    """The "diff", the end of the "log" or the "notes" of an experiment. Raises ValueError if there is none."""
    if not commit_of(search.repo, experiment_ref(search.tag, number)):
        raise ValueError(f"there is no experiment {number}")
    if what == "diff":
        return run_git(search.repo, "show", "--format=", experiment_ref(search.tag, number), "--", "train.py")
    if what == "notes":
        return message_of(search, number)[1]
    if what == "log":
        logs = sorted(search.experiment_folder(number).glob("*/run.log"))
        return logs[-1].read_text(errors="replace")[-20_000:] if logs else "its log is gone"
    raise ValueError(f"{what!r} is not diff, log or notes")


def proposal_came(search: Search, context: Context, outcome: Proposal | ProposalFailed) -> None:
    """Queue a new proposal, start a repaired experiment again, or note that there was none."""
    if search.asking is not context:  # it came after all, when nobody waited for it any more
        return
    search.asking, search.proposal_seconds = None, time.time() - search.asked
    crashed = search.candidates[context.crash.number] if context.crash else None
    if isinstance(outcome, ProposalFailed):
        proposal_failed(search, outcome, crashed)
        return
    search.failures, search.refusals, search.note = 0, 0, ""
    if crashed:
        restart_repaired(search, crashed, outcome)
        return
    waiting = Waiting(outcome, context.best.number, context.folder)
    store_proposal(waiting.folder, outcome, waiting.base)
    search.waiting.append(waiting)


def proposal_failed(search: Search, failure: ProposalFailed, crashed: Candidate | None) -> None:
    """Say it, remember it for the next proposal, wait a little longer each time. CannotPropose ends the session."""
    if search.stop.is_set() and not failure.usage.tokens:
        return
    usage, search.refusals = failure.usage, search.refusals + 1 if isinstance(failure, Refused) else 0
    search.note_event("failed", after=len(search.rows), reason=str(failure), cost=usage.cost, tokens=usage.tokens)
    search.say(f"   -  no {'repair' if crashed else 'proposal'}: {failure}")
    if crashed:
        record(search, crashed, verdict_of_failed(search, crashed))
    else:
        search.failures += 1
        search.note = f"The last proposal failed: {failure}"
        search.ask_after = time.time() + (min(2 ** (search.failures - 2), 300) if search.failures > 1 else 0)
    if isinstance(failure, CannotPropose):
        search.blocked = str(failure)
    elif search.refusals >= search.settings.max_refusals:
        search.blocked = (
            f"{search.refusals} proposals in a row were declined ({failure}); whether and how to go on is for a person "
            "to decide: see Refusals in README.md"
        )


def give_up_waiting(search: Search) -> None:
    """Go on without a proposer that does not come back: a request in flight is left behind."""
    context = search.asking
    patience = 2 * GRACE  # a command is being killed
    if not context:
        return
    if time.time() > context.deadline + patience:
        proposal_came(search, context, ProposalFailed("it took too long"))
    elif search.stop.is_set():
        search.asking.deadline = min(context.deadline, time.time())


def restart_repaired(search: Search, crashed: Candidate, repaired: Proposal) -> None:
    """The same experiment with the mended train.py; the one that crashed stays reachable by a ref of its own."""
    ref = experiment_ref(search.tag, crashed.number)
    run_git(search.repo, "update-ref", repair_ref(search.tag, crashed.number, crashed.repairs), ref)
    repaired.usage = crashed.proposal.usage + repaired.usage
    crashed.proposal = dataclasses.replace(crashed.proposal, source=repaired.source, usage=repaired.usage)
    crashed.repairs += 1
    search.say(f"{crashed.number:4d}  repaired     attempt {crashed.repairs}: {one_line(repaired.description)[:80]}")
    commit_candidate(search, crashed)
    decide(search, crashed)


# -----------------------------------------------------------------------------
# The loop


def loop(search: Search) -> str:
    """Propose, run, judge, record, until there is a reason to stop, which is returned."""
    decide_what_was_left(search)
    while True:
        reload_program(search)
        reason = reason_to_stop(search)
        keep_proposing(search, reason)
        fill_slots(search)
        if not under_way(search) and (reason := reason_to_stop(search)):
            return reason
        draw_if_due(search)
        handle_event(search)


def decide_what_was_left(search: Search) -> None:
    """Experiments that a kill left without a verdict: in the order of their last runs, as they would have been."""
    order = {event["number"]: index for index, event in enumerate(search.journal) if event["event"] == "run"}
    for candidate in sorted(search.candidates.values(), key=lambda each: order.get(each.number, math.inf)):
        decide(search, candidate)


def under_way(search: Search) -> bool:
    """Whether something runs, is being written, or could go on."""
    more = (search.crashed or search.waiting) and time_for_more(search)
    return busy(search) or bool((search.tasks or more) and may_go_on(search))


def busy(search: Search) -> bool:
    return search.asking is not None or any(slot.task for slot in search.slots)


def reload_program(search: Search) -> None:
    """Read program.md again if it was written. A change is said; a broken file keeps the last good settings."""
    path = ROOT / "program.md"
    stamp = path.stat().st_mtime_ns if path.exists() else 0
    if stamp == search.program_stamp:
        return
    search.program_stamp = stamp
    try:
        settings, instructions = parse_program(path.read_text())
    except (ValueError, OSError) as error:
        search.say(f"program.md is not valid ({error}); going on with the last good one")
        return
    if instructions != search.instructions:
        search.say("program.md: new instructions")
    settings = settings if search.max_cost is None else dataclasses.replace(settings, max_cost=search.max_cost)
    before, after = flat(search.settings), flat(settings)
    for name in before:
        if before[name] != after[name]:
            search.say(f"program.md: {name} {before[name]} -> {after[name]}")
    search.settings, search.instructions = settings, instructions


def fill_slots(search: Search, confirming: bool = False) -> None:
    """Give every idle slot its next run; while `confirming` the best, nothing new begins."""
    for slot in search.slots:
        if slot.task is None and (task := next_task(search, confirming)):
            slot.task = task
            slot.thread = threading.Thread(target=work_on, args=(search, slot, task), daemon=True)
            slot.thread.start()


def next_task(search: Search, confirming: bool) -> Task | None:
    """The next run: of the experiments under way, or of a new one."""
    while may_run(search):
        if search.tasks:
            return search.tasks.popleft()
        candidate = next_candidate(search) if not confirming and time_for_more(search) else None
        if not candidate:
            return None
        decide(search, candidate)  # queues its first run, unless no run is needed to judge it
    return None


def handle_event(search: Search) -> None:
    """Wait a moment for a run or a proposal to come back, and do what follows from it."""
    give_up_waiting(search)
    if search.lock:
        os.utime(search.lock.fileno())
    try:
        event = search.events.get(timeout=POLL)
    except queue.Empty:
        return
    event()


def reason_to_stop(search: Search) -> str:
    """Why no further experiment may be proposed, or ""."""
    if search.stop.is_set():
        return "stopped on request"
    if search.blocked:
        return search.blocked
    if search.kept and experiments_left(search) <= 0:
        return f"{done_experiments(search)} experiments are done"
    if not time_for_more(search):
        return "no time is left for another run"
    if search.kept and over_budget(search):
        return f"the next proposal could pass max_cost ${search.settings.max_cost:.2f}: ${search.spent:.2f} are spent"
    if search.failures >= 8 and math.isinf(search.deadline):  # with --hours it goes on trying, ever more slowly
        return f"{search.failures} proposals in a row failed"
    return ""


def confirm_best(search: Search) -> None:
    """Run the best on fresh seeds, none of which it was chosen for, as far as time allows."""
    if not search.kept or search.stop.is_set() or search.blocked:
        return
    best, done = search.kept[-1], confirming(search)
    candidate = Candidate(best.number, Proposal("confirming the best", search.source_of(best.number)), best.commit)
    missing = max(0, search.settings.keep.confirm_runs - len(done))
    search.tasks = deque(Task(candidate, seed, "confirm") for seed in fresh_seeds(runs_of(best) | done, missing))
    while busy(search) or (search.tasks and may_go_on(search)):
        fill_slots(search, confirming=True)
        handle_event(search)


def draw_if_due(search: Search) -> None:
    """progress.png anew, beside everything else, when there are new rows; but not again and again."""
    if len(search.rows) == search.drawn or time.time() < search.draw_after or search.complaint:
        return
    if search.drawing and search.drawing.is_alive():
        return
    search.drawn, search.draw_after = len(search.rows), time.time() + DRAW_EVERY
    search.drawing = threading.Thread(
        target=draw_progress, args=(list(search.rows), ROOT / "progress.png"), daemon=True
    )
    search.drawing.start()


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
    parser.add_argument("--max-cost", type=float, help="US dollars of API use in all, for program.md's max_cost")
    parser.add_argument("--gpus", help="one slot per GPU: all, or a list like 0,1,3 (default: one slot)")
    parser.add_argument("--slots", type=int, help="at the cpu scale: so many experiments at once (default: 1)")
    parser.add_argument("--ray", metavar="ADDRESS", help="one slot per GPU of a Ray cluster: auto, or HOST:6379")
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
    if sum(option is not None for option in (args.gpus, args.slots, args.ray)) > 1:
        fail("--gpus, --slots and --ray exclude each other: give one of them")
    if args.max_cost is not None and not args.max_cost >= 0:
        fail(f"--max-cost {args.max_cost} is not 0 or more")
    if args.slots is not None and args.slots < 1:
        fail(f"--slots {args.slots} is not 1 or more")


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
    if prepare_data.SCALE == "h100" and prepare_data.default_device() != "cuda" and not args.ray:
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


@contextmanager
def lock(folder: Path, say: Callable[[str], None]):
    """One loop per working tree: an open file that is locked until this process is gone, however it goes.

    It names process and machine. Where the file system does not pass locks on to other machines, a loop on one of them
    is known by the time of the file, which it keeps fresh.
    """
    folder.mkdir(exist_ok=True)
    with open(folder / "lock", "a+") as file:
        file.seek(0)
        holder = file.read().strip()
        fresh = time.time() - (folder / "lock").stat().st_mtime < LOCK_STALE
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            taken = holder and not holder.endswith(f" on {socket.gethostname()}") and fresh
        except BlockingIOError:
            taken = True
        if taken:
            fail(f"another loop runs in this folder (process {holder}); wait for it, or clone to another folder")
        if holder:
            say(f"the last loop in this folder (process {holder}) ended without a word; its lock is taken over")
        file.truncate(0)
        file.write(f"{os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield file
        file.truncate(0)


def make_slots(args: argparse.Namespace, scale: str) -> list[Slot]:
    """One slot, one per GPU, or as many as were asked for; the CPU's threads are divided between them."""
    if args.ray:
        import cluster

        return [Slot(f"ray {number}") for number in range(cluster.connect(args.ray, scale))]
    if args.gpus and scale == "cpu":
        fail("--gpus is for the h100 scale; at the cpu scale give --slots N")
    if args.slots and scale != "cpu":
        fail("--slots is for the cpu scale; on GPUs give --gpus all, or a list like --gpus 0,1")
    names = visible_gpus(args.gpus) if args.gpus else [str(number) for number in range(args.slots or 1)]
    threads = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // len(names)))} if len(names) > 1 else {}
    if args.gpus:
        return [Slot(f"gpu {name}", threads | {"CUDA_VISIBLE_DEVICES": name}) for name in names]
    return [Slot(f"slot {name}" if len(names) > 1 else "", threads) for name in names]


def visible_gpus(wanted: str) -> list[str]:
    """The GPUs of a --gpus option, as CUDA_VISIBLE_DEVICES names them."""
    import torch

    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    there = visible.split(",") if visible else [str(number) for number in range(torch.cuda.device_count())]
    chosen = there if wanted == "all" else wanted.split(",")
    if not chosen or not set(chosen) <= set(there):
        fail(f"--gpus {wanted}: there is no such GPU here; there are: {', '.join(there) or 'none'}")
    return chosen


def make_search(args: argparse.Namespace, repo: git.Git, started: float) -> Search:
    """Check everything, then put the search together; nothing is touched yet."""
    settings, instructions = check_start(args, repo)
    import prepare_data

    return Search(
        repo=repo,
        tag=args.tag,
        scale=prepare_data.SCALE,
        seed=prepare_data.SEED,
        time_budget=prepare_data.TIME_BUDGET,
        proposer=args.proposer,
        command=args.command,
        experiments=args.experiments,
        max_cost=args.max_cost,
        deadline=started + args.hours * 3600 if args.hours else math.inf,
        console=Console(),
        slots=make_slots(args, prepare_data.SCALE),
        train=train_on_cluster if args.ray else train_here,
        settings=settings if args.max_cost is None else dataclasses.replace(settings, max_cost=args.max_cost),
        instructions=instructions,
    )


def announce(search: Search) -> None:
    """What this session is, and what is there already."""
    ends = [f"{search.experiments} experiments"] if search.experiments else []
    ends += [time.strftime("%a %H:%M", time.localtime(search.deadline))] if math.isfinite(search.deadline) else []
    slots = f" | {len(search.slots)} slots" if len(search.slots) > 1 else ""
    until = " and ".join(ends)
    search.say(f"{search.branch} | scale {search.scale}{slots} | proposer {search.proposer} | until {until}")
    for row in search.rows:
        search.console.print(result_line(row), markup=False, highlight=False, soft_wrap=True)
    for line in sandbox.describe(search.settings.sandbox, search.scale, search.settings.memory_gb, len(search.slots)):
        search.say(line)


def session(search: Search) -> None:
    """One session of a search, from coming back to the summary."""
    enter_branch(search)
    load_measure(search)
    for number in STOP_SIGNALS:
        signal.signal(number, lambda *_: search.stop.set())
    announce(search)
    try:
        with Live(get_renderable=lambda: live_view(search), console=search.console, transient=True):
            reason = loop(search)
            confirm_best(search)
    finally:  # also when something unforeseen ends it: no training is left behind
        search.stop.set()
        for slot in search.slots:
            if slot.thread:
                slot.thread.join(8 * GRACE)
    if search.drawing:
        search.drawing.join()
    draw_progress(search.rows, ROOT / "progress.png")
    commit_results(search.repo, search.branch, results_message(search))
    search.say(summary(search, reason, knowledge(search).noise, confirming(search)))


def results_message(search: Search) -> str:
    numbers = f": val_bpb {search.kept[0].val_bpb:.6f} -> {search.best:.6f}" if search.kept else ""
    return f"Results of {search.branch}: {done_experiments(search)} experiments{numbers}"


def main() -> None:
    started = time.time()
    args = parse_arguments()
    check_arguments(args)
    repo = open_repository(ROOT)
    with lock(ROOT / "runs", print) as file:
        clear_stale_locks(repo, print)
        search = make_search(args, repo, started)
        search.lock = file
        try:
            session(search)
        except (OSError, git.GitCommandError) as error:  # a full disk, a lost permission: nothing was recorded wrongly
            reason = getattr(error, "stderr", "") or str(error)
            fail(f"{one_line(reason)}; mend that, and the same command goes on")
    if search.blocked:
        sys.exit(1)


if __name__ == "__main__":
    main()
