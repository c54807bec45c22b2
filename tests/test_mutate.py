"""mutate on the real train.py."""

import pytest
from loop_helpers import ROOT, make_context

from mutate import literal_number, numeric_constants, propose_mutation
from proposers import CannotPropose, ProposalFailed, edit_problem

TRAIN = (ROOT / "train.py").read_text()


def test_mutate_changes_constants_and_nothing_else(tmp_path):
    for number in range(1, 20):
        proposal = propose_mutation(make_context(tmp_path, number=number, best_source=TRAIN))
        assert edit_problem(TRAIN, proposal.source) == ""
        before = {c.name: c.value for c in numeric_constants(TRAIN, "cpu")}
        after = {c.name: c.value for c in numeric_constants(proposal.source, "cpu")}
        changed = [name for name in before if before[name] != after[name]]
        assert 1 <= len(changed) <= 2 and before.keys() == after.keys()
        assert all(name in proposal.description for name in changed)
        assert len(proposal.source.splitlines()) == len(TRAIN.splitlines())


def test_mutate_is_reproducible_and_follows_the_seed(tmp_path):
    def descriptions(seed):
        contexts = (make_context(tmp_path, number=n, best_source=TRAIN, seed=seed) for n in range(10))
        return [propose_mutation(context).description for context in contexts]

    assert descriptions(1) == descriptions(1) != descriptions(2)


def test_mutate_does_not_repeat_itself_on_the_same_best(tmp_path):
    source, seen = "LR = 0.5\n", []
    with pytest.raises(ProposalFailed, match="not tried"):
        for number in range(100):
            context = make_context(tmp_path, number=number, best_source=source, waiting=list(seen))
            seen.append(propose_mutation(context).description)
    assert len(seen) == len(set(seen)) >= 3


def test_mutate_sees_only_the_branch_of_its_scale():
    source = (
        'if SCALE == "h100":\n    A = 1\nelse:\n    B = 2**11\nC, D = 0.5, -3e-4\nE = 1 / 8\nF = "x"\ng = 1\nH = C\n'
    )
    names = lambda scale: [(c.name, c.value) for c in numeric_constants(source, scale)]  # noqa: E731
    assert names("cpu") == [("B", 2048), ("C", 0.5), ("D", -0.0003), ("E", 0.125)]
    assert names("h100")[0] == ("A", 1)


def test_a_monstrous_literal_does_not_hang_the_loop():
    import ast

    assert literal_number(ast.parse("9**9**9**9", mode="eval").body) is None


def test_mutate_with_nothing_to_change_says_so(tmp_path):
    with pytest.raises(CannotPropose, match="no numeric constants"):
        propose_mutation(make_context(tmp_path, best_source="print(1)\n"))
