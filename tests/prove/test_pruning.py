"""What is taken out of the best at the end of an ablation, with runs that only have a number."""

from types import SimpleNamespace

import pytest

from autoresearch.loop.trials import Bench
from autoresearch.nouns import Noise, RunResult
from autoresearch.prove.factors import Conflict, Factor
from autoresearch.verbs import pruning
from autoresearch.verbs.pruning import Pruning, prune

FACTORS = [Factor((number,), f"change {number}") for number in (1, 2)]


def source(levels) -> str:
    """The best is "++"; both changes are not out together by merging, where `unmerged`."""
    return "".join("+" if level > 0 else "-" for level in levels)


def unmerged(levels) -> str:
    if source(levels) == "--":
        raise Conflict(2)
    return source(levels)


@pytest.mark.parametrize("merge", [source, unmerged])
def test_what_can_not_be_out_together_is_measured_apart(merge, monkeypatch, tmp_path):
    def run_trials(bench, trials):
        assert "--" not in {trial.source for trial in trials}, "it cannot run"
        bench.done |= {trial.key: RunResult("ok", 1.0, 2.0 + trial.seed / 1e4) for trial in trials}

    session = SimpleNamespace(log=SimpleNamespace(say=print), options=SimpleNamespace(time_budget=20))
    bench = Bench(session, None, [], None, tmp_path)
    monkeypatch.setattr(pruning, "run_trials", run_trials)
    monkeypatch.setattr(pruning, "time_text", lambda bench, trials: "")
    monkeypatch.setattr(pruning, "offer", lambda bench, source, report: f"offered {source}")
    effects = SimpleNamespace(worths=[SimpleNamespace(verdict="nothing", gain=n) for n in (0, 1e-3)], dependence_p=0.5)
    factors = SimpleNamespace(removable=FACTORS, source=merge)
    problem = {"--": "NameError"}.get
    report = prune(
        Pruning(bench, factors, effects, lambda text: problem(text, ""), Noise(0.002, 9), 50),
        entries := [{"name": factor.name, "verdict": "nothing"} for factor in FACTORS],
    )
    assert report["out"] == ["1"] and report["branch"] == "offered -+", "the one that is worth less"
    assert [entry["alone"]["value"] for entry in entries] == [0, 0]
