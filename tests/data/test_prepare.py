"""autoresearch/data/prepare.py, by the command line: what it makes, what goes on after a kill, what it refuses."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from data_helpers import SCRIPT, assert_refused, command, read_meta, write_parquet

import prepare_data
from autoresearch.files import fingerprint

# -----------------------------------------------------------------------------
# The prepared folder


# prepare_data.py as a process that sends itself a signal when it first touches a file: no race against a fast machine.
STOPPED = """
import os, runpy, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
stage, number, *sys.argv = sys.argv[1:]

def stop(event, arguments):
    global stage
    touched = event in ("open", "os.mkdir", "os.rename") and any(str(each).endswith(stage) for each in arguments[:2])
    if stage and touched:
        stage = ""
        os.kill(os.getpid(), int(number))

sys.addaudithook(stop)
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "number"),
    [
        ("/cpu", signal.SIGKILL),
        ("tokenizer.from", signal.SIGKILL),
        ("train.bin.unshuffled", signal.SIGKILL),
        ("train.bin.unshuffled", signal.SIGINT),
    ],
)
def test_interrupted_run_goes_on(folder, done, tmp_path, stage, number):
    arguments = ["--source", folder, "--data-dir", tmp_path]
    code = [sys.executable, "-c", STOPPED, stage, str(int(number)), SCRIPT]
    process = subprocess.Popen([*code, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    _, errors = process.communicate()
    if number == signal.SIGINT:
        assert process.returncode == 2 and errors == b"error: interrupted; run again to go on\n"
    else:
        assert process.returncode == -number
    assert not (tmp_path / "cpu" / "meta.json").exists()
    result = command(*arguments)
    assert ("tokenizer" not in result.stdout) == (stage == "train.bin.unshuffled")
    assert read_meta(tmp_path) == read_meta(done)


def test_rerun_changes_nothing(done, folder):
    before = {path: path.stat().st_mtime_ns for path in (done / "cpu").iterdir()}
    result = command("--source", os.path.relpath(folder), "--data-dir", done)
    assert result.returncode == 0 and f"{done / 'cpu'} is ready" in result.stdout
    assert before == {path: path.stat().st_mtime_ns for path in (done / "cpu").iterdir()}


def test_meta_names_what_the_metric_depends_on(done, folder):
    meta = read_meta(done)
    assert (meta["scale"], meta["source"], meta["max_seq_len"], meta["vocab_size"]) == ("cpu", str(folder), 128, 1024)
    assert set(meta["versions"]) == {"tiktoken", "rustbpe", "pyarrow", "numpy", "python"}
    for name in ("val.bin", "train.bin", "tokenizer.json"):
        assert fingerprint(done / "cpu", prepare_data.FORMAT) == meta["fingerprint"]
        path = done / "cpu" / name
        content = path.read_bytes()
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        assert fingerprint(done / "cpu", prepare_data.FORMAT) != meta["fingerprint"]
        path.write_bytes(content)


def test_folder_of_another_kind(done, folder, refused, tmp_path):
    shutil.copytree(done, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "cpu" / "meta.json"
    arguments = ["--source", str(folder), "--data-dir", str(tmp_path)]
    for change, words in (
        ({"scale": "h100"}, ["scale h100, not cpu", "--scale cpu"]),
        ({"format": 0}, ["another version", "--scale cpu"]),
        ({"source": "stdlib of Python 2.7.18"}, ["holds stdlib of Python 2.7.18", "--data-dir"]),
    ):
        path.write_text(json.dumps(read_meta(done) | change))
        refused(*arguments, words=[*words, f"delete {path}"])
    path.unlink()  # as the line says
    prepare_data.main(arguments)
    assert read_meta(tmp_path) == read_meta(done)


def test_damaged_or_missing_meta(refused, done, folder, tmp_path):
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "meta.json").write_text("{")
    refused("--source", folder, "--data-dir", tmp_path, words=["damaged", str(tmp_path / "cpu" / "meta.json")])
    environment = os.environ | {"AUTORESEARCH_DATA_DIR": str(tmp_path / "nothing")}
    code = "from prepare_data import Tokenizer; Tokenizer.from_directory()"
    result = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=SCRIPT.parent, capture_output=True, text=True
    )
    assert_refused(result, "no prepared data", "run: python prepare_data.py")


# -----------------------------------------------------------------------------
# Test rows


def rows_in(path: Path) -> set[bytes]:
    return {row.tobytes() for row in np.fromfile(path, np.uint16).reshape(-1, 129)}


def test_test_rows_are_packed_and_are_neither_trained_on_nor_scored(done):
    about = json.loads((done / "cpu" / "test.json").read_text())
    splits = {name: rows_in(done / "cpu" / f"{name}.bin") for name in ("train", "val", "test")}
    assert about["rows"] == len(splits["test"]) > 64 and about["documents"] == 100
    assert not splits["test"] & (splits["train"] | splits["val"])
    assert "test" not in read_meta(done), "no val_bpb depends on them"


# -----------------------------------------------------------------------------
# Bad input


def test_broken_parquet(folder, refused, texts, tmp_path):
    good = (folder / "shard_00000.parquet").read_bytes()
    source, data = tmp_path / "source", tmp_path / "data"
    path = write_parquet(source / "x.parquet", texts)
    arguments = ["--source", source, "--data-dir", data]
    for content in (good[:-1000], good[:10_000] + bytes(20_000) + good[30_000:], b"", b"hello"):
        path.write_bytes(content)
        refused(*arguments, words=[str(path), "truncated or corrupt", "delete it"])
        assert not (data / "cpu" / "meta.json").exists()


def test_no_text_column(refused, texts, tmp_path):
    for values, column in ((texts, "content"), ([1, 2, 3], "text")):
        path = write_parquet(tmp_path / "source" / "x.parquet", values, column)
        refused(
            "--source", tmp_path / "source", "--data-dir", tmp_path, words=[str(path), "no string column named text"]
        )


@pytest.mark.parametrize("line", ["not json", '{"content": 1}', "[]"])
def test_bad_json_line(refused, tmp_path, line):
    (tmp_path / "x.jsonl").write_text('{"text": "one"}\n' + line)
    refused("--source", tmp_path, "--data-dir", tmp_path, words=["x.jsonl: line 2"])


def test_too_little_text(refused, texts, tmp_path):
    source = tmp_path / "source"
    for some in (["hello"], texts[:100], [*texts[:100], *["hello"] * 1000]):
        write_parquet(source / "x.parquet", some)
        refused("--source", source, "--data-dir", tmp_path, words=["too little text", "add more text"])


def test_no_text_at_all(refused, tmp_path):
    refused("--source", tmp_path, "--data-dir", tmp_path, words=[str(tmp_path), "no .parquet"])
    refused("--source", tmp_path / "x", "--data-dir", tmp_path, words=["no such folder", str(tmp_path / "x")])


def test_arguments_out_of_range(refused, tmp_path):
    refused("--shards", 0, words=["--shards 0"])
    refused("--workers", 0, words=["--workers 0"])


@pytest.mark.slow
@pytest.mark.parametrize("source", ["folder", "climbmix"])
def test_full_disk(hub, folder, tmp_path, source):
    def only_small_files():
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))

    arguments = ["--source", folder if source == "folder" else source, "--data-dir", tmp_path]
    assert_refused(command(*arguments, preexec_fn=only_small_files), str(tmp_path), "File too large", "make room")
    assert not (tmp_path / "cpu" / "meta.json").exists()


def test_unwritable_folder(refused, folder, tmp_path):
    (tmp_path / "file").touch()
    refused("--source", folder, "--data-dir", tmp_path / "file", words=[str(tmp_path / "file"), "run again"])
