"""Two edits of one constant, made for one best, come back one after the other: the better of the two is the best."""

import pytest
from loop_helpers import STUB, git
from test_proposers import search  # noqa: F401 (a fixture)

from autoresearch.loop.decide import decide
from autoresearch.loop.inflight import begin
from autoresearch.nouns import Experiment, Proposal, Run, RunResult
from autoresearch.record.ledger import note_run


def with_level(level: float) -> str:
    return STUB.replace("LEVEL = 2.0", f"LEVEL = {level}")


def begin_edit(session, ledger, queue, level: float) -> Experiment:
    experiment = Experiment(
        Proposal(f"level {level}", with_level(level)), 0, ledger.experiment_folder(ledger.next_number)
    )
    begin(ledger, queue, experiment)
    return experiment


def measured(session, ledger, queue, experiment: Experiment, *values: float) -> None:
    for seed, value in enumerate(values, 42):
        note_run(ledger, Run(experiment.number, seed, RunResult("ok", 10.0, value)))
    decide(session, ledger, queue, experiment)


@pytest.mark.parametrize(
    ("second", "takes_its_place"),
    [((1.80, 1.80), True), ((1.899, 1.90), False), ((1.93, 1.93), False)],
)
def test_the_better_of_two_that_conflict_is_the_best(search, second, takes_its_place):  # noqa: F811
    _, ledger, queue = search
    folder = ledger.repo.folder
    first, other = (begin_edit(*search, level) for level in (1.9, 1.8))
    measured(*search, first, 1.90, 1.90)
    assert ledger.best.number == first.number
    measured(*search, other, *second)
    row = ledger.row(other.number)
    assert (row.status == "keep") == takes_its_place and (ledger.best.number == other.number) == takes_its_place
    if takes_its_place:
        assert f"{first.number:04d} was kept meanwhile and conflicts; it takes its place" in row.reason
        assert "level 1.9" in queue.asking.notes[-1] and "Make it again" in queue.asking.notes[-1]
        assert (folder / "train.py").read_text() == with_level(1.8)
        assert git(folder, "rev-parse", "HEAD^") == git(folder, "rev-parse", ledger.ref(first.number))
    else:
        assert "is not clearly better" in row.reason and "Write it again" in queue.asking.notes[-1]
