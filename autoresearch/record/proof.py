"""
ablation.json and promotion.json of a search, as lines and tables for a person: the terminal, `status`, the page.
"""

import json
from typing import Any

from autoresearch.judge.noise import mean
from autoresearch.record.ledger import Ledger
from autoresearch.record.reading import read_if_there
from autoresearch.text import Table, cut, one_line, plural, tables_text

TITLE = 70  # characters of a factor's title in a table


def read_proofs(ledger: Ledger) -> dict[str, Any]:
    """{"ablation": its report or None, "promotion": likewise}."""
    found: dict[str, Any] = {}
    for name in ("ablation", "promotion"):
        try:
            found[name] = json.loads(read_if_there(ledger.folder / f"{name}.json"))
        except ValueError:  # there is none
            found[name] = None
    return found


def shortened(text: str) -> str:
    return cut(one_line(text), TITLE)


# -----------------------------------------------------------------------------
# Ablation


def factor_lines(removable: list[Any], fixed: list[Any]) -> list[str]:
    """Return the lines of what will be taken out, and of what cannot be."""
    lines = [f"{plural(len(removable), 'factor')} to take out:"]
    for factor in removable:
        why = f"  [{'; '.join(factor.joined)}]" if factor.joined else ""
        lines.append(f"  {factor.name:>12}  {shortened(factor.title)}{why}")
    return lines + [f"  {factor.name:>12}  stays in: {reason}" for factor, reason in fixed]


def ablation_line(report: dict[str, Any]) -> str:
    """The result in one line."""
    counts = {kind: sum(f["verdict"] == kind for f in report["factors"]) for kind in ("real", "nothing", "harmful")}
    said = ", ".join(f"{count} {kind}" for kind, count in counts.items() if count)
    together = f"the sum of what each is worth on average is {report['sum']:.6f}"
    if report["total"] is not None:  # else the best or the baseline had no number in these runs
        together = f"together they gain {report['total']:.6f}, {together}"
    return f"of {plural(len(report['factors']), 'factor')}: {said}; {together}"


def additivity_line(report: dict[str, Any]) -> str:
    """Return how much the factors depend on each other."""
    if report["dependence_p"] > 0.05:
        return "no sign that what one change is worth depends on the others"
    beyond = f"combinations differ by {report['dependence']:.6f} beyond the sum"
    return f"what a change is worth depends on the others: {beyond}"


def test_line(report: dict[str, Any]) -> str:
    """The gain on the test rows, which no search is scored on."""
    baseline, best = report["test"]["baseline"], report["test"]["best"]
    return f"test rows: {baseline:.6f} -> {best:.6f}, {baseline - best:+.6f}" if baseline and best else ""


def pruned_line(report: dict[str, Any]) -> str:
    pruned = report["pruned"]
    if not pruned:
        return "" if any(f["verdict"] != "real" for f in report["factors"]) else "nothing to take out"
    name = f"without {', '.join(pruned['out'])}"
    if pruned.get("refused"):
        return f"{name}: not measured, as {one_line(pruned['refused'])}"
    value = pruned["difference"]
    lines = f"{plural(abs(pruned['lines']), 'line')} {'less' if pruned['lines'] >= 0 else 'more'}"
    said = (
        f"{name}: val_bpb {value['value']:+.6f} ± {value['standard_error']:.6f}, {lines}, "
        f"{plural(value['seeds'], 'fresh seed')}"
    )
    return f"{said}; offered as {pruned['branch']}" if pruned["branch"] else f"{said}; not offered"


def ablation_tables(report: dict[str, Any]) -> list[Table]:
    heads = [">change", ">gain, on average", ">± (95 %)", ">p", ">in the best", "verdict", "what"]
    rows = [
        [
            f["name"],
            f"{f['gain']:+.6f}",
            f"{f['high'] - f['gain']:.6f}",
            f"{f['p']:.3f}",
            f"{f['alone']['value']:+.6f}" if f["alone"] else "",
            f["verdict"],
            shortened(f["title"]),
        ]
        for f in sorted(report["factors"], key=lambda each: -each["gain"])
    ]
    fixed = [[f["name"], f["why"], shortened(f["title"])] for f in report["fixed"]]
    return [
        ("ablation: what each change is worth in the best", heads, rows),
        ("ablation: what stays in", [">change", "why", "what"], fixed),
    ]


def ablation_lines(report: dict[str, Any]) -> list[str]:
    noise = f"noise of a run {report['sigma']:.6f}, {report['degrees_of_freedom']:.0f} degrees of freedom"
    lost = f"without a number: {'; '.join(report['crashed'])}" if report["crashed"] else ""
    lines = [ablation_line(report), test_line(report), additivity_line(report)]
    lines += [f"{plural(report['runs'], 'run')}, {noise}", lost, pruned_line(report)]
    return [line for line in lines if line]


def ablation_text(report: dict[str, Any]) -> str:
    return tables_text(ablation_tables(report), ablation_lines(report))


# -----------------------------------------------------------------------------
# Promotion


def depth_text(report: dict[str, Any]) -> str:
    depths = report["depth"]
    same = depths["baseline"] == depths["best"]
    return f"depth {depths['best']}" if same else f"depths {depths['baseline']} and {depths['best']}"


def promotion_line(report: dict[str, Any]) -> str:
    """The verdict."""
    where, time, horizon = depth_text(report), report["time"], report["horizon"]
    goal = mean(report["baseline"][str(horizon)])
    if not report["gain"]["clear"]:
        value = report["gain"]
        return f"no gain at {where}: {value['value']:+.6f} ± {value['standard_error']:.6f} at {horizon} s"
    changes = plural(report["kept"], "kept change")
    if not time:
        return f"at {where} the {changes} reach the baseline's {goal:.4f} sooner than in the shortest run tried"
    share, width = 100 * time["seconds"] / horizon, 50 * (time["high"] - time["low"]) / horizon
    return f"at {where} the {changes} reach the baseline's {goal:.4f} after {share:.0f} % of its time (± {width:.1f} %)"


def promotion_tables(report: dict[str, Any]) -> list[Table]:
    there, horizon = report["searched"], str(report["horizon"])
    baseline, best = (mean(report[arm][horizon]) for arm in ("baseline", "best"))
    heads = [">depth", ">baseline", ">best", ">gain", ">±"]
    rows = [
        depth_row(report["searched_depth"], there["baseline"], there["best"], there["standard_error"]),
        depth_row(report["depth"], baseline, best, report["gain"]["standard_error"]),
    ]
    runs = [
        [arm, budget, f"{mean(values):.6f}", f"{mean(values) - baseline:+.6f}", len(values)]
        for arm in ("baseline", "best")
        for budget, values in report[arm].items()
    ]
    run_heads = ["whole runs of", ">seconds", ">val_bpb", ">from the target", ">seeds"]
    return [("promotion: both at both depths", heads, rows), ("promotion: time to the target", run_heads, runs)]


def depth_row(depths: dict[str, int], baseline: float, best: float, error: float) -> list[str]:
    cells = [f"{depths['baseline']}, {depths['best']}", f"{baseline:.6f}", f"{best:.6f}"]
    return [*cells, f"{baseline - best:+.6f}", f"{error:.6f}"]


def promotion_lines(report: dict[str, Any]) -> list[str]:
    """Return the lines of the verdict and of what it rests on."""
    lines = [line for line in (promotion_line(report), test_line(report)) if line]
    transfer, time, horizon = report["transfer"], report["time"], report["horizon"]
    if transfer["value"] is not None:
        lines.append(f"{transfer['value']:.0%} ± {transfer['standard_error'] or 0:.0%} of the search's gain is there")
    if report["predicted_seconds"]:
        lines.append(f"predicted from what a second is worth to the baseline: {report['predicted_seconds']:.0f} s")
    if time:
        interval = f"{time['low']:.1f} to {time['high']:.1f} s (95 %)"
        lines.append(f"time to the target: {time['seconds']:.1f} of {horizon} s, {interval}")
    if report["confirmed"] and time:
        lines.append(f"confirmed beyond chance by whole runs of {report['confirmed']} s")
    if split := report["split"]:
        lines.append(
            f"it needs {split['tokens']:.0%} of the tokens, and a token takes {split['cost_per_token']:.0%} of the time"
        )
    if report["bound"]:
        lines.append(f"tuned at the searched depth, and not adjusted to this one: {', '.join(report['bound'])}")
    return lines


def promotion_text(report: dict[str, Any]) -> str:
    return tables_text(promotion_tables(report), promotion_lines(report))


# -----------------------------------------------------------------------------
# Both, as `status` has them


def proof_facts(status: dict[str, Any]) -> list[tuple[str, str, str]]:
    """(name, number, what it rests on), for the head of `status` and of the page."""
    facts = []
    if ablation := status["ablation"]:
        real = sum(factor["verdict"] == "real" for factor in ablation["factors"])
        about = "; ".join(filter(None, [ablation_line(ablation), pruned_line(ablation)]))
        facts.append(("ablation", f"{real} real", about))
    if promotion := status["promotion"]:
        time = promotion["time"]
        share = f"{time['seconds'] / promotion['horizon']:.0%} time" if time else depth_text(promotion)
        facts.append(("promotion", share, promotion_line(promotion)))
    return facts


def proof_tables(status: dict[str, Any]) -> list[Table]:
    ablation, promotion = status["ablation"], status["promotion"]
    return [*(ablation_tables(ablation) if ablation else []), *(promotion_tables(promotion) if promotion else [])]
