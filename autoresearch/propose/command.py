"""
command: any coding agent's command line, run in a scratch folder that holds train.py and all that there is to know.

The folder has the sections of the brief as files, what else `anthropic` would look at with a tool, and a README.md that
says which is which. docs/command.md is the same for people.
"""

import contextlib
import math
import os
import re
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from autoresearch.files import ROOT, replace_file
from autoresearch.nouns import Proposal
from autoresearch.process import GRACE, Ended, run_process, under_guard
from autoresearch.propose.brief import as_text, brief, read_if_there, read_notebook
from autoresearch.propose.context import Context, Fault, ProposalFailed
from autoresearch.propose.dry_check import SCRIPT, usual_seconds
from autoresearch.propose.history import clean, thinned
from autoresearch.propose.tools import CATEGORIES
from autoresearch.row import HEADER, row_line
from autoresearch.source import syntax_problem
from autoresearch.text import last_lines, one_line

RECENT = 24  # experiments whose diffs lie there, besides those of all that were kept
LOGS = 10  # experiments whose logs lie there, besides the best's
NOTEBOOK_LIMIT = 50_000  # characters of notebook.md that are kept
TAKEN = ("train.py", "description.txt", "notebook.md")
OUTAGE = re.compile(  # what coding agents print where no edit is to blame, some of them with exit code 0
    r"limit reached|hit your .*limit|(rate|usage|spend(ing)?) limit|quota|too many requests|overloaded|exhausted"
    r"|credit balance|insufficient|billing|payment required|log(ged)? ?in|unauthori[sz]ed|authenticat|api key|expired"
    r"|api error|(status|code|http|error)\W{0,3}(401|402|403|429|5\d\d)|connection|network|could not resolve"
    r"|ECONN|ENOTFOUND|ETIMEDOUT|not found$",
    re.IGNORECASE,
)
FIELD = re.compile(r"\s*(hypothesis|expected|category)\s*:(.*)", re.IGNORECASE)

# -----------------------------------------------------------------------------
# What lies there

README = """# Your folder

{task}
Edit `train.py` in this folder; nothing else of it is run. The loop trains it for {budget} and
measures val_bpb, bits per byte on held-out text; lower is better. You have {minutes:.0f} minutes, then everything that
you started is ended.

Read first: `rules.md`, `program.md`, `history.md`, `now.md`, `notebook.md`. Before you end, run `sh check.sh`.

| file | what it is |
|---|---|
| `train.py` | {train} |
| `rules.md` | when a change is kept, how to read the history, what train.py must keep, the machine |
| `program.md` | the instructions of the person who runs the search |
| `history.md` | every experiment in a line, and what made the best |
| `map.md` | the best's parameters, operations and memory traffic by part and by layer; its optimizers' state |
| `now.md` | noise, near misses, expected and measured gains, how training went, what others are at, what is left ... |
| `notebook.md` | yours: what you write into it, you find here the next time |
| `check.sh` | runs train.py for two steps at a tiny size on the CPU ({check}); a slip costs seconds, not a run |
| `best.py` | the best train.py so far |
| `results.tsv` | the history as a table |
| `prepare_data.py` | data, batches and the metric: to read; a change of it is dropped |
| `diffs/NNNN.patch` | what each kept experiment changed, and the last {recent} |
| `logs/NNNN.txt` | the log of the best and the last {logs}, with a dozen of its progress lines |
| `crash.txt` | only for a repair: how train.py crashed |
| `last_attempt.py` | only if the last attempt did not parse: its text. `now.md` says why |

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
like a bad idea. Fix the slip in `train.py`, keep the idea; `crash.txt` says how it ended."""


def readme(context: Context) -> str:
    crash, settings, options, seconds = context.crash, context.settings, context.options, usual_seconds()
    task, train = NEW_TASK.format(number=context.number), "the best so far: what you edit"
    if crash:
        train = "the train.py that crashed"
        task = REPAIR_TASK.format(number=crash.number, attempt=crash.attempt, repairs=settings.repairs)
    pace = " paced seconds on one CPU thread" if options.scale == "cpu" else " seconds on one GPU"
    return README.format(
        task=task,
        budget=f"{options.time_budget}{pace}",
        minutes=settings.proposal_timeout / 60,
        train=train,
        check=f"about {seconds:.0f} s here" if math.isfinite(seconds) else "some ten seconds",
        recent=RECENT,
        logs=LOGS,
        categories=", ".join(CATEGORIES),
        root=ROOT,
        ref=f"refs/autoresearch/{options.tag}/NNNN",
    )


def past_files(context: Context) -> dict[str, str]:
    """Diffs and logs of experiments: what `anthropic` looks at with a tool."""
    kept, last = [row.number for row in context.rows if row.status == "keep"], [row.number for row in context.rows]
    diffs = {n: read_if_there(context, n, "diff") for n in sorted({*kept, *last[-RECENT:]})}
    logs = {n: thinned(read_if_there(context, n, "log")) for n in sorted({context.best.number, *last[-LOGS:]})}
    files = {f"diffs/{number:04d}.patch": text for number, text in diffs.items()}
    files |= {f"logs/{number:04d}.txt": text for number, text in logs.items()}
    return {name: text for name, text in files.items() if text}


def crash_files(context: Context) -> dict[str, str]:
    """How an experiment crashed that is to be repaired; else, once, the last attempt's text, if that did not parse."""
    if crash := context.crash:
        return {"crash.txt": f"Experiment {crash.number} crashed; fix it. The end of its log:\n{crash.tail}\n"}
    path = last_attempt_path(context)
    if not path.is_file():
        return {}
    text = path.read_text()
    path.unlink()
    return {"last_attempt.py": text}


def last_attempt_path(context: Context) -> Path:
    """Where the text of an attempt that does not parse waits for the next call."""
    return context.notebook.with_name("last_attempt.py")


def file_texts(context: Context) -> dict[str, str]:
    """All files of the folder, by name."""
    sections = brief(context)
    files = dict.fromkeys(section.file for section in sections)
    told = {name: as_text([each for each in sections if each.file == name]) + "\n" for name in files}
    script = SCRIPT.format(
        root=ROOT, python=sys.executable, seed=context.options.seed, sandbox=context.settings.sandbox
    )
    return told | {
        "README.md": readme(context),
        "train.py": context.start,
        "program.md": context.instructions,
        "best.py": context.best_source,
        "notebook.md": read_notebook(context),
        "check.sh": script,
        "results.tsv": HEADER + "".join(row_line(row) for row in context.rows),
        "prepare_data.py": (ROOT / "prepare_data.py").read_text(),
        **past_files(context),
        **crash_files(context),
    }


def lay_out(context: Context) -> tuple[Path, dict[str, str]]:
    """The folder that a command works in, and the texts that it is given there, by file name."""
    work = context.folder / "work"
    shutil.rmtree(work, ignore_errors=True)  # of an attempt that failed
    given = file_texts(context)
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
    with contextlib.suppress(KeyError, ValueError, IndexError):  # none is told, or it is no number: it is not known
        fields["expected"] = float(said["expected"].split()[0].lstrip("~"))
    return {"description": first} | fields


def taken_source(context: Context, work: Path, printed: str) -> str:
    """The train.py that the command left. Raises ProposalFailed if it is none that could be run.

    Where it is unchanged and the last that was `printed` is of an outage of the agent, no edit is to blame: a Fault.
    """
    if not (work / "train.py").is_file():
        raise ProposalFailed("the command removed train.py")
    source = (work / "train.py").read_text(errors="replace")
    problem = context.problem(source)
    if not problem:
        return source
    if syntax_problem(source):
        last_attempt_path(context).write_text(source)
        problem += "; its text is in last_attempt.py"
    said = one_line(last_lines(printed, 1))[-300:]
    outage = source == context.start and OUTAGE.search(last_lines(printed, 5))
    raise (Fault if outage else ProposalFailed)(f"the command left no edit to run: {problem}; it said: {said}")


def other_changes(work: Path, given: dict[str, str]) -> set[str]:
    """What a command changed, added or removed in its folder besides what is taken from it."""
    there = {str(path.relative_to(work)): path for path in work.rglob("*") if path.is_file() and not path.is_symlink()}
    changed = {name for name, text in given.items() if name in there and there[name].read_bytes() != text.encode()}
    touched = changed | (there.keys() - given.keys()) | (given.keys() - there.keys())
    return {name for name in touched if name not in TAKEN and "__pycache__" not in name}


# -----------------------------------------------------------------------------
# The command at work


def propose_by_command(context: Context) -> Proposal:
    """Run the user's command in a folder with train.py and all that there is to know, and take train.py back.

    After a crash it runs again on the train.py that crashed, with the end of the log in crash.txt. The command sees the
    user's whole environment (coding agents need their keys). What it says of its edit is in description.txt, if it
    wrote one, else the last line that it printed is the description.
    """
    work, given = lay_out(context)
    ended = run_command(context, work)
    if ended.how == "stopped":
        raise Fault("stopped")
    if ended.how != "exit":
        raise ProposalFailed(f"the command took too long: {ended.how} after {ended.seconds:.0f} s")
    printed = one_line(last_lines(ended.tail, 1))
    if ended.code != 0:  # in a repair that may be all that it has to say
        gives_up = context.crash and not OUTAGE.search(last_lines(ended.tail, 5))
        problem = f"the command ended with code {ended.code}: {printed[-300:]}"
        raise ProposalFailed(problem) if gives_up else Fault(problem)
    keep_notebook(context, given["notebook.md"], work / "notebook.md")
    if touched := sorted(other_changes(work, given)):
        context.log(f"      the command also touched {', '.join(touched[:5])}: dropped")
    source = taken_source(context, work, ended.tail)
    path = work / "description.txt"
    described = path.read_text(errors="replace").strip() if path.is_file() else ""
    said = read_description(described or printed)
    clear(work, given)
    said["description"] = one_line(said["description"]) or "edited by command"
    return Proposal(source=source, **said)


def run_command(context: Context, work: Path) -> Ended:
    """The command, run to its end or to that of its time."""
    limit = min(context.settings.proposal_timeout, context.deadline - time.monotonic())
    command = under_guard(["/bin/sh", "-c", context.options.command], GRACE)
    log = context.folder / "proposal.log"
    return run_process(command, work, dict(os.environ), log, limit, context.should_stop)
