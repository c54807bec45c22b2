"""
Both models of a promotion before it begins: layers, width, parameters, tokens that fit. From runs of a few steps.
"""

import math
import re
from dataclasses import dataclass

from autoresearch.nouns import Task
from autoresearch.prove.trials import Trials, key_of, time_text
from autoresearch.text import fail, table_lines

STEPS = 10
COMPARABLE = 1.5  # the larger of two models has at most this many times the parameters of the other


@dataclass(frozen=True)
class Shape:
    """The size and the speed of a model, as its train.py says them; nan where it does not."""

    layers: int
    width: float
    parameters: float  # millions
    tokens_per_second: float

    @property
    def tokens_per_parameter(self) -> float:
        """In a second."""
        return self.tokens_per_second / self.parameters if self.parameters else math.nan


def shapes_of(trials: Trials, sources: dict[str, str], depths: dict[str, int], seed: int) -> dict[str, Shape]:
    """The shape of the model that each of these train.py makes, by its name."""
    tasks = {
        name: Task(f"{name}, depth {depths[name]}, {STEPS} steps", source, seed, "prove", steps=STEPS)
        for name, source in sources.items()
    }
    if any(key_of(task) not in trials.done for task in tasks.values()):
        trials.log.say(f"how large are the models? short runs: {time_text(trials, list(tasks.values()))}")
        trials.make(list(tasks.values()))
    return {name: shape_of(trials, task, depths[name]) for name, task in tasks.items()}


def shape_of(trials: Trials, task: Task, depth: int) -> Shape:
    result, folder = trials.done[key_of(task)], trials.folder_of(task)
    if result.status != "ok":
        fail(f"{task.title}: {result.status}, {result.error}; see {folder}")
    log = (folder / "run.log").read_text(errors="replace") if (folder / "run.log").is_file() else ""
    width = re.search(r"\bdim (\d+)", log)
    parameters = result.facts.get("num_params_M", math.nan)
    return Shape(depth, float(width[1]) if width else math.nan, parameters, result.tokens_per_second)


def moved(searched: dict[str, Shape]) -> bool:
    """Return whether the kept changes made the model deeper, shallower, wider or narrower."""
    old, new = searched["baseline"], searched["best"]
    return old.layers != new.layers or abs(old.width - new.width) > 0


def shapes_text(searched: dict[str, Shape], here: dict[str, Shape], trials: Trials, budget: int | None) -> str:
    """A table of both models in the search and here. Without a budget: about that of as many tokens per parameter."""
    needed = trials.budget * searched["baseline"].tokens_per_parameter / here["baseline"].tokens_per_parameter
    seconds = budget or (max(trials.budget, needed) if math.isfinite(needed) else math.nan)
    rows = []
    for where, shapes, time in (("searched", searched, trials.budget), ("here", here, seconds)):
        for name, each in shapes.items():
            told = [f"{each.width:.0f}", f"{each.parameters:.1f} M", f"{time:.0f}"]
            told += [f"{each.tokens_per_second * time / 1e6:.2f} M"]
            rows.append([f"{name}, {where}", each.layers, *("" if "nan" in cell else cell for cell in told)])
    heads = ["model", ">layers", ">width", ">parameters", ">seconds", ">tokens that fit"]
    return "\n".join(table_lines("promotion: the models", heads, rows))


def not_comparable(here: dict[str, Shape], depth: int) -> str:
    """Return why models at one depth say nothing about the change, or ""."""
    sizes = {name: shape.parameters for name, shape in here.items()}
    low, high = sorted(sizes, key=lambda name: sizes[name])
    if not sizes[high] > COMPARABLE * sizes[low]:
        return ""
    told = " against ".join(
        f"{sizes[name]:.1f} M parameters"
        + (f" at width {here[name].width:.0f}" if math.isfinite(here[name].width) else "")
        for name in (low, high)
    )
    return (
        f"--depth {depth} compares two sizes, not two ways to train: {told} ({low} against {high}). "
        "--times 2 gives each twice its own depth; --force compares them all the same"
    )
