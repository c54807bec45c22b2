"""
Download climbmix: its first training shards and a pinned one each for validation and test, from the Hugging Face hub.

HF_ENDPOINT names another hub, HF_TOKEN is sent to it.
"""

import os
import threading
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import httpx
from rich.progress import Progress, TaskID

from autoresearch.data.progress import progress_bars
from autoresearch.text import BadInput

HF_DATASET = "karpathy/climbmix-400b-shuffle"
LAST_SHARD = 6542
TEST_SHARD = LAST_SHARD - 1
PINNED_VAL_FILE, PINNED_TEST_FILE = (f"shard_{number:05d}.parquet" for number in (LAST_SHARD, TEST_SHARD))
RETRY_WAITS = (1, 2, 5, 15)  # seconds before each further attempt at a download


def download_shards(directory: Path, numbers: list[int], workers: int) -> list[Path]:
    """Fetch shards of climbmix into `directory`, by number. Finished files are kept, a partial one is resumed."""
    directory.mkdir(parents=True, exist_ok=True)
    paths = [directory / f"shard_{i:05d}.parquet" for i in numbers]
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


def download_file(client: httpx.Client, path: Path, progress: Progress, stopped: threading.Event) -> None:
    """Fetch one shard to `path` with retries; bytes land in path.part, which is renamed when it is complete."""
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


def fetch_once(
    client: httpx.Client, url: str, path: Path, progress: Progress, bar: TaskID, stopped: threading.Event
) -> None:
    """One request: the whole file, or the rest of it where a .part holds a beginning."""
    part = path.with_name(path.name + ".part")
    have = part.stat().st_size if part.exists() else 0
    with client.stream("GET", url, headers={"Range": f"bytes={have}-"} if have else {}) as response:
        if response.status_code == 416:  # nothing after what we have: either that is all, or not of this file
            if response.headers.get("content-range") == f"bytes */{have}":
                part.replace(path)
                return
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
