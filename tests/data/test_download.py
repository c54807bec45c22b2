"""autoresearch/data/download.py: a real HTTP server on this machine."""

import subprocess
import sys
from pathlib import Path

import pytest
from data_helpers import SCRIPT, assert_refused, command, read_meta, wait_for

from autoresearch.data.download import LAST_SHARD, PINNED_TEST_FILE, PINNED_VAL_FILE, TEST_SHARD, download_shards


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
