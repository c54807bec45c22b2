"""
Where a search stands: one dictionary, which is the --json of `status`, and the same as lines and tables for a person.
docs/status.md says what each of them means.
"""

import json
import math
import statistics
import time
from collections import Counter
from dataclasses import dataclass

from autoresearch.nouns import Estimate, Noise
from autoresearch.record.ledger import Ledger
from autoresearch.record.proof import proof_facts, proof_tables, read_proofs
from autoresearch.record.reading import Now, read_if_there
from autoresearch.record.table import Table, say, table_lines
from autoresearch.row import Row, runs_of
from autoresearch.text import one_line, plural

VERSION = 2  # of the dictionary; a change of a key's meaning raises it
SURE = 1.96  # standard errors to either side of a 95 % interval
WINDOW = 12  # experiments that the trajectory looks back on
FAILED = ("crash", "timeout", "invalid")


@dataclass(frozen=True)
class Beliefs:
    """What the judge makes of a ledger, in numbers."""

    noise: Noise  # of a run
    sigma: float  # the same with its seed's offset taken off: what a gain is measured against
    best: Estimate  # the believed true value of the best
    confirmed: Estimate | None  # the mean of the best's fresh seeds
    gain: Estimate | None  # baseline - best on those seeds
    gains: dict[int, tuple[float, float]]  # by experiment: P(truly better than the best it was tried on), believed gain


# -----------------------------------------------------------------------------
# What was found


def trajectory(beliefs: Beliefs | None, kept: set[int]) -> dict:
    """Improving, plateauing or stuck: by what is believed of the last experiments, not by their lucky numbers."""
    last = dict(list(beliefs.gains.items())[-WINDOW:]) if beliefs else {}
    gained = sum(gain for number, (_, gain) in last.items() if number in kept)
    promising = sum(better for better, _ in last.values())
    word = "too early to say"
    if beliefs and len(last) >= WINDOW // 2:
        stuck = promising < 1 and not kept & last.keys()
        word = "improving" if gained >= beliefs.sigma else "stuck" if stuck else "plateauing"
    return {"word": word, "experiments": len(last), "believed_gain": gained, "expected_better": promising}


def found(ledger: Ledger, beliefs: Beliefs | None) -> dict:
    """Baseline, best, and the gain between them with its 95 % interval."""
    if not ledger.kept:
        return dict.fromkeys(("baseline", "best", "gain", "noise"))
    first, best, confirmed = ledger.kept[0], ledger.best, beliefs and beliefs.confirmed
    sure = confirmed or (beliefs.best if beliefs else Estimate(best.val_bpb, math.nan, 0))
    repeats, noise = len(runs_of(first)) or 1, beliefs.noise if beliefs else Noise(math.nan, 0)
    gain, error = first.val_bpb - sure.val_bpb, SURE * math.hypot(sure.standard_error, noise.sigma / math.sqrt(repeats))
    of = "confirmed" if confirmed else "believed" if beliefs else "seen"
    level = first.val_bpb
    if beliefs and beliefs.gain:  # like with like
        gain, error = beliefs.gain.val_bpb, SURE * beliefs.gain.standard_error
        level = statistics.fmean(ledger.beside.values())
    interval = {"value": gain, "low": gain - error, "high": gain + error}
    seen = {name: getattr(best, name) for name in ("number", "commit", "description", "val_bpb")}
    return {
        "baseline": {"val_bpb": first.val_bpb, "runs": repeats},
        "best": seen | {"confirmed": vars(confirmed) if confirmed else None, "test": tested(ledger)},
        "gain": interval | {"percent": 100 * gain / level, "of": of},
        "noise": vars(noise) if beliefs else None,
    }


def tested(ledger: Ledger) -> dict | None:
    """Baseline and best on the test rows, which no search is scored on; null where they were not scored."""
    if not ledger.tested:
        return None
    baseline, best = (statistics.fmean(runs.values()) for runs in ledger.tested)
    return {"baseline": baseline, "val_bpb": best, "gain": baseline - best, "runs": len(ledger.tested[0])}


def categories(rows: list[Row]) -> list[dict]:
    """By category, the most tried first; none where no proposer gave any."""
    counts = Counter((row.category, row.status) for row in rows)
    tried = Counter(row.category for row in rows) if any(row.category for row in rows) else Counter()
    failed = {name: sum(counts[name, status] for status in FAILED) for name in tried}
    return [
        {"category": name or "none given", "tried": count, "kept": counts[name, "keep"], "failed": failed[name]}
        for name, count in tried.most_common()
    ]


# -----------------------------------------------------------------------------
# What it took


def pace(ledger: Ledger, alive: bool) -> dict:
    """Experiments per hour, and the share of their time that the slots trained or scored."""
    hours = sum(sitting.last - sitting.start for sitting in ledger.sittings) / 3600
    slot_seconds = sum(sitting.slots * (sitting.last - sitting.start) for sitting in ledger.sittings)
    busy = {}  # a second look notes its first runs again, with their numbers
    for run in ledger.runs:
        busy[run.seed, run.result.val_bpb if run.result.status == "ok" else run.ended] = run.result.slot_seconds
    now = ledger.sittings[-1] if alive else None
    return {
        "hours": hours or None,
        "experiments_per_hour": ledger.tried / hours if hours else None,
        "slot_busy_share": min(sum(busy.values()) / slot_seconds, 1) if slot_seconds else None,
        "hours_left": max(now.deadline - time.time(), 0) / 3600 if now and now.deadline else None,
        "experiments_wanted": now.experiments if now else None,
    }


def cost(ledger: Ledger) -> dict:
    """Dollars and tokens, and the share of the input that came from the API's cache."""
    texts = map(read_if_there, ledger.folder.glob("[0-9]*/proposal.json"))
    usages = [json.loads(text)["usage"] for text in texts if text]
    new, read, written = (sum(each.get(k, 0) for each in usages) for k in ("input", "cache_read", "cache_write"))
    return {
        "dollars": ledger.spent,
        "tokens": ledger.tokens,
        "cache_share": read / (new + read + written) if new + read + written else None,
        "dollars_per_kept": ledger.spent / (len(ledger.kept) - 1) if len(ledger.kept) > 1 else None,
        "failed_dollars": sum(failure.cost for failure in ledger.failures),
        "failed_tokens": sum(failure.tokens for failure in ledger.failures),
    }


# -----------------------------------------------------------------------------
# All of it


def make_status(ledger: Ledger, beliefs: Beliefs | None, now: Now) -> dict:
    """The dictionary; `beliefs`: None before the baseline."""
    counts = Counter(row.status for row in ledger.rows)
    columns = ("number", "status", "val_bpb", "gain", "description", "reason")
    numbers = {"tried": ledger.tried, "kept": max(counts["keep"] - 1, 0), "discarded": counts["discard"]}
    numbers |= {"crashed": counts["crash"], "timed_out": counts["timeout"], "invalid": counts["invalid"]}
    numbers["failed_proposals"] = len(ledger.failures)
    status = {
        "version": VERSION,
        "search": ledger.branch,
        "time": time.strftime("%Y-%m-%dT%H:%M:%S"),
        "alive": now.alive,
        "trajectory": trajectory(beliefs, {row.number for row in ledger.kept}),
        **found(ledger, beliefs),
        "experiments": numbers,
        "pace": pace(ledger, now.alive),
        "cost": cost(ledger),
        "running": now.running,
        "waiting": now.waiting,
        **read_proofs(ledger),
        "categories": categories(ledger.rows[1:]),
        "last": [{column: getattr(row, column) for column in columns} for row in ledger.rows[-10:]],
    }
    return json.loads(json.dumps(status), parse_constant=lambda _: None)  # null for every number that is none


# -----------------------------------------------------------------------------
# For a person


def headline(status: dict) -> str:
    """The one line: which search, how it goes, whether it runs, how long still."""
    left = say(", {:.1f} hours left", status["pace"]["hours_left"])
    left += say(", until {} experiments", status["pace"]["experiments_wanted"])
    return (
        f"{status['search']}: {status['trajectory']['word']}, {'running' + left if status['alive'] else 'not running'}"
    )


def facts(status: dict) -> list[tuple[str, str, str]]:
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
        interval = say("{:+.6f}", gain["low"]) + say(" to {:+.6f} (95 %), ", gain["high"])
        about = f"{interval}{gain['percent']:.2f} % of the baseline, as {gain['of']}"
        lines += [("gain", f"{gain['value']:+.6f}", about)]
    if noise:
        about = f"standard deviation, {noise['degrees_of_freedom']:.0f} degrees of freedom"
        lines += [("noise of a run", f"{noise['sigma']:.6f}", about)]
    lines += proof_facts(status)
    about = ", ".join(
        f"{count} {name.replace('_', ' ')}" for name, count in counts.items() if count and name != "tried"
    )
    lines += [("experiments", str(counts["tried"]), about)]
    if way["experiments"]:
        about = f"of the last {way['experiments']}, {way['expected_better']:.1f} are expected to be truly better; "
        lines += [("trajectory", way["word"], f"{about}what was kept gained {way['believed_gain']:.6f}")]
    if pace["hours"]:
        about = f"experiments, in {pace['hours']:.2f} hours; slots busy {pace['slot_busy_share']:.0%}"
        lines += [("per hour", f"{pace['experiments_per_hour']:.1f}", about)]
    if cost["tokens"]:
        about = f"{cost['tokens']:,} tokens" + say(", {:.0%} of the input from the cache", cost["cache_share"])
        about += say("; ${:.2f} per kept change", cost["dollars_per_kept"])
        about += f"; ${cost['failed_dollars']:.2f} and {cost['failed_tokens']:,} tokens on proposals that failed"
        lines += [("spent", f"${cost['dollars']:.2f}", about)]
    return lines


def tables(status: dict) -> list[Table]:
    """The rest of it. The page has the first three in other places."""
    running = [[*map(each.get, ("number", "seed", "progress", "description"))] for each in status["running"]]
    last = [[*each.values()][:-1] for each in status["last"]]
    last = [[*row[:2], say("{:.6f}", row[2] or None), say("{:+.6f}", row[3]), *row[4:]] for row in last]
    return [
        ("running", [">number", ">seed", "progress", "what"], running),
        ("waiting", ["what"], [[text] for text in status["waiting"]]),
        ("last ten", [">number", "status", ">val_bpb", ">gain", "what"], last),
        ("by category", ["category", ">tried", ">kept", ">failed"], [[*c.values()] for c in status["categories"]]),
        *proof_tables(status),
    ]


def status_text(status: dict) -> str:
    """What a person reads in one look."""
    width = max(len(number) for _, number, _ in facts(status))
    lines = [f"{name:14}  {number:>{width}}  {one_line(about)}".rstrip() for name, number, about in facts(status)]
    return "\n".join([headline(status), "", *lines, *(line for each in tables(status) for line in table_lines(*each))])
