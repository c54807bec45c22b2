"""
Tokenize documents and pack them into the rows that train.py is trained and scored on.
"""

import itertools
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from autoresearch.data.documents import documents, expected_bytes
from autoresearch.data.progress import progress_bars
from autoresearch.nouns import Json
from autoresearch.text import BadInput
from prepare_data import Scale, Tokenizer

MIN_ROWS = 64  # fewer rows than this in any split is not enough to train or to measure on


def encode_document(tokenizer: Tokenizer, text: str) -> np.ndarray:
    """BOS and the text's tokens as uint16, the form that is packed."""
    tokens = tokenizer.encoding.encode_to_numpy(text, disallowed_special=())
    document = np.empty(1 + len(tokens), np.uint16)
    document[0], document[1:] = tokenizer.bos, tokens
    return document


def tokenize(tokenizer: Tokenizer, texts: Iterable[str], workers: int, batch_size: int = 256) -> Iterator[np.ndarray]:
    """Token arrays of `texts` in order, encoded by `workers` threads one batch ahead of the caller."""
    texts = iter(texts)
    with ThreadPoolExecutor(workers) as pool:
        ahead: deque[Iterator[np.ndarray]] = deque()
        while batch := list(itertools.islice(texts, batch_size)):
            ahead.append(pool.map(encode_document, itertools.repeat(tokenizer), batch))
            if len(ahead) > 1:
                yield from ahead.popleft()
        for tokens in ahead:
            yield from tokens


def pack_rows(documents: Iterable[np.ndarray], row_length: int, pool_size: int = 4096) -> Iterator[np.ndarray]:
    """Pack token arrays, each opening with BOS, into rows; yields blocks (n, row_length) uint16.

    Best fit: a row takes the longest waiting document that fits, again and again; when none fits, the longest is cut to
    fill the row. What was cut off opens the next row, starting with the last token before the cut: that token is only
    an input there, so every token of text is a target exactly once. Only what does not fill a last row is lost.
    """
    # By length; the last list holds all that is longer than a row.
    waiting: list[list[np.ndarray]] = [[] for _ in range(row_length + 2)]
    lengths = 0  # bit n is set while waiting[n] is not empty, so the best fit is one bit_length()
    count = 0
    rest: np.ndarray | None = None  # of the document cut last
    documents = iter(documents)
    while True:
        pieces, space = [], row_length
        if rest is not None:
            whole = (len(rest) - 1) // (row_length - 1)
            if whole:  # a long rest fills rows of its own, each overlapping the one before by a token
                yield np.lib.stride_tricks.sliding_window_view(rest, row_length)[:: row_length - 1][:whole]
                rest = rest[whole * (row_length - 1) :]
            if len(rest) > 1:
                pieces, space = [rest], row_length - len(rest)
            rest = None
        while space:
            for tokens in itertools.islice(documents, pool_size - count):
                n = min(len(tokens), row_length + 1)
                waiting[n].append(tokens)
                lengths |= 1 << n
                count += 1
            if not count:
                return
            n = (lengths & ((2 << space) - 1)).bit_length() - 1
            if n < 0:  # none fits
                n = lengths.bit_length() - 1
            tokens = waiting[n].pop()
            lengths ^= (not waiting[n]) << n
            count -= 1
            if len(tokens) > space:
                rest = tokens[space - 1 :]
                tokens = tokens[:space]
            pieces.append(tokens)
            space -= len(tokens)
        yield np.concatenate(pieces)[None]


def pack_split(split: str, files: list[Path], tokenizer: Tokenizer, scale: Scale, workers: int, target: Path) -> Json:
    """Tokenize and pack one split into `target`. Returns its counts for meta.json."""
    row_length = scale.max_seq_len + 1
    counts = {"documents": 0, "bytes": 0, "tokens": 0, "damaged": 0}
    unshuffled = target.with_name(target.name + ".unshuffled")
    with progress_bars() as progress, open(unshuffled, "wb") as file:
        bar = progress.add_task(f"packing: {split}", total=expected_bytes(files, split))

        def texts() -> Iterator[str]:
            for text in documents(files, split):
                size = len(text.encode())
                counts["documents"] += 1
                counts["bytes"] += size
                counts["damaged"] += text.count("\ufffd")
                progress.advance(bar, size)
                yield text

        def tokens() -> Iterator[np.ndarray]:
            for document in tokenize(tokenizer, texts(), workers):
                counts["tokens"] += len(document)
                yield document

        for block in pack_rows(tokens(), row_length):
            file.write(block.tobytes())
        progress.tasks[0].total = counts["bytes"]  # was an estimate; the bar notices at the next step
        progress.advance(bar, 0)
    rows = unshuffled.stat().st_size // (2 * row_length)
    if rows < MIN_ROWS:
        raise BadInput(
            f"too little text: {counts['documents']} {split} documents gave {rows} rows of {scale.max_seq_len} tokens, "
            f"{MIN_ROWS} are needed; add more text"
        )
    max_rows = scale.val_tokens // scale.max_seq_len if split != "train" else None
    return counts | {"rows": write_shuffled(unshuffled, target, row_length, max_rows)}


def write_shuffled(source: Path, target: Path, row_length: int, max_rows: int | None) -> int:
    """Move at most `max_rows` rows of `source` to `target` in a fixed random order; returns how many.

    The order spreads a document's rows over the whole file, so that a batch is not a few documents.
    """
    rows = np.memmap(source, np.uint16, "r").reshape(-1, row_length)
    order = np.random.default_rng(0).permutation(len(rows))[:max_rows]
    temporary = target.with_name(target.name + ".tmp")
    with open(temporary, "wb") as file:
        for start in range(0, len(order), 4096):
            file.write(rows[order[start : start + 4096]].tobytes())
    temporary.replace(target)
    source.unlink()
    return len(order)
