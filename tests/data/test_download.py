"""autoresearch/data/download.py: a real HTTP server on this machine."""

import email.utils
import ssl
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx2
import pytest
from data_helpers import SCRIPT, assert_refused, command, read_meta, wait_for

from autoresearch.data.download import (
    LAST_SHARD,
    PINNED_TEST_FILE,
    PINNED_VAL_FILE,
    TEST_SHARD,
    download_shards,
    seconds_asked,
)
from autoresearch.text import BadInput


def download(directory: Path, shards: int = 2) -> list[Path]:
    return download_shards(directory, [*range(shards), LAST_SHARD, TEST_SHARD], workers=1)


def assert_complete(paths: list[Path], folder: Path) -> None:
    assert [path.name for path in paths] == [
        "shard_00000.parquet",
        "shard_00001.parquet",
        PINNED_VAL_FILE,
        PINNED_TEST_FILE,
    ]
    assert all(path.read_bytes() == (folder / path.name).read_bytes() for path in paths)
    assert sorted(paths[0].parent.iterdir()) == sorted(paths)


def test_download_once(hub, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "secret\n")
    assert_complete(download(tmp_path), hub.folder)
    assert [headers["Authorization"] for _, headers in hub.requests] == ["Bearer secret"] * 4
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
    assert len(hub.requests) == 4 + len(faults)
    resumed = [headers["Range"] for _, headers in hub.requests if "Range" in headers]
    assert len(resumed) == (len(faults) if "truncated" in faults else 0)


@pytest.mark.parametrize("fault", [None, "no range"])
def test_partial_file_is_resumed(hub, tmp_path, fault):
    whole = (hub.folder / "shard_00000.parquet").read_bytes()
    (tmp_path / "shard_00000.parquet.part").write_bytes(whole[:1000])
    hub.faults = [fault]
    assert_complete(download(tmp_path), hub.folder)
    assert hub.requests[0][1]["Range"] == "bytes=1000-"


@pytest.mark.parametrize(("extra", "requests"), [(b"", 4), (b"too long", 5)])
def test_partial_file_with_nothing_missing(hub, tmp_path, extra, requests):
    whole = (hub.folder / "shard_00000.parquet").read_bytes()
    (tmp_path / "shard_00000.parquet.part").write_bytes(whole + extra)
    assert_complete(download(tmp_path), hub.folder)
    assert len(hub.requests) == requests


@pytest.mark.slow
def test_climbmix_from_the_command_line(hub, tmp_path, done):
    result = command("--source", "climbmix", "--shards", "2", "--data-dir", tmp_path)
    assert result.returncode == 0 and result.stderr == "" and "\x1b" not in result.stdout
    assert result.stdout.count("downloaded shard_") == 4
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


@pytest.mark.slow
@pytest.mark.parametrize(
    "headers",
    [{"Retry-After": "1"}, {"RateLimit": '"api";r=0;t=1'}, {"Retry-After": "in a while"}],
)
def test_a_hub_that_counts_requests_is_obeyed(hub, tmp_path, headers, capsys):
    hub.faults = [headers] * 4  # more than there are other attempts
    started = time.monotonic()
    assert_complete(download(tmp_path), hub.folder)
    assert "HTTP 429, too many requests" in capsys.readouterr().out
    assert time.monotonic() - started > (0 if "while" in str(headers) else 4)


def test_a_date_to_wait_for_is_understood():
    date = email.utils.format_datetime(datetime.now(UTC) + timedelta(seconds=100))
    assert 98 < seconds_asked(httpx2.Response(429, headers={"Retry-After": date})) < 101
    assert seconds_asked(httpx2.Response(429)) == 300


def test_later_files_are_of_the_revision_of_the_first(hub, tmp_path):
    hub.revisions = ["aaaa", "bbbb"]
    paths = download(tmp_path, 2)
    assert [path.read_bytes() for path in paths] == [(hub.folder / path.name).read_bytes() for path in paths]
    assert (tmp_path / "revision").read_text() in hub.revisions


def test_what_is_not_the_file_is_fetched_again(hub, tmp_path):
    hub.revisions = ["aaaa"]
    (tmp_path / "shard_00000.parquet.part").write_bytes(b"PAR1 of another revision")
    hub.faults = [None, "a page"]
    paths = download(tmp_path, 2)
    assert [path.read_bytes() for path in paths] == [(hub.folder / path.name).read_bytes() for path in paths]
    hub.faults = ["a page"] * 3
    with pytest.raises(BadInput, match="what came is no parquet file"):
        download_shards(tmp_path / "other", [0], workers=1)


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        ("ALL_PROXY", "socks5://127.0.0.1:1", "socksio"),
        ("HTTPS_PROXY", "nonsense://127.0.0.1:1", "nonsense"),
        ("HTTP_PROXY", "http://127.0.0.1:port", "port"),
        ("SSL_CERT_FILE", "/no/such/file.pem", "SSL_CERT_FILE"),
        ("HF_TOKEN", "hf_\u00e9", "ascii"),
    ],
)
def test_what_cannot_be_set_up_is_one_line(hub, refused, tmp_path, monkeypatch, variable, value, words):
    monkeypatch.setenv(variable, value)
    refused("--source", "climbmix", "--data-dir", tmp_path, words=["no connection can be set up", words])


def test_a_proxy_that_is_not_there_is_named(hub, refused, tmp_path, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "http://user:secret@127.0.0.1:1")
    monkeypatch.setenv("HF_ENDPOINT", "http://hub.invalid")
    refused("--source", "climbmix", "--data-dir", tmp_path, words=["check the network, HTTP_PROXY, ", "HF_ENDPOINT"])


def test_a_certificate_that_nobody_signed_ends_it_at_once(refused, tmp_path, monkeypatch):
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    subprocess.run([*command, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server = ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", f"https://localhost:{server.server_port}")
    refused("--source", "climbmix", "--data-dir", tmp_path / "data", words=["CERTIFICATE", "set SSL_CERT_FILE"])
    server.shutdown()
    server.server_close()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_one_line(hub, refused, tmp_path):
    shards = tmp_path / "cpu/shards"
    shards.mkdir(parents=True)
    (shards / "shard_00000.parquet.part").symlink_to("/dev/full")
    refused("--source", "climbmix", "--data-dir", tmp_path, words=["No space left on device", "make room"])
