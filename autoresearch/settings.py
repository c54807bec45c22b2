"""
The settings: the front matter of program.md, YAML between two --- lines. Unknown or ill-typed keys are refused by name.

    python -m autoresearch.settings > docs/settings.md     # the page of all settings, from the definitions below
"""

import math
import re
import time
import typing
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic import NonNegativeFloat as Amount
from pydantic import NonNegativeInt as Count
from pydantic import PositiveInt as OneOrMore

from autoresearch.text import plural

DASHES = r"---[ \t]*$"  # the line before the front matter, and the one behind it
# Settings of an older version, constants today.
REMOVED = ["plateau", "max_refusals", "look_ahead", "proposers", "keep.keep_at_once", "keep.keep_at_last"]
REMOVED += ["keep.max_runs", "keep.simpler_statements", "keep.equal", "keep.suspicious_gain"]

# -----------------------------------------------------------------------------
# Definitions

Share = Annotated[float, Field(ge=0, le=1)]
Effort = Literal["low", "medium", "high", "xhigh", "max"]
Sandbox = Literal["auto", "on", "off"]
Cache = Literal["1h", "5m", "off"]


def setting(default: Any, meaning: str) -> Any:
    """A field of a group: its default, and what docs/settings.md says of it."""
    return Field(default=default, description=meaning)


class Group(BaseModel):
    """Settings that cannot change once they are read; another key than these is refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Prices(Group):
    """US dollars per million tokens. Where one is given, all are needed."""

    input: Amount = Field(description="new input")
    output: Amount = Field(description="output, thinking included")
    cache_read: Amount = Field(description="input read from the API's cache")
    cache_write: Amount = Field(description="input written to the API's cache for an hour")

    @property
    def cache_write_5m(self) -> float:
        """Input written to the cache for five minutes: a quarter more than new input, on every model."""
        return 1.25 * self.input


class Keep(Group):
    """The runs that make numbers of the baseline and the best certain. The rule itself is in judge/keep_rule.py."""

    baseline_repeats: Count = setting(2, "further runs of the baseline: they measure the noise")
    confirm_runs: Count = setting(3, "runs on fresh seeds before a session ends, of the best and of the baseline")


class Settings(Group):
    """All that program.md can set."""

    model: str = setting("claude-opus-5-5", "the model of `--proposer anthropic`")
    effort: Effort | None = setting(
        "medium",
        "`low`, `medium`, `high`, `xhigh` or `max`: how much the model thinks. null: not asked for, as models "
        "that are not Claude need it",
    )
    max_tokens: OneOrMore | None = setting(None, "tokens of one answer at most, thinking included. null: 32,000")
    cache: Cache = setting(
        "1h",
        "how long the API is asked to keep the prompt: `1h`, `5m`, or `off` for servers that know no cache_control",
    )
    inference_geo: str | None = setting(
        None, "where the API may compute, as `us`, for 1.1 times the price. null: as the workspace is set"
    )
    max_turns: OneOrMore = setting(40, "replies of the model for one proposal; then the proposal counts as failed")
    repairs: Count = setting(2, "how many times a crashed experiment is sent back for repair")
    hours: Amount | None = setting(
        None, "hours of a session from its start, also of the one that runs: before --hours. null: as --hours says"
    )
    experiments: Count | None = setting(
        None, "experiments of the tag after which a session ends, also the one that runs: before --experiments"
    )
    notify: str | None = setting(
        None, "a shell command that is told in one line what was kept, that a person is needed, and the end: night.md"
    )
    max_cost: Amount | None = setting(
        None, "US dollars of API use in all, held to within one answer of each proposer at work. null: no cap"
    )
    prices: Prices | None = setting(
        None, "US dollars per million tokens. null: those of the model, by autoresearch/propose/models.py"
    )
    proposal_timeout: Amount = setting(1800.0, "seconds for one proposal")
    constants_share: Share = setting(
        0.0,
        "share of the experiments that `constants` proposes while an LLM proposes the others; on a plateau at least "
        "every second one. 0: none",
    )
    kill_after: Amount | None = setting(
        None, "seconds of wall-clock time for one run. null: twice the budget, at least the budget + 180"
    )
    memory_limit_gb: Amount | None = setting(
        None, "GB. A run whose peak memory on the device is larger is dropped. null: no limit"
    )
    memory_gb: Amount | None = setting(
        None, "GB of the machine's memory for one run. null: half of it, for all slots together"
    )
    sandbox: Sandbox = setting(
        "auto", "`auto`: bubblewrap where it works. `on`: bubblewrap, or the search does not start. `off`: never"
    )
    keep: Annotated[Keep, BeforeValidator(lambda given: {} if given is None else given)] = setting(
        Keep(), "runs that measure the noise and confirm the best: [judging.md](judging.md)"
    )

    def seconds_of_run(self, budget: int) -> float:
        """Seconds of wall-clock time after which a run that trains for `budget` seconds is killed."""
        return self.kill_after or max(2 * budget, budget + 180)


@dataclass(frozen=True)
class Options:
    """The wishes of a session's command line, and the numbers of its scale."""

    tag: str
    proposer: str  # anthropic, command or constants
    command: str
    experiments: int | None  # --experiments
    max_cost: float | None  # instead of program.md's
    deadline: float  # time.monotonic() at which everything has to be over
    scale: str
    seed: int
    time_budget: int  # seconds of training
    steps: int  # of training, instead of that; 0: by time
    max_seq_len: int
    vocab_size: int

    @property
    def measured_budget(self) -> int:
        """Seconds of training that a run is held to; 0: by steps, whatever they take."""
        return 0 if self.steps else self.time_budget

    @property
    def until(self) -> str:
        """When a session ends, in words."""
        ends = [] if self.experiments is None else [plural(self.experiments, "experiment")]
        return " and ".join([*ends, *([time.strftime("%a %H:%M", time.localtime(self.ends))] if self.ends else [])])

    @property
    def ends(self) -> float | None:
        """The time of day of the deadline, as time.time(); None where there is none."""
        left = self.deadline - time.monotonic()
        return time.time() + left if math.isfinite(left) else None


def group_of(kind: Any) -> type[Group] | None:
    """The group of settings that a key's type is, alone or with null; None if it is a plain value."""
    kinds = (kind, *typing.get_args(kind))
    return next((each for each in kinds if isinstance(each, type) and issubclass(each, Group)), None)


def flat(settings: Settings) -> dict[str, Any]:
    """Settings by their dotted names."""
    parts = settings.model_dump().items()
    nested = {f"{name}.{key}": each for name, value in parts if isinstance(value, dict) for key, each in value.items()}
    return {name: value for name, value in parts if not isinstance(value, dict)} | nested


# -----------------------------------------------------------------------------
# Reading


class Loader(yaml.BaseLoader):
    """YAML whose values are as they were written: `1:30` is not 90, `on` is not true. A key stands there once."""

    def construct_scalar(self, node: Any) -> Any:
        text = super().construct_scalar(node)
        return None if node.style is None and text in ("", "~", "null", "Null", "NULL") else text

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        values, keys = super().construct_mapping(node, deep), [key.value for key, _ in node.value]
        if twice := [key for key in keys if keys.count(key) > 1]:
            raise ValueError(f"`{twice[0]}` stands there twice; delete one of the lines")
        return values


def front_matter(text: str) -> tuple[str, str]:
    """(front matter, instructions) of a program.md. Raises ValueError if the file breaks off, as half a save does."""
    if not text.strip():
        raise ValueError("it is empty")
    begun = re.match(rf"\s*{DASHES}", text, re.MULTILINE)
    if not begun:
        return "", text
    front, *instructions = re.split(rf"^{DASHES}\n?", text[begun.end() :], maxsplit=1, flags=re.MULTILINE)
    if not instructions:
        raise ValueError("the front matter has no closing ---")
    return front, instructions[0]


def refuse_misplaced(instructions: str) -> None:
    """Raise ValueError where a line among the instructions is a setting: nobody would read it there."""
    names = {name.rpartition(".")[2] for name in (*flat(Settings()), *REMOVED)}
    line = re.search(rf"^[ \t]*({'|'.join(sorted(names))}):[ \t]+[\w.-]+[ \t]*(#.*)?$", instructions, re.MULTILINE)
    if line:
        where = "settings stand between two --- lines at the very top of the file"
        raise ValueError(f"`{' '.join(line[0].split())}` is not read where it stands: {where}")


def take_removed(values: Any) -> list[str]:
    """Take what is a constant today out of parsed front matter. Returns the names."""
    taken = []
    for name in REMOVED:
        group, _, key = name.rpartition(".")
        place = values.get(group) if group and isinstance(values, dict) else values
        if isinstance(place, dict) and key in place:
            del place[key]
            taken.append(name)
    return taken


def problem_of(error: ValidationError) -> str:
    """One line for the first thing that is wrong, with the key's name and what it should be."""
    first, missing = error.errors()[0], [each["loc"] for each in error.errors() if each["type"] == "missing"]
    *path, key = map(str, first["loc"] or ("the front matter",))
    name = ".".join([*path, key])
    if missing:
        names = ", ".join(f"`{'.'.join(map(str, each))}`" for each in missing)
        return f"`{'.'.join(map(str, missing[0][:-1]))}` needs {names} too"
    if first["type"] == "extra_forbidden":
        owner: Any = Settings
        for step in path:
            owner = group_of(owner.model_fields[step].annotation)
        return f"unknown key `{name}`; known are: {', '.join(owner.model_fields)}"
    if first["type"] == "model_type":
        return f"{name} is not a list of `key: value` lines"
    expected = first["msg"].removeprefix("Input should be ").split(", unable")[0]
    return f"`{name}: {first['input']}` should be {expected}"


def parse_program(text: str, warn: Callable[[str], object] = str) -> tuple[Settings, str]:
    """(settings, instructions) of a program.md. Raises ValueError with one line if the front matter is not valid.

    `warn` gets a line about keys that an older version had: nothing is refused for them.
    """
    front, instructions = front_matter(text)
    try:
        values = yaml.load(front, Loader)
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(f"the front matter is not YAML: {' '.join(str(error).split())}") from error
    refuse_misplaced(instructions)
    if removed := take_removed(values):
        names = ", ".join(f"`{name}`" for name in removed)
        warn(f"program.md: {names}: a constant now, what is set here is not read; delete the line")
    try:
        return Settings.model_validate({} if values is None else values), instructions
    except ValidationError as error:
        raise ValueError(problem_of(error)) from error


# -----------------------------------------------------------------------------
# The page


def table(group: type[Group] = Settings, prefix: str = "") -> list[str]:
    """A line of docs/settings.md for each setting, nested ones behind their own."""
    lines = []
    for name, field in group.model_fields.items():
        plain = not field.is_required() and not isinstance(field.default, Group)
        default = str(field.default).removesuffix(".0").replace("None", "null") if plain else ""
        lines.append(f"| `{prefix}{name}` | {default} | {field.description} |")
        if nested := group_of(field.annotation):
            lines += table(nested, f"{name}.")
    return lines


PAGE = """# Settings

The front matter of `program.md`, between two `---` lines at its very top, as YAML. All keys have defaults. The file is
read again before every proposal, so you can edit it while a search runs. A change is logged, and a file that is not
valid changes nothing until it is corrected. Nothing in it needs a commit. An unknown key, a key that stands there
twice and a wrong type are refused by name.

This page is written by `python -m autoresearch.settings` from the definitions in `autoresearch/settings.py`.

| key | default | meaning |
|---|---|---|
"""

if __name__ == "__main__":
    print(PAGE + "\n".join(table()))
