"""
Download climbmix: its first training shards and a pinned one each for validation and test, from the Hugging Face hub.

HF_ENDPOINT names another hub, HF_TOKEN is sent to it.
"""

import email.utils
import hashlib
import os
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import httpx2
from rich.progress import Progress, TaskID

from autoresearch.data.progress import progress_bars
from autoresearch.files import replace_file
from autoresearch.text import BadInput

HF_DATASET = "karpathy/climbmix-400b-shuffle"
LAST_SHARD = 6542
TEST_SHARD = LAST_SHARD - 1
PINNED_VAL_FILE, PINNED_TEST_FILE = (f"shard_{number:05d}.parquet" for number in (LAST_SHARD, TEST_SHARD))
RETRY_WAITS = (1, 2, 5, 15)  # seconds before each further attempt at a download
BUSY_WAIT, MOST_BUSY = 300.0, 12  # seconds that a hub counts requests over, if it does not say how long; waits in all


def download_shards(directory: Path, numbers: list[int], workers: int) -> list[Path]:
    """Fetch shards of climbmix into `directory`, by number. Finished files are kept, a partial one is resumed."""
    directory.mkdir(parents=True, exist_ok=True)
    paths = [directory / f"shard_{i:05d}.parquet" for i in numbers]
    missing = [path for path in paths if not path.exists()]
    stopped = threading.Event()
    with (
        make_client() as client,
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


def make_client() -> httpx2.Client:
    """A client by the environment's proxies and certificates. Raises BadInput where they are no good."""
    token = os.environ.get("HF_TOKEN", "").strip()
    headers = {"Accept-Encoding": "identity"} | ({"Authorization": f"Bearer {token}"} if token else {})
    try:
        return httpx2.Client(headers=headers, follow_redirects=True, timeout=15)
    except (ImportError, ValueError, OSError, httpx2.InvalidURL) as error:
        problem = " ".join(str(error).split())
        raise BadInput(f"no connection can be set up ({problem}); check {settings_of_the_network()}") from error


def settings_of_the_network() -> str:
    """The variables that decide on a connection, those first that are set."""
    names = [name for name in os.environ if re.fullmatch(r"(?i)(https?|all)_proxy|SSL_CERT_(FILE|DIR)", name)]
    return ", ".join([*sorted(names), "HF_ENDPOINT"])


def download_file(client: httpx2.Client, path: Path, progress: Progress, stopped: threading.Event) -> None:
    """Fetch one shard to `path` with retries; bytes land in path.part, which is renamed when it is complete."""
    endpoint = os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
    pinned = path.with_name("revision")
    bar = progress.add_task(path.name, total=None)
    waits: list[float] = [*RETRY_WAITS]
    busy = 0
    while True:
        revision = pinned.read_text() if pinned.exists() else "main"
        url = f"{endpoint.rstrip('/')}/datasets/{HF_DATASET}/resolve/{revision}/{path.name}"
        wait = waits[0] if waits else None
        try:
            fetch_once(client, url, path, progress, bar, stopped)
            progress.remove_task(bar)
            return progress.print(f"downloaded {path.name}")
        except httpx2.HTTPStatusError as error:
            status = error.response.status_code
            problem = f"HTTP {status}"
            if status == 429 and busy < MOST_BUSY:
                busy, wait, waits = busy + 1, seconds_asked(error.response), [0, *waits]
                problem += f", too many requests: going on in {wait:.0f} s; a token in HF_TOKEN raises the limit"
                progress.print(f"{path.name}: {problem}")
            elif status not in (408, 429) and status < 500:
                way_out = "set HF_TOKEN" if status in (401, 403) else "check HF_ENDPOINT and --shards"
                raise BadInput(f"{url}: {problem}; {way_out}") from error
        except (httpx2.InvalidURL, httpx2.UnsupportedProtocol) as error:
            raise BadInput(f"HF_ENDPOINT={endpoint}: {error}; give an http:// or https:// address") from error
        except httpx2.HTTPError as error:
            problem = " ".join(str(error).split()) or type(error).__name__
            if "CERTIFICATE" in problem.upper():
                bundle = "set SSL_CERT_FILE to the certificates of your proxy, or install ca-certificates"
                raise BadInput(f"{url}: {problem}; {bundle}") from error
        progress.update(bar, description=f"{path.name}: {problem}, trying again")
        if wait is None or stopped.wait(wait):
            break
        del waits[0]
    raise BadInput(f"{url}: {problem}; check the network, {settings_of_the_network()}, then run again to go on")


def seconds_asked(response: httpx2.Response) -> float:
    """Return how long a hub that counts requests wants us to wait, by its headers."""
    after, window = response.headers.get("retry-after", ""), response.headers.get("ratelimit", "")
    if seconds := re.fullmatch(r"\s*(\d+)\s*", after) or re.search(r"\bt=(\d+)", window):
        return float(seconds[1])
    try:
        return max(0.0, email.utils.parsedate_to_datetime(after).timestamp() - time.time())
    except ValueError:
        return BUSY_WAIT


def fetch_once(
    client: httpx2.Client, url: str, path: Path, progress: Progress, bar: TaskID, stopped: threading.Event
) -> None:
    """One request: the whole file, or the rest of it where a .part holds a beginning."""
    part = path.with_name(path.name + ".part")
    have = part.stat().st_size if part.exists() else 0
    with client.stream("GET", url, headers={"Range": f"bytes={have}-"} if have else {}) as response:
        told = {name: value for each in [*response.history, response] for name, value in each.headers.items()}
        if response.status_code != 416:
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
                raise httpx2.ReadError(f"got {part.stat().st_size:,} of {total:,} bytes")
        elif response.headers.get("content-range") != f"bytes */{have}":  # there is more than the whole
            part.unlink()
            raise httpx2.ReadError("the partial file did not match and was dropped")
    check_part(part, told)
    if commit := told.get("x-repo-commit"):  # what is fetched later is of the same revision
        replace_file(path.with_name("revision"), commit)
    part.replace(path)


def check_part(part: Path, told: dict[str, str]) -> None:
    """Drop a file that is not what the hub says of it, or no parquet file. Raises ReadError: it is fetched again."""
    hashed = re.fullmatch(r'"?([0-9a-f]{64})"?', told.get("x-linked-etag", ""))
    with open(part, "rb") as file:
        begins = file.read(4)
        file.seek(0)
        same = not hashed or hashlib.file_digest(file, "sha256").hexdigest() == hashed[1]
    if begins != b"PAR1" or not same:
        part.unlink()
        reason = "its hash is not the one that the hub tells" if begins == b"PAR1" else "what came is no parquet file"
        raise httpx2.ReadError(f"{reason}; it was dropped")
