"""
The settings: the front matter of program.md, YAML between two --- lines. Unknown or ill-typed keys are refused by name.

    python -m autoresearch.settings > docs/settings.md     # the page of all settings, from the definitions below
"""

import dataclasses
import math
import re
import typing
from dataclasses import dataclass
from typing import Any

import yaml

EFFORTS = ("low", "medium", "high", "xhigh", "max")
SANDBOX_MODES = ("auto", "on", "off")
SHARES = ("constants_share", "keep.keep_at_once", "keep.keep_at_last")
ONE_AT_LEAST = ("max_turns", "proposers")  # with none, nothing would ever be proposed
DASHES = r"---[ \t]*$"  # the line before the front matter, and the one behind it

# -----------------------------------------------------------------------------
# Definitions


def setting(default: Any, meaning: str) -> Any:
    """A field of a settings class: its default, and what docs/settings.md says of it."""
    return dataclasses.field(default=default, metadata={"meaning": meaning})


def needed(meaning: str) -> Any:
    """A field without a default: where the group is given at all, it has to be there."""
    return dataclasses.field(metadata={"meaning": meaning})


@dataclass(frozen=True)
class Prices:
    """US dollars per million tokens."""

    input: float = needed("new input")
    output: float = needed("output, thinking included")
    cache_read: float = needed("input read from the API's cache")
    cache_write: float = needed("input written to the API's cache for an hour")

    @property
    def cache_write_5m(self) -> float:
        """Input written to the cache for five minutes: a quarter more than new input, on every model."""
        return 1.25 * self.input


@dataclass(frozen=True)
class KeepRule:
    """When a change is kept. Probabilities are of the candidate being truly better than the best."""

    keep_at_once: float = setting(0.8, "probability of a true gain at which one run is enough for a keep")
    keep_at_last: float = setting(
        0.7, "less probable than this: dropped. In between: another run. What `max_runs` together have to reach"
    )
    max_runs: int = setting(2, "runs of one candidate, each on its own seed")
    baseline_repeats: int = setting(2, "further runs of the baseline: they measure the noise")
    confirm_runs: int = setting(3, "runs on fresh seeds before a session ends, of the best and of the baseline")
    simpler_statements: int = setting(5, "a change that leaves so many statements less is a simplification")
    equal: float = setting(1.0, "a simplification may be worse by so many times the noise")
    suspicious_gain: float = setting(
        0.03, "share of val_bpb. A larger gain is more than one change can do: measured on two seeds and flagged"
    )


@dataclass(frozen=True)
class Settings:
    """All that program.md can set."""

    model: str = setting("claude-opus-5-5", "the model of `--proposer anthropic`")
    effort: str | None = setting(
        "medium",
        "`low`, `medium`, `high`, `xhigh` or `max`: how much the model thinks. null: neither thinking nor effort is "
        "asked for, as models that are not Claude need it",
    )
    max_tokens: int | None = setting(None, "tokens of one answer at most, thinking included. null: 32,000")
    max_turns: int = setting(40, "replies of the model for one proposal; then the proposal counts as failed")
    repairs: int = setting(2, "how often an experiment that crashed by a slip goes back to be mended")
    plateau: int = setting(12, "experiments without a keep after which the model is told that it is on a plateau")
    max_refusals: int = setting(3, "proposals in a row that the model declines; then the search ends")
    max_cost: float | None = setting(
        None, "US dollars of API use in all, held to within one answer of each proposer at work. null: no cap"
    )
    prices: Prices | None = setting(
        None,
        "US dollars per million tokens. null: those of the model, by autoresearch/propose/models.py",
    )
    proposal_timeout: float = setting(1800.0, "seconds for one proposal")
    look_ahead: int | None = setting(
        None, "proposals that may wait for a slot. null: as few as keep the slots busy. 0: strictly one after the other"
    )
    proposers: int = setting(8, "proposals that may be written at once, where the slots need so many")
    constants_share: float = setting(
        0.0,
        "share of the experiments that `constants` proposes while an LLM proposes the others; on a plateau at least "
        "every second one. 0: none",
    )
    kill_after: float | None = setting(
        None, "seconds of wall-clock time for one run. null: twice the budget, at least the budget + 180"
    )
    memory_limit_gb: float | None = setting(
        None, "GB. A run whose peak memory on the device is larger is dropped. null: no limit"
    )
    memory_gb: float | None = setting(
        None, "GB of the machine's memory for one run. null: half of it, for all slots together"
    )
    sandbox: str = setting(
        "auto", "`auto`: bubblewrap where it works. `on`: bubblewrap, or the search does not start. `off`: never"
    )
    keep: KeepRule = setting(KeepRule(), "when a change is kept: [judging.md](judging.md)")

    def seconds_of_run(self, budget: int) -> float:
        """Seconds of wall-clock time after which a run that trains for `budget` seconds is killed."""
        return self.kill_after or max(2 * budget, budget + 180)


# -----------------------------------------------------------------------------
# Reading


def read_settings(cls: Any, values: Any, where: str) -> Any:
    """A dataclass of settings from parsed YAML. Raises ValueError that names an unknown key or a wrong type."""
    if values is None:
        values = {}
    if not isinstance(values, dict):
        raise ValueError(f"{where.rstrip('.') or 'the front matter'} is not a list of `key: value` lines")
    types = typing.get_type_hints(cls)
    checked = {}
    for key, value in values.items():
        name = f"{where}{key}"
        if key not in types:
            raise ValueError(f"unknown key `{name}`; known are: {', '.join(types)}")
        group = group_of(types[key])
        if group and not (value is None and type(None) in typing.get_args(types[key])):
            checked[key] = read_settings(group, value, f"{name}.")
        else:
            checked[key] = checked_value(name, types[key], value)
    fields = [field for field in dataclasses.fields(cls) if field.default is dataclasses.MISSING]
    if missing := [f"`{where}{field.name}`" for field in fields if field.name not in checked]:
        raise ValueError(f"`{where.rstrip('.')}` needs {', '.join(missing)} too")
    return cls(**checked)


def group_of(kind: Any) -> Any:
    """The dataclass that a key's type is, alone or beside null; None if it is a plain value."""
    return next((each for each in typing.get_args(kind) or (kind,) if dataclasses.is_dataclass(each)), None)


def checked_value(name: str, kind: Any, value: Any) -> Any:
    """The value of a key, if it is of the key's type and no number below zero. Raises ValueError."""
    allowed = typing.get_args(kind) or (kind,)
    accepted = (*allowed, int) if float in allowed else allowed
    if isinstance(value, bool) or not isinstance(value, accepted):
        expected = " or ".join("null" if each is type(None) else each.__name__ for each in allowed)
        raise ValueError(f"`{name}: {value}` should be {expected}")
    if isinstance(value, int | float) and not (math.isfinite(value) and value >= 0):
        raise ValueError(f"`{name}: {value}` should be 0 or more")
    return value


def front_matter(text: str) -> tuple[str, str]:
    """(front matter, instructions) of a program.md. Raises ValueError if the file breaks off, as half a save does."""
    if not text.strip():
        raise ValueError("it is empty")
    begun = re.match(rf"\ufeff?\s*{DASHES}", text, re.MULTILINE)
    if not begun:
        return "", text
    front, *instructions = re.split(rf"^{DASHES}\n?", text[begun.end() :], maxsplit=1, flags=re.MULTILINE)
    if not instructions:
        raise ValueError("the front matter has no closing ---")
    return front, instructions[0]


def parse_program(text: str) -> tuple[Settings, str]:
    """(settings, instructions) of a program.md. Raises ValueError with one line if the front matter is not valid."""
    front, instructions = front_matter(text)
    try:
        values = yaml.safe_load(front)
    except yaml.YAMLError as error:
        raise ValueError(f"the front matter is not YAML: {' '.join(str(error).split())}") from error
    if isinstance(values, dict) and isinstance(values.get("sandbox"), bool):  # on and off are booleans to YAML
        values["sandbox"] = "on" if values["sandbox"] else "off"
    settings = read_settings(Settings, values, "")
    check_ranges(settings)
    return settings, instructions


def check_ranges(settings: Settings) -> None:
    """Raises ValueError that names a setting whose value is of its type, and yet none that it can have."""
    for name, value in flat(settings).items():
        choices = {"effort": EFFORTS, "sandbox": SANDBOX_MODES}.get(name, ())
        if choices and value is not None and value not in choices:
            raise ValueError(f"`{name}: {value}` should be {', '.join(choices[:-1])} or {choices[-1]}")
        if name in SHARES and value > 1:
            raise ValueError(f"`{name}: {value}` should be from 0 to 1")
        if name in ONE_AT_LEAST and value < 1:
            raise ValueError(f"`{name}: {value}` should be 1 or more")


def flat(settings: Settings) -> dict[str, Any]:
    """Settings by their dotted names."""
    parts = dataclasses.asdict(settings).items()
    nested = {f"{name}.{key}": each for name, value in parts if isinstance(value, dict) for key, each in value.items()}
    return {name: value for name, value in parts if not isinstance(value, dict)} | nested


# -----------------------------------------------------------------------------
# The page


def table(cls: Any = Settings, prefix: str = "") -> list[str]:
    """A line of docs/settings.md for each setting, nested ones behind their own."""
    lines, types = [], typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        lines.append(f"| `{prefix}{field.name}` | {default_text(field)} | {field.metadata['meaning']} |")
        if group := group_of(types[field.name]):
            lines += table(group, f"{field.name}.")
    return lines


def default_text(field: dataclasses.Field) -> str:
    """A default as it is written in program.md; nothing where there is none, or a group of its own."""
    if field.default is dataclasses.MISSING or dataclasses.is_dataclass(field.default):
        return ""
    if field.default is None:
        return "null"
    return f"{field.default:g}" if isinstance(field.default, float) else f"{field.default}"


PAGE = """# Settings

The front matter of `program.md`, between two `---` lines, as YAML. All keys have defaults. The file is read again
before every proposal, so you can edit it while a search runs: a change is logged, and a file that is not valid changes
nothing until it is mended. Nothing in it needs a commit. An unknown key or a wrong type is refused by name.

This page is written by `python -m autoresearch.settings` from the definitions in `autoresearch/settings.py`.

| key | default | meaning |
|---|---|---|
"""

if __name__ == "__main__":
    print(PAGE + "\n".join(table()))
