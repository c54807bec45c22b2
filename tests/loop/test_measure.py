"""What a search is measured with: the first run that is believed tells what start and training take."""

import json

from loop_helpers import STUB_RECORD

from autoresearch.judge.trust import Measure, believe
from autoresearch.nouns import RunResult


def test_the_baseline_tells_what_an_honest_run_takes(tmp_path):
    expected = {"lowest_bpb": 0.5, "time_budget": 20, "clock": "paced", "before_clock": None, "cpu_seconds": None}
    measure = Measure(tmp_path / "measure.json", "cpu", expected, {})
    (tmp_path / "record.json").write_text(json.dumps(STUB_RECORD))
    for factor in (1, 1.2):  # the second run, a slower one, is believed too, and changes nothing
        measured = {"cpu_seconds": 24.0 * factor, "pace_seconds": 0.003 * factor}
        assert believe(measure, RunResult("ok", 30.0, 2.0, measured=measured), tmp_path).status == "ok"
        known = json.loads(measure.path.read_text())["expected"]
        assert (known["cpu_seconds"], known["pace_seconds"]) == (24.0, 0.003)
