"""
Data, tokenizer, batches and the metric: everything that train.py is measured with. Nobody edits this file while a
search runs.

    python prepare_data.py                        # climbmix on a GPU machine, the standard library's sources on others
    python prepare_data.py --shards 20            # more of climbmix than the default 10 shards
    python prepare_data.py --source ~/my_corpus   # your own folder of .parquet, .txt, .md or .jsonl files

Run once as a script, it downloads text, trains a BPE tokenizer, and packs the tokens into rows of MAX_SEQ_LEN + 1 in
~/.cache/autoresearch/<scale>/ (AUTORESEARCH_DATA_DIR or --data-dir for another place). Run again, it goes on where it
stopped. Imported by train.py, it serves those rows as batches and scores a model on the validation rows in bits per
byte.

Environment: AUTORESEARCH_SCALE (h100 or cpu), AUTORESEARCH_SEED, AUTORESEARCH_STEPS (train this many steps instead of
TIME_BUDGET seconds), AUTORESEARCH_DATA_DIR; HF_ENDPOINT and HF_TOKEN for the download.
"""

import argparse
import base64
import hashlib
import importlib.metadata
import itertools
import json
import math
import os
import platform
import random
import shutil
import sys
import sysconfig
import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tiktoken

# torch, pyarrow, rustbpe, httpx and rich are imported where they are used: agent_loop.py and --help start without them.

# -----------------------------------------------------------------------------
# Constants


def fail(message: str):
    """End the program with one line on stderr and exit code 2: the mistake is the user's to mend."""
    print(f"error: {message}", file=sys.stderr)
    raise SystemExit(2)


class Scale(NamedTuple):
    max_seq_len: int  # T, tokens of context
    vocab_size: int  # including the one special token
    time_budget: int  # seconds of training
    val_tokens: int  # validation tokens scored, or all there are
    source: str  # where the text comes from unless --source says otherwise


SCALES = {
    "h100": Scale(2048, 8192, 300, 20_971_520, "climbmix"),
    "cpu": Scale(128, 1024, 20, 65_536, "stdlib"),
}


def choose_scale() -> str:
    """The scale named by AUTORESEARCH_SCALE, else h100 where CUDA is there and cpu where it is not."""
    name = os.environ.get("AUTORESEARCH_SCALE")
    if not name:
        import torch

        return "h100" if torch.cuda.is_available() else "cpu"
    if name not in SCALES:
        fail(f"AUTORESEARCH_SCALE={name} is not a scale; use one of: {', '.join(SCALES)}")
    return name


def env_int(name: str, default: int) -> int:
    """The whole number in environment variable `name`."""
    text = os.environ.get(name) or str(default)
    if not text.isdecimal():
        fail(f"{name}={text} is not a whole number")
    return int(text)


SCALE = choose_scale()
MAX_SEQ_LEN = SCALES[SCALE].max_seq_len
TIME_BUDGET = SCALES[SCALE].time_budget
SEED = env_int("AUTORESEARCH_SEED", 42)
STEPS = env_int("AUTORESEARCH_STEPS", 0)  # 0: the time budget decides
DATA_ROOT = Path(os.environ.get("AUTORESEARCH_DATA_DIR") or "~/.cache/autoresearch").expanduser()
DATA_DIR = DATA_ROOT / SCALE

FORMAT = 1  # of the prepared folder; raised when the files below change their meaning
BOS = "<|bos|>"
# GPT-4's split pattern, but numbers in groups of at most two digits: a small vocabulary has no room for three.
SPLIT_PATTERN = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,2}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
)
TOKENIZER_CHARS = 100_000_000  # characters of training text that the tokenizer is trained on
DOCUMENT_CHARS = 65_536  # a longer plain-text file is cut into documents of this size at line ends
VAL_ONE_IN = 20  # one document in 20 is validation, where no file is pinned for it
MIN_ROWS = 64  # fewer rows than this in either split is not enough to train or to measure on

HF_DATASET = "karpathy/climbmix-400b-shuffle"
LAST_SHARD = 6542
PINNED_VAL_FILE = f"shard_{LAST_SHARD:05d}.parquet"

# -----------------------------------------------------------------------------
# Download


def download_shards(directory: Path, num_shards: int, workers: int) -> list[Path]:
    """Fetch the first `num_shards` training shards and the pinned validation shard of climbmix into `directory`.

    Finished files are kept, a partial one is resumed. Returns the paths, the validation shard last.
    """
    import httpx
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

    directory.mkdir(parents=True, exist_ok=True)
    paths = [directory / f"shard_{i:05d}.parquet" for i in [*range(num_shards), LAST_SHARD]]
    missing = [path for path in paths if not path.exists()]
    endpoint = os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
    token = os.environ.get("HF_TOKEN")
    columns = ("{task.description}", BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with (
        httpx.Client(
            headers={"Authorization": f"Bearer {token}"} if token else {},
            follow_redirects=True,
            timeout=30,
        ) as client,
        Progress(*columns, disable=not missing) as progress,
        ThreadPoolExecutor(min(workers, 8)) as pool,
    ):
        jobs = []
        for path in missing:
            url = f"{endpoint.rstrip('/')}/datasets/{HF_DATASET}/resolve/main/{path.name}"
            jobs.append(pool.submit(download_file, client, url, path, progress))
        try:
            for job in jobs:
                job.result()
        finally:  # one that failed for good ends the others before they start
            pool.shutdown(cancel_futures=True)
    return paths


def download_file(client, url: str, path: Path, progress, attempts: int = 5) -> None:
    """Fetch one file to `path` with retries; bytes land in path.part, which is renamed when it is complete."""
    import httpx

    part = path.with_name(path.name + ".part")
    bar = progress.add_task(path.name, total=None)
    for attempt in range(1, attempts + 1):
        try:
            return fetch_once(client, url, path, part, progress, bar)
        except httpx.HTTPStatusError as error:
            status = error.response.status_code
            problem = f"HTTP {status}"
            if status not in (408, 429) and status < 500:
                hint = "set HF_TOKEN" if status in (401, 403) else "check HF_ENDPOINT and --shards"
                fail(f"{url}: {problem}; {hint}")
        except httpx.HTTPError as error:
            problem = str(error) or type(error).__name__
        if attempt < attempts:
            time.sleep(min(2**attempt, 30) * RETRY_WAIT)
    fail(f"{url}: {problem} ({attempts} attempts); check the network and run again to go on, or use --source stdlib")


RETRY_WAIT = 1.0  # seconds, doubled at each attempt


def fetch_once(client, url: str, path: Path, part: Path, progress, bar) -> None:
    """One request: the whole file, or the rest of it where `part` holds a beginning."""
    import httpx

    have = part.stat().st_size if part.exists() else 0
    with client.stream("GET", url, headers={"Range": f"bytes={have}-"} if have else {}) as response:
        if response.status_code == 416:  # nothing after what we have: the part is not a beginning of this file
            part.unlink()
            raise httpx.ReadError("the partial file did not match and was dropped")
        response.raise_for_status()
        if response.status_code != 206:
            have = 0
        length = response.headers.get("content-length")
        total = have + int(length) if length else None
        progress.update(bar, total=total, completed=have)
        with open(part, "ab" if have else "wb") as file:
            for chunk in response.iter_bytes(1 << 18):
                file.write(chunk)
                progress.advance(bar, len(chunk))
    size = part.stat().st_size
    if total is not None and size != total:
        raise httpx.ReadError(f"got {size:,} of {total:,} bytes")
    part.rename(path)


# -----------------------------------------------------------------------------
# Documents


def stdlib_files() -> list[Path]:
    """The running interpreter's own library sources, without its tests (which not every distribution ships)."""
    root = Path(sysconfig.get_paths()["stdlib"])
    skip = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}
    return sorted(path for path in root.rglob("*.py") if not skip & set(path.relative_to(root).parts))


def source_files(source: str, num_shards: int, workers: int, directory: Path) -> list[Path]:
    """The files of `source` (climbmix, stdlib or a folder), in a fixed shuffled order, a pinned validation one first."""
    if source == "climbmix":
        files = download_shards(directory / "shards", num_shards, workers)
    elif source == "stdlib":
        files = stdlib_files()
    else:
        folder = Path(source).expanduser()
        if not folder.is_dir():
            fail(f"--source {source}: no such folder; give climbmix, stdlib or a folder of text")
        suffixes = {".parquet", ".txt", ".md", ".jsonl"}
        files = sorted(path for path in folder.rglob("*") if path.suffix in suffixes and path.is_file())
    if not files:
        fail(f"--source {source}: no .parquet, .txt, .md or .jsonl file in it")
    random.Random(0).shuffle(files)
    return sorted(files, key=lambda path: path.name != PINNED_VAL_FILE)


def read_documents(path: Path) -> Iterator[str]:
    """The documents of one file, in order. An unreadable file ends the program by name."""
    if path.suffix == ".parquet":
        yield from read_parquet(path)
    elif path.suffix == ".jsonl":
        for number, line in enumerate(path.open(encoding="utf-8", errors="replace"), 1):
            try:
                yield json.loads(line)["text"]
            except (ValueError, KeyError, TypeError):
                fail(f'{path}: line {number} is not a JSON object with a "text" field')
    else:
        text = path.read_text(encoding="utf-8", errors="replace")
        while len(text) > DOCUMENT_CHARS:
            cut = text.rfind("\n", 1, DOCUMENT_CHARS) + 1 or DOCUMENT_CHARS
            yield text[:cut]
            text = text[cut:]
        yield text


def read_parquet(path: Path) -> Iterator[str]:
    """The `text` column of a parquet file."""
    import pyarrow
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(path)
        if "text" not in file.schema_arrow.names:
            fail(f"{path}: no column named text (it has {', '.join(file.schema_arrow.names)})")
        for batch in file.iter_batches(batch_size=1024, columns=["text"]):
            yield from (text for text in batch.column(0).to_pylist() if text)
    except (pyarrow.ArrowException, OSError) as error:
        fail(f"{path}: not a readable parquet file ({str(error).splitlines()[0]}); delete it and run again")


def documents(files: list[Path], split: str) -> Iterator[str]:
    """Every distinct document of one split ("train" or "val"), once.

    A pinned validation file (it comes first in `files`) is the validation set, and its documents are dropped wherever
    else they occur. Otherwise a hash of the text decides, so a document's side never depends on its neighbours.
    """
    pinned = files[0].name == PINNED_VAL_FILE
    seen = set()
    for path in files[:1] if pinned and split == "val" else files:
        for text in read_documents(path):
            digest = hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=16).digest()
            if digest in seen or not text.strip():
                continue
            seen.add(digest)
            hashed = int.from_bytes(digest[:8], "little") % VAL_ONE_IN == 0
            if (path == files[0] if pinned else hashed) == (split == "val"):
                yield text


# -----------------------------------------------------------------------------
# Tokenizer


class Tokenizer:
    """Byte-level BPE: tiktoken over the ranks of tokenizer.json (text, never a pickle)."""

    def __init__(self, pattern: str, ranks: list[bytes]):
        self.pattern, self.ranks = pattern, ranks
        self.bos = len(ranks)
        self.encoding = tiktoken.Encoding(
            "autoresearch",
            pat_str=pattern,
            mergeable_ranks={token: rank for rank, token in enumerate(ranks)},
            special_tokens={BOS: self.bos},
        )

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> "Tokenizer":
        """Train on `texts`. Too little text for the vocabulary ends the program."""
        import rustbpe

        bpe = rustbpe.Tokenizer()
        bpe.train_from_iterator(texts, vocab_size - 1, pattern=SPLIT_PATTERN)
        ranks = sorted(bpe.get_mergeable_ranks(), key=lambda pair: pair[1])
        if len(ranks) < vocab_size - 1:
            fail(f"too little text: it gave {len(ranks) + 1} tokens of a vocabulary of {vocab_size}; add more text")
        return cls(SPLIT_PATTERN, [bytes(token) for token, _ in ranks])

    @classmethod
    def from_directory(cls, directory: Path | str | None = None) -> "Tokenizer":
        """Load tokenizer.json from a prepared folder, by default the one for this scale."""
        directory = Path(directory or DATA_DIR)
        read_meta(directory)
        return cls.load(directory / "tokenizer.json")

    @classmethod
    def load(cls, path: Path) -> "Tokenizer":
        stored = json.loads(path.read_text())
        return cls(stored["pattern"], [base64.b64decode(token) for token in stored["ranks"]])

    def save(self, path: Path) -> None:
        ranks = [base64.b64encode(token).decode() for token in self.ranks]
        write_atomically(path, json.dumps({"pattern": self.pattern, "ranks": ranks}, indent=0))

    def get_vocab_size(self) -> int:
        return self.encoding.n_vocab

    def get_bos_token_id(self) -> int:
        return self.bos

    def encode(self, text: str | list[str], num_threads: int = 8) -> list[int] | list[list[int]]:
        """Token ids of a text, or of each text of a list; no special tokens are added or recognized."""
        if isinstance(text, str):
            return self.encoding.encode_ordinary(text)
        return self.encoding.encode_ordinary_batch(text, num_threads=num_threads)

    def encode_document(self, text: str) -> np.ndarray:
        """BOS and the text's tokens as uint16, the form that is packed."""
        tokens = self.encoding.encode_to_numpy(text, disallowed_special=())
        return np.concatenate(([self.bos], tokens)).astype(np.uint16)

    def decode(self, ids: Iterable[int]) -> str:
        return self.encoding.decode(list(ids))

    def token_bytes(self) -> np.ndarray:
        """Raw bytes that each token stands for, (vocab_size,) int64; 0 for the special token."""
        return np.array([len(token) for token in self.ranks] + [0])


# -----------------------------------------------------------------------------
# Packing


def tokenize(tokenizer: Tokenizer, texts: Iterable[str], workers: int, batch_size: int = 256) -> Iterator[np.ndarray]:
    """Token arrays of `texts` in order, encoded by `workers` threads one batch ahead of the caller."""
    texts = iter(texts)
    with ThreadPoolExecutor(workers) as pool:
        ahead = deque()
        while batch := list(itertools.islice(texts, batch_size)):
            ahead.append(pool.map(tokenizer.encode_document, batch))
            if len(ahead) > 1:
                yield from ahead.popleft()
        for tokens in ahead:
            yield from tokens


def pack_rows(documents: Iterable[np.ndarray], row_length: int, pool_size: int = 4096) -> Iterator[np.ndarray]:
    """Pack token arrays, each opening with BOS, into rows; yields blocks (n, row_length) uint16.

    Best fit: a row takes the longest waiting document that fits, again and again; when none fits, the longest is cut to
    fill the row. What was cut off opens a later row, starting with the last token before the cut: that token is only
    an input there, so every token of every document is a target exactly once. Only the very last row's rest is lost.
    """
    waiting = [[] for _ in range(row_length + 2)]  # by length; the last list holds all that is longer than a row
    lengths = 0  # bit n is set while waiting[n] is not empty, so the best fit is one bit_length()
    count = 0
    carried = []  # remainders of cut documents
    documents = iter(documents)
    while True:
        for tokens in itertools.islice(documents, pool_size - count):
            n = min(len(tokens), row_length + 1)
            waiting[n].append(tokens)
            lengths |= 1 << n
            count += 1
        if not count and not carried:
            return
        pieces, space = [], row_length
        if carried:
            tokens = carried.pop()
            whole = (len(tokens) - 1) // (row_length - 1)
            if whole:  # a long remainder fills rows of its own, each overlapping the one before by a token
                yield np.lib.stride_tricks.sliding_window_view(tokens, row_length)[:: row_length - 1][:whole]
                tokens = tokens[whole * (row_length - 1) :]
            if len(tokens) > 1:
                pieces, space = [tokens], row_length - len(tokens)
        while space and count:
            n = (lengths & ((2 << space) - 1)).bit_length() - 1
            if n < 0:
                n = lengths.bit_length() - 1
            tokens = waiting[n].pop()
            lengths ^= (not waiting[n]) << n
            count -= 1
            if len(tokens) > space:
                carried.append(tokens[space - 1 :])
                tokens = tokens[:space]
            pieces.append(tokens)
            space -= len(tokens)
        if space == 0:
            yield np.concatenate(pieces)[None]


def write_shuffled(source: Path, target: Path, row_length: int, max_rows: int | None) -> int:
    """Copy at most `max_rows` rows of `source` to `target` in a fixed random order; returns how many.

    The order spreads a document's rows over the whole file, so that a batch is not a few documents.
    """
    rows = np.fromfile(source, np.uint16).reshape(-1, row_length)
    order = np.random.default_rng(0).permutation(len(rows))[:max_rows]
    temporary = target.with_name(target.name + ".tmp")
    with open(temporary, "wb") as file:
        for start in range(0, len(order), 4096):
            file.write(rows[order[start : start + 4096]].tobytes())
    temporary.replace(target)
    source.unlink()
    return len(order)


# -----------------------------------------------------------------------------
# Prepare


def write_atomically(path: Path, text: str) -> None:
    """Write a file that is either whole or not there."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text)
    temporary.replace(path)


def train_tokenizer(files: list[Path], vocab_size: int) -> Tokenizer:
    """Train the tokenizer on the first TOKENIZER_CHARS of training text."""
    from rich.progress import Progress

    with Progress() as progress:
        bar = progress.add_task("tokenizer: reading", total=TOKENIZER_CHARS)

        def texts():
            seen = 0
            for text in documents(files, "train"):
                yield text
                seen += len(text)
                progress.update(bar, completed=seen)
                if seen >= TOKENIZER_CHARS:
                    break
            progress.update(bar, total=seen, completed=seen, description="tokenizer: learning the merges")

        return Tokenizer.train(texts(), vocab_size)


def pack_split(split: str, files: list[Path], tokenizer: Tokenizer, scale: Scale, workers: int, target: Path) -> dict:
    """Tokenize and pack one split into `target`. Returns its counts for meta.json."""
    from rich.progress import BarColumn, FileSizeColumn, Progress, TimeElapsedColumn, TransferSpeedColumn

    row_length = scale.max_seq_len + 1
    counts = {"documents": 0, "bytes": 0, "tokens": 0}
    unshuffled = target.with_name(target.name + ".unshuffled")
    columns = ("{task.description}", BarColumn(), FileSizeColumn(), TransferSpeedColumn(), TimeElapsedColumn())
    with Progress(*columns) as progress:
        bar = progress.add_task(f"packing: {split}", total=None)

        def texts():
            for text in documents(files, split):
                size = len(text.encode("utf-8", "replace"))
                counts["documents"] += 1
                counts["bytes"] += size
                progress.advance(bar, size)
                yield text

        def tokens():
            for array in tokenize(tokenizer, texts(), workers):
                counts["tokens"] += len(array)
                yield array

        with open(unshuffled, "wb") as file:
            for block in pack_rows(tokens(), row_length):
                file.write(block.tobytes())
    max_rows = scale.val_tokens // scale.max_seq_len if split == "val" else None
    counts["rows"] = write_shuffled(unshuffled, target, row_length, max_rows)
    if counts["rows"] < MIN_ROWS:
        fail(
            f"too little text: {counts['documents']} {split} documents gave {counts['rows']} rows of "
            f"{scale.max_seq_len} tokens, {MIN_ROWS} are needed; add more text"
        )
    return counts


def fingerprint(directory: Path) -> str:
    """A hash of all that val_bpb depends on beside train.py: tokenizer, training rows, validation rows."""
    digest = hashlib.sha256(f"format {FORMAT}".encode())
    for name in ("tokenizer.json", "train.bin", "val.bin"):
        with open(directory / name, "rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]


def read_meta(directory: Path | None = None, scale: str = SCALE) -> dict:
    """meta.json of a prepared folder. One that is missing, of another scale or of another version ends the program."""
    directory = directory or DATA_DIR
    path = directory / "meta.json"
    again = f"python prepare_data.py --scale {scale}"
    if not path.exists():
        fail(f"no prepared data in {directory}; run: {again}")
    try:
        meta = json.loads(path.read_text())
    except ValueError:
        fail(f"{path} is damaged; delete {directory} and run: {again}")
    if meta.get("format") != FORMAT:
        fail(f"{directory} was prepared by another version (format {meta.get('format')}); delete it and run: {again}")
    if meta.get("scale") != scale:
        fail(f"{directory} was prepared for scale {meta.get('scale')}, not {scale}; run: {again}")
    return meta


def prepare(source: str, num_shards: int, scale_name: str, directory: Path, workers: int) -> dict:
    """Make the prepared folder, or find it there. Returns its meta.json, which is written last."""
    scale = SCALES[scale_name]
    asked = {"source": source, "shards": num_shards if source == "climbmix" else None}
    if source == "stdlib":
        asked["source"] = f"stdlib of Python {platform.python_version()}"
    if (directory / "meta.json").exists():
        meta = read_meta(directory, scale_name)
        if any(meta[key] != value for key, value in asked.items()):
            fail(f"{directory} holds {meta['source']} already; delete it, or choose another place with --data-dir")
        return meta
    directory.mkdir(parents=True, exist_ok=True)
    files = source_files(source, num_shards, workers, directory)
    # A tokenizer left by an interrupted run is used again only if it was made from the very same files.
    inputs = hashlib.sha256(repr([(str(path), path.stat().st_size) for path in files]).encode()).hexdigest()[:16]
    tokenizer_path = directory / "tokenizer.json"
    if (directory / "tokenizer.from").exists() and (directory / "tokenizer.from").read_text() == inputs:
        tokenizer = Tokenizer.load(tokenizer_path)
    else:
        tokenizer = train_tokenizer(files, scale.vocab_size)
        tokenizer.save(tokenizer_path)
        write_atomically(directory / "tokenizer.from", inputs)
    started = time.perf_counter()
    counts = {
        split: pack_split(split, files, tokenizer, scale, workers, directory / f"{split}.bin")
        for split in ("val", "train")
    }
    meta = {
        "format": FORMAT,
        "scale": scale_name,
        **asked,
        **counts,
        "max_seq_len": scale.max_seq_len,
        "vocab_size": tokenizer.get_vocab_size(),
        "fingerprint": fingerprint(directory),
        "versions": {name: importlib.metadata.version(name) for name in ("tiktoken", "rustbpe", "pyarrow", "numpy")}
        | {"python": platform.python_version()},
        "packing_seconds": round(time.perf_counter() - started, 1),
    }
    write_atomically(directory / "meta.json", json.dumps(meta, indent=2))
    return meta


def report(meta: dict, directory: Path) -> None:
    """What was prepared, in three lines."""
    for split in ("train", "val"):
        count = meta[split]
        print(
            f"{split:5} {count['documents']:>9,} documents {count['bytes'] / 1e6:>9,.1f} MB"
            f" {count['tokens']:>13,} tokens {count['rows']:>9,} rows of {meta['max_seq_len']}"
        )
    print(f"{directory} is ready: {meta['source']}, fingerprint {meta['fingerprint']}")
    if directory != DATA_DIR:
        print(f"to train on it: export AUTORESEARCH_SCALE={meta['scale']} AUTORESEARCH_DATA_DIR={directory.parent}")


# -----------------------------------------------------------------------------
# Batches


def load_rows(split: str) -> np.ndarray:
    """The packed rows of a split, (rows, MAX_SEQ_LEN + 1) uint16, memory-mapped."""
    assert split in ("train", "val"), f"split is {split!r}, not 'train' or 'val'"
    return np.memmap(DATA_DIR / f"{split}.bin", np.uint16, "r").reshape(-1, MAX_SEQ_LEN + 1)


def default_device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def to_device(tokens: np.ndarray, device):
    """Rows of T + 1 tokens as (inputs, targets), each (B, T) int64 on `device`; the copy to a GPU is asynchronous."""
    import torch

    batch = torch.from_numpy(tokens.astype(np.int32))
    if torch.device(device).type == "cuda":
        # A fresh pinned buffer each time: torch's caching allocator does not hand it out again before the copy has run.
        batch = batch.pin_memory().to(device, non_blocking=True)
    batch = batch.long()
    return batch[:, :-1].contiguous(), batch[:, 1:].contiguous()


def make_dataloader(tokenizer: Tokenizer, B: int, T: int, split: str) -> Iterator[tuple]:
    """Endless batches (inputs (B, T) int64, targets (B, T) int64, epoch int, from 1) on the GPU if there is one.

    The same rows in the same order for every experiment and seed. T may be MAX_SEQ_LEN or a divisor of it; shorter rows
    are pieces of the packed ones. The next batch is on its way while the caller works on this one.
    """
    assert T <= MAX_SEQ_LEN and MAX_SEQ_LEN % T == 0, f"T={T} does not divide MAX_SEQ_LEN={MAX_SEQ_LEN}"
    rows = load_rows(split)
    pieces = MAX_SEQ_LEN // T
    assert len(rows) * pieces >= B, f"B={B} is more than the {len(rows) * pieces} rows of {split}"
    device = default_device()

    def batches():
        for epoch in itertools.count(1):
            for start in range(0, len(rows) * pieces - B + 1, B):
                index = np.arange(start, start + B)
                piece = (index % pieces * T)[:, None] + np.arange(T + 1)
                tokens = rows[start : start + B] if pieces == 1 else rows[(index // pieces)[:, None], piece]
                yield *to_device(tokens, device), epoch

    ahead = batches()
    current = next(ahead)
    while True:
        following = next(ahead)
        yield current
        current = following


# -----------------------------------------------------------------------------
# Metric


def training_clock() -> float:
    """Seconds, for timing training: the wall clock on a GPU; on a CPU this process's own CPU time over its threads, so
    that a busy neighbour does not shorten the training."""
    import torch

    if torch.cuda.is_available():
        return time.perf_counter()
    return time.process_time() / torch.get_num_threads()


def check_causal(model, tokens: np.ndarray, device) -> None:
    """Raise ValueError if the logits before a position change when the tokens after it do.

    `tokens` is (B, T + 1). Each row gets a cut of its own, behind which the text of another row is put.
    """
    import torch

    inputs, _ = to_device(tokens, device)
    B, T = inputs.shape
    cuts = torch.tensor([1 + (2 * row + 1) * (T - 1) // (2 * B) for row in range(B)], device=inputs.device)
    before = torch.arange(T, device=inputs.device) < cuts[:, None]
    altered = torch.where(before, inputs, inputs.roll(1, 0) if B > 1 else inputs.flip(1))
    expected, logits = model(inputs)[before].float(), model(altered)[before].float()
    if not torch.allclose(logits, expected, rtol=1e-2, atol=1e-2):
        raise ValueError("not causal: logits before a position change with the tokens after it; no val_bpb")


def evaluate_bpb(model, tokenizer: Tokenizer, batch_size: int) -> float:
    """Bits per byte of the validation rows under `model`, which maps (B, T) int64 to logits (B, T, vocabulary).

    The cross-entropy is computed here, in float32, from the logits, and summed in float64 over the targets that stand
    for text (the special token has no bytes), then divided by ln 2 times their bytes. Every row is scored once,
    whatever the batch size. Raises ValueError where logits have the wrong shape, look ahead or are not finite.
    """
    import torch

    with torch.no_grad():
        rows = load_rows("val")
        batch_size = min(batch_size, len(rows))
        device = next(model.parameters()).device
        token_bytes = torch.tensor(tokenizer.token_bytes(), device=device)
        check_causal(model, rows[:batch_size], device)
        nats = torch.zeros((), dtype=torch.float64, device=device)
        total_bytes = torch.zeros((), dtype=torch.int64, device=device)
        for start in range(0, len(rows), batch_size):
            # The last batch is moved back to full size (one shape, one compilation); rows seen before count nothing.
            first = min(start, len(rows) - batch_size)
            inputs, targets = to_device(rows[first : first + batch_size], device)
            weights = token_bytes[targets]
            weights[: start - first] = 0
            logits = model(inputs)
            if logits.ndim != 3 or logits.shape[:2] != inputs.shape or logits.shape[2] < len(token_bytes):
                raise ValueError(
                    f"logits are {tuple(logits.shape)}, not {(*inputs.shape, len(token_bytes))}; no val_bpb"
                )
            for row in range(0, batch_size, 8):  # a few rows at a time: float32 logits are large
                part = slice(row, row + 8)
                losses = torch.nn.functional.cross_entropy(
                    logits[part].float().flatten(0, 1), targets[part].flatten(), reduction="none"
                )
                nats += torch.where(weights[part].flatten() > 0, losses, 0).sum(dtype=torch.float64)
            total_bytes += weights.sum()
        bpb = nats.item() / (math.log(2) * total_bytes.item())
    if not math.isfinite(bpb):
        raise ValueError(f"val_bpb is {bpb}: the logits are not finite")
    return bpb


# -----------------------------------------------------------------------------
# Command line


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", help="climbmix, stdlib or a folder (default: the scale's own)")
    parser.add_argument("--shards", type=int, default=10, help="training shards of climbmix, 1 to 6542 (default: 10)")
    parser.add_argument("--scale", choices=SCALES, default=SCALE, help=f"what to prepare for (default here: {SCALE})")
    parser.add_argument("--data-dir", type=Path, default=DATA_ROOT, help=f"parent of the scale's folder ({DATA_ROOT})")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="threads (default: all cores)")
    args = parser.parse_args()
    if not 1 <= args.shards <= LAST_SHARD:
        fail(f"--shards {args.shards} is not between 1 and {LAST_SHARD}")
    if args.workers < 1:
        fail(f"--workers {args.workers} is not 1 or more")
    source = args.source or SCALES[args.scale].source
    directory = args.data_dir.expanduser().resolve() / args.scale
    try:
        report(prepare(source, args.shards, args.scale, directory, args.workers), directory)
    except OSError as error:  # a full disk, a folder that may not be written: nothing finished is lost
        free = f" ({shutil.disk_usage(directory).free / 1e9:.1f} GB free)" if directory.exists() else ""
        reason = error.strerror or str(error)
        fail(f"{error.filename or directory}: {reason}{free}; make room or choose another --data-dir, then run again")
    except KeyboardInterrupt:
        fail("interrupted; run again to go on")


if __name__ == "__main__":
    main()
