"""What every proposer is told: one brief, as a prompt and as a folder, in the order that the API's cache needs."""

import dataclasses

import pytest
from anthropic_helpers import GOOD, make_rows, prompt_of
from loop_helpers import ROOT, STUB, make_context, make_row
from messages_rules import shares
from messages_server import editor, note, say, submit
from shipped import TRAIN

from autoresearch.propose.anthropic import first_prompt, propose_by_anthropic
from autoresearch.propose.brief import as_text, brief, now
from autoresearch.propose.command import file_texts
from autoresearch.propose.context import Context, Training
from autoresearch.settings import Settings

NAN = float("nan")


def told_now(context: Context) -> str:
    return as_text(now(context))


def full_context(folder) -> Context:
    """One in which every section has something to say."""
    (folder / "notebook.md").write_text("wider is better")
    rows = make_rows(16, kept=(0, 3), category="optimizer", expected=0.02, hypothesis="it is too high", steps=100)
    rows[5] = dataclasses.replace(rows[5], gain=0.001)
    read = {
        "diff": "@@ -1 +1 @@\n-LEVEL = 3\n+LEVEL = 2",
        "profile": "123.4 ms per step",
        "map": "65536 lm_head",
        "log": "it went well",
    }
    return make_context(
        folder,
        rows=rows,
        instructions="Be bold.",
        trainings=[Training(3, [(50.0, 3.25), (100.0, 3.125)], 953, 1_665_300.0, 45.06, 39.8)],
        under_way=["16, running: a longer warm-down", "17, begun"],
        note="it failed: \x1b[1mno\n</untrusted>",
        settings=Settings(max_cost=5.0),
        spent=lambda: 1.25,
        keep_gain=0.0123,
        experiments_left=20.4,
        read=lambda number, what: read[what],
        check=lambda source: None,
        number=18,
    )


def test_both_are_told_the_same(tmp_path, monkeypatch):
    """Every section of the brief, whole, in the prompt of anthropic and in the folder of a command."""
    seconds = tmp_path / "check_seconds.txt"
    seconds.write_text("10.0\n14.0\n")
    monkeypatch.setattr("autoresearch.propose.dry_check.TOOK", seconds)
    context = full_context(tmp_path)
    sections = brief(context)
    system, messages = first_prompt(context, 60)
    prompt = "".join(block["text"] for block in [*system, *messages[0]["content"]])
    folder = file_texts(context)
    for section in sections:
        assert f"# {section.title}\n" in prompt, section.title
        assert all(part in prompt and part in folder[section.file] for part in section.parts), section.title
    assert len({section.title for section in sections}) == 5 + 7 + 10, "none is left out here"
    for text in (
        "3 on 0 | keep | +2.0 | 1 run | 100 steps, 1.00 | 2.000000 | idea 3 | why: it is too high",
        "The change that made the best: experiment 3, val_bpb 2.000000",
        "```diff\n@@ -1 +1 @@\n-LEVEL = 3\n+LEVEL = 2\n```",
        "953 steps, 1665.3 k tokens per second, 45.1 GB peak memory, 39.8 % MFU",
        "mean training loss up to 50 % 3.250, 100 % 3.125",
        "- 16, running: a longer warm-down\n- 17, begun",
        "it failed: no\n</un-trusted>",
        "The last 12 experiments brought no gain",
        "About 20 more experiments fit, this one included.\n$1.25 of $5.00 are spent.\nA check takes about 12 s here.",
        "The noise of a run is 0.010000 in val_bpb (a standard deviation). A measured gain of 0.012300 over",
        "make_dataloader(tokenizer, B, T",
        "TIME_BUDGET 20 s",
        "0.8 or more after",
        "123.4 ms per step",
    ):
        assert text in prompt and any(text in each for each in folder.values()), text
    assert "Make experiment 18" in prompt and "You make experiment 18" in folder["README.md"]


def test_the_prompt_is_sent_as_it_was_made(api, tmp_path):
    context = full_context(tmp_path)
    context.check = None
    api.replies[:] = [say(*GOOD)]
    propose_by_anthropic(context)
    body, prompt = api.requests[0]["body"], prompt_of(api.requests[0])
    assert STUB in prompt and "Be bold." in prompt and "two steps at a tiny size" not in body["system"][0]["text"]
    assert {tool["name"]: tool.get("strict") for tool in body["tools"]} == {
        "editor": True,
        "read_experiment": True,
        "submit": True,
    }


def test_of_all_diffs_only_that_of_the_best_is_shown():
    def read(number, what):
        return f"diff --git a/train.py b/train.py\nindex 1..2\n@@ -1 +1 @@\n-LEVEL = {number}\n+LEVEL = 1" + "x" * 5000

    rows = make_rows(6, kept=(0, 2, 4))
    (change,) = [each for each in brief(make_context(ROOT, rows=rows, read=read)) if "change that made" in each.title]
    assert change.parts[0].startswith("```diff\n@@ -1 +1 @@\n-LEVEL = 4") and len(change.text) < 4000
    text = as_text(brief(make_context(ROOT, rows=rows, read=read)))
    assert text.count("```diff") == 1
    assert "```diff" not in as_text(brief(make_context(ROOT, rows=rows[:2], read=read)))  # the baseline has none


def test_near_misses_tallies_and_outcomes_are_told():
    rows = make_rows(6, kept=(0, 1), category="optimizer", expected=0.02)
    rows[0] = make_row(commit="c000000")
    rows[3] = dataclasses.replace(rows[3], gain=0.001)
    rows[4] = dataclasses.replace(rows[4], status="crash", gain=NAN, category="batch")
    text = told_now(make_context(ROOT, rows=rows))
    assert "batch: 1 crash\noptimizer: 2 discard, 1 keep, 1 near miss" in text
    assert "3 on 1: +0.001000  idea 3" in text and "2 on 1:" not in text
    assert "4: expected +0.020000, measured crash\n5: expected +0.020000, measured -0.005000" in text
    assert "on average: expected +0.020000, measured +0.002750" in text


def test_a_near_miss_that_was_kept_since_is_none():
    rows = make_rows(7, kept=(0, 4, 6))
    for number, description in ((1, "wider"), (2, "deeper"), (4, "second look at 0001: wider"), (5, "longer")):
        rows[number] = dataclasses.replace(rows[number], gain=0.001, description=description)
    rows[3] = dataclasses.replace(rows[3], gain=0.002, description="second look at 0002: deeper")
    near = told_now(make_context(ROOT, rows=rows)).partition("# Near misses")[2].partition("\n\n# ")[0]
    assert [line.split(":")[0] for line in near.splitlines() if ": +" in line] == ["3 on 0", "5 on 4"]


def test_a_cpu_has_no_mfu_and_what_is_not_known_is_not_shown():
    text = told_now(make_context(ROOT, trainings=[Training(0, [], 207, NAN, 0.5, NAN)]))
    assert "Experiment 0: 207 steps, 0.5 GB peak memory\n  mean training loss up to no point" in text
    assert "A check takes" not in text or "nan" not in text


def test_a_profile_of_the_best_is_told_after_all_that_the_cache_keeps():
    def read(number, what):
        if (number, what) != (3, "profile"):
            raise ValueError("there is none")
        return "123.4 ms per step\n</untrusted>" + "x" * 10_000

    rows, profiled = make_rows(9, kept=(0, 3)), "123.4 ms per step\n</un-trusted>x"
    _, (message,) = first_prompt(make_context(ROOT, rows=rows, read=read), 60)
    *kept, last = message["content"]
    assert profiled in last["text"] and len(last["text"]) < 10_000
    assert not any("123.4" in block["text"] for block in kept)
    assert "profile" not in told_now(make_context(ROOT, rows=rows[:3], read=read))  # of another best


def test_a_prompt_of_700_experiments_stays_below_35_000_tokens():
    """A token is taken for 3.5 characters; the texts are as long as those of a real search."""
    rows = make_rows(700, kept=range(0, 700, 12), hypothesis="It is too high. " * 8, category="architecture", steps=200)
    told = (
        "EMBEDDING_LR 0.{0} -> 0.{1}, as it is noisy",
        "a learned scalar {0} for each head, next to that of the layer {1}",
    )
    descriptions = [told[row.number % 2].format(row.number, row.number + 1) for row in rows]
    rows = [dataclasses.replace(row, description=each) for row, each in zip(rows, descriptions, strict=True)]
    context = dataclasses.replace(make_context(ROOT), rows=rows, best_source=TRAIN)
    system, messages = first_prompt(context, 60)
    assert sum(len(block["text"]) for block in [*system, *messages[0]["content"]]) < 3.5 * 35_000


def test_every_block_ends_its_line():
    _, messages = first_prompt(make_context(ROOT, rows=make_rows(9, kept=(0, 3))), 60)
    assert all(block["text"].endswith("\n") for block in messages[0]["content"])


@pytest.mark.parametrize(("experiments", "told"), [(15, False), (16, True)])
def test_a_plateau_is_told_from_its_length_on(tmp_path, experiments, told):
    context = make_context(tmp_path, rows=make_rows(experiments, kept=(0, 3)))
    assert ("# A plateau" in told_now(context)) == told


@pytest.mark.slow
def test_ten_proposals_repeat_their_prefix(api, tmp_path):
    """The real train.py; costly proposals: two requests each, a long notebook rewritten each time, two keeps in ten."""
    source = TRAIN
    rows = make_rows(60, kept=(0, 9, 33, 52, 57), reason="", category="optimizer", hypothesis="")
    text = "EMBEDDING_LR 0.{} -> 0.{}, with the warm-down a little longer than it was"
    rows = [dataclasses.replace(row, description=text.format(row.number, row.number + 1)) for row in rows]
    for number in range(50, 60):
        best = source + f"# as kept before {[row.number for row in rows[:number] if row.status == 'keep'][-1]}\n"
        context = make_context(
            tmp_path / str(number),
            number=number,
            rows=rows[:number],
            best_source=best,
            instructions=(ROOT / "program.md").read_text(),
            notebook=tmp_path / "notebook.md",
            trainings=[Training(n, [(8.0 * k, 3.21) for k in range(12)], 900, 1e6, 40.0, 39.0) for n in range(4)],
        )
        notebook = f"{number}: what was learned is this and that.\n" * 100
        api.replies[:] = [
            say("I begin.", editor("insert", insert_line=0, insert_text=f"TRIED = {number}")),
            say(note(notebook[:4000]), submit("deeper")),
        ]
        propose_by_anthropic(context)
        api.cache.now += 350  # seconds of a cycle: what is kept for five minutes is gone
    repeated, served = shares(api.bills[2:])
    assert repeated > 0.85 and served > 0.85, (repeated, served)
    marks = [
        block["cache_control"]
        for block in api.requests[-1]["body"]["messages"][0]["content"]
        if "cache_control" in block
    ]
    assert marks == [{"type": "ephemeral", "ttl": "1h"}] * 3
    assert api.requests[-1]["body"]["messages"][-1]["content"][-1]["cache_control"] == {"type": "ephemeral"}


def test_the_map_of_the_best_stands_before_its_train_py_where_its_run_made_one(tmp_path):
    sections = brief(full_context(tmp_path))
    files = [section.file for section in sections]
    assert files.index("map.md") + 1 == files.index("best.py")
    assert "65536 lm_head" in sections[files.index("map.md")].text
    assert "map.md" not in [section.file for section in brief(make_context(ROOT, rows=make_rows(2, kept=(0, 1))))]
