"""prepare_data.py: real files, real processes, a real HTTP server on this machine."""

import itertools
import json
import math
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import prepare_data
from prepare_data import BOS, MAX_SEQ_LEN, Tokenizer, documents, evaluate_bpb, make_dataloader, pack_rows

torch.set_num_threads(1)  # two are slower than one where anything else runs
SCRIPT = Path(prepare_data.__file__)
PIN = prepare_data.PINNED_VAL_FILE

# -----------------------------------------------------------------------------
# Text, a hub that serves it, and the command line


@pytest.fixture(scope="session")
def texts() -> list[str]:
    """1500 distinct documents of about 2 KB."""
    whole = "".join(path.read_text(errors="replace") for path in prepare_data.stdlib_files()[:250])
    return [whole[start : start + 2000] for start in range(0, 1500 * 2000, 2000)]


def write_parquet(path: Path, texts: list, column: str = "text") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({column: texts}), path, compression="zstd", row_group_size=100)
    return path


@pytest.fixture(scope="session")
def folder(texts, tmp_path_factory) -> Path:
    """A source of the user's own: two parquet files and a pinned one."""
    folder = tmp_path_factory.mktemp("corpus")
    write_parquet(folder / "shard_00000.parquet", texts[:600])
    write_parquet(folder / "shard_00001.parquet", texts[600:1200])
    write_parquet(folder / PIN, texts[1200:])
    return folder


@pytest.fixture(scope="session")
def done(folder, tmp_path_factory) -> Path:
    """A --data-dir in which `folder` was prepared without interruption."""
    data = tmp_path_factory.mktemp("done")
    assert command("--source", folder, "--data-dir", data).returncode == 0
    return data


def command(*arguments, **options) -> subprocess.CompletedProcess:
    options = {"capture_output": True, "text": True, "timeout": 60} | options
    return subprocess.run([sys.executable, SCRIPT, *arguments], **options)


def assert_refused(result: subprocess.CompletedProcess, *words: str) -> None:
    """One line on stderr that holds these words, exit code 2."""
    assert re.fullmatch(r"error: [^\n]+\n", result.stderr), result.stderr
    assert all(word in result.stderr for word in words), result.stderr
    assert result.returncode == 2


@pytest.fixture
def refused(capfd):
    """Call main() in this process and expect it to end as assert_refused() says."""

    def refused(*arguments, words=()):
        capfd.readouterr()
        with pytest.raises(SystemExit) as caught:
            prepare_data.main([str(argument) for argument in arguments])
        result = subprocess.CompletedProcess(arguments, caught.value.code, *capfd.readouterr())
        assert_refused(result, *words)

    return refused


class Hub(BaseHTTPRequestHandler):
    """Serves server.folder as the dataset, with Range; the next fault in server.faults is played first."""

    def do_GET(self):
        server, name = self.server, Path(self.path).name
        server.requests.append((name, self.headers))
        fault = server.faults.pop(0) if server.faults else None
        file = server.folder / name
        if not self.path.startswith(f"/datasets/{prepare_data.HF_DATASET}/resolve/main/") or not file.exists():
            return self.send_error(404)
        if isinstance(fault, int):
            return self.send_error(fault)
        body = file.read_bytes()
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        start = int(asked[1]) if asked and fault != "no range" else 0
        if start >= len(body):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(body)}")
            return self.end_headers()
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body) - start))
        self.end_headers()
        rest = body[start:]
        self.wfile.write(rest[: len(rest) // 2] if fault in ("truncated", "stalled") else rest)
        if fault == "stalled":
            self.wfile.flush()
            server.released.wait(30)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def hub(folder, monkeypatch):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.folder, server.requests, server.faults, server.released = folder, [], [], threading.Event()
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(prepare_data, "RETRY_WAITS", (0.01, 0.01))
    yield server
    server.released.set()
    server.shutdown()
    server.server_close()


def download(directory: Path, shards: int = 2) -> list[Path]:
    return prepare_data.download_shards(directory, shards, workers=1)


def assert_complete(paths: list[Path], folder: Path) -> None:
    assert [path.name for path in paths] == ["shard_00000.parquet", "shard_00001.parquet", PIN]
    assert all(path.read_bytes() == (folder / path.name).read_bytes() for path in paths)
    assert sorted(paths[0].parent.iterdir()) == sorted(paths)


# -----------------------------------------------------------------------------
# Download


def test_download_once(hub, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "secret\n")
    assert_complete(download(tmp_path), hub.folder)
    assert [headers["Authorization"] for _, headers in hub.requests] == ["Bearer secret"] * 3
    hub.requests.clear()
    assert_complete(download(tmp_path), hub.folder)
    assert hub.requests == []


def test_download_without_token_is_anonymous(hub, tmp_path):
    download(tmp_path, 1)
    assert all("Authorization" not in headers for _, headers in hub.requests)


@pytest.mark.parametrize("faults", [[503, 429], ["truncated"], ["truncated", 500]])
def test_download_tries_again(hub, tmp_path, faults):
    hub.faults = list(faults)
    assert_complete(download(tmp_path), hub.folder)
    assert len(hub.requests) == 3 + len(faults)
    resumed = [headers["Range"] for _, headers in hub.requests if "Range" in headers]
    assert len(resumed) == (len(faults) if "truncated" in faults else 0)


@pytest.mark.parametrize("fault", [None, "no range"])
def test_partial_file_is_resumed(hub, tmp_path, fault):
    whole = (hub.folder / "shard_00000.parquet").read_bytes()
    (tmp_path / "shard_00000.parquet.part").write_bytes(whole[:1000])
    hub.faults = [fault]
    assert_complete(download(tmp_path), hub.folder)
    assert hub.requests[0][1]["Range"] == "bytes=1000-"


@pytest.mark.parametrize(("extra", "requests"), [(b"", 3), (b"too long", 4)])
def test_partial_file_with_nothing_missing(hub, tmp_path, extra, requests):
    whole = (hub.folder / "shard_00000.parquet").read_bytes()
    (tmp_path / "shard_00000.parquet.part").write_bytes(whole + extra)
    assert_complete(download(tmp_path), hub.folder)
    assert len(hub.requests) == requests


def test_climbmix_from_the_command_line(hub, tmp_path, done):
    result = command("--source", "climbmix", "--shards", "2", "--data-dir", tmp_path)
    assert result.returncode == 0 and result.stderr == "" and "\x1b" not in result.stdout
    assert result.stdout.count("downloaded shard_") == 3
    meta = read_meta(tmp_path)
    assert meta["source"] == "climbmix, 2 shards" and meta["fingerprint"] == read_meta(done)["fingerprint"]


def test_killed_download_is_not_complete(hub, tmp_path):
    hub.faults = ["stalled"] * 3
    arguments = [sys.executable, SCRIPT, "--source", "climbmix", "--shards", "2", "--data-dir", tmp_path]
    shards = tmp_path / "cpu" / "shards"
    process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL)
    wait_for(lambda: any(part.stat().st_size > 1000 for part in shards.glob("*.part")), process)
    process.kill()
    process.wait()
    assert not list(shards.glob("*.parquet"))
    hub.requests.clear()
    hub.faults.clear()
    assert_complete(download(shards), hub.folder)
    assert any("Range" in headers for _, headers in hub.requests)


def test_no_such_file(hub, tmp_path):
    result = command("--source", "climbmix", "--shards", "9", "--data-dir", tmp_path)
    assert_refused(result, "HTTP 404", "check HF_ENDPOINT and --shards", "shard_0000")


def test_access_denied(hub, refused, tmp_path):
    hub.faults = [401] * 9
    refused("--source", "climbmix", "--data-dir", tmp_path, words=["HTTP 401", "HF_TOKEN"])


def test_no_network(hub, refused, tmp_path, monkeypatch):
    hub.shutdown()
    hub.server_close()
    refused("--source", "climbmix", "--data-dir", tmp_path, words=["refused", "check the network", "run again"])
    monkeypatch.setenv("HF_ENDPOINT", "http://no-such-host.invalid")
    refused("--source", "climbmix", "--data-dir", tmp_path, words=["no-such-host.invalid", "check the network"])
    for nonsense in ("huggingface.co", "http://x:y", "ftp://x"):
        monkeypatch.setenv("HF_ENDPOINT", nonsense)
        refused("--source", "climbmix", "--data-dir", tmp_path, words=[f"HF_ENDPOINT={nonsense}", "https://"])


# -----------------------------------------------------------------------------
# Documents


def test_validation_documents_are_never_training_documents(texts, tmp_path):
    files = [
        write_parquet(tmp_path / "a.parquet", [*texts[:300], *texts[:50], "", " \n", None]),
        write_parquet(tmp_path / "b.parquet", texts[200:400]),
    ]
    train, val = list(documents(files, "train")), list(documents(files, "val"))
    assert sorted(train + val) == sorted(texts[:400])
    assert 5 < len(val) < 40
    # The side of a document does not depend on what else there is.
    assert set(documents(files[1:], "val")) == set(val) & set(texts[200:400])


def test_pinned_validation_file(texts, tmp_path):
    write_parquet(tmp_path / PIN, [*texts[:100], texts[0]])
    write_parquet(tmp_path / "a.parquet", texts[50:400])
    files = prepare_data.source_files(str(tmp_path), 0, 1, tmp_path)
    assert list(documents(files, "val")) == texts[:100]
    assert list(documents(files, "train")) == texts[100:400]


def test_plain_text_and_json_lines(tmp_path):
    lines = "".join(f"line {i} äöü\n" for i in range(20_000)) + "x" * 100_000
    (tmp_path / "a.txt").write_text(lines)
    pieces = list(prepare_data.read_documents(tmp_path / "a.txt"))
    assert "".join(pieces) == lines and max(map(len, pieces)) <= prepare_data.DOCUMENT_CHARS
    assert all(piece.endswith("\n") for piece in pieces[:3])
    (tmp_path / "b.jsonl").write_text('{"text": "one"}\n{"text": "half a pair \\ud800"}\n')
    assert list(prepare_data.read_documents(tmp_path / "b.jsonl")) == ["one", "half a pair ?"]
    assert len(prepare_data.source_files(str(tmp_path), 0, 1, tmp_path)) == 2


def test_endless_document(tokenizer, tmp_path):
    text = "x" + " " * 1_000_000 + "x"  # in one piece it overflows the stack of tiktoken's regular expression
    files = [write_parquet(tmp_path / "a.parquet", [text])]
    pieces = list(documents(files, "train")) + list(documents(files, "val"))
    assert "".join(pieces) == text
    assert "".join(tokenizer.decode(tokenizer.encode(piece)) for piece in pieces) == text


# -----------------------------------------------------------------------------
# Tokenizer


@pytest.fixture(scope="session")
def tokenizer(prepared) -> Tokenizer:
    return Tokenizer.from_directory()


def test_tokenizer_roundtrip(tokenizer, tmp_path):
    texts = ["def f(x):\n    return x\n", "Grüße, 世界 🎈", f"1234567 {BOS} not special in text", ""]
    tokenizer.save(tmp_path / "tokenizer.json")
    for other in (tokenizer, Tokenizer.load(tmp_path / "tokenizer.json")):
        for text, ids in zip(texts, other.encode(texts), strict=True):
            assert ids == other.encode(text) and other.decode(ids) == text
            assert other.encode_document(text).tolist() == [other.get_bos_token_id(), *ids]
    assert tokenizer.get_vocab_size() == 1024 and tokenizer.get_bos_token_id() == 1023
    assert tokenizer.decode([1023]) == BOS


def test_token_bytes_are_raw_bytes(tokenizer):
    sizes = tokenizer.token_bytes()
    assert sizes.shape == (1024,) and sizes[1023] == 0 and sizes[:1023].min() == 1
    text = "Grüße, 世界 🎈 and some more"  # cut inside characters, whose decoded halves would count three bytes each
    assert sizes[tokenizer.encode(text)].sum() == len(text.encode())


def test_numbers_have_at_most_two_digits_per_token(tokenizer):
    assert not [token for token in tokenizer.ranks if re.search(rb"\d{3}", token)]


# -----------------------------------------------------------------------------
# Packing

START = 0  # stands for BOS; all other tokens of these documents are different numbers


def numbered_documents(lengths) -> list[np.ndarray]:
    ends = np.cumsum(lengths)
    return [np.array([START, *range(end - length + 1, end + 1)]) for length, end in zip(lengths, ends, strict=True)]


@pytest.mark.parametrize("pool_size", [1, 50, 4096])
@pytest.mark.parametrize("row_length", [3, 129, 1025])
@pytest.mark.parametrize("longest", [20, 300, 20_000])
def test_every_token_is_a_target_once(row_length, longest, pool_size):
    generator = np.random.default_rng(row_length + longest)
    lengths = generator.integers(1, longest, max(10, 60_000 // longest)).tolist()
    packed = numbered_documents(lengths)
    rows = np.concatenate([*pack_rows(iter(packed), row_length, pool_size), np.empty((0, row_length), np.int64)])
    targets = rows[:, 1:][rows[:, 1:] != START]
    assert len(set(targets)) == len(targets)
    assert sum(lengths) - row_length <= len(targets) <= sum(lengths)
    # A row opens with BOS, or goes on with the token that ended the row before it.
    opening = rows[:, 0]
    assert np.all((opening[1:] == START) | (opening[1:] == rows[:-1, -1])) and opening[0] == START
    # And each target follows the token that it followed in its document.
    before = {int(b): int(a) for document in packed for a, b in itertools.pairwise(document)}
    context = rows[:, :-1][rows[:, 1:] != START]
    assert [before[target] for target in targets.tolist()] == context.tolist()


def test_prepared_rows_hold_the_text(done, folder):
    tokenizer = Tokenizer.load(done / "cpu" / "tokenizer.json")
    meta = read_meta(done)
    for split in ("train", "val"):
        texts = set(documents(prepare_data.source_files(str(folder), 0, 1, folder), split))
        assert meta[split]["documents"] == len(texts)
        assert meta[split]["bytes"] == sum(len(text.encode()) for text in texts)
        rows = np.fromfile(done / "cpu" / f"{split}.bin", np.uint16).reshape(-1, MAX_SEQ_LEN + 1)
        assert len(rows) == meta[split]["rows"]
        if split == "train":  # of val, only so many rows are kept
            assert meta[split]["tokens"] - len(rows) * MAX_SEQ_LEN < 0.01 * meta[split]["tokens"]
            targets = rows[:, 1:]
            text_bytes = tokenizer.token_bytes()[targets].sum()
            assert 0 <= meta[split]["bytes"] - text_bytes < 2000


# -----------------------------------------------------------------------------
# The prepared folder


def read_meta(data: Path) -> dict:
    return json.loads((data / "cpu" / "meta.json").read_text())


def wait_for(condition, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.002)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "number"),
    [
        (".", signal.SIGKILL),
        ("tokenizer.from", signal.SIGKILL),
        ("train.bin.unshuffled", signal.SIGKILL),
        ("train.bin.unshuffled", signal.SIGINT),
    ],
)
def test_interrupted_run_goes_on(folder, done, tmp_path, stage, number):
    arguments = ["--source", folder, "--data-dir", tmp_path]
    process = subprocess.Popen([sys.executable, SCRIPT, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    wait_for((tmp_path / "cpu" / stage).exists, process)
    process.send_signal(number)
    _, errors = process.communicate()
    if number == signal.SIGINT:
        assert process.returncode == 2 and errors == b"error: interrupted; run again to go on\n"
    else:
        assert process.returncode == -number
    assert not (tmp_path / "cpu" / "meta.json").exists()
    result = command(*arguments)
    assert ("tokenizer" not in result.stdout) == (stage != ".")
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
        assert prepare_data.fingerprint(done / "cpu") == meta["fingerprint"]
        path = done / "cpu" / name
        content = path.read_bytes()
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        assert prepare_data.fingerprint(done / "cpu") != meta["fingerprint"]
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


@pytest.mark.parametrize("line", ["not json", '{"content": 1}', '{"text": null}', "[]"])
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


@pytest.mark.parametrize(("name", "value"), [("AUTORESEARCH_SCALE", "b200"), ("AUTORESEARCH_SEED", "x")])
def test_bad_environment(name, value):
    assert_refused(command(env=os.environ | {name: value}), f"{name}={value}")


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


# -----------------------------------------------------------------------------
# Batches


def test_batches(tokenizer):
    loader = make_dataloader(tokenizer, 8, MAX_SEQ_LEN, "train")
    again = make_dataloader(tokenizer, 8, MAX_SEQ_LEN, "train")
    rows = prepare_data.load_rows("train")
    for number in range(3):
        inputs, targets, epoch = next(loader)
        assert inputs.shape == targets.shape == (8, MAX_SEQ_LEN) and epoch == 1
        assert inputs.dtype == targets.dtype == torch.int64
        expected = torch.tensor(rows[8 * number : 8 * number + 8].astype(np.int64))
        assert torch.equal(inputs.cpu(), expected[:, :-1]) and torch.equal(targets.cpu(), expected[:, 1:])
        assert torch.equal(inputs, next(again)[0])


@pytest.mark.parametrize("T", [MAX_SEQ_LEN, MAX_SEQ_LEN // 4])
def test_epochs_and_shorter_rows(tokenizer, T):
    rows = prepare_data.load_rows("val")
    B = 100
    per_epoch = len(rows) * (MAX_SEQ_LEN // T) // B
    batches = list(itertools.islice(make_dataloader(tokenizer, B, T, "val"), 2 * per_epoch + 1))
    assert [epoch for _, _, epoch in batches] == [1] * per_epoch + [2] * per_epoch + [3]
    targets = torch.cat([targets for _, targets, _ in batches[:per_epoch]]).cpu().numpy()
    expected = rows[:, 1:].reshape(-1, T)[: len(targets)]
    assert targets.shape == (per_epoch * B, T) and np.array_equal(targets, expected)
    assert torch.equal(batches[0][1], batches[per_epoch][1])


def test_impossible_batches(tokenizer):
    for B, T in ((1, 100), (1, 2 * MAX_SEQ_LEN), (10_000, MAX_SEQ_LEN)):
        with pytest.raises(AssertionError, match=r"T=|B="):
            next(make_dataloader(tokenizer, B, T, "val"))


# -----------------------------------------------------------------------------
# Metric

VOCAB = 1024


class Model(torch.nn.Module):
    """A random table of bigram logits, put through `change(logits, inputs)`."""

    def __init__(self, change=lambda logits, inputs: logits, scale=1.0):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.table = torch.nn.Parameter(scale * torch.randn(VOCAB, VOCAB, generator=generator))
        self.change = change

    def forward(self, inputs):
        return self.change(self.table[inputs], inputs)


@pytest.mark.slow
def test_bpb_is_what_it_says(tokenizer):
    table = Model().table.detach().numpy().astype(np.float64)
    log_probabilities = table - np.log(np.exp(table).sum(1, keepdims=True))
    nats, size = 0.0, 0
    for row in prepare_data.load_rows("val").astype(int):
        for context, target in itertools.pairwise(row.tolist()):
            if target != tokenizer.get_bos_token_id():
                nats -= log_probabilities[context, target]
                size += len(tokenizer.encoding.decode_single_token_bytes(target))
    for batch_size in (1, 100, 100_000):
        assert evaluate_bpb(Model(), tokenizer, batch_size) == pytest.approx(nats / math.log(2) / size, rel=1e-7)


@pytest.mark.slow
def test_uniform_model(tokenizer):
    targets = prepare_data.load_rows("val")[:, 1:]
    tokens = np.sum(targets != tokenizer.get_bos_token_id())
    expected = math.log2(VOCAB) * tokens / tokenizer.token_bytes()[targets].sum()
    assert evaluate_bpb(Model(scale=0), tokenizer, 64) == pytest.approx(expected, rel=1e-7)
    # A vocabulary padded to a rounder size is allowed.
    padded = Model(lambda logits, inputs: torch.nn.functional.pad(logits, (0, 64), value=-math.inf), scale=0)
    assert evaluate_bpb(padded, tokenizer, 64) == pytest.approx(expected, rel=1e-7)


def next_token(logits, inputs):
    return logits + 10 * torch.nn.functional.one_hot(inputs.roll(-1, 1), VOCAB)


def first_sees_last(logits, inputs):
    return torch.cat((logits[:, :1] + logits[:, -1:], logits[:, 1:]), 1)


def mean_of_all(logits, inputs):
    return logits + logits.mean(1, keepdim=True)


def far_ahead(logits, inputs):
    return logits + 0.3 * logits.roll(-MAX_SEQ_LEN // 2, 1)


@pytest.mark.parametrize("batch_size", [1, 16])
@pytest.mark.parametrize("leak", [next_token, first_sees_last, mean_of_all, far_ahead])
def test_model_that_looks_ahead(tokenizer, leak, batch_size):
    with pytest.raises(ValueError, match="not causal"):
        evaluate_bpb(Model(leak), tokenizer, batch_size)


def nan_everywhere(logits, inputs):
    return logits * math.nan


def nan_for_some_token(logits, inputs):
    return torch.where(inputs[..., None] == 1000, math.nan, logits)


def infinite(logits, inputs):
    return logits + math.inf


@pytest.mark.parametrize("change", [nan_everywhere, nan_for_some_token, infinite])
def test_logits_that_are_not_finite(tokenizer, change):
    with pytest.raises(ValueError, match="not finite"):
        evaluate_bpb(Model(change), tokenizer, 32)


@pytest.mark.parametrize(
    "change",
    [
        lambda logits, inputs: logits[:, :, :-1],
        lambda logits, inputs: logits[:, :-1],
        lambda logits, inputs: logits.mean(),
        lambda logits, inputs: logits.flatten(0, 1),
        lambda logits, inputs: (logits, None),
    ],
)
def test_logits_of_another_shape(tokenizer, change):
    with pytest.raises(ValueError, match="the logits are"):
        evaluate_bpb(Model(change), tokenizer, 32)


# -----------------------------------------------------------------------------
# The clock of the cpu scale


def busy(seconds: float) -> float:
    """Work for so much CPU time. Returns what the training clock says that it was."""
    before, until = prepare_data.training_clock(), time.process_time() + seconds
    while time.process_time() < until:
        prepare_data.training_clock()
    return prepare_data.training_clock() - before


def test_the_clock_counts_work_and_no_waiting():
    worked, before = busy(1.0), prepare_data.training_clock()
    time.sleep(0.5)
    assert prepare_data.training_clock() - before < 0.2
    assert 0.02 < worked < 20  # of a machine that much slower or faster than the one that a second is named after
    readings = [prepare_data.training_clock() for _ in range(1000)]
    assert readings == sorted(readings)


def test_where_the_same_work_takes_longer_the_clock_runs_slower(monkeypatch):
    normal = busy(1.0)
    monkeypatch.setattr(prepare_data, "PACE_SECONDS", prepare_data.PACE_SECONDS / 3)
    prepare_data.pace["looked"] = -1.0
    assert busy(1.0) == pytest.approx(normal / 3, rel=0.5)
