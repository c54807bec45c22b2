"""
Make the prepared folder of a scale: documents, tokenizer, packed rows, meta.json. `python prepare_data.py` runs this.

What is finished is found again: an interrupted run goes on where it stopped.
"""

import errno
import importlib.metadata
import json
import platform
from pathlib import Path

from autoresearch.data.documents import SPLITS, source_files
from autoresearch.data.download import TEST_SHARD
from autoresearch.data.packing import pack_split
from autoresearch.data.tokenizer import find_or_train_tokenizer
from autoresearch.files import TEST_FILES, file_hash, fingerprint, replace_file
from autoresearch.nouns import Json
from autoresearch.text import BadInput, fail
from prepare_data import DATA_DIR, FORMAT, SCALES, Tokenizer, read_meta

PACKAGES = ("tiktoken", "rustbpe", "pyarrow", "numpy")  # whose versions meta.json notes


def prepare_or_fail(source: str | None, shards: int, scale: str, data_dir: Path, workers: int) -> None:
    """Prepare and report. What the user can fix ends the program with one line."""
    if not 1 <= shards <= TEST_SHARD:
        fail(f"--shards {shards} is not between 1 and {TEST_SHARD}")
    if workers < 1:
        fail(f"--workers {workers} is not 1 or more")
    directory = data_dir.expanduser().resolve() / scale
    try:
        report(prepare(source or SCALES[scale].source, shards, scale, directory, workers), directory)
    except BadInput as error:
        fail(str(error))
    except OSError as error:  # a full disk, a folder that may not be read or written: nothing finished is lost
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        fix = "make room, or choose another --data-dir" if full else "fix that"
        fail(f"{error.filename or directory}: {error.strerror or error}; {fix}, then run again to go on")
    except KeyboardInterrupt:
        fail("interrupted; run again to go on")


def prepare(source: str, num_shards: int, scale_name: str, directory: Path, workers: int) -> Json:
    """Make the prepared folder, or find it there. Returns its meta.json, which is written last."""
    scale, name = SCALES[scale_name], full_name(source, num_shards)
    path = directory / "meta.json"
    if path.exists():
        meta = read_meta(directory, scale_name)
        if meta["source"] != name:
            fail(f"{directory} holds {meta['source']}, not {name}; delete {path} or choose another --data-dir")
        if (directory / TEST_FILES[-1]).exists():
            return meta
    directory.mkdir(parents=True, exist_ok=True)
    files = source_files(source, num_shards, workers, directory)
    tokenizer = find_or_train_tokenizer(files, scale.vocab_size, directory)
    meta = {"format": FORMAT, "scale": scale_name, "source": name}
    for split in ("val", "train"):
        meta[split] = pack_split(split, files, tokenizer, scale, workers, directory / f"{split}.bin")
    meta |= {"max_seq_len": scale.max_seq_len, "vocab_size": scale.vocab_size}
    versions = {package: importlib.metadata.version(package) for package in PACKAGES}
    meta |= {
        "fingerprint": fingerprint(directory, FORMAT),
        "versions": versions | {"python": platform.python_version()},
    }
    pack_test(files, tokenizer, scale_name, workers, directory)
    replace_file(path, json.dumps(meta, indent=2) + "\n")
    return meta


def pack_test(files: list[Path], tokenizer: Tokenizer, scale: str, workers: int, directory: Path) -> None:
    """The test rows and, written last, what they are. In a file of its own: no val_bpb depends on it."""
    rows, about = (directory / name for name in TEST_FILES)
    counts = pack_split("test", files, tokenizer, SCALES[scale], workers, rows)
    replace_file(about, json.dumps(counts | {"fingerprint": file_hash(rows)[:16]}, indent=2) + "\n")


def full_name(source: str, num_shards: int) -> str:
    """The source as meta.json names it: all that decides which text it is."""
    if source == "climbmix":
        return f"climbmix, {num_shards} shards"
    if source == "stdlib":
        return f"stdlib of Python {platform.python_version()}"
    return str(Path(source).expanduser().resolve())


def report(meta: Json, directory: Path) -> None:
    """Say in four lines what was prepared."""
    counts = meta | {"test": json.loads((directory / TEST_FILES[-1]).read_text())}
    for split in reversed(SPLITS):
        count = counts[split]
        print(
            f"{split:5} {count['documents']:>9,} documents {count['bytes'] / 1e6:>9,.1f} MB"
            f" {count['tokens']:>13,} tokens {count['rows']:>9,} rows of {meta['max_seq_len']}"
        )
    if damaged := sum(counts[split].get("damaged", 0) for split in SPLITS):
        print(f"warning: {damaged:,} characters of the text are U+FFFD: what was not UTF-8 once was replaced by it")
    print(f"{directory} is ready: {meta['source']}, fingerprint {meta['fingerprint']}")
    if directory != DATA_DIR:
        print(f"to train on it: export AUTORESEARCH_SCALE={meta['scale']} AUTORESEARCH_DATA_DIR={directory.parent}")
