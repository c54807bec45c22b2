"""The tokenizer: as it is loaded (prepare_data.py), and as it is written (autoresearch/data/tokenizer.py)."""

import re

from autoresearch.data.packing import encode_document
from autoresearch.data.tokenizer import save_tokenizer
from prepare_data import BOS, Tokenizer


def test_tokenizer_roundtrip(tokenizer, tmp_path):
    texts = ["def f(x):\n    return x\n", "Grüße, 世界 🎈", f"1234567 {BOS} not special in text", ""]
    save_tokenizer(tokenizer, tmp_path / "tokenizer.json")
    for other in (tokenizer, Tokenizer.load(tmp_path / "tokenizer.json")):
        for text, ids in zip(texts, other.encode(texts), strict=True):
            assert ids == other.encode(text) and other.decode(ids) == text
            assert encode_document(other, text).tolist() == [other.get_bos_token_id(), *ids]
    assert tokenizer.get_vocab_size() == 1024 and tokenizer.get_bos_token_id() == 1023
    assert tokenizer.decode([1023]) == BOS


def test_token_bytes_are_raw_bytes(tokenizer):
    sizes = tokenizer.token_bytes()
    assert sizes.shape == (1024,) and sizes[1023] == 0 and sizes[:1023].min() == 1
    text = "Grüße, 世界 🎈 and some more"  # cut inside characters, whose decoded halves would count three bytes each
    assert sizes[tokenizer.encode(text)].sum() == len(text.encode())


def test_numbers_have_at_most_two_digits_per_token(tokenizer):
    assert not [token for token in tokenizer.ranks if re.search(rb"\d{3}", token)]
