"""autoresearch/settings.py: program.md, however it was typed."""

import re

import pytest
from loop_helpers import ROOT

from autoresearch.settings import REMOVED, Settings, flat, parse_program
from autoresearch.text import read_text


def test_the_shipped_program_states_the_defaults():
    settings, instructions = parse_program((ROOT / "program.md").read_text())
    assert settings == Settings()
    assert instructions.startswith("# Program")


@pytest.mark.parametrize(
    ("front", "message"),
    [
        ("max_turns: many", "`max_turns: many` should be a valid integer"),
        ("max_turns: true", "`max_turns: true` should be a valid integer"),
        ("max_turns: 0", "`max_turns: 0` should be greater than 0"),
        ("constants_share: 30", "`constants_share: 30` should be less than or equal to 1"),
        ("max_cost: -1", "`max_cost: -1` should be greater than or equal to 0"),
        ("max_cost: nan", "`max_cost: nan` should be a finite number"),
        ("max_cost: 1:30", "`max_cost: 1:30` should be a valid number"),
        ("max_cost: $5", "`max_cost: $5` should be a valid number"),
        ("max_cost: 5\nmax_cost: 50", "`max_cost` stands there twice"),
        ("keep: {confirm_runs: 1, confirm_runs: 2}", "`confirm_runs` stands there twice"),
        ("keep: 3", "keep is not a list"),
        ("prices: {input: 1}", "`prices` needs `prices.output`, `prices.cache_read`, `prices.cache_write` too"),
        ("efort: low", "unknown key `efort`; known are: model, effort, max_tokens"),
        ("keep: {gain: 3}", "unknown key `keep.gain`; known are: baseline_repeats, confirm_runs"),
        ("keep: {confirm_runs: x}", "`keep.confirm_runs: x` should be a valid integer"),
        ("effort: enormous", "`effort: enormous` should be 'low', 'medium'"),
        ("sandbox: yes", "`sandbox: yes` should be 'auto', 'on' or 'off'"),
        ("model:", "`model: None` should be a valid string"),
        ("- a\n- b", "not a list of `key: value`"),
        ("model: [", "the front matter is not YAML"),
        ("[" * 5000, "the front matter is not YAML"),
    ],
)
def test_settings_are_refused_by_name(front, message):
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        parse_program(f"---\n{front}\n---\ntext")
    assert "\n" not in str(caught.value)


def test_settings_take_what_is_valid():
    prices = "prices: {input: 1, output: 2, cache_read: 3, cache_write: 4}"
    front = f"max_cost: 5\nkeep: {{confirm_runs: 0}}\n{prices}\nsandbox: off\neffort:\nmax_tokens: null"
    settings, text = parse_program(f"---\n{front}\n---\nhello")
    assert (settings.max_cost, settings.keep.confirm_runs, settings.prices.input, text) == (5, 0, 1, "hello")
    assert (settings.sandbox, settings.effort, settings.max_tokens) == ("off", None, None)
    assert parse_program("just text") == (Settings(), "just text")
    assert parse_program("---\nkeep:\n  # nothing\n---\n") == (Settings(), "")


@pytest.mark.parametrize(
    "text",
    [
        *("--- \nmax_cost: 5\n---\nhello", "---\nmax_cost: 5\n---\t\nhello", "\n---\nmax_cost: 5\n---\nhello"),
        *("\ufeff---\nmax_cost: 5\n---\nhello", "---\nmax_cost: 5\n---", "---\nmax_cost: 5 # ---\n---\nhello"),
        *("---\r\nmax_cost: 5\r\n---\r\nhello", "\ufeff\r\n---\r\nmax_cost: 5\r\n---\r\nhello"),
    ],
)
def test_front_matter_is_seen_however_it_was_typed(text, tmp_path):
    (tmp_path / "program.md").write_bytes(text.encode())
    settings, instructions = parse_program(read_text(tmp_path / "program.md"))
    assert settings.max_cost == 5 and instructions in ("hello", "")


@pytest.mark.parametrize(
    "text",
    [
        *("# Program\n---\nmax_cost: 5\n---\nhello", "```yaml\n---\nmax_cost: 5\n---\n```\n", "max_cost: 5\n\nhello"),
        *("---\nmodel: x\n---\n---\nmax_cost: 5\n---\n", "----\nmax_cost: 5  # dollars\n----\nhello"),
        *("# Program\n---\nkeep:\n  confirm_runs: 1\n---\n", "hello\nplateau: 5\n"),
    ],
)
def test_settings_below_the_top_are_refused(text):
    with pytest.raises(ValueError, match=r"`\w+: \w+.*` is not read where it stands: .*the very top"):
        parse_program(text)


@pytest.mark.parametrize("text", ["keep: what works\nmodel: a decoder of 9 layers", "---\n---\nsandbox is off: why?"])
def test_instructions_may_use_the_same_words(text):
    assert parse_program(text)[0] == Settings()


def test_what_is_a_constant_now_is_said_and_refuses_nothing():
    said = []
    groups = {name: [each.partition(".")[2] for each in REMOVED if each.startswith(f"{name}.")] for name in ("keep",)}
    front = "".join(f"{name}: 3\n" for name in REMOVED if "." not in name)
    front += "keep:\n  confirm_runs: 7\n" + "".join(f"  {name}: 3\n" for name in groups["keep"])
    settings, _ = parse_program(f"---\n{front}---\n", said.append)
    assert settings.keep.confirm_runs == 7 and not set(REMOVED) & set(flat(settings))
    (line,) = said
    assert all(f"`{name}`" in line for name in REMOVED) and "delete the line" in line


@pytest.mark.parametrize(
    "text",
    ["", "\n", "---", "---\nmax_cost: 5\n", "--- \nmax_cost: 5\n--", "---\nmodel: x ---\n"],
)
def test_a_file_that_was_saved_by_half_is_refused(text):
    with pytest.raises(ValueError, match="it is empty" if not text.strip() else "has no closing ---"):
        parse_program(text)


@pytest.mark.parametrize(
    ("encoding", "words"),
    [("utf-16", "UTF-16"), ("utf-32", "UTF-32"), ("latin-1", "line 2 has the byte 0xe9"), ("utf-8-sig", "")],
)
def test_another_encoding_is_refused_with_the_way_out(encoding, words, tmp_path):
    (tmp_path / "a b.md").write_bytes("one\nété\n".encode(encoding))
    if not words:
        assert read_text(tmp_path / "a b.md") == "one\nété\n"
        return
    with pytest.raises(ValueError, match=rf"a b.md: .*{words}.*convert it: iconv -f .* -t UTF-8 '.*a b.md'"):
        read_text(tmp_path / "a b.md")
