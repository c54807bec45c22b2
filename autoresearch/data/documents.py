"""
From files to documents: read parquet, JSON lines and plain text, and give each distinct document to one split.
"""

import functools
import hashlib
import json
import os
import random
import re
import sysconfig
import tokenize
from collections.abc import Iterable, Iterator
from pathlib import Path

import pyarrow
import pyarrow.parquet

from autoresearch.data.download import LAST_SHARD, PINNED_TEST_FILE, PINNED_VAL_FILE, TEST_SHARD, download_shards
from autoresearch.text import BadInput, decode, fail, read_text

DOCUMENT_CHARS = 65_536  # longer ones are cut: a file may be one long text, and tiktoken fails on 10^6 spaces in a row
ONE_IN = 20  # one document in 20 is validation, and one is test, where no file is pinned for it
FEW, SAMPLE = 5, 16_000_000  # fewer documents than this in a split are luck; characters that are looked at to see it
SUFFIXES = (".parquet", ".txt", ".md", ".jsonl")
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
        files = sorted(path for path in walk(folder) if path.suffix.lower() in SUFFIXES and path.is_file())
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
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        yield from read_parquet(path)
    elif suffix == ".jsonl":
        yield from read_jsonl(path)
    elif suffix == ".py":
        with tokenize.open(path) as file:  # which knows the encoding that a source names
            yield from cut(file.read())
    else:
        text = read_text(path)
        if "\0" in text:
            raise BadInput(f"{path}: it has NUL characters, as UTF-16 does; convert it or remove it")
        yield from cut(text)


def cut(text: str) -> Iterator[str]:
    """A text in pieces of at most DOCUMENT_CHARS, cut at line ends where there are any."""
    start = 0
    while len(text) - start > DOCUMENT_CHARS:
        end = text.rfind("\n", start + 1, start + DOCUMENT_CHARS) + 1 or start + DOCUMENT_CHARS
        yield text[start:end]
        start = end
    yield text[start:]


def read_jsonl(path: Path) -> Iterator[str]:
    """The "text" field of each line of a JSON-lines file; blank lines and null texts are none."""
    with open(path, "rb") as lines:
        for number, line in enumerate(lines, 1):
            if not (content := decode(line, path, number).strip()):
                continue
            try:
                text = json.loads(content)["text"] or ""
                yield re.sub("[\ud800-\udfff]", "\ufffd", text)  # half a surrogate pair is no character
            except (ValueError, KeyError, TypeError, RecursionError) as error:
                raise BadInput(f'{path}: line {number} is no JSON object with a "text" string; correct it') from error


def open_parquet(path: Path) -> pyarrow.parquet.ParquetFile:
    """A parquet file that has a string column named text."""
    try:
        file = pyarrow.parquet.ParquetFile(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise broken_parquet(path, error) from error
    columns = {field.name: str(field.type) for field in file.schema_arrow}
    if columns.get("text") not in ("string", "large_string"):
        raise BadInput(f"{path}: no string column named text (it has {columns}); fix it or remove it")
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
    """Return whether a file of its own is the whole of a split."""
    at, name = {"val": (0, PINNED_VAL_FILE), "test": (-1, PINNED_TEST_FILE)}.get(split, (0, None))
    return bool(files) and files[at].name == name


def distinct(files: Iterable[Path]) -> Iterator[tuple[Path, int, str]]:
    """(file, hash, text) of each document that is not there before."""
    seen = set()
    for path in files:
        for text in read_documents(path):
            digest = hashlib.blake2b(text.encode(), digest_size=16).digest()
            if digest not in seen and text.strip():
                seen.add(digest)
                yield path, int.from_bytes(digest[:8], "little"), text


@functools.cache
def hash_is_fair(files: tuple[Path, ...], pinned: tuple[Path, ...], numbers: tuple[int, ...]) -> bool:
    """Return whether a hash gives each split its share: not where documents are few, or a few hold most of the text.

    `numbers`: of the splits that the hash decides on.
    """
    sizes: dict[int, list[int]] = {number: [] for number in numbers}
    total = 0
    for path, number, text in distinct(files) if numbers else ():
        total += len(text)
        if path not in pinned and number % ONE_IN in sizes:
            sizes[number % ONE_IN].append(len(text))
        if total > SAMPLE:
            break
    return all(len(each) >= FEW and sum(each) > total / ONE_IN / 3 for each in sizes.values())


def parts(text: str, names: list[str]) -> dict[str, str]:
    """{split: its part of a text}: from the end of the text a share for each, the rest for training."""
    held_out, end = {}, len(text)
    for name in reversed(names):
        start = max(0, end - len(text) // ONE_IN)
        start = text.rfind("\n", max(0, start - 1000), start) + 1 or start
        held_out[name], end = text[start:end], start
    return held_out | {"train": text[:end]}


def documents(files: list[Path], split: str) -> Iterator[str]:
    """Every distinct document of one split, once; a very long one in pieces.

    A pinned validation file (it comes first in `files`) is the validation set, and its documents are dropped wherever
    else they occur; of a pinned test file (the last) only those count that occur nowhere else. Otherwise a hash of the
    text decides, so a document's side never depends on its neighbours. Where documents are too few for that, the last
    twentieth of each is test, and the one before it validation.
    """
    by_hash = {number: name for number, name in enumerate(("val", "test")) if not is_pinned(files, name)}
    pinned = {files[at]: name for at, name in ((0, "val"), (-1, "test")) if is_pinned(files, name)}
    fair = split in pinned.values() or hash_is_fair(tuple(files), tuple(pinned), tuple(by_hash))
    if split == "val" and "val" in pinned.values():
        files = files[:1]
    elif split != "test":
        files = [path for path in files if pinned.get(path) != "test"]
    for path, number, text in distinct(files):
        if path in pinned:
            sides = {pinned[path]: text}
        elif fair:
            sides = {by_hash.get(number % ONE_IN, "train"): text}
        else:
            sides = parts(text, list(by_hash.values()))
        if sides.get(split):
            yield from cut(sides[split])


def text_bytes(path: Path) -> int:
    """About how much text a file holds. A truncated parquet file is found here, before the long work."""
    if path.suffix.lower() != ".parquet":
        return path.stat().st_size
    metadata = open_parquet(path).metadata
    return sum(metadata.row_group(i).total_byte_size for i in range(metadata.num_row_groups))


def expected_bytes(files: list[Path], split: str) -> float:
    """About how much text documents() will give, for the progress bars."""
    sizes = [text_bytes(path) for path in files]
    shares = {name: sum(sizes) / ONE_IN for name in ("val", "test")}
    shares |= {name: sizes[at] for at, name in ((0, "val"), (-1, "test")) if is_pinned(files, name)}
    return shares.get(split, sum(sizes) - sum(shares.values()))
