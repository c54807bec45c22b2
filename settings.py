"""
The settings: the front matter of program.md, YAML between two --- lines. Unknown or ill-typed keys are refused by name.
"""

import dataclasses
import math
import re
import typing
from dataclasses import dataclass, field

import yaml

import sandbox
from judge import KeepRule


@dataclass(frozen=True)
class Prices:
    input: float = 4.0
    output: float = 20.0
    cache_read: float = 0.2
    cache_write: float = 8.0


@dataclass(frozen=True)
class Settings:
    model: str = "claude-opus-5-5"
    effort: str = "high"
    max_turns: int = 40
    repairs: int = 2  # of an experiment that crashed by a slip
    plateau: int = 12  # experiments without a keep, after which the model is told so
    max_refusals: int = 3  # in a row, then a person decides
    max_cost: float | None = None
    prices: Prices = Prices()
    proposal_timeout: float = 1800.0
    look_ahead: int | None = None  # proposals that may wait for a slot
    kill_after: float | None = None
    memory_limit_gb: float | None = None  # of the device, for a keep
    memory_gb: float | None = None  # of the host, for a run
    sandbox: str = "auto"
    keep: KeepRule = field(default_factory=KeepRule)


def read_settings(cls, values, where: str):
    """A dataclass of settings from parsed YAML. Raises ValueError that names an unknown key or a wrong type."""
    if values is None:
        return cls()
    if not isinstance(values, dict):
        raise ValueError(f"{where or 'the front matter'} is not a list of `key: value` lines")
    types = typing.get_type_hints(cls)
    checked = {}
    for key, value in values.items():
        name = f"{where}{key}"
        if key not in types:
            raise ValueError(f"unknown key `{name}`; known are: {', '.join(types)}")
        if dataclasses.is_dataclass(types[key]):
            checked[key] = read_settings(types[key], value, f"{name}.")
            continue
        allowed = typing.get_args(types[key]) or (types[key],)
        accepted = (*allowed, int) if float in allowed else allowed
        if isinstance(value, bool) or not isinstance(value, accepted):
            expected = " or ".join("null" if kind is type(None) else kind.__name__ for kind in allowed)
            raise ValueError(f"`{name}: {value}` should be {expected}")
        if isinstance(value, int | float) and not (math.isfinite(value) and value >= 0):
            raise ValueError(f"`{name}: {value}` should be 0 or more")
        checked[key] = value
    return cls(**checked)


def parse_program(text: str) -> tuple[Settings, str]:
    """(settings, instructions) of a program.md. Raises ValueError with one line if the front matter is not valid."""
    match = re.match(r"---\n(.*?)^---\n", text, re.DOTALL | re.MULTILINE)
    if not match:
        return Settings(), text
    try:
        values = yaml.safe_load(match[1])
    except yaml.YAMLError as error:
        raise ValueError(f"the front matter is not YAML: {' '.join(str(error).split())}") from error
    if isinstance(values, dict) and isinstance(values.get("sandbox"), bool):  # on and off are booleans to YAML
        values["sandbox"] = "on" if values["sandbox"] else "off"
    settings = read_settings(Settings, values, "")
    if settings.effort not in ("low", "medium", "high", "xhigh", "max"):
        raise ValueError(f"`effort: {settings.effort}` should be low, medium, high, xhigh or max")
    if problem := sandbox.mode_problem(settings.sandbox):
        raise ValueError(problem)
    return settings, text[match.end() :]


def flat(settings) -> dict[str, object]:
    """Settings by their dotted names."""
    parts = dataclasses.asdict(settings).items()
    nested = {f"{name}.{key}": each for name, value in parts if isinstance(value, dict) for key, each in value.items()}
    return {name: value for name, value in parts if not isinstance(value, dict)} | nested
