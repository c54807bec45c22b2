"""
Whether a train.py may run, and what becomes of an edit whose best has been replaced by another.
"""

from autoresearch.judge.static_check import audit_source
from autoresearch.merge import merge_texts
from autoresearch.record.ledger import Ledger
from autoresearch.source import edit_problem


def forbidden(ledger: Ledger, source: str) -> str:
    """What a train.py does that the search's first one does not do and no training has to do, or ""."""
    return audit_source(source, ledger.source_of(ledger.kept[0].number)) if ledger.kept else ""


def on_best(ledger: Ledger, source: str, base: int) -> str | None:
    """`source`, an edit of the best `base`, on top of the present best. None if it does not fit.

    It fits if the two changes touch no line in common, and what comes of them is an edit that may run.
    """
    best = ledger.best.number
    if base == best:
        return source
    best_source = ledger.source_of(best)
    merged = merge_texts(best_source, ledger.source_of(base), source)
    return None if not merged or edit_problem(best_source, merged) or forbidden(ledger, merged) else merged
