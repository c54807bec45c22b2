"""
Decide and record: what an experiment's runs make of it, carried out. verdicts.py says what; here it is done.
"""

from autoresearch.loop import verdicts
from autoresearch.loop.inflight import Candidate, Queue, Task, add_proposal, begin, finish, new_proposal_folder
from autoresearch.loop.limits import over_budget
from autoresearch.loop.session import Session, notify
from autoresearch.loop.slots import run_of
from autoresearch.nouns import RunResult, Verdict
from autoresearch.record.ledger import Ledger, changed_by_hand, follow_best, move_branch, note_run, write_result
from autoresearch.record.lines import result_line, say_result
from autoresearch.row import Row, runs_of


def decide(session: Session, ledger: Ledger, queue: Queue, candidate: Candidate) -> None:
    """What follows from an experiment's runs so far: another run, a repair, or its verdict."""
    queue.at_hand = candidate
    if ledger.has_row(candidate.number):  # a fault came between the row and what follows from it
        settle(session, ledger, queue, candidate)
        return
    verdict = verdicts.verdict_on(ledger, session.options, session.settings, candidate)
    if may_repair(session, ledger, queue, candidate):
        queue.crashed.append(candidate)
    elif verdict.status == "again":
        run_again(session, ledger, queue, candidate, verdict)
    elif verdict.status != "keep" or not ledger.kept:
        record(session, ledger, queue, candidate, verdict)
    elif problem := changed_by_hand(ledger):
        session.blocked = problem  # it waits, until a person has said which train.py shall go on
    elif candidate.base != ledger.best.number:
        record(session, ledger, queue, candidate, run_on_top(ledger, queue, candidate, verdict))
    else:
        record(session, ledger, queue, candidate, verdict)


def may_repair(session: Session, ledger: Ledger, queue: Queue, candidate: Candidate) -> bool:
    """Whether the last run failed by a slip that goes back to the proposer."""
    runs, settings = verdicts.attempt_runs(ledger, candidate), session.settings
    if session.options.proposer == "constants":  # it mends nothing, also where an LLM's search goes on with it
        return False
    if not runs or not verdicts.is_slip(runs[-1]) or candidate.proposal.category == "constant" or not ledger.kept:
        return False
    return candidate.repairs < settings.repairs and not over_budget(settings, ledger, queue)


def run_again(session: Session, ledger: Ledger, queue: Queue, candidate: Candidate, verdict: Verdict) -> None:
    """Queue the run that the verdict asks for; of the baseline all that the noise takes, for all slots to work on."""
    under_way = {task.seed for task in [*queue.tasks, *queue.running] if task.candidate is candidate}
    done = ledger.good_runs(candidate.number, "judge", candidate.repairs)
    seeds = [verdict.next_seed or session.options.seed]
    if not ledger.kept:
        seeds = [session.options.seed + step for step in range(1 + session.settings.keep.baseline_repeats)]
    if done and not under_way:
        seed, val_bpb = list(done.items())[-1]
        session.log.say(f"{candidate.number:4d}  measured     {val_bpb:.6f}  seed {seed}; again, {verdict.reason}")
    queue.tasks.extend(Task(candidate, seed) for seed in seeds if seed not in done and seed not in under_way)


def run_on_top(ledger: Ledger, queue: Queue, candidate: Candidate, verdict: Verdict) -> Verdict:
    """It beat the best that it was made for, but another was kept meanwhile: it has to beat that one, too."""
    best = ledger.best.number
    again, fits = verdicts.on_top(ledger, candidate)
    if not fits:
        note = f"{again.description}: its gain was {verdict.gain:+.6f}, but its edit does not fit. Write it anew."
        queue.asking.notes.append(note)
    elif again.description not in [each.proposal.description for each in queue.waiting]:  # a kill came just after this
        add_proposal(queue, again, best, new_proposal_folder(ledger), first=True)
    then = "runs again on top of it" if fits else "does not fit on top of it"
    return verdicts.discarded(verdict, f"{verdict.reason}; but {best:04d} was kept meanwhile, and it {then}")


def look_again(session: Session, ledger: Ledger, queue: Queue) -> Candidate | None:
    """A second look at a near miss, as an experiment, if there is reason for one. Its runs count on."""
    row = verdicts.second_look(ledger, session.options, session.settings, queue.descriptions)
    if not row:
        return None
    candidate = begin(ledger, queue, verdicts.second_proposal(ledger, row))
    for seed, val_bpb in runs_of(row).items():
        result = RunResult("ok", row.seconds, val_bpb, row.memory_gb)
        note_run(ledger, run_of(Task(candidate, seed), result))
    return candidate


def record(
    session: Session, ledger: Ledger, queue: Queue, candidate: Candidate, verdict: Verdict, is_fault: bool = False
) -> None:
    """Commit, ref, row, branch, train.py: in the order that agent_loop.py's docstring gives."""
    noise = ledger.known.paired_noise.sigma
    row = verdicts.row_of(ledger, candidate, verdict, noise)
    subject, facts = verdicts.message_of(ledger, candidate, verdict, row)
    write_result(ledger, row, candidate.base, candidate.proposal.source, subject, facts)
    settle(session, ledger, queue, candidate)
    session.faults = session.faults if is_fault else 0


def settle(session: Session, ledger: Ledger, queue: Queue, candidate: Candidate) -> None:
    """What follows from a row: the branch and train.py are the best's, the next proposer hears of a failure."""
    row = ledger.row(candidate.number)
    if row.status == "keep":
        queue.asking.nothing_left = ""
        if problem := follow_best(ledger, move_branch(ledger, row.number)):
            session.log.say(problem)
    finish(queue, candidate)
    if row.status not in ("keep", "discard"):
        tell_of_failure(session, ledger, queue, candidate, row)
    say_result(session.log, row)
    if row.status == "keep" and len(ledger.kept) > 1:
        notify(session, f"kept {result_line(row)}")


def tell_of_failure(session: Session, ledger: Ledger, queue: Queue, candidate: Candidate, row: Row) -> None:
    """Tell the next proposer what failed. Of a baseline that fails, a person has to know."""
    if not ledger.kept:
        why = row.reason if row.status == "busy" else "the baseline does not train"
        session.blocked = f"{why}; see {ledger.experiment_folder(row.number)}"
        return
    runs = verdicts.attempt_runs(ledger, candidate)
    tail = runs[-1].result.tail if runs else ""
    queue.asking.notes.append(f"{row.description}\n{row.status}: {row.reason}\n{tail}")
