"""
command: any coding agent's command line, run in a scratch folder that holds train.py and all that there is to know.
"""

import os
import shutil
import time
from pathlib import Path

from autoresearch.files import ROOT
from autoresearch.nouns import Proposal
from autoresearch.process import GRACE, run_process, under_guard
from autoresearch.propose.context import Context, ProposalFailed
from autoresearch.row import HEADER, row_line
from autoresearch.source import edit_problem
from autoresearch.text import last_lines


def propose_by_command(context: Context) -> Proposal:
    """Run the user's command in a folder with train.py and all that there is to know, and take train.py back.

    After a crash it runs again on the train.py that crashed, with the end of the log in note.txt. The command sees the
    user's whole environment (coding agents need their keys). Its description is the first line of description.txt, if
    it wrote one, else the last line that it printed.
    """
    before = context.crash.source if context.crash else context.best_source
    work, given = lay_out(context, before)
    limit = min(context.settings.proposal_timeout, context.deadline - time.time())
    command, log = under_guard(["/bin/sh", "-c", context.command], GRACE), context.folder / "proposal.log"
    ended = run_process(command, work, dict(os.environ), log, limit, context.should_stop, grace=GRACE + 5)
    if ended.how != "exit":
        raise ProposalFailed(f"the command took too long: {ended.how} after {ended.seconds:.0f} s")
    printed = last_lines(ended.tail, 1)
    if ended.code != 0:
        raise ProposalFailed(f"the command ended with code {ended.code}: {printed}")
    if not (work / "train.py").is_file():
        raise ProposalFailed("the command removed train.py")
    if touched := sorted(other_changes(work, given)):
        context.log(f"      the command also touched {', '.join(touched[:5])}: dropped")
    source = (work / "train.py").read_text(errors="replace")
    if problem := edit_problem(before, source) or edit_problem(context.best_source, source):
        raise ProposalFailed(f"the command left no edit to run: {problem}")
    described = work / "description.txt"
    text = described.read_text(errors="replace").strip() if described.is_file() else printed
    return Proposal(text.partition("\n")[0] or "edited by command", source)


def lay_out(context: Context, source: str) -> tuple[Path, dict[str, str]]:
    """The folder that a command works in, and the texts that it is given there, by file name."""
    work = context.folder / "work"
    shutil.rmtree(work, ignore_errors=True)  # of an attempt that failed
    work.mkdir(parents=True)
    crash = context.crash and f"train.py crashed; mend it. The end of its log:\n{context.crash.tail}"
    given = {
        "train.py": source,
        "program.md": context.instructions,
        "prepare_data.py": (ROOT / "prepare_data.py").read_text(),
        "results.tsv": HEADER + "".join(row_line(row) for row in context.rows),
        "note.txt": crash or context.note,
    }
    for name, text in given.items():
        (work / name).write_text(text)
    return work, given


def other_changes(work: Path, given: dict[str, str]) -> set[str]:
    """What a command changed, added or removed in its folder besides train.py and description.txt."""
    there = {str(path.relative_to(work)): path for path in work.rglob("*") if path.is_file() and not path.is_symlink()}
    changed = {name for name, text in given.items() if name in there and there[name].read_bytes() != text.encode()}
    touched = changed | (there.keys() - given.keys()) | (given.keys() - there.keys())
    return {name for name in touched if name not in ("train.py", "description.txt") and "__pycache__" not in name}
