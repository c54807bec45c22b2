"""
The folder that a command works in: all that is known, as files, with a README.md that says which is which.

docs/command.md is the same for people. What `anthropic` is told as text or by a tool, a command finds here.
"""

import contextlib
import json
import math
import re
import shutil
from pathlib import Path
from typing import Any

from autoresearch.files import ROOT, replace_file
from autoresearch.propose.context import Context
from autoresearch.propose.prompt import HISTORY_CHARACTERS, clean, history, read_notebook
from autoresearch.propose.tools import CATEGORIES
from autoresearch.row import HEADER, row_line
from autoresearch.text import one_line

RECENT = 24  # experiments whose diffs lie there, besides those of all that were kept
LOGS = 10  # experiments whose logs lie there, besides the best's
NOTEBOOK_LIMIT = 50_000  # characters of notebook.md that are kept
FIELD = re.compile(r"\s*(hypothesis|expected|category)\s*:(.*)", re.IGNORECASE)

# -----------------------------------------------------------------------------
# What lies there

README = """# Your folder

{task}
Edit `train.py` in this folder; nothing else of it is run. The loop trains it for {budget} and
measures val_bpb, bits per byte on held-out text; lower is better. You have {minutes:.0f} minutes, then everything that
you started is ended.

| file | what it is |
|---|---|
| `train.py` | {train} |
| `program.md` | the instructions of the person who runs the search |
| `prepare_data.py` | data, batches and the metric: to read; a change of it is dropped |
| `best.json` | your number, the best's number and val_bpb, the noise of a run, what a keep needs, what is left |
| `history.md` | every experiment in a line: number on the best it was tried on, status, gain / noise, val_bpb ... |
| `results.tsv` | the same as a table, with steps and tokens per second: is an edit slower, or worse per step? |
| `curves.tsv` | training losses over the budget, of the best and the last few |
| `diffs/NNNN.patch` | what each kept experiment changed, and the last {recent} |
| `logs/NNNN.txt` | the end of the log of the best and the last {logs} |
| `running.md` | what runs or waits to run now: no need to propose it again |
| `note.txt` | what became of proposals since the last that was made; empty if there is nothing to tell |
| `crash.txt` | only for a repair: how train.py crashed |
| `last_attempt.py` | only if the last attempt did not parse: its text. `note.txt` says why |
| `profile.txt` | only if the best was profiled: where the milliseconds of a step go |
| `notebook.md` | yours: what you write into it, you find here the next time |

Write `description.txt`: one line that says what you changed, from what to what. Further lines may be

    hypothesis: why it should help
    expected: 0.004
    category: optimizer

`expected` is by how much you expect val_bpb to fall. The categories are: {categories}.
Without the file, the last line that you print is the description.

Any other diff: `git -C {root} show {ref}` (it reads; please change nothing in that repository).
"""
NEW_TASK = "You make experiment {number} of an automatic search. Improve `train.py` as `program.md` says."
REPAIR_TASK = """Experiment {number} crashed (repair {attempt} of {repairs}): this looks like a slip in the code, not
like a bad idea. Mend the slip in `train.py`, keep the idea; `crash.txt` says how it ended."""


def readme(context: Context) -> str:
    crash, settings = context.crash, context.settings
    task, train = NEW_TASK.format(number=context.number), "the best so far: what you edit"
    if crash:
        train = "the train.py that crashed"
        task = REPAIR_TASK.format(number=crash.number, attempt=crash.attempt, repairs=settings.repairs)
    pace = " paced seconds on one CPU thread" if context.scale == "cpu" else " seconds on one GPU"
    return README.format(
        task=task,
        budget=f"{context.time_budget}{pace}",
        minutes=settings.proposal_timeout / 60,
        train=train,
        recent=RECENT,
        logs=LOGS,
        categories=", ".join(CATEGORIES),
        root=ROOT,
        ref=f"refs/autoresearch/{context.tag}/NNNN",
    )


def best_json(context: Context) -> str:
    """The numbers that matter now; null where one is not known or has no limit."""
    best = context.best
    values = {
        "experiment": context.crash.number if context.crash else context.number,
        "repair": context.crash.attempt if context.crash else 0,
        "best": best.number,
        "val_bpb": best.val_bpb,
        "noise": context.noise,
        "keep_needs_gain": context.keep_gain,
        "steps": best.steps,
        "tokens_per_second": best.tokens_per_second,
        "hours_left": context.time_left / 3600,
        "experiments_left": context.experiments_left,
    }
    return json.dumps({name: value if math.isfinite(value) else None for name, value in values.items()}, indent=1)


def curves(context: Context) -> str:
    points = [(training.number, *point) for training in context.trainings for point in training.losses]
    return "number\tpercent\tloss\n" + "".join(
        f"{number}\t{percent:.1f}\t{loss:.4f}\n" for number, percent, loss in points
    )


def shown_numbers(context: Context) -> list[int]:
    """The experiments whose diffs lie there: all that were kept, and the last few."""
    kept = {row.number for row in context.rows if row.status == "keep"}
    return sorted(kept | {row.number for row in context.rows[-RECENT:]})


def read_or_skip(context: Context, number: int, what: str, name: str) -> dict[str, str]:
    """What is kept of an experiment, as a file of this name; nothing where there is none."""
    try:
        return {name: context.read(number, what)}
    except ValueError:
        return {}


def log_texts(context: Context) -> dict[str, str]:
    numbers = sorted({context.best.number} | {row.number for row in context.rows[-LOGS:]})
    texts = [read_or_skip(context, number, "log", f"logs/{number:04d}.txt") for number in numbers]
    return {name: text for each in texts for name, text in each.items()}


def notes(context: Context) -> dict[str, str]:
    """What became of what was handed in before: of a repair how it crashed, else what there is to tell."""
    if not context.crash:
        return {"note.txt": context.note} | take_last_attempt(context)
    told = f"Experiment {context.crash.number} crashed; mend it. The end of its log:\n{context.crash.tail}\n"
    return {"note.txt": "This is a repair: crash.txt says how train.py crashed.\n", "crash.txt": told}


def file_texts(context: Context, source: str) -> dict[str, str]:
    """All files of the folder, by name."""
    until, since = history(context, HISTORY_CHARACTERS)
    diffs = context.diffs(shown_numbers(context))
    return {
        "README.md": readme(context),
        "train.py": source,
        "program.md": context.instructions,
        "prepare_data.py": (ROOT / "prepare_data.py").read_text(),
        "best.json": best_json(context) + "\n",
        "history.md": "\n".join([*until, *since]) + "\n",
        "results.tsv": HEADER + "".join(row_line(row) for row in context.rows),
        "curves.tsv": curves(context),
        "running.md": "".join(f"- {one_line(text)}\n" for text in context.waiting),
        "notebook.md": read_notebook(context),
        **{f"diffs/{number:04d}.patch": text for number, text in diffs.items()},
        **log_texts(context),
        **notes(context),
        **read_or_skip(context, context.best.number, "profile", "profile.txt"),
    }


def lay_out(context: Context, source: str) -> tuple[Path, dict[str, str]]:
    """The folder that a command works in, and the texts that it is given there, by file name."""
    work = context.folder / "work"
    shutil.rmtree(work, ignore_errors=True)  # of an attempt that failed
    given = file_texts(context, source)
    for name, text in given.items():
        (work / name).parent.mkdir(parents=True, exist_ok=True)
        (work / name).write_text(text)
    return work, given


def clear(work: Path, given: dict[str, str]) -> None:
    """Remove what was given, which is the same for hundreds of experiments: what the command made itself stays."""
    for name in given:
        with contextlib.suppress(OSError):  # it is gone, or the command made a folder of it
            (work / name).unlink()
    for name in ("diffs", "logs"):
        with contextlib.suppress(OSError):  # it put something there itself
            (work / name).rmdir()


# -----------------------------------------------------------------------------
# What comes back


def last_attempt_path(context: Context) -> Path:
    """Where the text of an attempt that does not parse waits for the next call."""
    return context.notebook.with_name("last_attempt.py")


def keep_last_attempt(context: Context, source: str) -> None:
    last_attempt_path(context).write_text(source)


def take_last_attempt(context: Context) -> dict[str, str]:
    """The text of the last attempt that did not parse, handed over once, as the note on it is."""
    path = last_attempt_path(context)
    if not path.is_file():
        return {}
    text = path.read_text()
    path.unlink()
    return {"last_attempt.py": text}


def keep_notebook(context: Context, given: str, path: Path) -> None:
    """Take the notebook back. Where another command wrote into it meanwhile, the lines that are new are added to it."""
    text = clean(path.read_text(errors="replace")) if path.is_file() else given
    if text == given:
        return
    now = read_notebook(context)
    if now != given:
        known = set(given.splitlines())
        text = "\n".join([now.rstrip("\n"), *(line for line in text.splitlines() if line not in known)]) + "\n"
    if len(text) > NOTEBOOK_LIMIT:
        context.log(f"      the notebook is cut to its last {NOTEBOOK_LIMIT} characters of {len(text)}")
    replace_file(context.notebook, text[-NOTEBOOK_LIMIT:])


def read_description(text: str) -> dict[str, Any]:
    """The fields of a Proposal in a description.txt: its first line, then `hypothesis:`, `expected:`, `category:`."""
    first, *others = text.strip().splitlines() or [""]
    said = {match[1].lower(): match[2].strip() for line in others if (match := FIELD.match(line))}
    fields: dict[str, Any] = {name: said[name] for name in ("hypothesis", "category") if said.get(name)}
    with contextlib.suppress(
        KeyError, ValueError, IndexError
    ):  # none is told, or it is no number: then it is not known
        fields["expected"] = float(said["expected"].split()[0].lstrip("~"))
    return {"description": first} | fields
