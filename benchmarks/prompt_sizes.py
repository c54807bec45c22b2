"""
The size of a first prompt as a search grows, part by part, and the share of ten proposals that the API's cache serves.

    python benchmarks/prompt_sizes.py

The history is made up: constants and other ideas in equal parts, ever fewer of them kept, with the shipped train.py and
program.md, a notebook of 4,000 characters that is rewritten each time, and two requests for each proposal, 350 s apart.
Bills are made by the rule of the API's documentation, as the test server applies it (tests/propose/messages_rules.py).
A token is taken for 3.5 characters.
"""

import dataclasses
import json
import math
import random
import sys
import tempfile
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests/propose")]

from loop_helpers import make_context, make_row  # noqa: E402
from messages_rules import PromptCache, shares  # noqa: E402
from shipped import TRAIN  # noqa: E402

from autoresearch.propose.anthropic import begin  # noqa: E402
from autoresearch.propose.api import Conversation, request  # noqa: E402
from autoresearch.propose.brief import brief  # noqa: E402
from autoresearch.propose.constants import numeric_constants  # noqa: E402
from autoresearch.propose.context import Context, Training  # noqa: E402
from autoresearch.propose.history import FULL  # noqa: E402
from autoresearch.row import Row  # noqa: E402
from autoresearch.settings import parse_program  # noqa: E402

SIZES = (10, 100, 300, 700)  # experiments
CHARACTERS_PER_TOKEN = 3.5
NOTEBOOK = 4000  # characters
CYCLE = 350  # seconds from one proposal to the next
WORDS = [
    "gate",
    "value",
    "head",
    "window",
    "key",
    "norm",
    "loss",
    "bigram",
    "rotary",
    "mixer",
    "residual",
    "query",
    "scale",
    "embedding",
    "schedule",
    "tied",
]
WHY = "The {} seems too coarse for the {} at this width, and the last runs lost most of their loss early on."


def made_up_rows(count: int) -> list[Row]:
    """A history with texts as long as those of a real search (2026-11-29: descriptions of 60 to 110 characters)."""
    rng, rows, best = (
        random.Random(1),
        [make_row(commit="c0000", parent="b0000", steps=300, reason="baseline")],
        "c0000",
    )
    names = [constant.name for constant in numeric_constants(TRAIN, "cpu")]
    for number in range(1, count):
        old, new = (f"{rng.uniform(0.01, 1):.2g}" for _ in range(2))
        one, other, third = rng.sample(WORDS, 3)
        idea = f"{rng.choice(names)} {old} -> {new}, as the {one} of the best is noisy at this batch size"
        if rng.random() < 0.5:
            idea = f"{one} {other} {third}: a learned scalar for each head, next to that of the layer before"
        chance = rng.random()
        status = "keep" if chance < 1 / math.sqrt(number) else "invalid" if chance > 0.98 else "discard"
        gain = rng.uniform(0.01, 0.03) if status == "keep" else rng.gauss(-0.02, 0.015)
        row = make_row(
            number=number,
            commit=f"c{number:04d}",
            parent=best,
            status=status,
            gain=gain,
            val_bpb=1.8 - gain,
            description=idea,
            hypothesis=WHY.format(one, other),
            category=rng.choice(["architecture", "optimizer", "hyperparameter", "schedule", "efficiency"]),
            reason=f"probability {rng.random():.2f} after 1 run",
            expected=0.01,
            steps=rng.randint(240, 330),
        )
        rows.append(row)
        best = row.commit if status == "keep" else best
    return rows


def context_at(usual: Context, rows: list[Row], notebook: Path) -> Context:
    """What the proposer of the next experiment knows: the file changes with every keep, the notebook every time."""
    best = [row.number for row in rows if row.status == "keep"][-1]
    text = f"{len(rows)}: what was learned of the gates and the batch, in some words.\n" * 200
    notebook.write_text(text[:NOTEBOOK])
    last = [best, *(row.number for row in rows[-3:])]
    losses = [(10.0 * tenth, 4.0 / tenth) for tenth in range(1, 11)]
    return dataclasses.replace(
        usual,
        number=len(rows),
        rows=rows,
        best_source=f"{TRAIN}# experiment {best}\n",
        trainings=[Training(number, losses, 300, 1e5, 0.5, math.nan) for number in last],
        under_way=[f"{len(rows) - 1}, running: {rows[-1].description}"],
        notebook=notebook,
    )


def served(usual: Context, rows: list[Row], notebook: Path) -> float:
    """The share of the input of the last ten proposals that the cache serves, the two before them not counted."""
    cache, bills = PromptCache(), []
    for count in range(max(2, len(rows) - 12), len(rows)):
        conversation = begin(context_at(usual, rows[:count], notebook), FULL)
        bills.append(cache.bill(request(conversation)))
        bills.append(cache.bill(request(with_answer(conversation, notebook))))
        cache.now += CYCLE
    return shares(bills[4:])[1]


def with_answer(conversation: Conversation, notebook: Path) -> Conversation:
    """The conversation after an edit, a note and their results."""
    call = {"type": "tool_use", "id": "1", "name": "editor", "input": {"new_str": notebook.read_text()[:2000]}}
    result = {"type": "tool_result", "tool_use_id": "1", "content": "notebook.md is edited"}
    messages = [{"role": "assistant", "content": [call]}, {"role": "user", "content": [result]}]
    return dataclasses.replace(conversation, messages=[*conversation.messages, *messages])


def part_sizes(context: Context) -> Counter[str]:
    """Characters of a first prompt: the sections by their file in a command's folder, and what is added."""
    sizes: Counter[str] = Counter()
    for section in brief(context):
        sizes[section.file] += len(section.text)
    body = request(begin(context, FULL))
    sizes["tools, role, task"] = (
        len(json.dumps(body["tools"]))
        - sum(sizes.values())
        + sum(len(block["text"]) for block in [*body["system"], *body["messages"][0]["content"]])
    )
    return sizes


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        usual, rows = make_context(Path(folder)), made_up_rows(max(SIZES))
        usual.instructions = parse_program((ROOT / "program.md").read_text())[1]
        diff = "@@ -1 +1 @@\n" + "-    the line before\n+    the line as it is now\n" * 12
        usual.read = lambda number, what: diff if what == "diff" else ""
        notebook = Path(folder) / "notebook.md"
        tables = [part_sizes(context_at(usual, rows[:size], notebook)) for size in SIZES]
        print(f"{'experiments':24}" + "".join(f"{size:10,}" for size in SIZES))
        for part in tables[0]:
            print(f"{part:24}" + "".join(f"{table[part]:10,}" for table in tables))
        totals = [sum(table.values()) for table in tables]
        print(f"{'characters':24}" + "".join(f"{total:10,}" for total in totals))
        print(f"{'tokens':24}" + "".join(f"{total / CHARACTERS_PER_TOKEN:10,.0f}" for total in totals))
        shares_served = [served(usual, rows[:size], notebook) for size in SIZES]
        print(f"{'served by the cache':24}" + "".join(f"{share:10.1%}" for share in shares_served))


if __name__ == "__main__":
    main()
