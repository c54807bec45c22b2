"""
How fast text becomes packed rows, next to tiktoken alone, and what share of the tokens packing loses.

    python benchmarks/packing.py                                               # standard library, the cpu vocabulary
    python benchmarks/packing.py --source ../shared/corpus --vocab-size 8192   # English, the h100 vocabulary

Rates: tiktoken's encode_ordinary_batch and our tokenizing and packing (to a file), on the same documents and as many
threads, in turns; medians of the turns. Losses: tokens that are in no row, next to a packer that also fits
documents best, but crops the shortest one where none fits and drops the rest of it.
"""

import argparse
import bisect
import itertools
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

os.environ.setdefault("AUTORESEARCH_SCALE", "cpu")
sys.path.insert(0, str(Path(__file__).parents[1]))
from autoresearch.data.documents import documents, source_files
from autoresearch.data.packing import pack_rows, tokenize
from autoresearch.data.tokenizer import train_bpe
from prepare_data import Tokenizer


def read_texts(source: str, megabytes: float) -> list[str]:
    """The first training documents of `source`, so many megabytes of them."""
    files = source_files(source, num_shards=1, workers=1, directory=Path(tempfile.gettempdir()))
    texts, size = [], 0
    for text in documents(files, "train"):
        texts.append(text)
        size += len(text.encode())
        if size >= megabytes * 1e6:
            break
    return texts


def pack_to_file(tokenizer: Tokenizer, texts: list[str], row_length: int, workers: int) -> None:
    with tempfile.TemporaryFile() as file:
        for block in pack_rows(tokenize(tokenizer, texts, workers), row_length):
            file.write(block.tobytes())


def rate(megabytes: float, work, *arguments) -> float:
    started = time.perf_counter()
    work(*arguments)
    return megabytes / (time.perf_counter() - started)


def rows_of_cropping_packer(lengths: Iterable[int], row_length: int, pool_size: int = 1000) -> int:
    rows, lengths, waiting = 0, iter(lengths), []
    while True:
        space = row_length
        while space:
            for length in itertools.islice(lengths, pool_size - len(waiting)):
                bisect.insort(waiting, length)
            if not waiting:
                return rows
            fitting = bisect.bisect_right(waiting, space)
            space -= min(space, waiting.pop(max(fitting - 1, 0)))
        rows += 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", default="stdlib", help="stdlib or a folder of text (default: stdlib)")
    parser.add_argument("--vocab-size", type=int, default=1024, help="8192 at the h100 scale (default: 1024)")
    parser.add_argument("--megabytes", type=float, default=5, help="at most so much text (default: 5)")
    parser.add_argument("--repeats", type=int, default=9, help="turns of each (default: 9)")
    args = parser.parse_args()
    texts = read_texts(args.source, args.megabytes)
    size = sum(len(text.encode()) for text in texts) / 1e6
    tokenizer = train_bpe(iter(texts), args.vocab_size)
    print(f"{args.source}: {len(texts):,} documents, {size:.1f} MB, vocabulary {args.vocab_size}\n")
    print("workers     T   tiktoken   tokenize and pack   ratio")
    for workers, T in itertools.product((1, 2), (128, 2048)):
        turns = []
        for _ in range(args.repeats):
            theirs = rate(size, tokenizer.encode, texts, workers)
            ours = rate(size, pack_to_file, tokenizer, texts, T + 1, workers)
            turns.append((theirs, ours, ours / theirs))
        theirs, ours, ratio = map(statistics.median, zip(*turns, strict=True))
        print(f"{workers:7} {T:5} {theirs:5.1f} MB/s {ours:14.1f} MB/s {ratio:7.2f}")
    tokens = list(tokenize(tokenizer, texts, workers=2))
    lengths = [len(document) for document in tokens]
    print("\n    T   tokens lost   a cropping packer")
    for T in (128, 256, 512, 1024, 2048):
        # A row goes on with the token that ended the row before it, so it holds T new ones; a cropped row holds T + 1.
        ours = 1 - sum(map(len, pack_rows(tokens, T + 1))) * T / sum(lengths)
        cropping = 1 - rows_of_cropping_packer(lengths, T + 1) * (T + 1) / sum(lengths)
        print(f"{T:5} {ours:13.3%} {cropping:19.1%}")


if __name__ == "__main__":
    main()
