"""
The state of a search: one dictionary, which is the --json of `status`, and the same as lines and tables for a person.
docs/status.md says what each of them means.
"""

import json
import time
from collections import Counter

from autoresearch.judge.noise import mean
from autoresearch.nouns import Json
from autoresearch.record.ledger import Ledger
from autoresearch.record.proof import proof_facts, proof_tables, read_proofs
from autoresearch.record.reading import Now, read_if_there
from autoresearch.row import Row, runs_of
from autoresearch.text import Table, one_line, plural, say, table_lines

VERSION = 2  # of the dictionary; a change of a key's meaning raises it
SURE = 1.96  # standard errors to either side of a 95 % interval
WINDOW = 12  # experiments that the trajectory looks back on
FAILED = ("crash", "timeout", "invalid")


# -----------------------------------------------------------------------------
# What was found


def trajectory(gains: dict[int, tuple[float, float]], kept: set[int], sigma: float) -> Json:
    """Improving, plateauing or stuck: by what is believed of the last experiments, not by their lucky numbers."""
    last = dict(list(gains.items())[-WINDOW:])
    gained = sum(gain for number, (_, gain) in last.items() if number in kept)
    word = "too early to say"
    if len(last) >= WINDOW // 2:
        stuck = sum(better for better, _ in last.values()) < 1 and not kept & last.keys()
        word = "improving" if gained >= sigma else "stuck" if stuck else "plateauing"
    return {"word": word, "experiments": len(last), "kept": len(kept & last.keys()), "believed_gain": gained}


def found(ledger: Ledger) -> Json:
    """Baseline, best, and the gain between them with its 95 % interval."""
    known = ledger.known
    if not ledger.kept:
        return dict.fromkeys(("baseline", "best", "gain", "noise"))
    first, best = ledger.kept[0], ledger.best
    interval: dict[str, float | str] | None = None
    seen = {name: getattr(best, name) for name in ("number", "commit", "description", "val_bpb")}
    if gain := known.gain:
        error = SURE * gain.standard_error
        interval = {"value": gain.value, "low": gain.value - error, "high": gain.value + error}
        interval |= {"percent": 100 * gain.value / gain.baseline, "of": gain.of}
    return {
        "baseline": {"val_bpb": first.val_bpb, "runs": len(runs_of(first))},
        "best": seen | {"confirmed": vars(known.confirmed) if known.confirmed else None, "test": tested(ledger)},
        "gain": interval,
        "noise": vars(known.paired_noise) | {"drift": known.drift},
    }


def tested(ledger: Ledger) -> Json | None:
    """Baseline and best on the test rows, which no search is scored on; null where they were not scored."""
    if not ledger.tested:
        return None
    baseline, best = map(mean, ledger.tested)
    return {"baseline": baseline, "val_bpb": best, "gain": baseline - best, "runs": len(ledger.tested[0])}


def categories(rows: list[Row]) -> list[Json]:
    """By category, the most tried first; none where no proposer gave any."""
    rows = [row for row in rows if row.status != "busy"]  # of which nothing is known
    counts = Counter((row.category, row.status) for row in rows)
    tried = Counter(row.category for row in rows) if any(row.category for row in rows) else Counter()
    failed = {name: sum(counts[name, status] for status in FAILED) for name in tried}
    return [
        {"category": name or "none given", "tried": count, "kept": counts[name, "keep"], "failed": failed[name]}
        for name, count in tried.most_common()
    ]


# -----------------------------------------------------------------------------
# What it took


def pace(ledger: Ledger, alive: bool) -> Json:
    """Experiments per hour, and the share of their time that the slots trained or scored."""
    hours = sum(sitting.last - sitting.start for sitting in ledger.sittings) / 3600
    slot_seconds = sum(sitting.slots * (sitting.last - sitting.start) for sitting in ledger.sittings)
    busy_seconds = sum(run.result.slot_seconds for run in ledger.runs)
    now = ledger.sittings[-1] if alive else None
    return {
        "hours": hours or None,
        "experiments_per_hour": ledger.tried / hours if hours else None,
        "slot_busy_share": min(busy_seconds / slot_seconds, 1) if slot_seconds else None,
        "hours_left": max(now.deadline - time.time(), 0) / 3600 if now and now.deadline else None,
        "experiments_wanted": now.experiments if now else None,
    }


def cost(ledger: Ledger) -> Json:
    """Dollars and tokens, and the share of the input that came from the API's cache."""
    paths = [path for where in ("[0-9]*", "proposals/*") for path in ledger.folder.glob(f"{where}/proposal.json")]
    usages = {path.parent: json.loads(text)["usage"] for path in paths if (text := read_if_there(path))}
    new, read, written = (sum(each[k] for each in usages.values()) for k in ("input", "cache_read", "cache_write"))
    decided = {ledger.experiment_folder(row.number) for row in ledger.rows}
    return {
        "dollars": ledger.spent + sum(usage["cost"] for folder, usage in usages.items() if folder not in decided),
        "tokens": ledger.tokens,
        "cache_share": read / (new + read + written) if new + read + written else None,
        "dollars_per_kept": ledger.spent / (len(ledger.kept) - 1) if len(ledger.kept) > 1 else None,
        "failed_dollars": sum(failure.cost for failure in ledger.failures),
        "failed_tokens": sum(failure.tokens for failure in ledger.failures),
    }


# -----------------------------------------------------------------------------
# All of it


def make_status(ledger: Ledger, now: Now) -> Json:
    """The dictionary."""
    known = ledger.known
    counts = Counter(row.status for row in ledger.rows)
    columns = ("number", "status", "val_bpb", "gain", "description", "reason")
    numbers = {"tried": ledger.tried, "kept": max(counts["keep"] - 1, 0), "discarded": counts["discard"]}
    numbers |= {"crashed": counts["crash"], "timed_out": counts["timeout"], "invalid": counts["invalid"]}
    numbers["busy"] = counts["busy"]
    kinds = Counter(failure.kind for failure in ledger.failures)
    numbers |= {f"{kind}_proposals": kinds[kind] for kind in ("failed", "refused", "stopped")}
    failing = [each.reason for each in ledger.failures if each.after == len(ledger.rows) and each.kind != "stopped"]
    status = {
        "version": VERSION,
        "search": ledger.branch,
        "time": time.strftime("%Y-%m-%dT%H:%M:%S"),
        "alive": now.alive,
        "trajectory": trajectory(known.believed_gains(), {row.number for row in ledger.kept}, known.paired_noise.sigma),
        **found(ledger),
        "experiments": numbers,
        "pace": pace(ledger, now.alive),
        "cost": cost(ledger),
        "running": now.running,
        "waiting": now.waiting,
        "failing": {"proposals": len(failing), "last": failing[-1]} if failing else None,
        **read_proofs(ledger),
        "categories": categories(ledger.rows[1:]),
        "last": [{column: getattr(row, column) for column in columns} for row in ledger.rows[-10:]],
    }
    return json.loads(json.dumps(status), parse_constant=lambda _: None)  # null for every number that is none


# -----------------------------------------------------------------------------
# For a person


def headline(status: Json) -> str:
    """The one line: which search, how it goes, whether it runs, how long still."""
    left = say(", {:.1f} hours left", status["pace"]["hours_left"])
    left += say(", until {} experiments", status["pace"]["experiments_wanted"])
    return (
        f"{status['search']}: {status['trajectory']['word']}, {'running' + left if status['alive'] else 'not running'}"
    )


def facts(status: Json) -> list[tuple[str, str, str]]:
    """(name, number, what it rests on): the head of `status` and of the page."""
    base, best, gain, noise = (status[name] for name in ("baseline", "best", "gain", "noise"))
    way, counts, pace, cost = (status[name] for name in ("trajectory", "experiments", "pace", "cost"))
    lines = []
    if best:
        lines += [("baseline", f"{base['val_bpb']:.6f}", plural(base["runs"], "run"))]
        lines += [("best seen", f"{best['val_bpb']:.6f}", f"experiment {best['number']}: {best['description']}")]
        if fresh := best["confirmed"]:
            about = f"± {fresh['standard_error']:.6f}, {plural(fresh['runs'], 'fresh seed')}"
            lines += [("best confirmed", f"{fresh['val_bpb']:.6f}", about)]
        if test := best["test"]:
            about = (
                f"on the test rows, which no search sees; the baseline {test['baseline']:.6f}, {test['runs']} runs each"
            )
            lines += [("best tested", f"{test['val_bpb']:.6f}", f"gain {test['gain']:+.6f} {about}")]
        if gain:
            interval = f"{gain['low']:+.6f} to {gain['high']:+.6f} (95 %)"
            about = f"{interval}, {gain['percent']:.2f} % of the baseline, as {gain['of']}"
            lines += [("gain", f"{gain['value']:+.6f}", about)]
    if noise:
        about = f"standard deviation without what its seed adds, {noise['degrees_of_freedom']:.0f} degrees of freedom"
        about += f"; {noise['drift']}" if noise["drift"] else ""
        lines += [("noise of a run", f"{noise['sigma']:.6f}", about)]
    lines += proof_facts(status)
    said = {name.replace("_", " "): count for name, count in counts.items() if count and name != "tried"}
    words = [plural(count, name[:-1]) if name.endswith("s") else f"{count} {name}" for name, count in said.items()]
    lines += [("experiments", str(counts["tried"]), ", ".join(words))]
    if failing := status["failing"]:
        about = f"since the last result; the last: {failing['last']}"
        lines += [("no proposal", f"{failing['proposals']}", about)]
    if way["experiments"]:
        about = f"{way['kept']} of the last {way['experiments']} kept, believed gain {way['believed_gain']:.6f}"
        lines += [("trajectory", way["word"], about)]
    if pace["hours"]:
        about = f"experiments, in {pace['hours']:.2f} hours; slots busy {pace['slot_busy_share']:.0%}"
        lines += [("per hour", f"{pace['experiments_per_hour']:.1f}", about)]
    if cost["tokens"]:
        about = f"{cost['tokens']:,} tokens" + say(", {:.0%} of the input from the cache", cost["cache_share"])
        about += say("; ${:.2f} per kept change", cost["dollars_per_kept"])
        about += f"; ${cost['failed_dollars']:.2f} and {cost['failed_tokens']:,} tokens on proposals that failed"
        lines += [("spent", f"${cost['dollars']:.2f}", about)]
    return lines


def running_tables(status: Json) -> list[Table]:
    """Return the tables of what runs and waits, and of the last rows: the page has these in other places."""
    running = [[*map(each.get, ("number", "seed", "progress", "description"))] for each in status["running"]]
    last = [
        [
            *(row["number"], row["status"], say("{:.6f}", row["val_bpb"] or None), say("{:+.6f}", row["gain"])),
            row["description"],
        ]
        for row in status["last"]
    ]
    return [
        ("running", [">number", ">seed", "progress", "what"], running),
        ("waiting", ["what"], [[text] for text in status["waiting"]]),
        ("last ten", [">number", "status", ">val_bpb", ">gain", "what"], last),
    ]


def found_tables(status: Json) -> list[Table]:
    """Return the tables of what was tried by category, and of what was proved."""
    counts = [[*map(each.get, ("category", "tried", "kept", "failed"))] for each in status["categories"]]
    return [("by category", ["category", ">tried", ">kept", ">failed"], counts), *proof_tables(status)]


def fact_lines(status: Json) -> list[str]:
    """The head, as lines."""
    width = max(len(number) for _, number, _ in facts(status))
    return [f"{name:14}  {number:>{width}}  {one_line(about)}".rstrip() for name, number, about in facts(status)]


def status_text(status: Json) -> str:
    """Return what a person reads in one look."""
    tables = [line for table in (*running_tables(status), *found_tables(status)) for line in table_lines(*table)]
    return "\n".join([headline(status), "", *fact_lines(status), *tables])
