"""`agent_loop.py ablate` on searches whose changes are worth what was written into their train.py."""

import os
import re
import signal
from pathlib import Path

import pytest
from loop_helpers import git, make_repository, press_ctrl_c, wait_for
from prove_helpers import make_search, make_stub, report_in, run_verb, runs_in, start_verb, switched, write_kept

FORMULA = "2 - 0.2*A - 0.1*B + 0.04*C + 0.0*D - 0.05*E"


@pytest.mark.slow
def test_real_harmful_and_nothing_are_told_apart_and_the_pruned_file_is_offered(tmp_path, prepared):
    folder = tmp_path / "repo"
    make_search(folder, "ABCDE", FORMULA, list("ABCDE"))
    before = git(folder, "rev-parse", "autoresearch/t"), git(folder, "status", "--porcelain")
    code, out, err = run_verb(folder, "ablate")
    assert code == 0, err
    report = report_in(folder, "ablation.json")
    found = {each["name"]: each for each in report["factors"]}
    verdicts = {name: each["verdict"] for name, each in found.items()}
    assert verdicts == {"1": "real", "2": "real", "3": "harmful", "4": "nothing", "5": "real"}
    for name, truth in zip("12345", (0.2, 0.1, -0.04, 0.0, 0.05), strict=True):
        assert found[name]["low"] - 0.001 < truth < found[name]["high"] + 0.001
    assert report["sum"] == pytest.approx(report["total"], abs=0.01) and report["dependence_p"] > 0.001
    assert report["pruned"]["out"] == ["3", "4"] and report["pruned"]["branch"] == "autoresearch/t-pruned"
    pruned = git(folder, "show", "autoresearch/t-pruned:train.py")
    assert "C = 0" in pruned and "D = 0" in pruned and "A = 1" in pruned
    assert (git(folder, "rev-parse", "autoresearch/t-pruned^"), git(folder, "status", "--porcelain")) == before
    assert (folder / "runs/t/ablation.png").stat().st_size > 10_000
    assert "5 factors" in out and "-C = 1\n+C = 0" in found["3"]["diff"]
    status = run_verb(folder, "status")[1]
    assert "3 real" in status and "t-pruned" in status
    page = run_verb(folder, "report")[1]
    assert "what each change is worth in the best" in Path(page.strip()).read_text()
    count = len(runs_in(folder, "ablation"))
    assert run_verb(folder, "ablate")[0] == 0 and len(runs_in(folder, "ablation")) == count, "all of it was there"


@pytest.mark.slow
def test_what_needs_another_change_is_joined_with_it_and_interactions_are_seen(tmp_path, prepared):
    folder = tmp_path / "repo"
    first = make_stub("ABC", "2 - 0.1*A - 0.1*B - 0.1*A*B", 0.001)
    defined = first.replace("# C\n", "# C\nextra = 0.05\n")  # used by the next but one: a NameError without it
    sources = [first, switched(first, "A"), switched(defined, "A")]
    sources.append(sources[-1].replace("LEVEL = 2", "LEVEL = 2 - extra"))
    sources.append(switched(sources[-1], "B"))
    sources.append(sources[-1].replace("\nB = 1\n", "\nB = 2\n"))
    make_repository(folder, first)
    write_kept(folder, sources, [f"change {number}" for number in range(len(sources))], 0.001)
    code, out, err = run_verb(folder, "ablate", "--slots", "2")
    assert code == 0, err
    report = report_in(folder, "ablation.json")
    found = {each["name"]: each for each in report["factors"]}
    assert list(found) == ["1", "2+3", "4+5"] and "NameError" in found["2+3"]["joined"][0] and "edit B" in str(found)
    assert found["2+3"]["gain"] == pytest.approx(0.05, abs=0.003)
    assert found["1"]["gain"] == pytest.approx(0.1 + 0.1, abs=0.003), "with B = 2 half of the time"
    assert report["dependence_p"] < 0.001 and "depends on the others" in out


@pytest.mark.slow
def test_what_is_worth_something_only_in_company_is_not_pruned(tmp_path, prepared):
    folder = tmp_path / "repo"  # B does harm without A, so on average; in the best it is worth 0.02
    make_search(folder, "ABCD", "2 - 0.1*A + 0.03*B - 0.05*A*B - 0.04*C", list("ABCD"), 0.001)
    code, _, err = run_verb(folder, "ablate")
    assert code == 0, err
    report = report_in(folder, "ablation.json")
    found = {each["name"]: each for each in report["factors"]}
    assert found["2"]["gain"] == pytest.approx(-0.005, abs=0.002)
    assert found["2"]["alone"]["value"] == pytest.approx(0.02, abs=0.003) and found["2"]["verdict"] == "real"
    assert report["dependence_p"] < 0.05 and found["4"]["verdict"] == "nothing"
    assert report["pruned"]["out"] == ["4"] and report["pruned"]["branch"]


@pytest.mark.slow
def test_what_can_go_alone_but_not_together_goes_in_part(tmp_path, prepared):
    folder = tmp_path / "repo"  # one of B to F is needed; in the designed runs that is just worth the harm they do
    formula = "2 - 0.2*A - 0.16*max(B, C, D, E, F) + 0.02*(B + C + D + E + F)"
    make_search(folder, "ABCDEF", formula, list("ABCDEF"), 0.004)
    code, out, err = run_verb(folder, "ablate", "--slots", "2")
    assert code == 0, err
    report = report_in(folder, "ablation.json")
    verdicts = {each["name"]: each["verdict"] for each in report["factors"]}
    assert verdicts == {"1": "real", **dict.fromkeys("23456", "nothing")}
    assert out.count("the best next to the best without") == 3, "each alone, all five, two of them"
    pruned = report["pruned"]
    assert len(pruned["out"]) == 2 and pruned["branch"]
    assert pruned["difference"]["value"] == pytest.approx(-0.04, abs=0.012)


@pytest.mark.slow
def test_a_kill_loses_no_run_and_the_same_command_goes_on(tmp_path, prepared):
    folder = tmp_path / "repo"
    make_search(folder, "ABCDE", FORMULA, list("ABCDE"))
    for enough in (3, 9, 20):
        process = start_verb(folder, "ablate")
        wait_for(lambda enough=enough: len(runs_in(folder, "ablation")) >= enough)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    code, _, err = run_verb(folder, "ablate")
    assert code == 0, err
    keys = [run["key"] for run in runs_in(folder, "ablation")]
    assert len(keys) == len(set(keys)) == 5 + 32 + 6
    assert report_in(folder, "ablation.json")["pruned"]["branch"]


@pytest.mark.slow
def test_without_a_kept_change_there_is_nothing_to_prove(tmp_path, prepared):
    folder = make_repository(tmp_path / "repo")
    write_kept(folder, [make_stub("A", "2")], ["baseline"])
    code, _, err = run_verb(folder, "ablate", timeout=900)
    assert code == 2 and "has kept no change yet" in err
    code, _, err = run_verb(folder, "ablate", "--fixed", "one", timeout=900)
    assert code == 2 and "give numbers" in err


def test_no_run_starts_that_cannot_end_in_time(tmp_path, prepared):
    make_search(tmp_path / "repo", "AB", "2 - 0.1*A - 0.1*B", ["A", "B"])
    code, out, err = run_verb(tmp_path / "repo", "ablate", "--hours", "0.001", timeout=900)
    assert (code, err) == (0, "") and "no time is left for another run; the same command goes on" in out
    assert len(runs_in(tmp_path / "repo", "ablation")) < 4


@pytest.mark.slow
def test_quick_finds_what_is_harmful_in_the_best_and_offers_the_best_without_it(tmp_path, prepared):
    folder = tmp_path / "repo"
    make_search(folder, "ABCDE", FORMULA, list("ABCDE"))
    code, out, err = run_verb(folder, "ablate", "--quick")
    assert code == 0, err
    assert "the best, and the best without each: 12 runs" in out
    verdicts = re.findall(r"^ *(\d) +[-+][\d.]+ +[\d.]+ +[\d.]+  (real|not clear|harmful) ", out, re.MULTILINE)
    assert verdicts == [("3", "harmful"), ("4", "not clear"), ("5", "real"), ("2", "real"), ("1", "real")]
    assert "offered as autoresearch/t-pruned" in out
    pruned = git(folder, "show", "autoresearch/t-pruned:train.py")
    assert "C = 0" in pruned and all(f"{letter} = 1" in pruned for letter in "ABDE")
    assert len(runs_in(folder, "ablation")) == 5 + 12 + 6, (
        "five short ones; the best with and without it on three seeds"
    )
    code, out, _ = run_verb(folder, "ablate", "--quick")
    assert code == 0 and "harmful beyond chance: 3" in out and len(runs_in(folder, "ablation")) == 23


@pytest.mark.slow
def test_what_is_known_is_shown_when_it_is_stopped(tmp_path, prepared):
    folder = tmp_path / "repo"
    make_search(folder, "ABC", "2 - 0.2*A - 0.1*B + 0.04*C", list("ABC"))
    process = start_verb(folder, "ablate", "--hours", "0.05")
    wait_for(lambda: len(runs_in(folder, "ablation")) >= 3 + 14)
    press_ctrl_c(process)
    out, err = process.communicate(timeout=900)
    assert process.returncode == 0, err
    assert "--hours cannot suffice for these runs" in out and "would do, and --quick asks" in out
    assert re.search(r"so far, by \d+ of 24 runs", out) and "harmful" in out and "the same command goes on" in out
    assert not (folder / "runs/t/ablation.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize("quick", [(), ("--quick",)])
def test_nothing_is_known_before_the_first_run(quick, tmp_path, prepared):
    make_search(tmp_path / "repo", "AB", "2 - 0.1*A - 0.1*B", ["A", "B"])
    source = (tmp_path / "repo/runs/t/journal.jsonl").read_text()
    slow = source.replace('"seconds": 21.0', '"seconds": 9000.0')  # a short run is not expected to take as long
    (tmp_path / "repo/runs/t/journal.jsonl").write_text(slow)
    code, out, err = run_verb(tmp_path / "repo", "ablate", "--hours", "1", *quick)
    assert (code, err) == (0, "") and "--hours cannot suffice" in out and "the same command goes on" in out
    assert re.search(r"2 runs: about \d+ s\n", out), "the short ones"
    assert ("no pair of runs ended well" if not quick else "no number") in out
