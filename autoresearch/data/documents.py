"""
From files to documents: read parquet, JSON lines and plain text, and give each distinct document to one split.
"""

import hashlib
import json
import os
import random
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pyarrow
import pyarrow.parquet

from autoresearch.data.download import LAST_SHARD, PINNED_TEST_FILE, PINNED_VAL_FILE, TEST_SHARD, download_shards
from autoresearch.text import BadInput, fail

DOCUMENT_CHARS = 65_536  # longer ones are cut: a file may be one long text, and tiktoken fails on 10^6 spaces in a row
ONE_IN = 20  # one document in 20 is validation, and one is test, where no file is pinned for it
SPLITS = ("val", "test", "train")

# -----------------------------------------------------------------------------
# Files


def stdlib_files() -> list[Path]:
    """The running interpreter's own library sources, without its tests (which not every distribution ships)."""
    root = Path(sysconfig.get_paths()["stdlib"])
    skip = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}
    return sorted(path for path in root.rglob("*.py") if not skip & set(path.relative_to(root).parts))


def walk(folder: Path) -> Iterator[Path]:
    """Every path below a folder, also behind links to folders; none twice where links lead in a circle."""
    seen = {os.path.realpath(folder)}
    for place, folders, names in os.walk(folder, followlinks=True):
        new = {os.path.realpath(Path(place, name)): name for name in folders}
        folders[:] = [name for path, name in new.items() if path not in seen]
        seen.update(new)
        yield from (Path(place, name) for name in names)


def source_files(source: str, num_shards: int, workers: int, directory: Path) -> list[Path]:
    """The files of `source` in a fixed shuffled order; pinned ones are the validation first, the test last."""
    if source == "climbmix":
        files = download_shards(directory / "shards", [*range(num_shards), LAST_SHARD, TEST_SHARD], workers)
    elif source == "stdlib":
        files = stdlib_files()
    else:
        folder = Path(source).expanduser()
        if not folder.is_dir():
            fail(f"--source {source}: no such folder; give climbmix, stdlib or a folder of text")
        suffixes = {".parquet", ".txt", ".md", ".jsonl"}
        files = sorted(path for path in walk(folder) if path.suffix in suffixes and path.is_file())
    if not files:
        fail(f"--source {source}: no .parquet, .txt, .md or .jsonl file in it; put some there")
    tests = [path for path in files if path.name == PINNED_TEST_FILE]
    others = [path for path in files if path.name != PINNED_TEST_FILE]
    random.Random(0).shuffle(others)
    return [*sorted(others, key=lambda path: path.name != PINNED_VAL_FILE), *tests]


# -----------------------------------------------------------------------------
# Reading


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


def open_parquet(path: Path) -> pyarrow.parquet.ParquetFile:
    """A parquet file that has a string column named text."""
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
    try:
        for batch in open_parquet(path).iter_batches(batch_size=1024, columns=["text"]):
            yield from (text for text in batch.column(0).to_pylist() if text)
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise broken_parquet(path, error) from error


# -----------------------------------------------------------------------------
# Splits


def is_pinned(files: list[Path], split: str) -> bool:
    """Whether a file of its own is the whole of a split."""
    at, name = {"val": (0, PINNED_VAL_FILE), "test": (-1, PINNED_TEST_FILE)}.get(split, (0, None))
    return bool(files) and files[at].name == name


def documents(files: list[Path], split: str) -> Iterator[str]:
    """Every distinct document of one split, once; a very long one in pieces.

    A pinned validation file (it comes first in `files`) is the validation set, and its documents are dropped wherever
    else they occur; of a pinned test file (the last) only those count that occur nowhere else. Otherwise a hash of the
    text decides, so a document's side never depends on its neighbours.
    """
    by_hash = {number: name for number, name in enumerate(("val", "test")) if not is_pinned(files, name)}
    pinned = {files[at]: name for at, name in ((0, "val"), (-1, "test")) if is_pinned(files, name)}
    seen = set()
    for path in files[:1] if split == "val" and "val" in pinned.values() else files:
        if split != "test" and pinned.get(path) == "test":
            continue
        for text in read_documents(path):
            digest = hashlib.blake2b(text.encode(), digest_size=16).digest()
            if digest in seen or not text.strip():
                continue
            seen.add(digest)
            hashed = by_hash.get(int.from_bytes(digest[:8], "little") % ONE_IN, "train")
            if pinned.get(path, hashed) == split:
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
    shares = {name: sum(sizes) / ONE_IN for name in ("val", "test")}
    shares |= {name: sizes[at] for at, name in ((0, "val"), (-1, "test")) if is_pinned(files, name)}
    return shares.get(split, sum(sizes) - sum(shares.values()))
