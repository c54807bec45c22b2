"""Ordinary PyTorch in forward() is handed over and gives what it gave; what can't be is refused in words."""

import pytest
from idioms import IDIOMS, RANDOM, check_idiom


@pytest.mark.parametrize("idiom", IDIOMS)
def test_idiom(idiom, tmp_path):
    problem = check_idiom(idiom, tmp_path)
    assert IDIOMS[idiom] in problem if IDIOMS[idiom] else problem == ""


def test_a_refusal_names_the_line_and_the_way_out(tmp_path):
    from autoresearch.judge.handover import make_graph

    source = (
        "import torch\nclass Model(torch.nn.Linear):\n  def forward(self, idx):\n    return torch.rand(*idx.shape, 8)\n"
    )
    (tmp_path / "train.py").write_text(source)
    names = {}
    exec(compile(source, tmp_path / "train.py", "exec"), names)
    import torch

    tokens = torch.zeros(2, 4, dtype=torch.long)
    with pytest.raises(ValueError, match=r"line 4 of train\.py \(`return torch\.rand\(\*idx\.shape, 8\)`\)") as caught:
        make_graph(names["Model"](1, 1), tokens, tokens)
    assert RANDOM in str(caught.value)
