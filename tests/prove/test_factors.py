"""Which kept changes can be taken out, on real texts."""

import itertools

import pytest

from autoresearch.prove.factors import Conflict, Keep, compose, find_factors, join_for
from autoresearch.source import syntax_problem

BASE = "A = 1\nB = 1\n\n\ndef f(x):\n    return x\n\n\nprint(f(A))\n"


def kept(*sources: str) -> list[Keep]:
    pairs = itertools.pairwise(sources)
    return [Keep(number, f"change {number}", *pair) for number, pair in enumerate(pairs, 1)]


def edited(text: str, *pairs: tuple[str, str]) -> list[str]:
    """The text after each replacement in turn, itself first."""
    texts = [text]
    for old, new in pairs:
        assert old in texts[-1]
        texts.append(texts[-1].replace(old, new))
    return texts


def names(factors) -> list[str]:
    return [factor.name for factor in factors.removable]


def test_all_changes_make_the_best_and_none_the_baseline():
    texts = edited(BASE, ("A = 1", "A = 2"), ("B = 1", "B = 2"), ("return x", "return 2 * x"))
    keeps = kept(*texts)
    assert compose(keeps, set()) == BASE and compose(keeps, {1, 2, 3}) == texts[-1]
    assert compose(keeps, {2}) == BASE.replace("B = 1", "B = 2"), "a neighbouring line is no conflict"
    factors = find_factors(keeps, syntax_problem)
    assert names(factors) == ["1", "2", "3"] and factors.source([-1, 1, -1]) == compose(keeps, {2})


def test_edits_of_one_constant_are_one_factor():
    keeps = kept(*edited(BASE, ("A = 1", "A = 2"), ("B = 1", "B = 3"), ("A = 2", "A = 4")))
    factors = find_factors(keeps, syntax_problem)
    assert names(factors) == ["1+3", "2"] and factors.removable[0].joined == ("1 and 3 edit A",)


def test_a_constant_that_was_set_back_leaves_nothing_to_take_out():
    keeps = kept(*edited(BASE, ("A = 1", "A = 2"), ("B = 1", "B = 3"), ("A = 2", "A = 1")))
    factors = find_factors(keeps, syntax_problem)
    assert (
        names(factors) == ["2"] and factors.fixed[0][0].name == "1+3" and "nothing of it is left" in factors.fixed[0][1]
    )


def test_what_a_later_change_edits_is_joined_with_it():
    keeps = kept(*edited(BASE, ("return x", "return 2 * x"), ("A = 1", "A = 2"), ("return 2 * x", "return 2 * x * x")))
    with pytest.raises(Conflict):
        compose(keeps, {2, 3})
    factors = find_factors(keeps, syntax_problem)
    assert names(factors) == ["1+3", "2"] and "3 edits lines of 1" in factors.removable[0].joined


def test_what_crashes_without_another_is_joined_with_it_and_else_stays_in():
    texts = edited(BASE, ("B = 1\n", "B = 1\nhelp = 1\n"), ("A = 1", "A = 2"), ("print(f(A))", "print(f(A) * help)"))

    def problem(source):
        return "NameError" if "* help" in source and "help = 1" not in source else syntax_problem(source)

    factors = find_factors(kept(*texts), problem)
    assert names(factors) == ["1+3", "2"] and "NameError" in factors.removable[0].joined[0]
    factors = find_factors(kept(*texts), lambda source: "" if "help = 1" in source else "crash")
    assert names(factors) == ["2", "3"] and factors.fixed[0][1] == "without it: crash"
    assert "help = 1" in factors.source([-1, -1])


def test_what_uses_a_name_is_joined_with_what_brought_it_however_far_apart():
    steps = [("B = 1\n", "B = 1\nhelp = 1\n"), ("A = 1", "A = 2"), ("return x", "return 2 * x"), ("B = 1", "B = 3")]
    texts = edited(BASE, *steps, ("print(f(A))", "print(f(A) * help)"))

    def problem(source):
        return "NameError" if "* help" in source and "help = 1" not in source else ""

    assert names(find_factors(kept(*texts), problem)) == ["1+5", "2", "3", "4"]


def test_what_a_person_marks_stays_in_with_what_it_needs():
    keeps = kept(*edited(BASE, ("return x", "return 2 * x"), ("A = 1", "A = 2"), ("return 2 * x", "return 3 * x")))
    factors = find_factors(keeps, syntax_problem, {3})
    assert names(factors) == ["2"]
    assert {factor.name: why for factor, why in factors.fixed} == {
        "3": "marked by hand",
        "1": "3 edits lines of 1, which stays in",
    }


def test_two_that_cannot_be_out_together_are_joined_once_a_row_wants_that():
    texts = edited(BASE, ("A = 1", "A = 2"), ("B = 1", "B = 2"), ("return x", "return 2 * x"))

    def problem(source):
        return "crash" if "A = 1" in source and "B = 1" in source and "return 2" in source else ""

    factors = find_factors(kept(*texts), problem)
    assert names(factors) == ["1", "2", "3"]
    joined = join_for(factors, problem, [(1, 1, 1), (-1, -1, 1)])
    assert joined and names(joined) in (["1+3", "2"], ["1", "2+3"])
    assert join_for(joined, problem, [(1, -1), (-1, 1), (-1, -1)]) is None
