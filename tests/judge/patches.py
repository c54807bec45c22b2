"""
Edits of the present train.py: cheats and mistakes, each with who has to stop it, and honest changes, which must pass.

tests/judge/cheats/*.patch and tests/judge/honest/*.patch. A hunk follows each `@@` line: lines with " " and "-" stand
in train.py, once, one after the other; "-" goes, "+" comes. A line that ends in "..." stands for any end. No line
numbers: a patch applies until the very lines it is about change. `# expect: layer: words` says who stops a cheat, and
in which words (a regular expression); several layers are tested each by itself:

    audit      audit_source(), before it runs; every other cheat must pass it, or that layer would be untested
    evaluator  nothing is handed over, or evaluate_bpb() raises      scorer   the scorer refuses the model
    budget     check_result() after a run by the clock
    no gain    it runs, and its number is no lower           twice   a second run finds nothing of the first
    guard      the limits of a run, with bubblewrap and without     sandbox  bubblewrap     timeout  the loop's clock
"""

import re
from pathlib import Path

import pytest
from shipped import TRAIN as SOURCE

ROOT = Path(__file__).parents[2]


def read_patch(path):
    """(head, hunks): the lines before the first @@, and the lines of each hunk."""
    head, *hunks = re.split(r"^@@\n", path.read_text(), flags=re.M)
    return head, [hunk.splitlines() for hunk in hunks]


def apply_patch(path, source=SOURCE):
    for lines in read_patch(path)[1]:
        old = [line[1:] for line in lines if line[:1] != "+"]
        pattern = "\n".join(
            re.escape(line[:-3]) + "[^\n]*" if line.endswith("...") else re.escape(line) for line in old
        )
        places = list(re.finditer(rf"^{pattern}$", source, re.M))
        assert len(places) == 1, f"{path.name}: {len(places)} places in train.py look like {old}"
        kept, new = iter(places[0][0].split("\n")), []
        for line in lines:
            text = line[1:] if line[:1] == "+" else next(kept)
            new += [] if line[:1] == "-" else [text]
        source = source[: places[0].start()] + "\n".join(new) + source[places[0].end() :]
    return source


def expectations(path):
    """{layer: words} of a cheat."""
    lines = re.findall(r"^# expect: (\w+(?: gain)?)(?:: (.*))?$", read_patch(path)[0], re.M)
    return dict(lines)


CHEATS = sorted((ROOT / "tests/judge/cheats").glob("*.patch"))
HONEST = sorted((ROOT / "tests/judge/honest").glob("*.patch"))


def cheats(*layers):
    """pytest parameters: every cheat that one of these layers has to stop."""
    return [pytest.param(path, id=path.stem) for path in CHEATS if expectations(path).keys() & set(layers)]
