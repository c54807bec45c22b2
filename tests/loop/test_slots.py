"""The engine, real processes on real repositories: slots, a proposer that writes ahead, a best that moves, repairs."""

import json
import re

import pytest
from loop_helpers import (
    LEAVE_RECORD,
    STUB,
    append,
    check_invariants,
    git,
    make_context,
    make_repository,
    make_row,
    processes_in,
    rows_of,
    run_loop,
    start_loop,
    wait_for,
)

from autoresearch.loop.proposers import turn_of_constants
from autoresearch.row import HEADER, row_line
from autoresearch.settings import Settings

pytestmark = pytest.mark.slow


def proposals(folder, edits: list[str]) -> str:
    """A --command whose n-th call runs the n-th shell line, the last one for ever, however many rows there are."""
    script, count = folder.parent / "ahead.sh", folder.parent / "calls"
    cases = "".join(f"{n}) {edit} ;;\n" for n, edit in enumerate(edits, 1))
    script.write_text(
        f"echo x >> {count}\nn=$(wc -l < {count} | tr -d ' ')\n[ $n -gt {len(edits)} ] && n={len(edits)}\n"
        f"case $n in\n{cases}esac\n"
    )
    return f"sh {script}"


def settings(folder, **values) -> None:
    """Set values in the front matter of program.md and commit them."""
    text = (folder / "program.md").read_text()
    for name, value in values.items():
        text = re.sub(rf"^{name}:.*\n", "", text, flags=re.MULTILINE).replace("---\n", f"---\n{name}: {value}\n", 1)
    (folder / "program.md").write_text(text)
    git(folder, "commit", "-qam", "settings")


def events(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "runs/t/journal.jsonl").read_text().splitlines()]


SLOW = "import time; time.sleep(2)"
APART = "\n".join(f"PART_{n} = {n + 1}\nFILLER_{n} = {n}\nMORE_{n} = {n}\nMUCH_{n} = {n}" for n in range(4))


@pytest.fixture
def repo(tmp_path, prepared):
    """A train.py of which several lines can be changed apart from each other, and whose level they set together."""
    train = (
        "import time\n" + APART + "\n\nLEVEL = 2.0 + 0.1 * (PART_0 + PART_1 + PART_2 + PART_3 - 10)\n"
        'print(f"\\n---\\nval_bpb:          {LEVEL:.6f}\\ntraining_seconds: 20.0\\npeak_vram_mb:     512.0")\n'
    ) + LEAVE_RECORD
    return make_repository(tmp_path / "repo", train, serial=False)


def part(number: int, value: float) -> str:
    return f"sed -i.old 's/^PART_{number} = .*/PART_{number} = {value}/' train.py; echo 'part {number} to {value}'"


def test_the_next_proposal_is_written_while_one_trains(repo):
    sleeping = append("import time; time.sleep(8)", "sleeps")
    command = proposals(repo, [sleeping, "touch ../thinking; " + part(0, 0)])
    done = run_loop(repo, "--experiments", "2", "--command", command)
    assert [row.status for row in rows_of(repo)] == ["keep", "discard", "keep"], done.stdout + done.stderr
    thinking = (repo / "runs/t/0002/thinking").stat().st_mtime
    ended = (repo / "runs/t/0001/seed42/run.log").stat().st_mtime
    assert thinking < ended, "the second proposal was written only after the first run had ended"
    check_invariants(repo)


def test_a_waiting_edit_is_applied_to_a_best_that_has_moved(repo):
    gains = part(0, 0) + "; (echo 'import time; time.sleep(2)'; cat train.py) > new; mv new train.py"
    done = run_loop(repo, "--experiments", "2", "--command", proposals(repo, [gains, part(3, 2)]))
    rows = rows_of(repo)
    assert [row.status for row in rows] == ["keep", "keep", "keep"], done.stdout + done.stderr
    assert [round(row.val_bpb, 6) for row in rows] == [2.0, 1.9, 1.7]  # the second on top of the first
    assert rows[2].parent == rows[1].commit
    check_invariants(repo)


def test_a_waiting_edit_that_does_not_fit_any_more_goes_back(repo):
    gains = part(0, 0) + "; (echo 'import time; time.sleep(2)'; cat train.py) > new; mv new train.py"
    command = proposals(repo, [gains, part(0, -1), "cp now.md now_then.md; " + part(0, -2)])
    done = run_loop(repo, "--experiments", "2", "--command", command)
    rows = rows_of(repo)
    assert [row.description.partition(" [")[0] for row in rows] == ["baseline", "part 0 to 0", "part 0 to -2"], (
        done.stdout
    )
    assert "not run: it was written for an older best" in done.stdout
    assert "part 0 to -1" in (repo / "runs/t/0002/work/now_then.md").read_text()
    assert any("older best" in event["reason"] for event in events(repo) if event["event"] == "failed")
    check_invariants(repo)


def test_what_beats_an_older_best_runs_again_on_top_of_the_new_one(repo):
    quick, slow = part(0, 0), part(3, 2) + "; (echo 'import time; time.sleep(4)'; cat train.py) > new; mv new train.py"
    done = run_loop(repo, "--experiments", "2", "--slots", "2", "--command", proposals(repo, [slow, quick]))
    rows = rows_of(repo)
    assert [row.status for row in rows] == ["keep", "keep", "discard", "keep"], done.stdout + done.stderr
    assert "0002 was kept meanwhile, and it runs again on top of it" in rows[2].reason
    assert rows[3].description.startswith("0001 on top of 0002: part 3 to 2")
    assert rows[3].val_bpb == pytest.approx(1.7) and rows[2].val_bpb == pytest.approx(1.8)
    assert git(repo, "rev-parse", "refs/autoresearch/t/0001^") == git(repo, "rev-parse", "refs/autoresearch/t/0002^")
    check_invariants(repo)


def test_two_slots_train_side_by_side(repo):
    command = proposals(
        repo,
        [append("import time; time.sleep(5)", "sleeps")]
        + [part(n, n) + "; " + append(f"import time; time.sleep(5); N = {n}", f"sleeps {n}") for n in range(3)],
    )
    done = run_loop(repo, "--experiments", "4", "--slots", "2", "--command", command)
    assert len(rows_of(repo)) == 5, done.stdout + done.stderr
    folders = [repo / f"runs/t/{number:04d}/seed42" for number in range(1, 5)]
    first, second, *_ = sorted([(each / name).stat().st_mtime for name in ("train.py", "run.log")] for each in folders)
    assert second[0] < first[1], "the second began before the first had ended"
    check_invariants(repo)


def test_a_slip_is_repaired_and_the_row_tells(repo):
    broken = "sed -i.old 's/^LEVEL = .*/LEVEL = undefined_name/' train.py; echo 'a slip'"
    mends = "grep -q undefined_name crash.txt && sed -i.old 's/^LEVEL = .*/LEVEL = 1.5/' train.py; echo mended"
    done = run_loop(repo, "--experiments", "1", "--command", proposals(repo, [broken, mends]))
    row = rows_of(repo)[1]
    assert (row.status, row.repairs, row.val_bpb, row.number) == ("keep", 1, 1.5, 1), done.stdout + done.stderr
    assert "repaired     attempt 1" in done.stdout
    assert "undefined_name" in git(repo, "show", "refs/autoresearch-repairs/t/0001-0:train.py")
    check_invariants(repo)


def test_repairs_end_and_out_of_memory_is_no_slip(repo):
    slip = 'sed -i.old "s/^LEVEL = .*/LEVEL = oops_$$/" train.py; echo slip'
    memory = append('raise MemoryError("too much")', "too large")
    command = proposals(repo, [slip, memory])
    script = repo.parent / "ahead.sh"
    script.write_text(script.read_text().replace("case", f"if grep -q crashed crash.txt; then {slip}; exit; fi\ncase"))
    done = run_loop(repo, "--experiments", "2", "--command", command)
    statuses = {row.description: (row.status, row.repairs) for row in rows_of(repo)[1:]}
    assert statuses == {"slip": ("crash", 2), "too large": ("crash", 0)}, done.stdout + done.stderr
    check_invariants(repo)


def test_the_journal_alone_gives_the_same_decisions_again(repo):
    edits = [part(0, 0), part(1, 3), part(2, 2.9), append("raise ValueError('x')", "crashes"), part(3, 3)]
    settings(repo, repairs=0)
    run_loop(repo, "--experiments", "5", "--slots", "2", "--command", proposals(repo, edits))
    before = rows_of(repo)
    # As if killed with all runs in the journal and nothing decided but the baseline: commits without results, no rows.
    for row in before[1:]:
        ref = f"refs/autoresearch/t/{row.number:04d}"
        command = ["commit-tree", f"{ref}^{{tree}}", "-p", f"{ref}^", "-m", f"{row.number:04d}: {row.description}"]
        git(repo, "update-ref", ref, git(repo, *command))
    git(repo, "reset", "-q", "--hard", "refs/autoresearch/t/0000")
    (repo / "results.tsv").write_text(HEADER + row_line(before[0]))
    done = run_loop(repo, "--experiments", "5", "--slots", "2", "--command", "false")
    names = ("number", "status", "val_bpb", "gain", "noise", "runs", "reason", "description")
    decisions = [[str(getattr(row, name)) for name in names] for row in rows_of(repo)]
    assert decisions == [[str(getattr(row, name)) for name in names] for row in before], done.stdout
    assert len([event for event in events(repo) if event["event"] == "run" and event["purpose"] == "judge"]) == sum(
        len(row.runs.split()) or 1 for row in before
    )  # nothing ran again
    check_invariants(repo)


def test_several_proposals_are_written_at_once_where_the_slots_need_them(repo):
    """Two slots, trainings of a second, proposals of three: one proposer alone would leave a slot idle."""
    calls = repo.parent / "spans"
    script = repo.parent / "slow.sh"
    script.write_text(
        f"n=$$; echo $n begins >> {calls}; sleep 3; echo $n ends >> {calls}\n"
        'sed -i.old "s/^PART_0 = .*/PART_0 = 1.$n/" train.py; echo part $n\n'
    )
    done = run_loop(repo, "--experiments", "6", "--slots", "2", "--command", f"sh {script}")
    assert len(rows_of(repo)) == 7, done.stdout + done.stderr
    at_work, most = set(), 0
    for name, what in (line.split() for line in calls.read_text().splitlines()):
        at_work = at_work | {name} if what == "begins" else at_work - {name}
        most = max(most, len(at_work))
    assert most >= 2
    check_invariants(repo)


def test_a_killed_loop_leaves_no_agent_behind(repo):
    command = "touch at_work; (setsid sleep 4321 &); sleep 4321"
    loop = start_loop(repo, "--experiments", "2", "--command", command)
    work = repo / "runs/t/proposals/0001/work"
    wait_for(lambda: (work / "at_work").exists() and len(processes_in(work)) >= 2)
    loop.kill()
    loop.communicate()
    wait_for(lambda: not processes_in(work))


def test_a_proposer_that_has_nothing_left_ends_the_search_at_once(tmp_path, prepared):
    """One constant without effect on the number: after one change of it there is nothing else to try."""
    repo = make_repository(tmp_path / "repo", STUB.replace("LEVEL = 2.0", "STEP = 1.5\nLEVEL = 2.0 + 0 * STEP\n"))
    done = run_loop(repo, "--hours", "5", "--proposer", "constants")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "no constant is left whose change has an effect" in done.stdout and "best seen" in done.stdout
    check_invariants(repo)


def test_constants_take_their_share_and_every_second_turn_on_a_plateau(prepared, tmp_path):
    repo = make_repository(tmp_path / "repo", f"RATE = 0.5\npow(RATE, 2)\n{STUB}")
    settings(repo, constants_share=0.25)
    ideas = [append(f"n{n} = {n}", f"idea {n}") for n in range(8)]
    done = run_loop(repo, "--experiments", "8", "--command", proposals(repo, ideas))
    constants = [row.number for row in rows_of(repo) if row.category == "constant"]
    assert constants == [4, 8], done.stdout
    rows = [make_row(number=number, status="discard" if number else "keep") for number in range(13)]
    mixed = Settings(constants_share=0.25)
    on_plateau = [make_context(tmp_path, number=number, rows=rows, settings=mixed) for number in range(13, 19)]
    assert [turn_of_constants(context) for context in on_plateau] == [False, True] * 3
    alone = make_context(tmp_path, number=14, rows=rows, settings=Settings())
    assert not turn_of_constants(alone)


def test_an_llm_writes_what_the_constants_have_nothing_left_for(prepared, tmp_path):
    repo = make_repository(tmp_path / "repo", STUB.replace("LEVEL = 2.0", 'LEVEL = float("2.0")'))
    settings(repo, constants_share=1)
    run_loop(repo, "--experiments", "1", "--command", proposals(repo, [append("x = 1", "an idea")]))
    assert rows_of(repo)[1].description == "an idea"
