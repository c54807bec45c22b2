"""The constants proposer on the real train.py, on small texts, and on a made-up landscape that it has to climb."""

import ast
import itertools
import math
import random
import re
import statistics

import numpy
import pytest
from loop_helpers import make_context, make_row
from shipped import TRAIN

from autoresearch.propose import constants
from autoresearch.propose.constants import (
    NumericConstant,
    changes_in,
    inert,
    is_ratio,
    learn_slopes,
    literal_number,
    moved,
    numeric_constants,
    propose_constants,
    steps_in,
)
from autoresearch.propose.context import CannotPropose, ProposalFailed
from autoresearch.source import edit_problem


def values_of(source: str, scale: str = "cpu") -> dict[str, float]:
    return {constant.name: constant.value for constant in numeric_constants(source, scale)}


def propose(folder, **facts):
    return propose_constants(make_context(folder, **({"best_source": TRAIN} | facts)))


def tried(description: str, gain: float, number: int = 1, **facts):
    """The row of an experiment on the baseline, with its gain in units of noise."""
    values = {"commit": f"row{number}", "status": "discard", "gain": gain * 0.01, "runs": f"42:{2 - gain * 0.01:.6f}"}
    return make_row(description=description, number=number, **(values | facts))


def share_of(folder, words: str, rows, source: str, numbers: int = 150) -> float:
    """The share of proposals whose description holds `words`."""
    contexts = [make_context(folder, best_source=source, rows=rows, number=1000 + n) for n in range(numbers)]
    return statistics.fmean(words in propose_constants(context).description for context in contexts)


# -----------------------------------------------------------------------------
# The proposal


def test_it_changes_constants_and_nothing_else(tmp_path):
    before = values_of(TRAIN)
    for number in range(1, 9):
        proposal = propose(tmp_path, number=number)
        assert edit_problem(TRAIN, proposal.source) == ""
        after = values_of(proposal.source)
        changed = [name for name in before if before[name] != after[name]]
        assert 3 <= len(changed) <= 4 and before.keys() == after.keys()
        assert {name for name, *_ in changes_in(proposal.description)} == set(changed)
        assert len(proposal.source.splitlines()) == len(TRAIN.splitlines())
        assert all(type(before[name]) is type(after[name]) for name in before)


def test_it_is_reproducible_and_follows_seed_and_history(tmp_path):
    def descriptions(**facts):
        return [propose(tmp_path, number=number, **facts).description for number in range(3)]

    assert descriptions(seed=1) == descriptions(seed=1) != descriptions(seed=2)
    rows = [make_row(), *(tried("MATRIX_LR 0.04 -> 0.08", 4, number) for number in range(1, 5))]
    assert descriptions(rows=rows) == descriptions(rows=list(rows)) != descriptions()


def test_it_does_not_repeat_itself_on_the_same_best(tmp_path):
    source, seen = "LR = 0.5\nrun(LR)\n", []
    with pytest.raises(ProposalFailed, match="not tried"):
        for number in range(100):
            seen.append(propose(tmp_path, number=number, best_source=source, under_way=list(seen)).description)
            seen[-1] += " [suspiciously good]" * (number % 2)
    assert len(seen) == len(set(seen)) == 4
    rows = [make_row(), *(tried(description, -0.1, n) for n, description in enumerate(seen, 1))]
    with pytest.raises(ProposalFailed, match="not tried"):
        propose(tmp_path, number=200, best_source=source, rows=rows)
    newer_best = [*rows, make_row(commit="new", number=9)]
    assert propose(tmp_path, number=200, best_source=source, rows=newer_best).source != source


def test_what_cannot_move_is_not_named(tmp_path):
    for number in range(20):
        proposal = propose(tmp_path, number=number, best_source="DEPTH, A = 1, 0.5\nrun(A, DEPTH)\n")
        assert "1 -> 1" not in proposal.description and proposal.description


def test_nothing_to_change_says_so(tmp_path):
    with pytest.raises(CannotPropose, match="no numeric constants"):
        propose(tmp_path, best_source="print(1)\n")


# -----------------------------------------------------------------------------
# Which constants


def test_only_the_branch_of_its_scale_counts():
    source = (
        'if SCALE == "h100":\n    A = 1\nelse:\n    B = 2**11\nC, D = 0.5, -3e-4\nE: float = 1 / 8\nF = "x"\ng = 1\n'
        "H = C\nrun(A, B, D, E, F, g, H)\n"
    )
    assert values_of(source) == {"B": 2048, "C": 0.5, "D": -0.0003, "E": 0.125}
    assert next(iter(values_of(source, "h100").items())) == ("A", 1)


@pytest.mark.parametrize(
    ("rest", "used"),
    [
        ("", False),
        ("print(A)", False),
        ("print(f'{A:.2f} seconds')", False),
        ("B = A * 2", False),
        ("B = A * 2\nrun(B)", True),
        ("def f(): return A", False),
        ("def f(): return A\ndef g(): return f()\n", False),
        ("def f(): return A\nrun(f())", True),
        ("class M:\n    def f(self): return A", False),
        ("class M:\n    def f(self): return A\nmodel = M()\nmodel.f()", True),
        ("def f(x=A): return x\nf()", True),
        ("run(A)", True),
        ("print(run(1))\nif A: run(2)", True),
        ("for _ in range(A): run()", True),
        ("x[A] = 1", True),
        ("x += A", True),
        ("if SCALE == 'h100':\n    run(A)", False),
        ("if SCALE == 'h100':\n    pass\nelse:\n    run(A)", True),
        ("A = 3", False),
        ("A.x = 3", True),
    ],
)
def test_a_constant_that_nothing_depends_on_is_left_alone(rest, used):
    assert ("A" in values_of(f"A = 2\n{rest}\n")) == used


def test_every_constant_of_train_that_is_left_out_has_no_effect():
    """Both scales' constants are all read, as train.py says of itself; one that is added and not read is not."""
    assigned = set(re.findall(r"\b[A-Z][A-Z0-9_]+\b", ast.unparse(ast.parse(TRAIN))))
    for scale in ("cpu", "h100"):
        assert len(values_of(TRAIN, scale)) > 25 and values_of(TRAIN, scale).keys() <= assigned
    assert "UNREAD" not in values_of(f"UNREAD = 3\n{TRAIN}\nprint(UNREAD)\n")


def test_a_change_that_gave_the_very_number_of_the_best_is_proof(tmp_path):
    source = "A, B = 0.5, 0.25\nrun(A, B)\n"
    same, other = tried("A 0.5 -> 1.0", 0, runs="42:2.000000"), tried("B 0.25 -> 0.5", 0.001, 2)
    assert inert([make_row(), same, other]) == {"A"}
    assert inert([make_row(), tried("A 0.5 -> 1.0", 0, runs="43:2.000000")]) == set()  # another seed
    assert inert([make_row(), tried("A 0.5 -> 1.0", 0, runs="42:2.000000 43:1.900000")]) == {"A"}
    assert inert([make_row(runs="42:2.000000 43:2.1"), tried("A 0.5 -> 1.0", 0, runs="42:2.0 43:1.9")]) == set()
    assert inert([make_row(), tried("A 0.5 -> 1.0", 0, runs="42:2.0", parent="gone")]) == set()
    assert share_of(tmp_path, "A ", [make_row(), same], source) == 0


# -----------------------------------------------------------------------------
# Natural scales


def test_a_monstrous_literal_does_not_hang_the_loop():
    assert literal_number(ast.parse("9**9**9**9", mode="eval").body) is None


CASES = [
    # name, text, one step down, half a step up, one step up
    ("MATRIX_LR", "0.04", "0.02", "0.0566", "0.08"),
    ("EMBEDDING_LR", "0.9", "0.45", "1.27", "1.8"),
    ("GATE_RANGE", "3.0", "1.5", "4.24", "6.0"),
    ("OFFSET", "-3e-4", "-0.00015", "-0.000424", "-0.0006"),
    ("ADAM_BETA2", "0.95", "0.905", "0.965", "0.974"),
    ("MOMENTUM", "0.5", "0.333", "0.586", "0.667"),
    ("MIX", "0.2", "0.111", "0.261", "0.333"),
    ("WARMDOWN_FRACTION", "1.0", "0.942", "0.979", "0.985"),
    ("TOTAL_BATCH_SIZE", "2**19", "2**18", "2**20", "2**20"),
    ("TOTAL_BATCH_SIZE", "262_144", "131072", "524288", "524288"),
    ("HEAD_DIM", "64", "32", "128", "128"),
    ("ASPECT_RATIO", "57", "28", "80", "114"),
    ("WARMUP_STEPS", "5", "2", "7", "10"),
    ("DEPTH", "8", "4", "11", "16"),
    ("DEPTH", "2", "1", "3", "4"),
    ("DEPTH", "1", "1", "2", "2"),
    ("SHIFT", "-3", "-1", "-4", "-6"),
]


@pytest.mark.parametrize(("name", "text", "down", "half", "up"), CASES)
def test_steps_on_the_natural_scale(name, text, down, half, up):
    constant = NumericConstant(name, literal_number(ast.parse(text, mode="eval").body), 0, 0, text)
    found = [moved(constant, steps, random.Random(0)) for steps in (-1, 0.5, 1)]
    assert list(map(float, map(ev, found))) == pytest.approx(list(map(float, map(ev, (down, half, up)))), rel=2e-3)


def ev(text: str) -> float:
    return literal_number(ast.parse(text, mode="eval").body)


@pytest.mark.parametrize("name", ["X", "BETA", "DROPOUT", "LR", "X_INIT", "DEPTH", "BATCH_SIZE", "MOMENTUM"])
def test_any_walk_stays_in_its_kind(name):
    generator = random.Random(name)
    for start in ("0", "0.0", "1", "2", "7", "64", "2**10", "0.5", "0.999", "0.01", "1.0", "3.5", "-2", "-0.5"):
        text = start
        for _ in range(60):
            constant = NumericConstant(name, ev(text), 0, 0, text)
            text = moved(constant, generator.choice([-1, -0.5, -0.125, 0.5, 1]), generator)
            value, before = ev(text), constant.value
            assert type(value) is type(before) and math.isfinite(value)
            assert (value > 0) == (before >= 0) if value else False
            if is_ratio(name, before):
                assert 0 < value < 1
            if isinstance(value, int) and before >= 4 and before & (before - 1) == 0 and name != "DEPTH":
                assert value & (value - 1) == 0 and ("**" in text) == ("**" in constant.text)


def test_changes_are_counted_in_steps_of_the_old_value():
    change = changes_in(
        "MIX 0.1 -> 0.2, LR 2**4 -> 2**3, C 1 / 8 -> 1.0, DECAY 0.0 -> 0.5, D 1.5 -> 0.75, BETA2 0.98 -> 0.99, "
        "GAIN 0.8 -> 1.2: no ratio after all"
    )
    assert steps_in(change) == {
        "MIX": pytest.approx(math.log2(0.25 / (1 / 9))),
        "LR": -1,
        "C": 2,  # no change counts as more than two steps
        "DECAY": 2,
        "D": -1,
        "BETA2": pytest.approx(1, abs=0.03),
        "GAIN": 2,
    }


# -----------------------------------------------------------------------------
# Learning

TWENTY = "".join(f"{name} = 1.5\nrun({name})\n" for name in "ABCDEFGHIJKLMNOPQRST")


def test_descriptions_tell_what_was_changed():
    one = frozenset({("A", "0.5", "0.25")})
    assert changes_in("A 0.5 -> 0.25") == changes_in("second look at 0042: A 0.5 -> 0.25 [suspiciously good]") == one
    assert changes_in("X_2 1 / 8 -> 0.5, B 2**4 -> 2**5") == {("X_2", "1 / 8", "0.5"), ("B", "2**4", "2**5")}
    assert changes_in("A 0.5 -> 0.25: it was too much") == changes_in("A 0.5 -> 0.25; again") == one  # an LLM's
    assert changes_in("baseline") == changes_in("swap the norm -> faster") == frozenset()


def test_what_gained_is_pushed_further_and_what_lost_the_other_way(tmp_path):
    before = share_of(tmp_path, "A 1.5 -> 3.0", [make_row()], TWENTY)
    for text, gain, more in (("A 1.5 -> 3.0", 3, True), ("A 1.5 -> 0.75", -3, True), ("A 1.5 -> 3.0", -3, False)):
        rows = [make_row(commit="old", parent="old"), tried(text, gain, parent="old"), make_row(number=2)]
        after = share_of(tmp_path, "A 1.5 -> 3.0", rows, TWENTY)
        assert after > 2 * before if more else after < before / 2


def test_what_loses_both_ways_is_left(tmp_path):
    lost = ["A 1.5 -> 3.0", "A 1.5 -> 0.75", "A 1.5 -> 2.12", "A 1.5 -> 1.06"]
    rows = [make_row(), *(tried(text, -3, number) for number, text in enumerate(lost, 1))]
    assert share_of(tmp_path, "A ", rows, TWENTY) < 0.5 * share_of(tmp_path, "A ", rows[:1], TWENTY)


def test_a_crash_makes_smaller_steps(tmp_path):
    crashed = tried("A 1.5 -> 3.0", math.nan, status="crash", runs="")
    only = "A = 1.5\nrun(A)\n"
    found = {propose(tmp_path, best_source=only, rows=[make_row(), crashed], number=n).description for n in range(40)}
    assert {"A 1.5 -> 1.06", "A 1.5 -> 1.26"} <= found <= {f"A 1.5 -> {v}" for v in ("2.12", "1.78", "1.06", "1.26")}


def test_a_second_look_replaces_the_first(tmp_path):
    rows = [tried("A 1.5 -> 3.0", 2, 1), tried("second look at 0001: A 1.5 -> 3.0", -1, 2)]
    (row,) = constants.judged(rows).values()
    assert row.number == 2
    assert len(constants.judged([rows[0], tried("A 1.5 -> 3.0", 2, 3, parent="another")])) == 2


def test_rows_of_other_proposers_and_broken_ones_do_no_harm(tmp_path):
    rows = [
        make_row(),
        tried("swap the norm for a faster one", 2),
        tried("A 1.5 -> 3.0", math.nan, 2, status="invalid", runs=""),
        tried("A 1.5 -> nan, B 1.5 -> x", 1, 3),
        tried("B 1.5 -> 3.0", math.inf, 4, noise=0.0),
        tried("B 1.5 -> 1", math.nan, 5, status="interrupted", runs=""),
        tried("GONE 1.5 -> 3.0", 3, 6),
        tried("X0_FIRST 0.1 -> 1.5", 1, 7),
        tried("MLP_RATIO 0.5 -> 2.0: wider", 1, 8),
        tried("A 1.5 -> 1e999, B 1.5 -> 1e-300**-64, C 1.5 -> " + "(" * 300, 1, 9),
    ]
    assert propose(tmp_path, best_source=TWENTY, rows=rows).description


def test_slopes_are_the_posterior_of_a_linear_model():
    names, past = ["A", "B"], [("A 1.0 -> 2.0", 2.0), ("A 2.0 -> 1.0, B 1.0 -> 2.0", 1.0)]
    rows = [(changes_in(text), gain) for text, gain in past]
    found, root = learn_slopes(names, rows)
    moves, gains = [[1, 0], [-1, 1]], [2, 1]
    precision = numpy.array(
        [[sum(m[i] * m[j] for m in moves) + (i == j) / constants.USUAL_SLOPE**2 for j in (0, 1)] for i in (0, 1)]
    )
    weighted = [sum(m[i] * g for m, g in zip(moves, gains, strict=True)) for i in (0, 1)]
    assert (precision @ found).tolist() == pytest.approx(weighted)
    assert (root @ root.T).ravel().tolist() == pytest.approx([*precision[0], *precision[1]])


@pytest.mark.slow
def test_it_climbs_better_than_chance(tmp_path):
    """On parabolas of many widths under noise, what mutate proposes is better after 40 experiments than blind steps."""
    gains = {learns: [climb(tmp_path, world, learns) for world in range(12)] for learns in (True, False)}
    assert statistics.fmean(gains[True]) > statistics.fmean(gains[False]) + 1


def climb(folder, world: int, learns: bool, experiments: int = 40) -> float:
    """The true gain, in noise, of what a greedy search keeps; without learning, every proposal sees a bare baseline."""
    generator, names = random.Random(world), [f"C{n}" for n in range(20)]
    optimum = {name: generator.gauss(0, 1) for name in names}
    width = {name: 10 ** generator.gauss(-0.3, 0.6) for name in names}

    def value(source):
        return sum(-width[n] * (math.log2(x / 1.5) - optimum[n]) ** 2 / 2 for n, x in values_of(source).items())

    best = f"{', '.join(names)} = {', '.join(['1.5'] * len(names))}\nrun({', '.join(names)})\n"
    first, rows = value(best), [make_row()]
    for number in itertools.islice(itertools.count(1), experiments):
        known = rows if learns else [rows[0]]
        proposal = propose(folder, best_source=best, rows=known, number=number, seed=world)
        gain = value(proposal.source) - value(best) + generator.gauss(0, 1)
        parent = [row for row in rows if row.status == "keep"][-1].commit
        status = "keep" if gain > 1.5 else "discard"
        rows.append(tried(proposal.description, gain, number, status=status, parent=parent))
        best = proposal.source if status == "keep" else best
    return value(best) - first
