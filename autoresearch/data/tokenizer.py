"""
Train the tokenizer with rustbpe and write it as text.
"""

import base64
import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import rustbpe

from autoresearch.data.documents import documents, expected_bytes
from autoresearch.data.progress import progress_bars
from autoresearch.files import replace_file
from autoresearch.text import BadInput
from prepare_data import FORMAT, Tokenizer

# GPT-4's split pattern, but numbers in groups of at most two digits: a small vocabulary has no room for three.
SPLIT_PATTERN = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,2}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
)
TOKENIZER_CHARS = 100_000_000  # characters of training text that the tokenizer is trained on


def find_or_train_tokenizer(files: list[Path], vocab_size: int, directory: Path) -> Tokenizer:
    """The tokenizer that an interrupted run left, if it was made from the very same files, else a new one."""
    stats = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    inputs = hashlib.sha256(repr((FORMAT, vocab_size, stats)).encode()).hexdigest()
    made_from = directory / "tokenizer.from"
    if made_from.exists() and made_from.read_text() == inputs:
        return Tokenizer.load(directory / "tokenizer.json")
    tokenizer = train_tokenizer(files, vocab_size)
    made_from.unlink(missing_ok=True)
    save_tokenizer(tokenizer, directory / "tokenizer.json")
    replace_file(made_from, inputs)
    return tokenizer


def train_tokenizer(files: list[Path], vocab_size: int) -> Tokenizer:
    """Train the tokenizer on the first TOKENIZER_CHARS of training text."""
    with progress_bars() as progress:
        total = min(TOKENIZER_CHARS, expected_bytes(files, "train"))
        bar = progress.add_task("tokenizer: reading", total=total)

        def texts() -> Iterator[str]:
            seen = 0
            for text in documents(files, "train"):
                yield text
                seen += len(text)
                progress.update(bar, completed=seen)
                if seen >= TOKENIZER_CHARS:
                    break
            progress.update(bar, total=seen, description="tokenizer: learning the merges")

        return train_bpe(texts(), vocab_size)


def train_bpe(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Train a tokenizer of `vocab_size` tokens, one of them special, on `texts`."""
    bpe = rustbpe.Tokenizer()
    bpe.train_from_iterator(texts, vocab_size - 1, pattern=SPLIT_PATTERN)
    ranks = sorted(bpe.get_mergeable_ranks(), key=lambda pair: pair[1])
    if len(ranks) < vocab_size - 1:
        raise BadInput(
            f"too little text: it gave {len(ranks) + 1} tokens of a vocabulary of {vocab_size}; add more text"
        )
    return Tokenizer(SPLIT_PATTERN, [bytes(token) for token, _ in ranks])


def save_tokenizer(tokenizer: Tokenizer, path: Path) -> None:
    """Write what Tokenizer.load() reads."""
    ranks = [base64.b64encode(token).decode() for token in tokenizer.ranks]
    replace_file(path, json.dumps({"pattern": tokenizer.pattern, "ranks": ranks}, indent=0))
