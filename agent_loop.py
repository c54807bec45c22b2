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
What a kill left undone is made from what was written before it: a row from its commit, a verdict from the
journal. A commit without a verdict trains again, a proposal without a commit waits on.
"""

import sys

from autoresearch.verbs import command_line, run_verb

if __name__ == "__main__":
    run_verb(sys.argv[1:])  # which ends the program where it is one: what only a search needs is not imported for it

import argparse
import os
import time
from queue import Empty

from rich.live import Live

from autoresearch.files import ROOT
from autoresearch.judge.trust import load_measure
from autoresearch.loop import limits
from autoresearch.loop.decide import decide
from autoresearch.loop.faults import take_fault
from autoresearch.loop.inflight import Candidate, Queue, Task, restore_queue
from autoresearch.loop.live import Drawing, announce, live_lines
from autoresearch.loop.origin import find_origin
from autoresearch.loop.proposers import PROPOSERS, give_up_overdue, gives_up, propose
from autoresearch.loop.running import fill_slots
from autoresearch.loop.session import Session, note_start, notify, reload_program
from autoresearch.loop.slots import make_slots
from autoresearch.loop.start import add_slots, check_arguments, default_tag, locked, make_session
from autoresearch.machine import cores
from autoresearch.nouns import Proposal
from autoresearch.process import GRACE, stop_on_signals
from autoresearch.record.ledger import Ledger, commit_results, note, print_table
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
POLL = 0.2  # seconds between two looks at whether the user wants to stop

# -----------------------------------------------------------------------------
# The loop


def loop(session: Session, ledger: Ledger, queue: Queue, drawing: Drawing) -> str:
    """Propose, run, judge, record, until there is a reason to stop, which is returned."""
    reason = ""
    while not reason:
        try:
            reason = step(session, ledger, queue, drawing)
        except Exception as error:  # whosever fault it is: it costs one experiment, not the night
            reason = take_fault(session, ledger, queue, error)
    return reason


def step(session: Session, ledger: Ledger, queue: Queue, drawing: Drawing) -> str:
    """Whatever can be done now; then wait a moment for what comes back. The reason to stop, or ""."""
    queue.at_hand = None
    while queue.undecided:
        decide(session, ledger, queue, queue.undecided.popleft())
    reload_program(session, ledger)
    propose(session, ledger, queue, reason_to_stop(session, ledger, queue))
    fill_slots(session, ledger, queue)
    if not under_way(session, ledger, queue) and (reason := reason_to_stop(session, ledger, queue)):
        return reason
    if not session.complaint:
        drawing.draw_if_due(len(ledger.rows))
    handle_event(session, ledger, queue)
    return ""


def under_way(session: Session, ledger: Ledger, queue: Queue) -> bool:
    """Whether something runs, is being written, or could go on."""
    more = (queue.crashed or queue.waiting) and limits.time_for_more(session, ledger, len(queue.slots))
    return queue.busy or bool((queue.tasks or more) and limits.may_go_on(session, ledger))


def reason_to_stop(session: Session, ledger: Ledger, queue: Queue) -> str:
    """Why no further experiment may be proposed, or ""."""
    if session.stop.is_set():
        return "stopped on request"
    if session.blocked:
        return session.blocked
    if ledger.kept and limits.experiments_left(session.options, ledger, queue) <= 0:
        return f"{plural(ledger.tried, 'experiment')} done"
    if not limits.time_for_more(session, ledger, len(queue.slots)):
        return "no time is left for another run"
    if ledger.kept and (reason := limits.over_budget(session.settings, ledger, queue)):
        return reason
    if queue.asking.nothing_left:
        return queue.asking.nothing_left
    return gives_up(session, queue.asking)


def handle_event(session: Session, ledger: Ledger, queue: Queue) -> None:
    """Wait a moment for a run or a proposal to come back, and do what follows from it."""
    give_up_overdue(session, ledger, queue)
    queue.at_hand = None
    try:
        event = session.events.get(timeout=POLL)
    except Empty:
        return
    event()


# -----------------------------------------------------------------------------
# A session


def run_session(session: Session, ledger: Ledger, queue: Queue) -> None:
    """One session of a search, from coming back to the summary."""
    drawing = Drawing(session.log, ledger.repo, ledger.tag, ledger.results.with_name("progress.png"))
    restore_queue(ledger, queue, session.log)
    note_start(session, ledger, len(queue.slots))
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
        session.stop.set()
        for slot in queue.slots:
            if slot.thread:
                slot.thread.join(8 * GRACE)
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
    if session.ending:
        return
    queue.tasks.clear()
    for number, seed in limits.to_confirm(ledger, session.settings):
        best = number == ledger.best.number
        title = "confirming the best" if best else "the baseline beside the best"
        candidate = Candidate(number, Proposal(title, ledger.source_of(number)), number)
        queue.tasks.append(Task(candidate, seed, "confirm" if best else "beside"))
    while queue.busy or (queue.tasks and limits.may_go_on(session, ledger)):
        try:
            fill_slots(session, ledger, queue, confirming=True)
            handle_event(session, ledger, queue)
        except Exception as error:
            take_fault(session, ledger, queue, error)


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
    add_slots(parser)
    parser.add_argument("--demo", action="store_true", help="two minutes at the cpu scale: no GPU, key or download")
    args = parser.parse_args()
    if args.demo:
        os.environ |= {"AUTORESEARCH_SCALE": "cpu", "AUTORESEARCH_BUDGET": str(DEMO_BUDGET)}
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
        queue = Queue(make_slots(args, session.options.scale, session.log))
        ledger, _ = read_ledger(repo, args.tag)
        ledger.in_checkout = not args.demo or current_branch(repo) == ledger.branch
        enter(session, ledger, args.begin_from)
        session.measure = load_measure(ledger.folder, session.options.scale, session.options.measured_budget)
        run_session(session, ledger, queue)
    if session.blocked:
        sys.exit(1)
    if args.demo:
        session.log.show(AFTER_DEMO)


if __name__ == "__main__":
    main()
