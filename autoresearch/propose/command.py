"""
command: any coding agent's command line, run in a scratch folder that holds train.py and all that there is to know.

folder.py says what lies in that folder, and what is taken back besides train.py.
"""

import os
import re
import time
from pathlib import Path

from autoresearch.nouns import Proposal
from autoresearch.process import GRACE, Ended, run_process, under_guard
from autoresearch.propose.context import Context, Fault, ProposalFailed
from autoresearch.propose.folder import clear, keep_last_attempt, keep_notebook, lay_out, read_description
from autoresearch.source import syntax_problem
from autoresearch.text import last_lines, one_line

OUTAGE = re.compile(  # what coding agents print where no edit is to blame, some of them with exit code 0
    r"limit reached|hit your .*limit|(rate|usage|spend(ing)?) limit|quota|too many requests|overloaded|exhausted"
    r"|credit balance|insufficient|billing|payment required|log(ged)? ?in|unauthori[sz]ed|authenticat|api key|expired"
    r"|api error|(status|code|http|error)\W{0,3}(401|402|403|429|5\d\d)|connection|network|could not resolve"
    r"|ECONN|ENOTFOUND|ETIMEDOUT|not found$",
    re.IGNORECASE,
)
TAKEN = ("train.py", "description.txt", "notebook.md")


def propose_by_command(context: Context) -> Proposal:
    """Run the user's command in a folder with train.py and all that there is to know, and take train.py back.

    After a crash it runs again on the train.py that crashed, with the end of the log in crash.txt. The command sees the
    user's whole environment (coding agents need their keys). What it says of its edit is in description.txt, if it
    wrote one, else the last line that it printed is the description.
    """
    work, given = lay_out(context, context.start)
    ended = run_command(context, work)
    if ended.how == "stopped":
        raise Fault("stopped")
    if ended.how != "exit":
        raise ProposalFailed(f"the command took too long: {ended.how} after {ended.seconds:.0f} s")
    printed = one_line(last_lines(ended.tail, 1))
    if ended.code != 0:
        raise Fault(f"the command ended with code {ended.code}: {printed[-300:]}")
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
    command, log = under_guard(["/bin/sh", "-c", context.command], GRACE), context.folder / "proposal.log"
    return run_process(command, work, dict(os.environ), log, limit, context.should_stop, grace=GRACE + 5)


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
        keep_last_attempt(context, source)
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
