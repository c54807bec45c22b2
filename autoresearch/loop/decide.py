"""
Decide and record: what an experiment's runs make of it, carried out. verdicts.py says what; here it is done.

A fault of the loop itself, or of a library or of git under it, costs one experiment or one proposal, not the night. The
traceback goes to loop.log. Three faults with nothing recorded in between end the session, as any end does.
"""

import contextlib
import dataclasses
from collections.abc import Iterator

from autoresearch.loop import verdicts
from autoresearch.loop.disk import wait_for_room
from autoresearch.loop.inflight import Queue, finish, let_wait, new_proposal_folder, set_aside
from autoresearch.loop.limits import over_budget
from autoresearch.loop.session import FAULT, Session, note_fault, notify
from autoresearch.nouns import Experiment, Task, Verdict
from autoresearch.record.ledger import Ledger, changed_by_hand, follow_best, move_branch, write_result
from autoresearch.record.lines import result_line, say_result
from autoresearch.row import SECOND_LOOK, Row
from autoresearch.source import code_of


def decide(session: Session, ledger: Ledger, queue: Queue, experiment: Experiment) -> None:
    """Carry out what follows from an experiment's runs so far: more runs, a repair, or its verdict."""
    if ledger.has_row(experiment.number):  # a fault came between the row and what follows from it
        settle(session, ledger, queue, experiment)
        return
    runs = verdicts.attempt_runs(ledger, experiment)
    looks_again = runs and SECOND_LOOK.match(experiment.proposal.description)
    if not looks_again and not verdicts.own_runs(ledger, experiment):
        if problem := verdicts.forbidden(ledger, experiment.proposal.source):
            record(session, ledger, queue, experiment, Verdict("invalid", problem))
        else:
            queue_runs(session, ledger, queue, experiment, first_seed(session, ledger, queue, experiment))
        return
    verdict = verdicts.verdict_on(ledger, session.settings, experiment)
    if may_repair(session, ledger, queue, experiment):
        queue.crashed.append(experiment)
    elif verdict.next_seed is not None:
        if ledger.kept:
            measured = f"{runs[-1].result.val_bpb:.6f}  seed {runs[-1].seed}"
            session.log.say(f"{experiment.number:4d}  measured     {measured}; again, {verdict.reason}")
        queue_runs(session, ledger, queue, experiment, verdict.next_seed)
    elif verdict.status != "keep" or not ledger.kept:
        record(session, ledger, queue, experiment, verdict)
    elif problem := changed_by_hand(ledger):
        session.blocked = problem  # it waits, until a person has said which train.py shall go on
    elif experiment.base != ledger.best.number:
        decide_against_newer_best(session, ledger, queue, experiment, verdict)
    else:
        record(session, ledger, queue, experiment, verdict)


def may_repair(session: Session, ledger: Ledger, queue: Queue, experiment: Experiment) -> bool:
    """Return whether the last run failed by a slip that goes back to the proposer."""
    runs, settings = verdicts.attempt_runs(ledger, experiment), session.settings
    if session.options.proposer == "constants":  # it repairs nothing, also where an LLM's search goes on with it
        return False
    if not runs or not verdicts.is_slip(runs[-1]) or experiment.proposal.category == "constant" or not ledger.kept:
        return False
    return experiment.repairs < settings.repairs and not over_budget(settings, ledger, queue)


def first_seed(session: Session, ledger: Ledger, queue: Queue, experiment: Experiment) -> int:
    """The search's first seed or, where the same source was or is being tried, one that is fresh for it."""
    code, bench = code_of(experiment.proposal.source), queue.bench
    same = [each for each in queue.experiments.values() if code_of(each.proposal.source) == code]
    seeds = {run.seed for each in [experiment, *same] for run in verdicts.attempt_runs(ledger, each)}
    seeds |= {task.seed for task in [*bench.tasks, *bench.running] if task.experiment in same}
    if before := verdicts.rows_before(ledger, experiment):
        about = f"the same source as {before[-1].number:04d}, whose runs count; once more, on a fresh seed"
        session.log.say(f"{experiment.number:4d}  tried before  {about}")
    return max(seeds) + 1 if seeds else session.options.seed


def queue_runs(session: Session, ledger: Ledger, queue: Queue, experiment: Experiment, next_seed: int) -> None:
    """Queue the next run; of the baseline all that the noise takes, for all slots to work on."""
    done = verdicts.good_runs(verdicts.attempt_runs(ledger, experiment))
    bench, first = queue.bench, session.options.seed
    under_way = {task.seed for task in [*bench.tasks, *bench.running] if task.experiment is experiment}
    seeds = [next_seed] if ledger.kept else range(first, first + 1 + session.settings.keep.baseline_repeats)
    for seed in seeds:
        if seed not in done and seed not in under_way:
            bench.tasks.append(Task(experiment.title, experiment.proposal.source, seed, experiment=experiment))


def decide_against_newer_best(
    session: Session, ledger: Ledger, queue: Queue, experiment: Experiment, verdict: Verdict
) -> None:
    """Carry out what follows where it beat the best that it was made for, but another was kept meanwhile.

    If its edit merges, it runs again on top. If the two edits conflict, the better of the two is the best: of the
    other, a proposer is told to make it again.
    """
    best = ledger.best
    again, fits = verdicts.on_top(ledger, experiment)
    kept = f"{best.number:04d} was kept meanwhile"
    if fits:
        if again.description not in [each.proposal.description for each in queue.waiting]:  # a kill came just after
            let_wait(queue, Experiment(again, best.number, new_proposal_folder(ledger)), first=True)
        reason = f"{verdict.reason}; but {kept}, and it runs again on top of it"
        record(session, ledger, queue, experiment, verdicts.discarded(verdict, reason))
        return
    status, said = verdicts.better_than_best(ledger, experiment)
    if status == "again":
        seeds = [run.seed for run in verdicts.attempt_runs(ledger, experiment)]
        queue_runs(session, ledger, queue, experiment, max(seeds) + 1)
    elif status == "keep":
        replaced = ledger.kept[[row.number for row in ledger.kept].index(experiment.base) + 1 :]
        reason = f"{verdict.reason}; {kept} and conflicts; it takes its place: better with {said}"
        record(session, ledger, queue, experiment, dataclasses.replace(verdict, reason=reason))
        lost = [f"{row.number:04d} {row.description} (gain {row.gain:+.6f})" for row in replaced]
        queue.asking.notes += [f"{one}: a better change took its place. Make it again on the new best." for one in lost]
    else:
        reason = f"{verdict.reason}; but {kept}, it does not fit on top of it, and is not clearly better: {said}"
        record(session, ledger, queue, experiment, verdicts.discarded(verdict, reason))
        note = f"{again.description}: its gain was {verdict.gain:+.6f}, but its edit does not fit. Write it again."
        queue.asking.notes.append(note)


def look_again(session: Session, ledger: Ledger, queue: Queue) -> Experiment | None:
    """A second look at a near miss, as an experiment, if there is reason for one. Its runs count on."""
    row = verdicts.second_look(ledger, session.settings, queue.descriptions)
    if not row:
        return None
    folder = ledger.experiment_folder(ledger.next_number)
    return Experiment(verdicts.second_proposal(ledger, row), ledger.best.number, folder)


def record(session: Session, ledger: Ledger, queue: Queue, experiment: Experiment, verdict: Verdict) -> None:
    """Commit, ref, row, branch, train.py: in the order that agent_loop.py's docstring gives."""
    known = ledger.known
    row = verdicts.row_of(ledger, experiment, verdict, known.paired_noise.sigma)
    subject, facts = verdicts.message_of(ledger, experiment, verdict, row)
    base = ledger.best.number if verdict.status == "keep" and ledger.kept else experiment.base  # a keep is the branch's
    write_result(ledger, row, base, experiment.proposal.source, subject, facts)
    if ledger.known.drift and not known.drift:
        session.log.say(f"   -  noise        {ledger.known.drift}")
    settle(session, ledger, queue, experiment)
    session.faults = session.faults if verdict.reason.startswith(FAULT) else 0


def settle(session: Session, ledger: Ledger, queue: Queue, experiment: Experiment) -> None:
    """Do what follows from a row: the branch and train.py are the best's, the next proposer hears of a failure."""
    row = ledger.row(experiment.number)
    if row.status == "keep":
        queue.asking.nothing_left = ""
        if problem := follow_best(ledger, move_branch(ledger, row.number)):
            session.log.say(problem)
    finish(queue, experiment)
    if row.status not in ("keep", "discard"):
        tell_of_failure(session, ledger, queue, experiment, row)
    say_result(session.log, row)
    if row.status == "keep" and len(ledger.kept) > 1:
        notify(session, f"kept {result_line(row)}")


def tell_of_failure(session: Session, ledger: Ledger, queue: Queue, experiment: Experiment, row: Row) -> None:
    """Tell the next proposer what failed. Of a baseline that fails, a person has to know."""
    if not ledger.kept:
        why = row.reason if row.status == "busy" else "the baseline does not train"
        session.blocked = f"{why}; see {ledger.experiment_folder(row.number)}"
        return
    runs = verdicts.attempt_runs(ledger, experiment)
    tail = runs[-1].result.tail if runs else ""
    queue.asking.notes.append(f"{row.description}\n{row.status}: {row.reason}\n{tail}")


# -----------------------------------------------------------------------------
# Faults


@contextlib.contextmanager
def fault_costs(session: Session, ledger: Ledger, queue: Queue, experiment: Experiment | None = None) -> Iterator[None]:
    """Let a fault in the block cost this experiment, if it is about one, and end there."""
    try:
        yield
    except Exception as error:  # whosever fault it is
        wait_for_room(session, ledger.folder)
        reason = note_fault(session, error)
        if experiment:
            give_up(session, ledger, queue, experiment, reason)


def give_up(session: Session, ledger: Ledger, queue: Queue, experiment: Experiment, reason: str) -> None:
    """Let an experiment be a crash, unless it has its row, or set its proposal aside; try the baseline again."""
    try:
        if experiment.number not in queue.experiments and experiment.base >= 0:
            set_aside(ledger, queue, experiment, reason, session.log)
        elif experiment.number in queue.experiments and ledger.has_row(experiment.number):
            settle(session, ledger, queue, experiment)
        elif experiment.number in queue.experiments and ledger.kept:
            record(session, ledger, queue, experiment, Verdict("crash", reason))
        elif experiment.number in queue.experiments:
            queue.undecided.append(experiment)
    except Exception as error:  # of the same cause, most likely: it is decided later, or in the next session
        note_fault(session, error)
        if experiment.number in queue.experiments:
            queue.undecided.append(experiment)
