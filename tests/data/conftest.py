"""What the tests of the data share: text, a hub that serves it, a folder prepared from it, and the tokenizer."""

import hashlib
import re
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from data_helpers import assert_refused, command, write_parquet

import prepare_data
from autoresearch.data import download
from autoresearch.data.documents import stdlib_files
from prepare_data import Tokenizer

torch.set_num_threads(1)  # two are slower than one where anything else runs

# -----------------------------------------------------------------------------
# Text


@pytest.fixture(scope="session")
def texts() -> list[str]:
    """1500 distinct documents of about 2 KB."""
    whole = "".join(path.read_text(errors="replace") for path in stdlib_files()[:250])
    return [whole[start : start + 2000] for start in range(0, 1500 * 2000, 2000)]


@pytest.fixture(scope="session")
def folder(texts, tmp_path_factory) -> Path:
    """A source of the user's own: two parquet files and two pinned ones."""
    folder = tmp_path_factory.mktemp("corpus")
    write_parquet(folder / "shard_00000.parquet", texts[:600])
    write_parquet(folder / "shard_00001.parquet", texts[600:1200])
    write_parquet(folder / download.PINNED_VAL_FILE, texts[1200:1400])
    write_parquet(folder / download.PINNED_TEST_FILE, [*texts[1400:], *texts[:50], *texts[1200:1210]])
    return folder


# -----------------------------------------------------------------------------
# Hub


class Hub(BaseHTTPRequestHandler):
    """Serves server.folder as the dataset, with Range; the next fault in server.faults is played first."""

    def do_GET(self):
        server, name = self.server, Path(self.path).name
        server.requests.append((name, self.headers))
        fault = server.faults.pop(0) if server.faults else None
        file = server.folder / name
        revisions = "|".join(["main", *server.revisions])
        if not re.match(rf"/datasets/{download.HF_DATASET}/resolve/({revisions})/", self.path) or not file.exists():
            return self.send_error(404)
        if isinstance(fault, int):
            return self.send_error(fault)
        if isinstance(fault, dict):  # headers of a 429
            self.send_response(429)
            for header, value in (fault | {"Content-Length": "0"}).items():
                self.send_header(header, value)
            return self.end_headers()
        body = file.read_bytes() if fault != "a page" else b"<html>please log in</html>"
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        start = int(asked[1]) if asked and fault != "no range" else 0
        if start >= len(body):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(body)}")
            return self.end_headers()
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body) - start))
        if server.revisions:
            server.revisions.append(server.revisions.pop(0))  # it is changed after each file
            self.send_header("X-Repo-Commit", server.revisions[-1])
            self.send_header("X-Linked-Etag", f'"{hashlib.sha256(file.read_bytes()).hexdigest()}"')
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
    server.revisions = []
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(download, "RETRY_WAITS", (0.01, 0.01))
    monkeypatch.setattr(download, "BUSY_WAIT", 0.01)
    yield server
    server.released.set()
    server.shutdown()
    server.server_close()


# -----------------------------------------------------------------------------
# Prepared data


@pytest.fixture(scope="session")
def done(folder, tmp_path_factory) -> Path:
    """A --data-dir in which `folder` was prepared without interruption."""
    data = tmp_path_factory.mktemp("done")
    assert command("--source", folder, "--data-dir", data).returncode == 0
    return data


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


@pytest.fixture(scope="session")
def tokenizer(prepared) -> Tokenizer:
    return Tokenizer.from_directory()
