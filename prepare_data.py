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
TIME_BUDGET seconds), AUTORESEARCH_DATA_DIR, AUTORESEARCH_RECORD (a file for the evaluator's record: see audit.py);
HF_ENDPOINT and HF_TOKEN for the download.
"""

import argparse
import base64
import errno
import hashlib
import importlib.metadata
import itertools
import json
import math
import os
import platform
import random
import sys
import sysconfig
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tiktoken

# torch, pyarrow, rustbpe, httpx and rich are imported where they are used: to import this file takes no time.

# -----------------------------------------------------------------------------
# Constants


def fail(message: str):
    """End the program with one line on stderr and exit code 2: the mistake is the user's to mend."""
    print(f"error: {message}", file=sys.stderr)
    raise SystemExit(2)


class BadInput(Exception):
    """Like fail(), but from under a progress bar or in a thread: main() prints the line once they are gone."""


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
DATA_ROOT = Path(os.environ.get("AUTORESEARCH_DATA_DIR") or "~/.cache/autoresearch").expanduser().resolve()
DATA_DIR = DATA_ROOT / SCALE

FORMAT = 1  # of the prepared folder; raised when the files below change their meaning
BOS = "<|bos|>"
# GPT-4's split pattern, but numbers in groups of at most two digits: a small vocabulary has no room for three.
SPLIT_PATTERN = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,2}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
)
TOKENIZER_CHARS = 100_000_000  # characters of training text that the tokenizer is trained on
DOCUMENT_CHARS = 65_536  # longer ones are cut: a file may be one long text, and tiktoken fails on 10^6 spaces in a row
VAL_ONE_IN = 20  # one document in 20 is validation, where no file is pinned for it
PACKAGES = ("tiktoken", "rustbpe", "pyarrow", "numpy")  # whose versions meta.json notes
MIN_ROWS = 64  # fewer rows than this in either split is not enough to train or to measure on

HF_DATASET = "karpathy/climbmix-400b-shuffle"
LAST_SHARD = 6542
PINNED_VAL_FILE = f"shard_{LAST_SHARD:05d}.parquet"
RETRY_WAITS = (1, 2, 5, 15)  # seconds before each further attempt at a download

# -----------------------------------------------------------------------------
# Download


def progress_bars(**options):
    """rich's bars, counting bytes: what, how far, how fast, how long still."""
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn(elapsed_when_finished=True))
    return Progress("{task.description}", *columns, **options)


def download_shards(directory: Path, num_shards: int, workers: int) -> list[Path]:
    """Fetch the first `num_shards` training shards and the pinned validation shard of climbmix into `directory`.

    Finished files are kept, a partial one is resumed. Returns the paths, the validation shard last.
    """
    import httpx

    directory.mkdir(parents=True, exist_ok=True)
    paths = [directory / f"shard_{i:05d}.parquet" for i in [*range(num_shards), LAST_SHARD]]
    missing = [path for path in paths if not path.exists()]
    token = os.environ.get("HF_TOKEN", "").strip()
    headers = {"Accept-Encoding": "identity"} | ({"Authorization": f"Bearer {token}"} if token else {})
    stopped = threading.Event()
    with (
        httpx.Client(headers=headers, follow_redirects=True, timeout=15) as client,
        progress_bars(disable=not missing) as progress,
        ThreadPoolExecutor(min(workers, 8)) as pool,
    ):
        jobs = [pool.submit(download_file, client, path, progress, stopped) for path in missing]
        try:
            for job in as_completed(jobs):
                job.result()
        finally:  # one that failed for good, or Ctrl-C, ends the others
            stopped.set()
            pool.shutdown(cancel_futures=True)
    return paths


def download_file(client, path: Path, progress, stopped: threading.Event) -> None:
    """Fetch one shard to `path` with retries; bytes land in path.part, which is renamed when it is complete."""
    import httpx

    endpoint = os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
    url = f"{endpoint.rstrip('/')}/datasets/{HF_DATASET}/resolve/main/{path.name}"
    bar = progress.add_task(path.name, total=None)
    for wait in (*RETRY_WAITS, None):
        try:
            fetch_once(client, url, path, progress, bar, stopped)
            progress.remove_task(bar)
            return progress.print(f"downloaded {path.name}")
        except httpx.HTTPStatusError as error:
            status = error.response.status_code
            problem = f"HTTP {status}"
            if status not in (408, 429) and status < 500:
                mend = "set HF_TOKEN" if status in (401, 403) else "check HF_ENDPOINT and --shards"
                raise BadInput(f"{url}: {problem}; {mend}") from error
        except (httpx.InvalidURL, httpx.UnsupportedProtocol) as error:
            raise BadInput(f"HF_ENDPOINT={endpoint}: {error}; give an http:// or https:// address") from error
        except httpx.HTTPError as error:
            problem = str(error) or type(error).__name__
        progress.update(bar, description=f"{path.name}: {problem}, trying again")
        if wait is None or stopped.wait(wait):
            break
    raise BadInput(f"{url}: {problem}; check the network and HF_ENDPOINT, then run again to go on")


def fetch_once(client, url: str, path: Path, progress, bar, stopped: threading.Event) -> None:
    """One request: the whole file, or the rest of it where a .part holds a beginning."""
    import httpx

    part = path.with_name(path.name + ".part")
    have = part.stat().st_size if part.exists() else 0
    with client.stream("GET", url, headers={"Range": f"bytes={have}-"} if have else {}) as response:
        if response.status_code == 416:  # nothing after what we have: either that is all, or not of this file
            if response.headers.get("content-range") == f"bytes */{have}":
                return part.replace(path)
            part.unlink()
            raise httpx.ReadError("the partial file did not match and was dropped")
        response.raise_for_status()
        have = have if response.status_code == 206 else 0
        length = response.headers.get("content-length")
        total = have + int(length) if length else None
        progress.update(bar, description=path.name, total=total, completed=have)
        with open(part, "ab" if have else "wb") as file:
            for chunk in response.iter_raw():
                if stopped.is_set():
                    raise BadInput("stopped")
                file.write(chunk)
                progress.advance(bar, len(chunk))
    if total is not None and part.stat().st_size != total:
        raise httpx.ReadError(f"got {part.stat().st_size:,} of {total:,} bytes")
    part.replace(path)


# -----------------------------------------------------------------------------
# Documents


def stdlib_files() -> list[Path]:
    """The running interpreter's own library sources, without its tests (which not every distribution ships)."""
    root = Path(sysconfig.get_paths()["stdlib"])
    skip = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}
    return sorted(path for path in root.rglob("*.py") if not skip & set(path.relative_to(root).parts))


def source_files(source: str, num_shards: int, workers: int, directory: Path) -> list[Path]:
    """The files of `source` in a fixed shuffled order, the pinned validation file first if there is one."""
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
        fail(f"--source {source}: no .parquet, .txt, .md or .jsonl file in it; put some there")
    random.Random(0).shuffle(files)
    return sorted(files, key=lambda path: path.name != PINNED_VAL_FILE)


def read_documents(path: Path) -> Iterator[str]:
    """The documents of one file, in order."""
    if path.suffix == ".parquet":
        yield from read_parquet(path)
    elif path.suffix == ".jsonl":
        yield from read_jsonl(path)
    else:
        yield from cut(path.read_text(encoding="utf-8", errors="replace"))


def cut(text: str) -> Iterator[str]:
    """A text in pieces of at most DOCUMENT_CHARS, cut at line ends where there are any."""
    start = 0
    while len(text) - start > DOCUMENT_CHARS:
        end = text.rfind("\n", start + 1, start + DOCUMENT_CHARS) + 1 or start + DOCUMENT_CHARS
        yield text[start:end]
        start = end
    yield text[start:]


def read_jsonl(path: Path) -> Iterator[str]:
    """The "text" field of each line of a JSON-lines file."""
    with open(path, encoding="utf-8", errors="replace") as lines:
        for number, line in enumerate(lines, 1):
            try:
                # JSON can spell half a surrogate pair, which is no character and has no bytes.
                yield json.loads(line)["text"].encode("utf-8", "replace").decode()
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise BadInput(f'{path}: line {number} is not a JSON object with a "text" string; mend it') from error


def open_parquet(path: Path):
    """A parquet file that has a string column named text."""
    import pyarrow
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise broken_parquet(path, error) from error
    columns = {field.name: str(field.type) for field in file.schema_arrow}
    if columns.get("text") not in ("string", "large_string"):
        raise BadInput(f"{path}: no string column named text (it has {columns}); mend it or take it away")
    return file


def broken_parquet(path: Path, error: Exception) -> BadInput:
    reason = str(error).splitlines()[0]
    return BadInput(f"{path}: truncated or corrupt parquet file ({reason}); delete it and run again")


def read_parquet(path: Path) -> Iterator[str]:
    """The `text` column of a parquet file."""
    import pyarrow

    try:
        for batch in open_parquet(path).iter_batches(batch_size=1024, columns=["text"]):
            yield from (text for text in batch.column(0).to_pylist() if text)
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise broken_parquet(path, error) from error


def is_pinned(files: list[Path]) -> bool:
    """Whether the first file is the whole validation set."""
    return files[0].name == PINNED_VAL_FILE


def documents(files: list[Path], split: str) -> Iterator[str]:
    """Every distinct document of one split ("train" or "val"), once; a very long one in pieces.

    A pinned validation file (it comes first in `files`) is the validation set, and its documents are dropped wherever
    else they occur. Otherwise a hash of the text decides, so a document's side never depends on its neighbours.
    """
    pinned = is_pinned(files)
    seen = set()
    for path in files[:1] if pinned and split == "val" else files:
        for text in read_documents(path):
            digest = hashlib.blake2b(text.encode(), digest_size=16).digest()
            if digest in seen or not text.strip():
                continue
            seen.add(digest)
            hashed = int.from_bytes(digest[:8], "little") % VAL_ONE_IN == 0
            if (path == files[0] if pinned else hashed) == (split == "val"):
                yield from cut(text)


def text_bytes(path: Path) -> int:
    """About how much text a file holds. A truncated parquet file is found here, before the long work."""
    if path.suffix != ".parquet":
        return path.stat().st_size
    metadata = open_parquet(path).metadata
    return sum(metadata.row_group(i).total_byte_size for i in range(metadata.num_row_groups))


def expected_bytes(files: list[Path], split: str) -> float:
    """About how much text documents() will give, for the progress bars."""
    sizes = [text_bytes(path) for path in files]
    val = sizes[0] if is_pinned(files) else sum(sizes) / VAL_ONE_IN
    return val if split == "val" else sum(sizes) - val


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
        """Train on `texts`."""
        import rustbpe

        bpe = rustbpe.Tokenizer()
        bpe.train_from_iterator(texts, vocab_size - 1, pattern=SPLIT_PATTERN)
        ranks = sorted(bpe.get_mergeable_ranks(), key=lambda pair: pair[1])
        if len(ranks) < vocab_size - 1:
            raise BadInput(
                f"too little text: it gave {len(ranks) + 1} tokens of a vocabulary of {vocab_size}; add more text"
            )
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
        document = np.empty(1 + len(tokens), np.uint16)
        document[0], document[1:] = self.bos, tokens
        return document

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
    fill the row. What was cut off opens the next row, starting with the last token before the cut: that token is only
    an input there, so every token of text is a target exactly once. Only what does not fill a last row is lost.
    """
    waiting = [[] for _ in range(row_length + 2)]  # by length; the last list holds all that is longer than a row
    lengths = 0  # bit n is set while waiting[n] is not empty, so the best fit is one bit_length()
    count = 0
    rest = None  # of the document cut last
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


# -----------------------------------------------------------------------------
# Prepare


def write_atomically(path: Path, text: str) -> None:
    """Write a file that is either whole or not there."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text)
    temporary.replace(path)


def train_tokenizer(files: list[Path], vocab_size: int) -> Tokenizer:
    """Train the tokenizer on the first TOKENIZER_CHARS of training text."""
    with progress_bars() as progress:
        total = min(TOKENIZER_CHARS, expected_bytes(files, "train"))
        bar = progress.add_task("tokenizer: reading", total=total)

        def texts():
            seen = 0
            for text in documents(files, "train"):
                yield text
                seen += len(text)
                progress.update(bar, completed=seen)
                if seen >= TOKENIZER_CHARS:
                    break
            progress.update(bar, total=seen, description="tokenizer: learning the merges")

        return Tokenizer.train(texts(), vocab_size)


def pack_split(split: str, files: list[Path], tokenizer: Tokenizer, scale: Scale, workers: int, target: Path) -> dict:
    """Tokenize and pack one split into `target`. Returns its counts for meta.json."""
    row_length = scale.max_seq_len + 1
    counts = {"documents": 0, "bytes": 0, "tokens": 0}
    unshuffled = target.with_name(target.name + ".unshuffled")
    with progress_bars() as progress, open(unshuffled, "wb") as file:
        bar = progress.add_task(f"packing: {split}", total=expected_bytes(files, split))

        def texts():
            for text in documents(files, split):
                size = len(text.encode())
                counts["documents"] += 1
                counts["bytes"] += size
                progress.advance(bar, size)
                yield text

        def tokens():
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
    max_rows = scale.val_tokens // scale.max_seq_len if split == "val" else None
    return counts | {"rows": write_shuffled(unshuffled, target, row_length, max_rows)}


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
    again = f"run: python prepare_data.py --scale {scale} --data-dir {directory.parent}"
    if not path.exists():
        fail(f"no prepared data in {directory}; {again}")
    try:
        meta = json.loads(path.read_text())
    except ValueError:
        fail(f"{path} is damaged; delete it and {again}")
    if meta.get("format") != FORMAT:
        fail(f"{directory} was prepared by another version (format {meta.get('format')}); delete {path} and {again}")
    if meta.get("scale") != scale:
        fail(f"{directory} was prepared for scale {meta.get('scale')}, not {scale}; delete {path} and {again}")
    return meta


def full_name(source: str, num_shards: int) -> str:
    """The source as meta.json names it: all that decides which text it is."""
    if source == "climbmix":
        return f"climbmix, {num_shards} shards"
    if source == "stdlib":
        return f"stdlib of Python {platform.python_version()}"
    return str(Path(source).expanduser().resolve())


def find_or_train_tokenizer(files: list[Path], vocab_size: int, directory: Path) -> Tokenizer:
    """The tokenizer that an interrupted run left, if it was made from the very same files, else a new one."""
    stats = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    inputs = hashlib.sha256(repr((FORMAT, vocab_size, stats)).encode()).hexdigest()
    made_from = directory / "tokenizer.from"
    if made_from.exists() and made_from.read_text() == inputs:
        return Tokenizer.load(directory / "tokenizer.json")
    tokenizer = train_tokenizer(files, vocab_size)
    made_from.unlink(missing_ok=True)
    tokenizer.save(directory / "tokenizer.json")
    write_atomically(made_from, inputs)
    return tokenizer


def prepare(source: str, num_shards: int, scale_name: str, directory: Path, workers: int) -> dict:
    """Make the prepared folder, or find it there. Returns its meta.json, which is written last."""
    scale, name = SCALES[scale_name], full_name(source, num_shards)
    path = directory / "meta.json"
    if path.exists():
        meta = read_meta(directory, scale_name)
        if meta["source"] != name:
            fail(f"{directory} holds {meta['source']}, not {name}; delete {path} or choose another --data-dir")
        return meta
    directory.mkdir(parents=True, exist_ok=True)
    files = source_files(source, num_shards, workers, directory)
    tokenizer = find_or_train_tokenizer(files, scale.vocab_size, directory)
    meta = {"format": FORMAT, "scale": scale_name, "source": name}
    for split in ("val", "train"):
        meta[split] = pack_split(split, files, tokenizer, scale, workers, directory / f"{split}.bin")
    meta |= {
        "max_seq_len": scale.max_seq_len,
        "vocab_size": scale.vocab_size,
        "fingerprint": fingerprint(directory),
        "versions": {package: importlib.metadata.version(package) for package in PACKAGES}
        | {"python": platform.python_version()},
    }
    write_atomically(path, json.dumps(meta, indent=2) + "\n")
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
# Record: what this file saw of a run, for audit.py, which does not trust what a run prints

RECORD = Path(os.environ["AUTORESEARCH_RECORD"]).absolute() if os.environ.get("AUTORESEARCH_RECORD") else None
process_times, cpu_seconds = os.times, time.process_time  # bound here: a train.py might replace those
noted = {"val_reads": 0, "batches": 0, "training_tokens": 0, "optimizer_steps": 0}

# The clock of the cpu scale
pace = {"cpu": 0.0, "seconds": 0.0, "rate": 0.0, "looked": -1.0}
PACE_SECONDS = 0.0047  # CPU time of the work in look_at_pace() on the machine that the cpu scale was made on
PACE_EVERY = 0.2  # CPU seconds between two looks at how fast the machine is now


def paced_seconds() -> float:
    """CPU time of this process, in seconds of the machine that the cpu scale was made on.

    It stands still until look_at_pace(). One core does 5 to 10 % more or less from minute to minute, with what its
    neighbours do to caches and memory, and the number of steps with it: that was most of the noise of val_bpb.
    """
    now = cpu_seconds()
    pace["seconds"] += (now - pace["cpu"]) * pace["rate"]
    pace["cpu"] = now
    return pace["seconds"]


def look_at_pace() -> None:
    """See how fast the machine is now, by a fixed piece of work that is like training and counts as no time."""
    import torch

    paced_seconds()
    if pace["cpu"] - pace["looked"] < PACE_EVERY and pace["rate"]:
        return
    hidden, weight = torch.linspace(-1, 1, 512 * 64).view(512, 64), torch.linspace(-1, 1, 64 * 1024).view(64, 1024)
    started = cpu_seconds()
    torch.nn.functional.cross_entropy(15 * torch.tanh(hidden @ weight / 15), torch.arange(512))
    pace["cpu"] = pace["looked"] = cpu_seconds()
    pace["rate"] = PACE_SECONDS / (pace["cpu"] - started)


def note_first(event: str) -> None:
    """Note when `event` happened for the first time, and how much had been trained by then."""
    if event not in noted:
        now = process_times()
        clocks = {"cpu": now.user + now.system, "wall": now.elapsed, "paced": paced_seconds()}
        noted[event] = clocks | {name: noted[name] for name in ("batches", "optimizer_steps")}


def note_batch(split: str, tokens: int) -> None:
    """Count a batch that train.py gets; from the first one on, optimizer steps too, until the clock starts."""
    if split == "train":
        if RECORD and not noted["batches"]:
            count_optimizer_steps()
        note_first("first_batch")
        noted["batches"] += 1
        noted["training_tokens"] += tokens


def count_optimizer_steps() -> None:
    """Count the steps of every torch optimizer before the clock starts: a warm-up compiles, it does not train."""
    from torch.optim.optimizer import register_optimizer_step_post_hook

    def count(*_):
        noted["optimizer_steps"] += "clock_started" not in noted

    noted["hook"] = register_optimizer_step_post_hook(count)


def write_record(**measured) -> None:
    """Add a line to the record, if the loop asked for one: two lines are two evaluations."""
    for event in ("first_batch", "clock_started", "finished"):  # what never happened, happens now
        note_first(event)
    if RECORD:
        with open(RECORD, "a") as file:
            file.write(json.dumps({name: value for name, value in noted.items() if name != "hook"} | measured) + "\n")


note_first("imported")

# -----------------------------------------------------------------------------
# Batches


def load_rows(split: str) -> np.ndarray:
    """The packed rows of a split, (rows, MAX_SEQ_LEN + 1) uint16, memory-mapped."""
    assert split in ("train", "val"), f"split is {split!r}, not 'train' or 'val'"
    noted["val_reads"] += split == "val"
    return np.memmap(DATA_DIR / f"{split}.bin", np.uint16, "r").reshape(-1, MAX_SEQ_LEN + 1)


def default_device() -> str:
    """Where batches go and models are trained: the cpu scale stays on the CPU even where there is a GPU."""
    import torch

    return "cuda" if SCALE != "cpu" and torch.cuda.is_available() else "cpu"


def to_device(tokens: np.ndarray, device):
    """Rows of T + 1 tokens as (inputs, targets), each (B, T) int64 on `device`; the copy to a GPU is asynchronous."""
    import torch

    batch = torch.from_numpy(tokens.astype(np.int32))
    if torch.device(device).type == "cuda":
        # A fresh pinned buffer each time: torch's caching allocator does not hand it out again before the copy has run.
        batch = batch.pin_memory().to(device, non_blocking=True)
    batch = batch.long()
    # Copies, also of a single row, where a contiguous() would be a view: behind the inputs lie no targets.
    return batch[:, :-1].clone(), batch[:, 1:].clone()


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
        note_batch(split, B * T)
        yield current
        current = following


# -----------------------------------------------------------------------------
# Metric


def training_clock() -> float:
    """Seconds, for timing training: the wall clock on a GPU; on a CPU paced_seconds(), so that neither a busy neighbour
    nor a slow minute shortens the training. The first call is taken as the start of the budget."""
    on_gpu = default_device() == "cuda"
    if not on_gpu:
        look_at_pace()
    if "clock_started" not in noted:
        note_first("clock_started")
        if "hook" in noted:
            noted.pop("hook").remove()
    return time.perf_counter() if on_gpu else paced_seconds()


def token_losses(model, inputs, targets, vocab_size: int):
    """Cross-entropy of each target in nats, (B, T) float32. ValueError if the logits are not (B, T, vocab_size)."""
    import torch

    logits = model(inputs.clone())  # whatever the model does to its input, it is not what is scored
    shape = tuple(getattr(logits, "shape", ()))
    if len(shape) != 3 or shape[:2] != inputs.shape or shape[2] < vocab_size:  # a padded vocabulary is fine
        raise ValueError(f"the logits are {shape or type(logits)}, not {(*inputs.shape, vocab_size)}; no val_bpb")
    if type(logits) is not torch.Tensor:  # a subclass can bring a cross-entropy of its own
        raise ValueError(f"the logits are a {type(logits).__name__}, not a torch.Tensor; no val_bpb")
    losses = [
        torch.nn.functional.cross_entropy(some.float().flatten(0, 1), wanted.flatten(), reduction="none")
        for some, wanted in zip(logits.split(8), targets.split(8), strict=True)  # float32 logits are large
    ]
    return torch.cat(losses).view_as(targets)


def require_same(losses, expected, problem: str) -> None:
    """Raise ValueError unless two measurements agree, as far as kernels (in bf16 on a GPU) repeat themselves."""
    import torch

    tolerance = 1e-2 if losses.is_cuda else 2e-4
    if not torch.allclose(losses, expected, rtol=tolerance, atol=tolerance):
        raise ValueError(f"{problem}; no val_bpb")


def check_arithmetic(model, inputs, targets, expected) -> None:
    """Raise ValueError if the losses are not what numpy makes of the logits: torch was changed under our feet."""
    import torch

    logits = np.array(model(inputs)[0, :32].float().tolist())
    logits -= logits.max(axis=1, keepdims=True)
    chosen = logits[np.arange(len(logits)), targets[0, :32].tolist()]
    losses = torch.tensor(np.log(np.exp(logits).sum(1)) - chosen, dtype=expected.dtype, device=expected.device)
    require_same(expected[0, :32], losses, "the cross-entropy is not that of the logits")


def check_causal(model, inputs, targets, expected, vocab_size: int) -> None:
    """Raise ValueError if the losses before a position change when the input after it does.

    Each row has a cut of its own, behind which the text of another row is put.
    """
    import torch

    B, T = inputs.shape
    cuts = torch.tensor([1 + (2 * row + 1) * (T - 1) // (2 * B) for row in range(B)], device=inputs.device)
    before = torch.arange(T, device=inputs.device) < cuts[:, None]
    altered = torch.where(before, inputs, inputs.roll(1, 0) if B > 1 else inputs.flip(1))
    losses = token_losses(model, altered, targets, vocab_size)
    problem = "not causal: what comes before a position changes with the tokens after it"
    require_same(losses[before], expected[before], problem)


def check_batch(model, inputs, targets, expected, vocab_size: int) -> None:
    """Raise ValueError if the losses of a row change when other rows of the batch do: about half are turned around."""
    import torch

    others = torch.from_numpy(np.random.default_rng(0).random(len(inputs)) < 0.5).to(inputs.device)
    altered = torch.where(others[:, None], inputs.flip(1), inputs)
    losses = token_losses(model, altered, targets, vocab_size)
    require_same(losses[~others], expected[~others], "rows are not independent: one changes with others of its batch")


def check_blind(model, inputs, vocab_size: int) -> None:
    """Raise ValueError if the model does better than chance on targets that are pure chance: it must have seen them."""
    import torch

    targets = torch.randint(vocab_size, inputs.shape, generator=torch.Generator().manual_seed(0)).to(inputs.device)
    if token_losses(model, inputs, targets, vocab_size).mean() < 0.9 * math.log(vocab_size):
        raise ValueError("the logits know targets that the inputs do not tell; no val_bpb")


def probe(model, inputs, targets, vocab_size: int):
    """Raise ValueError if the model is not one that val_bpb is defined for. Returns the losses of this batch."""
    import torch

    losses = token_losses(model, inputs, targets, vocab_size)
    if not torch.isfinite(losses).all():
        raise ValueError("the logits are not finite; no val_bpb")
    again = token_losses(model, inputs, targets, vocab_size)
    require_same(again, losses, "the same rows give another loss the second time")
    check_arithmetic(model, inputs, targets, losses)
    check_batch(model, inputs, targets, losses, vocab_size)
    check_causal(model, inputs, targets, losses, vocab_size)
    check_blind(model, inputs, vocab_size)
    return losses


def weights_checksum(model) -> list[int]:
    """The sum of the bytes of every parameter and buffer."""
    import torch

    tensors = [tensor.detach().reshape(-1) for tensor in (*model.parameters(), *model.buffers())]
    sums = [tensor.view(torch.uint8).sum(dtype=torch.int64) for tensor in tensors if tensor.numel()]
    return torch.stack(sums).tolist() if sums else []


def scored_fingerprint(rows: np.ndarray, token_bytes: np.ndarray) -> str:
    """A hash of what is scored: the validation rows and how many bytes each token stands for."""
    return hashlib.sha256(rows.tobytes() + token_bytes.astype(np.int64).tobytes()).hexdigest()[:16]


def evaluate_bpb(model, tokenizer: Tokenizer, batch_size: int) -> float:
    """Bits per byte of the validation rows under `model`, which maps (B, T) int64 to logits (B, T, vocabulary).

    The cross-entropy is computed here, in float32, from the logits, and summed in float64 over the targets that stand
    for text (the special token has no bytes), then divided by ln 2 times their bytes. Every row is scored once,
    whatever the batch size. Raises ValueError where logits have the wrong shape or are not finite, where they look
    ahead or at other rows, and where the model learns from or remembers what it was evaluated on.
    """
    import torch

    if default_device() == "cuda":
        torch.cuda.synchronize()  # what is still being trained is training time
    note_first("evaluated")
    with torch.no_grad():
        rows, sizes_of_tokens = load_rows("val"), tokenizer.token_bytes()
        batch_size = min(batch_size, len(rows))
        device = next(model.parameters()).device
        token_bytes = torch.tensor(sizes_of_tokens, device=device)
        weights = weights_checksum(model)
        first_batch = to_device(rows[:batch_size], device)
        first_losses = probe(model, *first_batch, len(token_bytes))
        nats = torch.zeros((), dtype=torch.float64, device=device)
        total_bytes = torch.zeros((), dtype=torch.int64, device=device)
        for start in range(0, len(rows), batch_size):
            # The last batch is moved back to full size (one shape, one compilation); rows seen before count nothing.
            first = min(start, len(rows) - batch_size)
            inputs, targets = to_device(rows[first : first + batch_size], device)
            sizes = token_bytes[targets]
            sizes[: start - first] = 0
            losses = token_losses(model, inputs, targets, len(token_bytes))
            if start == 0:
                require_same(losses, first_losses, "the same rows give another loss the second time")
            nats += torch.where(sizes > 0, losses, 0).sum(dtype=torch.float64)
            total_bytes += sizes.sum()
        losses = token_losses(model, *first_batch, len(token_bytes))
        require_same(losses, first_losses, "the same rows give another loss after the others: the model remembers")
        if weights_checksum(model) != weights:
            raise ValueError("the model's parameters or buffers changed while it was evaluated; no val_bpb")
    nats, total_bytes = nats.item(), total_bytes.item()
    bpb = nats / (math.log(2) * total_bytes)
    if not math.isfinite(bpb):
        raise ValueError(f"val_bpb is {bpb}: the logits are not finite")
    scored = scored_fingerprint(rows, sizes_of_tokens)
    write_record(val_bpb=bpb, nats=nats, bytes=total_bytes, tokens=rows[:, 1:].size, fingerprint=scored)
    return bpb


# -----------------------------------------------------------------------------
# Command line


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", help="climbmix, stdlib or a folder (default: the scale's own)")
    parser.add_argument("--shards", type=int, default=10, help="training shards of climbmix, 1 to 6542 (default: 10)")
    parser.add_argument("--scale", choices=SCALES, default=SCALE, help=f"what to prepare for (default here: {SCALE})")
    parser.add_argument("--data-dir", type=Path, default=DATA_ROOT, help=f"parent of the scale's folder ({DATA_ROOT})")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="threads (default: all cores)")
    args = parser.parse_args(arguments)
    if not 1 <= args.shards <= LAST_SHARD:
        fail(f"--shards {args.shards} is not between 1 and {LAST_SHARD}")
    if args.workers < 1:
        fail(f"--workers {args.workers} is not 1 or more")
    source = args.source or SCALES[args.scale].source
    directory = args.data_dir.expanduser().resolve() / args.scale
    try:
        report(prepare(source, args.shards, args.scale, directory, args.workers), directory)
    except BadInput as error:
        fail(str(error))
    except OSError as error:  # a full disk, a folder that may not be read or written: nothing finished is lost
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        mend = "make room, or choose another --data-dir" if full else "mend that"
        fail(f"{error.filename or directory}: {error.strerror or error}; {mend}, then run again to go on")
    except KeyboardInterrupt:
        fail("interrupted; run again to go on")


if __name__ == "__main__":
    main()
