"""The map of a model: every figure is one that can be counted by hand."""

import torch
import torch.nn.functional as F
from torch import nn

from autoresearch.judge.parts import write_map

T, DIM, HEADS, ROWS = 8, 4, 2, 3


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv = nn.Parameter(torch.randn(3 * DIM, DIM))
        self.fc = nn.Linear(DIM, 2 * DIM, bias=False)
        self.fc_proj = nn.Linear(2 * DIM, DIM, bias=False)

    def attention(self, x):
        q, k, v = F.linear(x, self.qkv).view(*x.shape[:2], 3, HEADS, -1).transpose(1, 3).unbind(2)
        return F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)

    def forward(self, x):
        x = x + self.attention(x)
        return x + self.fc_proj(self.fc(x).relu())


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(16, DIM)
        self.blocks = nn.ModuleList([Layer(), Layer()])

    def forward(self, tokens):
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x)
        return x @ self.embedding.weight.T


def mapped(model, tmp_path) -> dict[str, list[str]]:
    """The figures of each line of the map, by its name."""
    write_map(model.eval(), torch.zeros(ROWS, T, dtype=torch.long), tmp_path / "parts.txt")
    lines = (tmp_path / "parts.txt").read_text().splitlines()
    return {name: figures.split() for figures, _, name in (line.rpartition("  ") for line in lines)}


def test_parameters_and_operations_are_counted_by_part_and_by_layer(tmp_path):
    parts = mapped(Model(), tmp_path)
    assert parts["embedding"][:2] == ["64", "0.0"]
    assert parts["blocks.*.fc"][0] == str(2 * 32)
    linear, scores = 2 * 3 * DIM * DIM, 4 * T * DIM  # FLOPs per token
    assert parts["blocks.*.attention"][:2] == [str(2 * 48), f"{2 * (linear + scores) / 1e3:.1f}"]
    each = linear + scores + 2 * 64
    assert parts["layer 0"][:2] == parts["layer 1"][:2] == [str(48 + 64), f"{each / 1e3:.1f}"]
    assert parts["outside the layers"][0] == "64"
    assert parts["layer 0"][2] == f"{each / (2 * each + 2 * 64):.1%}"


def test_a_view_moves_nothing_and_a_look_up_reads_what_it_gives(tmp_path):
    parts = mapped(Model(), tmp_path)
    assert float(parts["embedding"][3]) == round((2 * 4 * DIM + 8) / 1e3, 2), "rows read, rows written, an index"
    adds, relu = 2 * 3 * 4 * DIM, 2 * 4 * 2 * DIM  # the sums and relu() of a layer: bytes per token
    assert float(parts["blocks.*.forward"][3]) == round(2 * (adds + relu) / 1e3, 2)


def test_the_state_of_each_group_of_an_optimizer_is_counted(tmp_path):
    model = Model()
    groups = [{"params": list(model.blocks.parameters())}, {"params": [model.embedding.weight], "lr": 0.1}]
    optimizer = torch.optim.AdamW(groups)
    model(torch.zeros(1, T, dtype=torch.long)).sum().backward()
    optimizer.step()
    parts = mapped(model, tmp_path)
    assert parts["AdamW: embedding.weight"] == ["64", "0.00"]
    assert parts["AdamW: blocks.*.qkv, blocks.*.fc.weight, blocks.*.fc_proj.weight"][0] == str(2 * (48 + 64))


def test_a_model_without_a_map_costs_no_run(tmp_path):
    class Shy(nn.Module):
        def forward(self, tokens):
            raise RuntimeError("not twice")

    assert "no map could be made: RuntimeError: not twice" in mapped(Shy(), tmp_path)
