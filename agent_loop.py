"""
The loop: propose an edit of train.py, train it, judge the number, let git keep or drop it. Again, until time is up.

    python agent_loop.py --demo                          # no GPU, no key, no download: two minutes
    python agent_loop.py --hours 48                      # the real thing; needs ANTHROPIC_API_KEY and prepared data
    python agent_loop.py --hours 48 --gpus all           # one experiment per GPU at a time; or --gpus 0,1,3
    python agent_loop.py --hours 48 --ray auto           # one per GPU of a Ray cluster
    python agent_loop.py --hours 8 --proposer constants  # no LLM: changes of constants, the baseline to beat
    python agent_loop.py --hours 8 --command '...'        # any coding agent: docs/command.md
    python agent_loop.py VERB --help                     # status report check profile propose ablate promote

The same command again goes on where the last one was stopped. Steer by editing program.md at any time.

One engine for every size: a queue of proposals and N slots. The proposer writes ahead while the slots train. Threads
only wait for a training or for the proposer; all decisions are made here, one after the other, in the journal's order.

What is written, and in which order, so that a kill at any point loses nothing:
  1. a proposal, in runs/<tag>/proposals/NNNN/, where it waits for a slot
  2. the experiment as a commit, parent = the best so far, and refs/autoresearch/<tag>/NNNN on it
  3. each run that ended, as a line of runs/<tag>/journal.jsonl: the verdict follows from these alone
  4. the commit again, with the whole row in its message, and the ref on that: from here on the experiment counts
  5. the row in results.tsv
  6. for a keep: the branch autoresearch/<tag> moves to the commit, train.py follows
After a kill, each missing step is redone from the steps before it: a row from its commit, a verdict from the journal.
A commit without a verdict trains again, a proposal without a commit keeps its place in the queue.
"""

import sys

from autoresearch.verbs import command_line, run_verb

if __name__ == "__main__":
    run_verb(sys.argv[1:])  # which ends the program where it is one: what only a search needs is not imported for it

import argparse
import os
import time
from collections import deque

from rich.live import Live

from autoresearch.files import ROOT
from autoresearch.judge.trust import load_measure
from autoresearch.loop import limits
from autoresearch.loop.bench import close, collect, in_time, make_slots, may_run, run_all, start, wait
from autoresearch.loop.decide import decide, fault_costs, give_up, look_again
from autoresearch.loop.inflight import Queue, begin, bench_of, fits, restore_queue
from autoresearch.loop.live import Drawing, announce, live_lines
from autoresearch.loop.origin import find_origin
from autoresearch.loop.proposers import PROPOSERS, answered, gives_up, propose, take_answer
from autoresearch.loop.session import MOST_FAULTS, Session, note_start, notify, reload_program
from autoresearch.loop.start import add_slots, check_arguments, default_tag, locked, make_session
from autoresearch.machine import cores
from autoresearch.nouns import Experiment, Proposal, RunResult, Task
from autoresearch.process import stop_on_signals
from autoresearch.record.ledger import Ledger, branch_source, changed_by_hand, commit_results, note, print_table
from autoresearch.record.lines import live_view, results_message, summary
from autoresearch.record.reading import read_ledger
from autoresearch.record.repository import current_branch, open_repository
from autoresearch.record.restore import open_ledger
from autoresearch.text import plural

AFTER_DEMO = """
what to run next:
  pytest -m "not slow"                                     # does all of it work here? after: pip install -e ".[dev]"
  python agent_loop.py --hours 1 --proposer constants      # without a GPU: a search at the cpu scale
  python prepare_data.py && python agent_loop.py check     # with an NVIDIA GPU: the data; is it fit for a night?"""
DEMO_BUDGET, DEMO_EXPERIMENTS = 6, 10  # seconds of training for a run; two minutes in all on two cores
FAULT = "it ended with an error"

# -----------------------------------------------------------------------------
# The loop


def loop(session: Session, ledger: Ledger, queue: Queue, drawing: Drawing) -> str:
    """Propose, run, judge, record, until there is a reason to stop, which is returned."""
    reason = ""
    while not reason and session.faults < MOST_FAULTS:
        with fault_costs(session, ledger, queue):  # of whatever kind: the night goes on
            reason = step(session, ledger, queue, drawing)
    return reason or session.blocked


def step(session: Session, ledger: Ledger, queue: Queue, drawing: Drawing) -> str:
    """Do what can be done now, and wait a moment. Return the reason to stop, or ""."""
    reload_program(session, ledger)
    for asked in answered(session, queue):  # collect proposals
        with fault_costs(session, ledger, queue, asked.crashed):
            take_answer(session, ledger, queue, asked)
    for task, result in collect(queue.bench):  # collect results
        take_result(session, ledger, queue, task, result)
    undecided, queue.undecided = queue.undecided, deque()
    for experiment in undecided:  # decide and record
        with fault_costs(session, ledger, queue, experiment):
            decide(session, ledger, queue, experiment)
    propose(session, ledger, queue, reason_to_stop(session, ledger, queue))
    start_runs(session, ledger, queue)
    if not under_way(session, ledger, queue) and (reason := reason_to_stop(session, ledger, queue)):
        return reason
    if not session.complaint:
        drawing.draw_if_due(len(ledger.rows))
    wait(queue.bench, [asked.answer for asked in queue.asking.at_work])
    return ""


def take_result(session: Session, ledger: Ledger, queue: Queue, task: Task, result: RunResult) -> None:
    """Let an experiment be decided on, now that one of its runs has ended; a fault costs the experiment."""
    experiment = task.experiment
    if not experiment or experiment.number not in queue.experiments:  # it has its verdict already
        return
    if result.status == "fault":
        give_up(session, ledger, queue, experiment, result.error)
    else:
        queue.undecided.append(experiment)


def start_runs(session: Session, ledger: Ledger, queue: Queue) -> None:
    """Give every idle slot its next run: of the experiments under way, else of a new one."""
    bench = queue.bench
    while bench.idle and may_run(session, ledger.folder, limits.run_seconds(ledger, session.options.time_budget)):
        if bench.tasks:
            task = bench.tasks.popleft()
            with fault_costs(session, ledger, queue, task.experiment):
                start(bench, task)
        elif experiment := next_experiment(session, ledger, queue):
            with fault_costs(session, ledger, queue, experiment):
                if fits(ledger, queue, experiment, session.log):
                    begin(ledger, queue, experiment)
                    decide(session, ledger, queue, experiment)  # its first run, unless it needs none
        else:
            return


def next_experiment(session: Session, ledger: Ledger, queue: Queue) -> Experiment | None:
    """The baseline first; then a second look, if there is reason for one, and the oldest proposal."""
    if not ledger.kept:
        folder = ledger.experiment_folder(ledger.next_number)
        return None if queue.experiments else Experiment(Proposal("baseline", branch_source(ledger)), -1, folder)
    if not limits.time_for_more(session, ledger, queue.slots):
        return None
    if problem := changed_by_hand(ledger):
        session.blocked = problem
        return None
    more = limits.experiments_left(session.options, ledger, queue) > 0
    again = look_again(session, ledger, queue) if more else None
    return again or (queue.waiting.popleft() if queue.waiting else None)


def under_way(session: Session, ledger: Ledger, queue: Queue) -> bool:
    """Return whether something runs, is being written, or could go on."""
    more = (queue.crashed or queue.waiting) and limits.time_for_more(session, ledger, queue.slots)
    could = (queue.bench.tasks or more) and in_time(session, limits.run_seconds(ledger, session.options.time_budget))
    return bool(queue.asking.at_work or queue.bench.running or could)


def reason_to_stop(session: Session, ledger: Ledger, queue: Queue) -> str:
    """Return why no further experiment may be proposed, or ""."""
    if session.stop.is_set():
        return "stopped on request"
    if session.blocked:
        return session.blocked
    if ledger.kept and limits.experiments_left(session.options, ledger, queue) <= 0:
        return f"{plural(ledger.tried, 'experiment')} done"
    if not limits.time_for_more(session, ledger, queue.slots):
        return "no time is left for another run"
    if ledger.kept and (reason := limits.over_budget(session.settings, ledger, queue)):
        return reason
    if queue.asking.nothing_left:
        return queue.asking.nothing_left
    return gives_up(session, queue.asking)


# -----------------------------------------------------------------------------
# A session


def run_session(session: Session, ledger: Ledger, queue: Queue) -> None:
    """One session of a search, from coming back to the summary."""
    drawing = Drawing(session.log, ledger.repo, ledger.tag, ledger.results.with_name("progress.png"))
    restore_queue(ledger, queue, session.log)
    note_start(session, ledger, queue.slots)
    stop_on_signals(session.stop)
    announce(session, ledger, queue)
    view = Live(
        get_renderable=lambda: live_view(live_lines(session, ledger, queue)),
        console=session.log.console,
        transient=True,
    )
    reason, cut_short = FAULT, True
    try:
        with view:
            reason = loop(session, ledger, queue, drawing)
            confirm_best(session, ledger, queue)
            cut_short = session.ending
    finally:  # also when something unforeseen ends it: no training is left behind, and the table is committed
        if reason == FAULT:
            notify(session, f"a person is needed: {reason}")
        close(queue.bench)
        print_table(ledger)
        commit_results(ledger, results_message(ledger))
        note(ledger, "ended", {"reason": reason, "cut_short": cut_short})
    drawing.draw_last()
    told = summary(ledger, reason)
    session.log.say(told)
    needed = f"a person is needed: {session.blocked} | " if session.blocked else ""
    notify(session, needed + " | ".join(told.partition("\nlook further")[0].strip().splitlines()))


def confirm_best(session: Session, ledger: Ledger, queue: Queue) -> None:
    """Run the best on fresh seeds, none of which it was chosen for, and the baseline on the same, as time allows."""
    tasks = []
    for number, seed in limits.to_confirm(ledger, session.settings):
        best = number == ledger.best.number
        title = "confirming the best" if best else "the baseline next to the best"
        source = ledger.source_of(number)
        experiment = Experiment(Proposal(title, source), number, ledger.experiment_folder(number), number)
        tasks.append(Task(title, source, seed, "confirm" if best else "beside", experiment))
    with fault_costs(session, ledger, queue):
        run_all(queue.bench, tasks, lambda _: limits.run_seconds(ledger, session.options.time_budget))


# -----------------------------------------------------------------------------
# Command line


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hours", type=float, help="stop in time: no run starts that cannot finish within this")
    parser.add_argument("--experiments", type=int, help="stop when the tag has this many, earlier sessions included")
    parser.add_argument(
        "--tag", help="of the search, whose branch is autoresearch/TAG (default: of one cut short, else today: nov22)"
    )
    parser.add_argument(
        "--from", dest="begin_from", metavar="REV", help="where a new search begins (default: your own branch)"
    )
    parser.add_argument("--proposer", choices=PROPOSERS, help="who proposes the edits (default: anthropic)")
    parser.add_argument("--command", default="", help="with --proposer command: the shell command that edits train.py")
    parser.add_argument("--max-cost", type=float, help="US dollars of API use in all, for program.md's max_cost")
    parser.add_argument("--budget", type=int, metavar="SECONDS", help="of training for a run (default: the scale's)")
    add_slots(parser)
    parser.add_argument("--demo", action="store_true", help="two minutes at the cpu scale: no GPU, key or download")
    args = parser.parse_args()
    if args.demo:
        os.environ["AUTORESEARCH_SCALE"], args.budget = "cpu", DEMO_BUDGET if args.budget is None else args.budget
        args.experiments = args.experiments or DEMO_EXPERIMENTS
        args.slots = args.slots or min(4, cores())
        args.tag = args.tag or "demo"
    args.proposer = args.proposer or ("command" if args.command else "constants" if args.demo else "anthropic")
    return args


def enter(session: Session, ledger: Ledger, wanted: str | None) -> None:
    """Open a search that goes on, or begin a new one and say from what. `wanted`: --from."""
    if ledger.taken:
        open_ledger(ledger, ledger.head, session.log)
        line = f"goes on from its own best; --from {wanted} is for a new --tag" if wanted else ""
    else:
        begin = ledger.branch if ledger.head else wanted  # the branch is there: a clone's, or one that ablate offered
        commit, line = find_origin(ledger.repo, begin, session.options.scale)
        open_ledger(ledger, commit, session.log)
    if line:
        session.log.say(f"{ledger.branch} {line}")


@command_line()
def main() -> None:
    """A session from its command line on."""
    started = time.monotonic()
    args = parse_arguments()
    check_arguments(args)
    repo = open_repository(ROOT)
    args.tag = args.tag or default_tag(repo)
    with locked(ROOT / "runs", print):
        session = make_session(args, repo, started)
        repo.say = session.log.say
        slots = make_slots(args, session.options.scale, session.log)
        ledger, _ = read_ledger(repo, args.tag)
        ledger.in_checkout = not args.demo or current_branch(repo) == ledger.branch
        enter(session, ledger, args.begin_from)
        session.measure = load_measure(ledger.folder, session.options.scale, session.options.measured_budget)
        run_session(session, ledger, Queue(bench_of(session, ledger, slots)))
    if session.blocked:
        sys.exit(1)
    if args.demo:
        session.log.show(AFTER_DEMO)


if __name__ == "__main__":
    main()
