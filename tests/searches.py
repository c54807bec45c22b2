"""A made-up search in a real git repository: every ending, odd text, as many experiments as are wanted."""

import json
import math
import random
import subprocess
import time
from pathlib import Path

from loop_helpers import git, make_row

from autoresearch.row import HEADER, Row, row_line, row_message, runs_text

START = 1_790_000_000.0
ODD = [
    "<script>document.title = 'taken over'</script>",
    "</td></table><img src=x onerror=alert(1)>",
    'a "quoted" & ampersanded title',
    "müßig 测试 🚀 e\u0301 \u202egnirts",
    "x" * 250,
    "{{ 7 * 7 }} {% raw %} ]]> -->",
]
ENDINGS = ["discard"] * 12 + ["keep"] * 2 + ["crash", "timeout", "invalid"]


def make_rows(count: int, seed: int = 0) -> list[Row]:
    """A baseline, then rows that get better, the slower the more there are."""
    chance = random.Random(seed)
    runs = {42 + n: 1.0 + chance.gauss(0, 0.0005) for n in range(3)}
    rows = [make_row(commit="0" * 7, val_bpb=sum(runs.values()) / 3, noise=0.0005, runs=runs_text(runs), category="")]
    best = rows[0]
    for number in range(1, count):
        status = chance.choice(ENDINGS)
        better = chance.expovariate(1 / 0.002) if status == "keep" else -abs(chance.gauss(0.0005, 0.004))
        measured = status in ("keep", "discard")
        val_bpb = best.val_bpb - better if measured else 0.0
        title = ODD[number % len(ODD)] if number % 7 == 0 else f"MATRIX_LR 0.0{number} -> 0.0{number + 1}"
        row = make_row(
            commit=f"{number:07x}",
            val_bpb=val_bpb,
            status=status,
            description=title,
            number=number,
            gain=better if measured else math.nan,
            parent=best.commit,
            seconds=330.0,
            tokens=30_000,
            cost=0.05,
            started=time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(START + 350 * number)),
            noise=0.0005,
            runs=f"42:{val_bpb:.6f}" if measured else "",
            reason="probability 0.03 after 1 run" if measured else f"RuntimeError: {ODD[number % 4]}",
            category=chance.choice(["optimizer", "architecture", "<b>bold</b>"]),
            expected=0.001 + chance.random() / 500,
            hypothesis=f"since <i>{number}</i> is more",
            best=best.number,
            steps=950,
        )
        rows.append(row)
        best = row if status == "keep" else best
    return rows


def journal_lines(rows: list[Row]) -> str:
    """A session that was killed, one that ended, a run for each row, some proposals that failed."""
    session = {"event": "session", "proposer": "constants", "scale": "h100", "slots": 1, "process": 1}
    events = [session | {"at": START, "deadline": None, "experiments": None}]
    for row in rows:
        at = START + 350 * row.number + 340
        if row.number == len(rows) // 2:
            events.append(
                session | {"at": at - 335, "deadline": at + 1e6, "experiments": 9999, "proposer": "anthropic"}
            )
        status = "ok" if row.val_bpb else row.status
        printed = {"training_seconds": 300.1, "num_steps": row.steps or 900, "mfu_percent": 39.5} if row.val_bpb else {}
        losses = [(8.0 * n, 9.0 / n) for n in range(1, 13)]
        run = {"event": "run", "at": at, "number": row.number, "purpose": "judge", "attempt": 0, "status": status}
        run |= {"seconds": 330.0, "val_bpb": row.val_bpb or math.nan, "printed": printed, "losses": losses}
        events.append(run | {"seed": 42, "tail": "" if row.val_bpb else "Traceback\n" * 100})
        if row.number % 20 == 9:
            failed = {"event": "failed", "at": at + 5, "after": row.number + 1, "reason": f"no edit: {ODD[1]}"}
            events.append(failed | {"cost": 0.01, "tokens": 5000})
    kept = [row for row in rows if row.status == "keep"][-1]
    for seed in (43, 44, 45):
        fresh = {"event": "run", "at": START + 350 * len(rows), "number": kept.number, "purpose": "confirm"}
        value = kept.val_bpb + 0.0001 * (seed - 43)
        events.append(fresh | {"attempt": 0, "seed": seed, "status": "ok", "seconds": 1.0, "val_bpb": value})
    events.append({"event": "ended", "at": START + 350 * len(rows) + 10, "reason": "no time is left"})
    return "".join(json.dumps(event) + "\n" for event in events)


def write_search(folder: Path, count: int, tag: str = "t") -> list[Row]:
    """Refs, branch, journal and proposals of a search of `count` experiments, as its loop would have left them."""
    rows, stream, parent = make_rows(count), [], git(folder, "rev-parse", "HEAD")
    for row in rows:
        source = "".join(f"LINE_{n} = {row.number if n == row.number % 20 else 0}\n" for n in range(20))
        message, source = row_message(f"{row.number:04d}: {row.description}", "note", row).encode(), source.encode()
        ref = f"refs/autoresearch/{tag}/{row.number:04d}"
        head = f"commit {ref}\nmark :{row.number + 1}\ncommitter t <t@t> {START + 350 * row.number:.0f} +0000\n"
        stream += [head.encode(), b"data %d\n%s\n" % (len(message), message), b"from %s\n" % parent.encode()]
        stream += [b"M 100644 inline train.py\ndata %d\n%s\n" % (len(source), source)]
        if row.status == "keep":
            parent = f":{row.number + 1}"
            stream.append(f"reset refs/heads/autoresearch/{tag}\nfrom {parent}\n\n".encode())
        home = folder / "runs" / tag / f"{row.number:04d}"
        home.mkdir(parents=True)
        usage = {"input": 1000, "output": 2000, "cache_read": 9000, "cache_write": 0, "cost": 0.05}
        (home / "proposal.json").write_text(json.dumps({"description": row.description, "usage": usage}))
    subprocess.run(["git", "fast-import", "--quiet", "--force"], cwd=folder, input=b"".join(stream), check=True)
    (folder / "runs" / tag / "journal.jsonl").write_text(journal_lines(rows))
    (folder / "runs" / tag / "notebook.md").write_text("# Notes\n</pre><script>1</script>\n")
    return rows


def write_table(path: Path, rows: list[Row]) -> Path:
    path.write_text(HEADER + "".join(map(row_line, rows)))
    return path
