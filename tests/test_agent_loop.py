"""The loop on real repositories with real processes: every way an experiment, a session or a start can end."""

import dataclasses
import json
import math
import os
import re
import signal
import subprocess
import sys
import time

import pytest
from loop_helpers import (
    PRINTED_LOOP,
    STUB,
    append,
    check_invariants,
    git,
    make_repository,
    make_row,
    press_ctrl_c,
    processes_in,
    proposer_script,
    rows_of,
    run_loop,
    set_level,
    start_loop,
    wait_for,
)

from agent_loop import parse_arguments
from autoresearch.row import HEADER, row_line, row_message, row_of_message

# -----------------------------------------------------------------------------
# Outcomes


@pytest.mark.slow
def test_each_outcome_is_recorded_and_the_best_compounds(repo):
    edits = [
        set_level(1.9),
        set_level(1.95),
        append('raise RuntimeError("boom")', "raises"),
        set_level('float("nan")'),
        set_level(-37.8),
        append("import sys; sys.exit(0)", "silent"),
        append("LEVEL_TWO = 2", "inert but different") + "; " + set_level(1.8),
    ]
    command = proposer_script(repo, edits)
    done = run_loop(repo, "--experiments", "7", "--command", command, env={"PICTURES": "1"})
    assert done.returncode == 0, done.stderr
    rows = rows_of(repo)
    statuses = [row.status for row in rows]
    assert statuses == ["keep", "keep", "discard", "crash", "invalid", "invalid", "crash", "keep"]
    assert [row.val_bpb for row in rows] == [2.0, 1.9, 1.95, 0.0, 0.0, 0.0, 0.0, 1.8]
    assert rows[1].gain == pytest.approx(0.1, abs=0.01)
    assert rows[2].gain == pytest.approx(-0.05, abs=0.01)  # from what is believed of the best, not from its number
    assert rows[7].parent == rows[2].parent == rows[1].commit  # all were tried on the best of their time
    check_invariants(repo)
    subjects = git(repo, "log", "--format=%s", "autoresearch/t").splitlines()
    assert subjects[1].startswith("0007: level to 1.8 (val_bpb 1.800000, +0.1")
    assert subjects[2].startswith("0001: level to 1.9 (val_bpb 1.900000, +0.1")
    assert subjects[3:5] == ["0000: baseline (val_bpb 2.000000)", "start"]
    crash = git(repo, "show", "refs/autoresearch/t/0003")  # what was dropped stays there to be looked at
    assert "RuntimeError: boom" in crash and '+raise RuntimeError("boom")' in crash
    assert "experiment 7: " in done.stdout and "  2 kept, 1 discarded, 2 crashed, 2 invalid" in done.stdout
    assert (repo / "progress.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_a_description_cannot_break_the_table(repo):
    described = "printf 'evil\\ttab\\033[31m and\\\\nmore\\nsecond line' > description.txt; " + set_level(1.5)
    long = "head -c 3000000 /dev/zero | tr '\\0' x > description.txt; " + set_level(1.6)
    done = run_loop(repo, "--experiments", "2", "--command", proposer_script(repo, [described, long]))
    assert done.returncode == 0, done.stderr
    assert rows_of(repo)[1].description == "evil tab[31m and\\nmore [suspiciously good]"
    assert len(git(repo, "log", "-1", "--format=%s", "refs/autoresearch/t/0002")) < 400
    assert "\033" not in done.stdout
    check_invariants(repo)


@pytest.mark.slow
def test_a_run_over_its_time_is_killed_and_recorded(repo):
    program = (repo / "program.md").read_text()
    (repo / "program.md").write_text(program.replace("---", "---\nkill_after: 15", 1))
    edits = [append("import time; time.sleep(3600)", "hangs in silence"), set_level(1.7)]
    done = run_loop(repo, "--experiments", "2", "--command", proposer_script(repo, edits))
    assert [row.status for row in rows_of(repo)] == ["keep", "timeout", "keep"], done.stderr
    assert rows_of(repo)[1].seconds < 300
    assert "killed after 15 s" in done.stdout


@pytest.mark.slow
def test_a_proposal_that_cannot_run_is_no_experiment(repo):
    marker = repo.parent / "calls"
    lines = [
        "echo nothing to do",
        "echo 'def broken(' >> train.py",
        "echo '# only a comment' >> train.py",
        "exit 3",
        "rm train.py",
        set_level(1.9) + "; echo mischief > program.md; echo mischief > ../train.py",
    ]
    cases = "".join(f"{n}) {line} ;;\n" for n, line in enumerate(lines, 1))
    script = repo.parent / "proposer.sh"
    script.write_text(f"echo x >> {marker}\ncase $(wc -l < {marker} | tr -d ' ') in\n{cases}esac\n")
    done = run_loop(repo, "--experiments", "1", "--command", f"sh {script}")
    assert [row.status for row in rows_of(repo)] == ["keep", "keep"], done.stderr
    for reason in ("unchanged", "does not parse", "only comments", "ended with code 3"):
        assert reason in done.stdout
    assert done.stdout.count("no proposal") == 5
    check_invariants(repo)


# -----------------------------------------------------------------------------
# Stopping and going on


@pytest.mark.slow
def test_ctrl_c_ends_at_once_and_the_same_command_goes_on(repo):
    slow = append("import time; time.sleep(8)", "slow")
    command = proposer_script(repo, [set_level(1.9), slow, set_level(1.8)])
    first = start_loop(repo, "--experiments", "3", "--command", command)
    wait_for(lambda: (repo / "runs/t/0002/seed42/run.log").exists())
    press_ctrl_c(first)
    out, err = first.communicate(timeout=900)
    assert first.returncode == 0, err
    assert "stopped on request" in out and "Traceback" not in err
    assert [row.status for row in rows_of(repo)] == ["keep", "keep"]
    assert git(repo, "status", "--porcelain") == ""
    done = run_loop(repo, "--experiments", "3", "--command", command)
    assert [row.description for row in rows_of(repo)][2:] == ["slow", "level to 1.8 [suspiciously good]"], done.stderr
    assert "2  resumed      it has no verdict yet" in done.stdout
    check_invariants(repo)


@pytest.mark.slow
def test_a_search_that_was_cut_short_goes_on_without_its_tag_and_one_that_has_ended_does_not(repo):
    def search_again(level):
        loop = [sys.executable, PRINTED_LOOP, "--experiments", "1"]
        loop += ["--command", proposer_script(repo, [set_level(level)])]
        return subprocess.run(loop, cwd=repo, check=True, capture_output=True, text=True, timeout=900).stdout

    tag = time.strftime("%b%d", time.localtime(time.time() - 86400)).lower()  # as if it had begun before midnight
    first = start_loop(repo, "--tag", tag, "--experiments", "1", "--command", "touch thinking; sleep 600")
    wait_for(lambda: (repo / f"runs/{tag}/proposals/0001/work/thinking").exists())
    press_ctrl_c(first)
    assert f"autoresearch/{tag}: stopped on request" in first.communicate(timeout=900)[0]
    assert f"autoresearch/{tag}: 1 experiment done" in search_again(1.9)
    today = search_again(1.8)
    assert not today.startswith(f"autoresearch/{tag}") and ": 1 experiment done" in today


@pytest.mark.slow
def test_sigterm_while_the_proposer_thinks_ends_at_once(repo):
    command = proposer_script(repo, ["touch thinking; sleep 600"])
    loop = start_loop(repo, "--experiments", "3", "--command", command)
    wait_for(lambda: (repo / "runs/t/proposals/0001/work/thinking").exists())
    loop.send_signal(signal.SIGTERM)
    loop.communicate(timeout=900)
    assert loop.returncode == 0
    assert [row.status for row in rows_of(repo)] == ["keep"]
    check_invariants(repo)


@pytest.mark.slow
def test_sigkill_in_a_run_loses_nothing(repo):
    slow = append("import time; time.sleep(10)", "slow") + "; " + set_level(1.85)
    command = proposer_script(repo, [set_level(1.9), slow, "sed -i.old 1d train.py; " + set_level(1.7)])
    first = start_loop(repo, "--experiments", "3", "--command", command)
    wait_for(lambda: processes_in(repo / "runs/t/0002/seed42"))
    first.kill()
    first.communicate()
    wait_for(lambda: not processes_in(repo / "runs/t/0002/seed42"))  # an orphan would go on using the GPU
    assert len(rows_of(repo)) == 2
    done = run_loop(repo, "--experiments", "3", "--command", command)
    assert [row.val_bpb for row in rows_of(repo)] == [2.0, 1.9, 1.85, 1.7], done.stderr
    assert "2  resumed      it has no verdict yet" in done.stdout
    assert rows_of(repo)[2].description.startswith("level to 1.85")
    check_invariants(repo)


@pytest.mark.slow
def test_a_kill_between_row_and_branch_is_caught_up_with(repo):
    run_loop(repo, "--experiments", "1", "--command", proposer_script(repo, [set_level(1.9)]))
    # As a kill after step 4 would have left it: the row is there, uncommitted; branch and train.py are the old ones.
    rows = (repo / "results.tsv").read_text()
    git(repo, "reset", "-q", "--hard", "refs/autoresearch/t/0000")
    (repo / "results.tsv").write_text(rows + "deadbee\t1.0")  # and half a line more
    done = run_loop(repo, "--experiments", "1", "--command", "false")
    assert done.returncode == 0, done.stderr
    assert len(rows_of(repo)) == 2
    check_invariants(repo)


@pytest.mark.slow
def test_a_kill_between_branch_and_train_py_is_caught_up_with(repo):
    run_loop(repo, "--experiments", "1", "--command", proposer_script(repo, [set_level(1.9)]))
    rows = (repo / "results.tsv").read_text()
    git(repo, "reset", "-q", "--hard", "refs/autoresearch/t/0001")
    (repo / "results.tsv").write_text(rows)
    (repo / "train.py").write_text(STUB)
    run_loop(repo, "--experiments", "1", "--command", "false")
    check_invariants(repo)


@pytest.mark.slow
def test_hours_are_a_promise(repo):
    done = run_loop(repo, "--hours", "0.001", "--command", "false")
    assert done.returncode == 0 and rows_of(repo) == []
    assert "no time is left for another run" in done.stdout
    assert git(repo, "status", "--porcelain") == ""


@pytest.mark.slow
def test_a_run_that_would_pass_the_hours_is_stopped(tmp_path, prepared):
    repo = make_repository(tmp_path / "repo", STUB.replace("20.0", "1.0"))
    started = time.monotonic()
    hours = 45 / 3600  # a first run of a second is expected to take 11 s
    command = proposer_script(repo, [append("import time; time.sleep(3600)", "endless")])
    done = run_loop(repo, "--hours", str(hours), "--command", command, env={"AUTORESEARCH_BUDGET": "1"})
    assert [row.status for row in rows_of(repo)] == ["keep"], done.stderr
    assert time.monotonic() - started < 45 + 120
    assert git(repo, "log", "-1", "--format=%s", "refs/autoresearch/t/0001") == "0001: endless"  # goes on another time


@pytest.mark.slow
def test_a_baseline_that_does_not_train_ends_the_search(repo):
    (repo / "train.py").write_text("raise ValueError('no good')\n")
    git(repo, "commit", "-qam", "broken")
    done = run_loop(repo, "--experiments", "3", "--command", "false")
    assert done.returncode == 1
    assert "the baseline does not train" in done.stdout and "ValueError: no good" in done.stdout
    assert [row.status for row in rows_of(repo)] == ["crash"]


# -----------------------------------------------------------------------------
# The user's own files


@pytest.mark.slow
def test_program_md_is_the_users_in_mid_run(repo):
    program = repo / "program.md"
    edited = program.read_text().replace("confirm_runs: 1", "confirm_runs: 2") + "\nTry harder.\n"
    steps = [
        set_level(1.9) + f"; cp {repo.parent}/edited.md {program}",
        "grep -q 'Try harder' program.md && " + set_level(1.8),
        f"echo '---' > {program}; echo 'kep: 1' >> {program}; echo '---' >> {program}; " + set_level(1.2),
        set_level(1.1),
    ]
    (repo.parent / "edited.md").write_text(edited)
    done = run_loop(repo, "--experiments", "4", "--command", proposer_script(repo, steps))
    assert [row.status for row in rows_of(repo)] == ["keep"] * 5, done.stdout
    assert "program.md: keep.confirm_runs 1 -> 2" in done.stdout
    assert "program.md: new instructions" in done.stdout
    assert "unknown key `kep`" in done.stdout
    assert program.read_text() == "---\nkep: 1\n---\n"
    assert git(repo, "status", "--porcelain") == "M program.md"


@pytest.mark.slow
def test_a_hand_edited_train_py_is_never_overwritten(repo):
    mine = STUB + "# my own idea\n"
    (repo.parent / "mine.py").write_text(mine)
    steps = [set_level(1.9) + f"; cp {repo.parent}/mine.py {repo}/train.py"]
    done = run_loop(repo, "--experiments", "1", "--command", proposer_script(repo, steps))
    assert (repo / "train.py").read_text() == mine
    assert "left alone" in done.stdout
    again = run_loop(repo, "--experiments", "2", "--command", "false")
    assert again.returncode == 2 and "train.py differs from the best" in again.stderr
    assert (repo / "train.py").read_text() == mine


@pytest.mark.slow
def test_a_train_py_committed_by_hand_stops_the_search(repo):
    mine = f"(cd {repo} && echo '# mine' >> train.py && git commit -qm mine train.py); "
    done = run_loop(repo, "--experiments", "2", "--command", proposer_script(repo, [mine + set_level(1.9)]))
    assert done.returncode == 1 and "a commit by hand changed it" in done.stdout
    assert (repo / "train.py").read_text() == STUB + "# mine\n"
    assert git(repo, "log", "--format=%s", "autoresearch/t").splitlines()[1] == "mine"  # below the results
    git(repo, "revert", "--no-edit", "HEAD~1")
    command = proposer_script(repo, [set_level(1.9)])  # again: the loop may have seen the commit before the edit
    done = run_loop(repo, "--experiments", "1", "--command", command)
    assert [row.status for row in rows_of(repo)] == ["keep", "keep"], done.stdout + done.stderr
    assert (repo / "train.py").read_text() == STUB.replace("LEVEL = 2.0", "LEVEL = 1.9")


@pytest.mark.slow
def test_commits_and_switches_of_the_user_are_respected(repo):
    steps = [
        f"(cd {repo} && echo hello > mine.txt && git add mine.txt && git commit -qm mine); " + set_level(1.9),
        f"(cd {repo} && git stash -q && git switch -q main); " + set_level(1.8),
    ]
    done = run_loop(repo, "--experiments", "2", "--command", proposer_script(repo, steps))
    assert done.returncode == 0, done.stderr
    assert git(repo, "rev-parse", "--abbrev-ref", "HEAD") == "main"
    assert (repo / "train.py").read_text() == STUB
    log = git(repo, "log", "--format=%s", "autoresearch/t")
    assert "mine" in log.splitlines() and "0002: level to 1.8" in log
    assert "LEVEL = 1.8" in git(repo, "show", "autoresearch/t:train.py")


@pytest.mark.slow
def test_another_tag_starts_with_an_empty_table_and_loses_no_rows(repo):
    run_loop(repo, "--experiments", "1", "--command", proposer_script(repo, [set_level(1.9)]))
    with open(repo / "results.tsv", "a") as file:  # a row that a killed loop could not commit any more
        file.write((repo / "results.tsv").read_text().splitlines()[1].replace("baseline", "rescued") + "\n")
    run_loop(repo, "--experiments", "1", "--command", proposer_script(repo, [set_level(1.8)]), "--tag", "other")
    assert "rescued" in git(repo, "show", "autoresearch/t:results.tsv")
    assert [row.val_bpb for row in rows_of(repo)] == [2.0, 1.8]


# -----------------------------------------------------------------------------
# Starting


@pytest.mark.slow
@pytest.mark.parametrize(
    ("breakage", "args", "message"),
    [
        ("true", [], "how long? give --hours H or --experiments N"),
        ("true", ["--hours", "-1"], "--hours -1.0 is not more than 0"),
        ("true", ["--experiments", "0"], "--experiments 0 is not 1 or more"),
        ("true", ["--experiments", "1", "--tag", "a b"], "--tag a b should be"),
        ("true", ["--experiments", "1", "--tag", "lock"], "runs/lock is not a search's"),
        ("true", ["--experiments", "1", "--tag", "check"], "runs/check is not a search's"),
        ("true", ["--experiments", "1", "--tag", "propose"], "runs/propose is not a search's"),
        ("true", ["--experiments", "1", "--proposer", "command"], "--proposer command needs --command"),
        ("true", ["--experiments", "1"], "ANTHROPIC_API_KEY is not set"),
        ("true", ["--experiments", "1", "--command", "x", "--max-cost", "-1"], "--max-cost -1.0 is not 0 or more"),
        ("true", ["--experiments", "1", "--command", "x", "--slots", "0"], "--slots 0 is not 1 or more"),
        ("true", ["--experiments", "1", "--command", "x", "--slots", "2", "--gpus", "all"], "exclude each other"),
        ("true", ["--experiments", "1", "--command", "x", "--gpus", "0,1"], "--gpus is for the h100 scale"),
        ("rm -rf .git", ["--experiments", "1"], "not a git repository"),
        ("echo >> train.py", ["--experiments", "1"], "train.py has uncommitted changes"),
        ("echo >> prepare_data.py", ["--experiments", "1"], "prepare_data.py has uncommitted changes"),
        ("rm program.md", ["--experiments", "1"], "program.md is missing"),
        (
            "sed -i.old 's/^effort.*/effort: 3/' program.md",
            ["--experiments", "1"],
            "`effort: 3` should be 'low'",
        ),
        ("sed -i.old 's/^effort/efort/' program.md", ["--experiments", "1"], "unknown key `efort`"),
        ("sed -i.old 's/^model.*/model: [/' program.md", ["--experiments", "1"], "front matter is not YAML"),
    ],
)
def test_a_bad_start_is_one_line_and_touches_nothing(repo, breakage, args, message):
    subprocess.run(breakage, shell=True, cwd=repo, check=True)
    done = run_loop(repo, *args, env={"ANTHROPIC_API_KEY": "", "ANTHROPIC_AUTH_TOKEN": ""})
    assert done.returncode == 2
    assert message in done.stderr and done.stderr.count("\n") == 1, done.stderr
    assert not (repo / "runs/t").exists()
    if (repo / ".git").exists():
        assert git(repo, "branch", "--format=%(refname:short)") == "main"


@pytest.mark.parametrize(
    ("words", "proposer"),
    [("--demo", "constants"), ("--demo --command x", "command"), ("--demo --proposer anthropic", "anthropic")],
)
def test_the_demo_proposes_as_it_is_told(words, proposer, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["agent_loop.py", *words.split()])
    monkeypatch.setattr("os.environ", dict(os.environ))
    assert parse_arguments().proposer == proposer


@pytest.mark.slow
def test_a_search_at_the_cpu_scale_prepares_its_data_itself(repo, tmp_path):
    command, env = proposer_script(repo, [set_level(1.9)]), {"AUTORESEARCH_DATA_DIR": str(tmp_path / "data")}
    done = run_loop(repo, "--experiments", "1", "--command", command, env=env)
    assert (tmp_path / "data/cpu/meta.json").exists() and (tmp_path / "data/cpu/val.bin").exists()
    assert "preparing data from this Python's own standard library, once" in done.stdout


def test_damaged_data_are_one_line(repo, tmp_path):
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu/meta.json").write_text("{")
    done = run_loop(repo, "--experiments", "1", "--command", "x", env={"AUTORESEARCH_DATA_DIR": str(tmp_path)})
    assert done.returncode == 2
    assert re.fullmatch(r"error: .*meta.json is damaged; delete it and run: python prepare_data.py.*\n", done.stderr)


@pytest.mark.slow
def test_a_second_loop_in_the_same_folder_is_refused(repo):
    command = proposer_script(repo, ["touch thinking; sleep 600"])
    first = start_loop(repo, "--experiments", "3", "--command", command)
    wait_for(lambda: (repo / "runs/t/proposals/0001/work/thinking").exists())
    second = run_loop(repo, "--experiments", "3", "--command", command)
    assert second.returncode == 2 and f"process {first.pid}" in second.stderr
    first.terminate()
    first.communicate(timeout=900)


@pytest.mark.slow
def test_it_commits_where_git_knows_no_name(repo):
    git(repo, "config", "--unset", "user.email")
    git(repo, "config", "--unset", "user.name")
    env = {"HOME": str(repo.parent), "XDG_CONFIG_HOME": str(repo.parent), "GIT_CONFIG_NOSYSTEM": "1"}
    done = run_loop(repo, "--experiments", "1", "--command", proposer_script(repo, [set_level(1.9)]), env=env)
    assert done.returncode == 0, done.stderr
    assert git(repo, "log", "-1", "--format=%an") == "autoresearch"


# -----------------------------------------------------------------------------
# Pure parts


def test_a_row_survives_the_table(tmp_path):
    row = make_row(number=3, reason="probability 0.91", category="schedule", hypothesis="it\tcools: a lot", repairs=1)
    (tmp_path / "results.tsv").write_text(HEADER + row_line(row))
    (back,) = rows_of(tmp_path)
    assert math.isnan(back.gain) and math.isnan(back.expected) and back.hypothesis == "it cools: a lot"
    again = row_of_message(row.commit + "0" * 33, row_message("0003: x", "keep: so\n\na: b", row))
    assert row_line(again) == row_line(row)
    assert row_of_message(row.commit, "0003: a message without a result") is None
    same = {"gain": 0, "expected": 0, "hypothesis": ""}
    assert dataclasses.replace(back, **same) == dataclasses.replace(row, **same)


@pytest.mark.slow
def test_a_search_keeps_the_scale_and_the_budget_that_it_began_with(prepared, tmp_path):
    repo = make_repository(tmp_path / "repo")
    options = ("--experiments", "1", "--command", proposer_script(repo, [set_level(1.9)]))
    first = run_loop(repo, *options)
    assert first.returncode == 0, first.stdout
    mend = "--budget 20 or AUTORESEARCH_BUDGET=20, or start another --tag"
    for asked, variable in ((("--budget", "5"), {}), ((), {"AUTORESEARCH_BUDGET": "5"})):
        done = run_loop(repo, *options, *asked, env=variable)
        assert (done.returncode, done.stderr) == (2, f"error: the runs of search t train for 20 s, not 5 s; {mend}\n")
    assert run_loop(repo, *options, "--budget", "0").stderr == "error: --budget 0 is not 1 or more\n"
    measure = repo / "runs/t/measure.json"
    measure.write_text(measure.read_text().replace('"time_budget": 20', '"time_budget": 6'))
    done = run_loop(repo, *options)
    assert done.returncode == 0 and "6 paced s a run" in done.stdout, "where nobody names a budget it is the search's"
    measure.write_text(measure.read_text().replace('"clock": "paced"', '"clock": "wall"'))
    refused = "error: the search t is of scale h100, not cpu; set AUTORESEARCH_SCALE=h100, or start another --tag\n"
    assert run_loop(repo, *options).stderr == refused
    assert start_loop(repo, program=(PRINTED_LOOP, "profile")).communicate(timeout=900)[1] == refused


@pytest.mark.slow
def test_the_baseline_is_run_on_the_seeds_that_confirm_the_best(prepared, tmp_path):
    repo = make_repository(tmp_path / "repo")
    edits = [set_level(2.1), set_level(1.9), set_level(1.8)]
    first = run_loop(repo, "--experiments", "2", "--command", proposer_script(repo, edits))
    assert "   2  confirmed    1.900000  seed 45, a fresh one" in first.stdout, first.stdout
    assert "   0  baseline     2.000000  seed 45, a fresh one" in first.stdout
    assert " (95 %), 5.00 % of the baseline, as confirmed" in first.stdout
    head = subprocess.check_output([sys.executable, "agent_loop.py", "status"], cwd=repo, text=True).split("\n\n")[1]
    assert head in first.stdout, "a session ends with the head of status, word for word"
    status = json.loads(subprocess.check_output([sys.executable, "agent_loop.py", "status", "--json"], cwd=repo))
    assert status["gain"]["value"] == pytest.approx(0.1) and status["gain"]["percent"] == pytest.approx(5)
    later = run_loop(repo, "--experiments", "3", "--command", proposer_script(repo, edits))
    assert "   3  confirmed    1.800000  seed 45" in later.stdout
    assert "baseline     2.0" not in later.stdout, "it has been run on these seeds"
