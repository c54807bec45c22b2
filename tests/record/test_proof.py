"""ablation.json and promotion.json as text, where something of them is missing."""

import json

import pytest

from autoresearch.record.ledger import Ledger
from autoresearch.record.proof import ablation_text, promotion_text, proof_facts, read_proofs
from autoresearch.record.proof_pictures import draw_ablation, draw_promotion
from autoresearch.record.repository import Repository

FACTOR = {
    "name": "3+5", "title": "A 1 -> 2; $A$ 2 -> 3", "joined": [], "gain": 0.01, "standard_error": 0.001, "low": 0.008,
    "high": 0.012, "p": 0.001, "verdict": "real", "alone": None, "diff": "--- best\n+++ without\n@@ -1 +1 @@\n-a\n+b\n",
}  # fmt: skip
ABLATION = {
    "search": "autoresearch/t", "factors": [FACTOR], "fixed": [], "crashed": ["the best"], "runs": 24, "sigma": 0.001,
    "degrees_of_freedom": 20.0, "sum": 0.01, "total": None, "total_error": None, "dependence": 0.0, "dependence_p": 1.0,
    "pruned": None, "test": {"baseline": None, "best": None},
}  # fmt: skip
RUNS = {"1": 1.0, "2": 1.1}
PROMOTION = {
    "kept": 2, "depth": {"baseline": 4, "best": 2}, "searched_depth": {"baseline": 2, "best": 1}, "horizon": 60,
    "baseline": {"45": RUNS, "60": RUNS, "75": RUNS}, "best": {"60": RUNS}, "searched": {"baseline": 1.2, "best": 1.1,
    "standard_error": 0.01}, "gain": {"value": 0.001, "standard_error": 0.01, "clear": False}, "time": None,
    "transfer": {"value": None, "standard_error": None}, "predicted_seconds": None, "confirmed": None, "split": None,
    "bound": ["MATRIX_LR"], "curves": [], "test": {"baseline": None, "best": None},
}  # fmt: skip


def test_what_is_missing_is_left_out(tmp_path):
    text = ablation_text(ABLATION)
    assert (
        "1 real; the sum of what each" in text
        and "without a number: the best" in text
        and "nothing to take out" in text
    )
    assert "no gain at depths 4 and 2: +0.001000" in promotion_text(PROMOTION)
    draw_ablation(ABLATION, tmp_path / "a.png")
    draw_promotion(PROMOTION, tmp_path / "p.png")
    assert all((tmp_path / name).stat().st_size > 5000 for name in ("a.png", "p.png"))


@pytest.mark.parametrize(("time", "words"), [
    ({"seconds": 20.0, "low": 19.0, "high": 21.0}, "reach the baseline's 1.0500 after 33 % of its time (± 1.7 %)"),
    (None, "sooner than in the shortest run tried"),
])  # fmt: skip
def test_a_gain_is_said_as_a_time_to_the_target(time, words):
    report = PROMOTION | {"gain": PROMOTION["gain"] | {"clear": True}, "time": time, "confirmed": 22}
    assert words in promotion_text(report)
    (fact,) = proof_facts({"ablation": None, "promotion": report})
    assert fact[0] == "promotion" and words in fact[2]


def test_reports_are_read_where_they_are_whole(tmp_path, monkeypatch):
    monkeypatch.setattr("autoresearch.record.ledger.ROOT", tmp_path)
    ledger = Ledger(Repository(tmp_path), "t")
    ledger.folder.mkdir(parents=True)
    assert read_proofs(ledger) == {"ablation": None, "promotion": None}
    (ledger.folder / "ablation.json").write_text(json.dumps(ABLATION))
    (ledger.folder / "promotion.json").write_text("{")
    assert read_proofs(ledger) == {"ablation": ABLATION, "promotion": None}
