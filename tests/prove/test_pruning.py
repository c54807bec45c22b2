"""What is taken out of the best at the end of an ablation, with runs that only have a number."""

from types import SimpleNamespace

import pytest

from autoresearch.nouns import Noise, RunResult
from autoresearch.prove import pruning
from autoresearch.prove.factors import Conflict, Factor
from autoresearch.prove.pruning import Pruning, prune
from autoresearch.prove.trials import Trials, key_of

FACTORS = [Factor((number,), f"change {number}") for number in (1, 2)]


def source(out) -> str:
    """The best is "++"; both changes are not out together by merging, where `unmerged`."""
    return "".join("-" if factor in out else "+" for factor in FACTORS)


def unmerged(out) -> str:
    if source(out) == "--":
        raise Conflict(2)
    return source(out)


@pytest.mark.parametrize("merge", [source, unmerged])
def test_what_can_not_be_out_together_is_measured_apart(merge, monkeypatch, tmp_path):
    def run(tasks):
        assert "--" not in {task.source for task in tasks}, "it cannot run"
        trials.done |= {key_of(task): RunResult("ok", 1.0, 2.0 + task.seed / 1e4) for task in tasks}

    ledger = SimpleNamespace(known=SimpleNamespace(paired_noise=Noise(0.002, 9)))
    trials = Trials(ledger, SimpleNamespace(say=print), tmp_path, "cpu", 42, 20, 5.0, run=run)
    monkeypatch.setattr(pruning, "offer", lambda trials, source, report: f"offered {source}")
    effects = SimpleNamespace(worths=[SimpleNamespace(verdict="nothing", gain=n) for n in (0, 1e-3)], dependence_p=0.5)
    factors = SimpleNamespace(removable=FACTORS, without=merge)
    problem = {"--": "NameError"}.get
    report = prune(
        Pruning(trials, factors, effects, lambda text: problem(text, ""), 50),
        entries := [{"name": factor.name, "verdict": "nothing"} for factor in FACTORS],
    )
    assert report["out"] == ["1"] and report["branch"] == "offered -+", "the one that is worth less"
    assert [entry["alone"]["value"] for entry in entries] == [0, 0]
