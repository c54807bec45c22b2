"""A row of a run whose machine was busy: it tells nothing of the edit."""

import math

from loop_helpers import make_context, make_repository, make_row, make_session

from autoresearch.loop.verdicts import verdict_on
from autoresearch.nouns import Experiment, Proposal, Run, RunResult
from autoresearch.propose.brief import by_category
from autoresearch.propose.constants import gain_in_noise
from autoresearch.propose.history import history_line, ideas
from autoresearch.record.ledger import Ledger, note_run
from autoresearch.record.repository import open_repository


def test_a_run_that_was_busy_twice_tells_nothing_of_an_edit_but_what_was_good(tmp_path, monkeypatch):
    folder = make_repository(tmp_path / "repo")
    monkeypatch.setattr("autoresearch.record.ledger.ROOT", folder)
    ledger = Ledger(open_repository(folder), "t")
    busy = RunResult("busy", 20.0, 1.5, error="it took 24 s of CPU time where 16 s are usual")
    note_run(ledger, Run(3, 42, RunResult("ok", 20.0, 1.0)))
    note_run(ledger, Run(3, 43, busy, "slow"))
    note_run(ledger, Run(3, 43, busy))
    session = make_session(ledger.folder / "log")
    experiment = Experiment(Proposal("x", "x = 1"), 0, ledger.experiment_folder(3), 3)
    verdict = verdict_on(ledger, session.settings, experiment)
    assert verdict.status == "busy"
    assert verdict.reason == f"the machine was busy: seed 42 gave 1.000000 ({busy.error})"


def test_a_busy_row_is_no_failure_of_the_idea(tmp_path):
    rows = [make_row()] + [make_row(number=n, status="busy", category="model", gain=math.nan) for n in (1, 2)]
    context = make_context(tmp_path, rows=[*rows, make_row(number=3, status="discard", gain=-0.1, category="data")])
    assert context.streak == 1
    assert by_category(context) == ["data: 1 discard"] and not ideas(rows[1:])
    assert "busy" in history_line(rows[1], {})
    assert math.isnan(gain_in_noise(rows[1]))
