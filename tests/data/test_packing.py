"""autoresearch/data/packing.py: every token is a target exactly once."""

import itertools

import numpy as np
import pytest
from data_helpers import read_meta

from autoresearch.data.documents import documents, source_files
from autoresearch.data.packing import pack_rows
from prepare_data import MAX_SEQ_LEN, Tokenizer

START = 0  # stands for BOS; all other tokens of these documents are different numbers


def numbered_documents(lengths) -> list[np.ndarray]:
    ends = np.cumsum(lengths)
    return [np.array([START, *range(end - length + 1, end + 1)]) for length, end in zip(lengths, ends, strict=True)]


@pytest.mark.parametrize("pool_size", [1, 50, 4096])
@pytest.mark.parametrize("row_length", [3, 129, 1025])
@pytest.mark.parametrize("longest", [20, 300, 20_000])
def test_every_token_is_a_target_once(row_length, longest, pool_size):
    generator = np.random.default_rng(row_length + longest)
    lengths = generator.integers(1, longest, max(10, 60_000 // longest)).tolist()
    packed = numbered_documents(lengths)
    rows = np.concatenate([*pack_rows(iter(packed), row_length, pool_size), np.empty((0, row_length), np.int64)])
    targets = rows[:, 1:][rows[:, 1:] != START]
    assert len(set(targets)) == len(targets)
    assert sum(lengths) - row_length <= len(targets) <= sum(lengths)
    # A row opens with BOS, or goes on with the token that ended the row before it.
    opening = rows[:, 0]
    assert np.all((opening[1:] == START) | (opening[1:] == rows[:-1, -1])) and opening[0] == START
    # And each target follows the token that it followed in its document.
    before = {int(b): int(a) for document in packed for a, b in itertools.pairwise(document)}
    context = rows[:, :-1][rows[:, 1:] != START]
    assert [before[target] for target in targets.tolist()] == context.tolist()


def test_prepared_rows_hold_the_text(done, folder):
    tokenizer = Tokenizer.load(done / "cpu" / "tokenizer.json")
    meta = read_meta(done)
    for split in ("train", "val"):
        texts = set(documents(source_files(str(folder), 0, 1, folder), split))
        assert meta[split]["documents"] == len(texts)
        assert meta[split]["bytes"] == sum(len(text.encode()) for text in texts)
        rows = np.fromfile(done / "cpu" / f"{split}.bin", np.uint16).reshape(-1, MAX_SEQ_LEN + 1)
        assert len(rows) == meta[split]["rows"]
        if split == "train":  # of val, only so many rows are kept
            assert meta[split]["tokens"] - len(rows) * MAX_SEQ_LEN < 0.01 * meta[split]["tokens"]
            targets = rows[:, 1:]
            text_bytes = tokenizer.token_bytes()[targets].sum()
            assert 0 <= meta[split]["bytes"] - text_bytes < 2000
