"""
Data, tokenizer, batches and the metric: everything that train.py is measured with. Do not edit it during a search.

    python prepare_data.py                        # climbmix on a GPU machine, the standard library's sources on others
    python prepare_data.py --shards 20            # more of climbmix than the default 10 shards
    python prepare_data.py --source ~/my_corpus   # your own folder of .parquet, .txt, .md or .jsonl files

Run once as a script, it downloads text, trains a BPE tokenizer, and packs the tokens into rows of MAX_SEQ_LEN + 1 in
~/.cache/autoresearch/<scale>/. Run again, it goes on where it stopped. autoresearch/data/ does that work. Imported by
train.py, this file serves those rows as batches, and hands the trained model over to the scorer
(autoresearch/judge/scorer.py), which makes its number: bits per byte of the validation rows.

Environment: AUTORESEARCH_SCALE (h100 or cpu), _SEED, _BUDGET (seconds of training), _STEPS (train this many instead),
_DATA_DIR; HF_ENDPOINT and HF_TOKEN. The loop sets AUTORESEARCH_RECORD and _START_LIMIT: see docs/development.md.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import itertools
import json
import math
import os
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

import numpy as np
import tiktoken

# Imported where they are used: torch, which takes seconds, and autoresearch, which a sandboxed run does not see.
if TYPE_CHECKING:
    import torch
    from torch import Tensor

# -----------------------------------------------------------------------------
# Constants


def fail(message: str) -> NoReturn:
    """End the program with one line on stderr and exit code 2: the mistake is the user's to fix."""
    print(f"error: {message}", file=sys.stderr)
    raise SystemExit(2)


class Scale(NamedTuple):
    max_seq_len: int  # T, tokens of context
    vocab_size: int  # including the one special token
    time_budget: int  # seconds of training
    val_tokens: int  # validation tokens scored, or all there are
    source: str  # where the text comes from unless --source says otherwise


SCALES = {
    "h100": Scale(2048, 8192, 300, 20_971_520, "climbmix"),
    "cpu": Scale(128, 1024, 20, 65_536, "stdlib"),
}


def choose_scale() -> str:
    """The scale named by AUTORESEARCH_SCALE, else h100 where CUDA is there and cpu where there is no NVIDIA GPU."""
    name = os.environ.get("AUTORESEARCH_SCALE")
    if not name:
        from autoresearch.run.gpu import default_scale

        return default_scale()
    if name not in SCALES:
        fail(f"AUTORESEARCH_SCALE={name} is not a scale; use one of: {', '.join(SCALES)}")
    return name


def env_int(name: str, default: int) -> int:
    """The whole number in environment variable `name`."""
    text = os.environ.get(name) or str(default)
    if not text.isdecimal():
        fail(f"{name}={text} is not a whole number")
    return int(text)


SCALE = choose_scale()
MAX_SEQ_LEN = SCALES[SCALE].max_seq_len
TIME_BUDGET = env_int("AUTORESEARCH_BUDGET", SCALES[SCALE].time_budget)  # seconds of training
SEED = env_int("AUTORESEARCH_SEED", 42)
STEPS = env_int("AUTORESEARCH_STEPS", 0)  # 0: the time budget decides
DATA_ROOT = Path(os.path.expanduser(os.environ.get("AUTORESEARCH_DATA_DIR") or "~/.cache/autoresearch")).resolve()
if "~" in DATA_ROOT.parts:  # a user without a home, as in a container
    fail("there is no home folder to put the prepared data into; set AUTORESEARCH_DATA_DIR")
DATA_DIR = DATA_ROOT / SCALE
FORMAT = 1  # of the prepared folder; raised when its files change their meaning
BOS = "<|bos|>"

# -----------------------------------------------------------------------------
# Prepared folder: meta.json and the tokenizer


def read_meta(directory: Path | None = None, scale: str = SCALE) -> dict[str, Any]:
    """meta.json of a prepared folder. One that is missing, of another scale or of another version ends the program."""
    directory = directory or DATA_DIR
    path = directory / "meta.json"
    again = f"run: python prepare_data.py --scale {scale} --data-dir {directory.parent}"
    if not path.exists():
        fail(f"no prepared data in {directory}; {again}")
    try:
        meta = json.loads(path.read_text())
    except ValueError:
        fail(f"{path} is damaged; delete it and {again}")
    if meta.get("format") != FORMAT:
        fail(f"{directory} was prepared by another version (format {meta.get('format')}); delete {path} and {again}")
    if meta.get("scale") != scale:
        fail(f"{directory} was prepared for scale {meta.get('scale')}, not {scale}; delete {path} and {again}")
    return meta


class Tokenizer:
    """Byte-level BPE: tiktoken over the ranks of tokenizer.json (text, never a pickle)."""

    def __init__(self, pattern: str, ranks: list[bytes]):
        self.pattern, self.ranks = pattern, ranks
        self.bos = len(ranks)
        numbers = {token: rank for rank, token in enumerate(ranks)}
        self.encoding = tiktoken.Encoding(
            "autoresearch", pat_str=pattern, mergeable_ranks=numbers, special_tokens={BOS: self.bos}
        )

    @classmethod
    def from_directory(cls, directory: Path | str | None = None) -> Tokenizer:
        """Load tokenizer.json from a prepared folder, by default the one for this scale."""
        directory = Path(directory or DATA_DIR)
        read_meta(directory)
        return cls.load(directory / "tokenizer.json")

    @classmethod
    def load(cls, path: Path) -> Tokenizer:
        stored = json.loads(path.read_text())
        return cls(stored["pattern"], [base64.b64decode(token) for token in stored["ranks"]])

    def get_vocab_size(self) -> int:
        return self.encoding.n_vocab

    def get_bos_token_id(self) -> int:
        return self.bos

    def encode(self, text: str | list[str], num_threads: int = 8) -> list[int] | list[list[int]]:
        """Token ids of a text, or of each text of a list; no special tokens are added or recognized."""
        if isinstance(text, str):
            return self.encoding.encode_ordinary(text)
        return self.encoding.encode_ordinary_batch(text, num_threads=num_threads)

    def decode(self, ids: Iterable[int]) -> str:
        return self.encoding.decode(list(ids))

    def token_bytes(self) -> np.ndarray:
        """Raw bytes that each token stands for, (vocab_size,) int64; 0 for the special token."""
        return np.array([len(token) for token in self.ranks] + [0])


# -----------------------------------------------------------------------------
# Record: what this file saw of a run. The judge does not trust what a run prints.

RECORD = Path(os.environ["AUTORESEARCH_RECORD"]).absolute() if os.environ.get("AUTORESEARCH_RECORD") else None
START_LIMIT = env_int("AUTORESEARCH_START_LIMIT", 0)  # 0: none
AGAIN = 75  # the exit code that asks for another start
process_times, cpu_seconds = os.times, time.process_time  # bound here: a train.py might replace those
noted: dict[str, Any] = {"batches": 0, "training_tokens": 0}
pace = dict.fromkeys(("cpu", "spent", "looks", "looking", "looked", "seconds"), 0.0)  # the clock of the cpu scale
PACE_SECONDS = 0.026  # CPU time of look() on the machine that the cpu scale was made on
PACE_EVERY = 0.2  # CPU seconds between two looks at how fast the machine is now


def paced_seconds() -> float:
    """CPU time of this process, in seconds of the machine that the cpu scale was made on; 0 until look_at_pace().

    All of it by the mean of all looks: a ratio of sums, which neither bursts nor the noise of single looks move.
    """
    new = cpu_seconds() - pace["cpu"]
    pace["cpu"] += new
    pace["spent"] += new
    if pace["looks"]:
        rate = PACE_SECONDS * pace["looks"] / pace["looking"]
        pace["seconds"] = max(pace["seconds"] + 0.1 * rate * new, rate * pace["spent"])  # a slow look stops no clock
    return pace["seconds"]


@contextlib.contextmanager
def torch_as_it_is_at_first() -> Iterator[None]:
    """One thread and torch's first settings on a CPU: with those of train.py a look would be other work."""
    import torch

    deterministic: Any = torch.utils.deterministic  # a module with properties, unknown to its types
    backend: Any = torch.backends.mkldnn
    matmul = backend.matmul
    before = torch.get_num_threads(), torch.get_default_dtype(), matmul.fp32_precision
    fill = deterministic.fill_uninitialized_memory

    def use(threads: int, dtype: torch.dtype, precision: str, filled: bool) -> None:
        torch.set_num_threads(threads)  # of several, each would count
        torch.set_default_dtype(dtype)
        matmul.fp32_precision, deterministic.fill_uninitialized_memory = precision, filled

    use(1, torch.float32, "ieee", False)
    no_checks = torch.autograd.set_detect_anomaly(False)
    with torch.inference_mode(False), torch.enable_grad(), torch.autocast("cpu", enabled=False), no_checks:
        yield
    use(*before, fill)


def look() -> float:
    """CPU seconds that a fixed piece of work takes now: a step of a small transformer, forward and backward. So what
    neighbours do to core, caches and memory slows it as much as a training: up to twice, from second to second."""
    import torch

    with torch_as_it_is_at_first():
        table, qkv, mlp, head = (
            torch.linspace(-1, 1, n * 64).view(n, 64).requires_grad_() for n in (1024, 192, 256, 1024)
        )
        ids = torch.arange(512).view(4, 128)
        started = cpu_seconds()
        x = table[ids]
        for _ in range(2):
            q, k, v = (x * x.square().mean(-1, True).rsqrt() @ qkv.T).view(4, 128, 3, 2, 32).permute(2, 0, 3, 1, 4)
            x = x + ((q @ k.mT).softmax(-1) @ v).transpose(1, 2).reshape(4, 128, 64)
            x = x + (x * x.square().mean(-1, True).rsqrt() @ mlp.T).relu().square() @ mlp
        logits = 15 * torch.tanh(x.flatten(0, 1) @ head.T / 15)
        torch.nn.functional.cross_entropy(logits, ids.flatten()).backward()
        return cpu_seconds() - started


def look_at_pace() -> None:
    """See how fast the machine is now, which counts as no time."""
    if not pace["looks"]:
        look()  # the first one takes longer
        pace["cpu"], pace["spent"] = cpu_seconds(), 0.0
    paced_seconds()
    if not pace["looks"] or pace["spent"] - pace["looked"] >= PACE_EVERY:
        pace["looking"] += look()
        pace["looks"] += 1
        pace["cpu"], pace["looked"] = cpu_seconds(), pace["spent"]


def note_first(event: str) -> None:
    """Note when `event` happened for the first time, and how many batches there had been by then."""
    if event not in noted:
        now = process_times()  # "cpu": also what it has waited for, like compilers, whose work a second start finds
        clocks = {"cpu": sum(now[:4]), "wall": now.elapsed, "paced": paced_seconds()}
        noted[event] = clocks | {"batches": noted["batches"]}


def seconds_trained() -> float:
    """Seconds since the clock started, as training_clock() counts them."""
    start = noted["clock_started"]
    return process_times().elapsed - start["wall"] if default_device() == "cuda" else paced_seconds() - start["paced"]


def note_batch(tokens: int) -> None:
    """Count a batch that train.py gets. There is none once the model was handed over, or the budget is over: for the
    end of a step there are two mean steps more."""
    if RECORD and "evaluated" in noted:
        raise RuntimeError("no batch after evaluate_bpb(): the training is over")
    if RECORD and not STEPS and "clock_started" in noted:
        seconds = seconds_trained()
        step = min(seconds / noted.get("clock_reads", 1), 0.05 * TIME_BUDGET)
        if seconds > 1.01 * TIME_BUDGET + 2 * step:
            raise RuntimeError(f"no batch after {seconds:.1f} s: the budget is {TIME_BUDGET} s of training_clock()")
    note_first("first_batch")
    noted["batches"] += 1
    noted["training_tokens"] += tokens


def write_record(path: Path) -> None:
    """Write down what was noted, for the loop."""
    noted.pop("finished", None)
    for event in ("first_batch", "clock_started", "finished"):  # what never happened, happens now
        note_first(event)
    path.write_text(json.dumps(noted))


note_first("imported")

# -----------------------------------------------------------------------------
# Batches


def load_rows(split: str) -> np.ndarray:
    """The packed rows of a split, (rows, MAX_SEQ_LEN + 1) uint16, memory-mapped."""
    assert split in ("train", "val", "test"), f"split is {split!r}, not 'train', 'val' or 'test'"
    assert split == "train" or not RECORD, "a run has the training rows alone; the scorer has the others"
    return np.memmap(DATA_DIR / f"{split}.bin", np.uint16, "r").reshape(-1, MAX_SEQ_LEN + 1)


def default_device() -> str:
    """Where batches go and models are trained: the cpu scale stays on the CPU even where there is a GPU."""
    import torch

    return "cuda" if SCALE != "cpu" and torch.cuda.is_available() else "cpu"


def to_device(tokens: np.ndarray, device: str | torch.device) -> tuple[Tensor, Tensor]:
    """Rows of T + 1 tokens as (inputs, targets), each (B, T) int64 on `device`; the copy to a GPU is asynchronous."""
    import torch

    batch = torch.from_numpy(tokens.astype(np.int32))
    if torch.device(device).type == "cuda":
        # A fresh pinned buffer each time: torch's caching allocator does not hand it out again before the copy has run.
        batch = batch.pin_memory().to(device, non_blocking=True)
    # A new dtype is a copy, also of a single row: behind the inputs lie no targets.
    return batch[:, :-1].long(), batch[:, 1:].long()


def make_dataloader(tokenizer: Tokenizer, B: int, T: int, split: str) -> Iterator[tuple[Tensor, Tensor, int]]:
    """Endless batches (inputs (B, T) int64, targets (B, T) int64, epoch int, from 1) on the GPU if there is one.

    The same rows in the same order for every experiment and seed. T is MAX_SEQ_LEN or a divisor: pieces of the rows.
    Until training_clock() is first called they hold tokens by chance: there is nothing to be learned in a warm-up.
    """
    assert T <= MAX_SEQ_LEN and MAX_SEQ_LEN % T == 0, f"T={T} does not divide MAX_SEQ_LEN={MAX_SEQ_LEN}"
    pieces = MAX_SEQ_LEN // T
    device = default_device()

    def batches():
        rows = load_rows(split)  # a start that only compiles has none
        assert len(rows) * pieces >= B, f"B={B} is more than the {len(rows) * pieces} rows of {split}"
        for epoch in itertools.count(1):
            for start in range(0, len(rows) * pieces - B + 1, B):
                index = np.arange(start, start + B)
                piece = (index % pieces * T)[:, None] + np.arange(T + 1)
                tokens = rows[start : start + B] if pieces == 1 else rows[(index // pieces)[:, None], piece]
                yield *to_device(tokens, device), epoch

    chance = np.random.default_rng(0)
    while "clock_started" not in noted:
        note_batch(B * T)
        yield *to_device(chance.integers(tokenizer.get_vocab_size(), size=(B, T + 1)), device), 1
    for batch, _ in itertools.pairwise(batches()):  # the next one is on its way while the caller works on this one
        note_batch(B * T)
        yield batch


# -----------------------------------------------------------------------------
# The clock


def training_clock() -> float:
    """Seconds, for timing training: the wall clock on a GPU; on a CPU paced_seconds(), so that neither a busy neighbour
    nor a slow minute shortens the training. The first call is taken as the start of the budget."""
    on_gpu = default_device() == "cuda"
    if not on_gpu:
        look_at_pace()
    if "clock_started" not in noted:
        note_first("clock_started")
        start, first = noted["clock_started"], noted["imported"]
        seconds = start["wall"] - first["wall"] if on_gpu else start["cpu"]
        if START_LIMIT and seconds > START_LIMIT:
            print(f"{seconds:.0f} s before the clock started; again, with the compile cache filled", flush=True)
            if RECORD:
                RECORD.write_text(json.dumps(noted | {"again": True}))
            os._exit(AGAIN)
        if noted["batches"]:
            print(f"the batches before the clock held tokens by chance: {noted['batches']}", flush=True)
    noted["clock_reads"] = noted.get("clock_reads", 0) + 1
    return time.perf_counter() if on_gpu else paced_seconds()


# -----------------------------------------------------------------------------
# Handing over: the trained model as data, for a scorer that runs none of its code

SCORED_TOKENS = 65_536  # at most in one batch of the scorer, whose logits are whole


def graph_of(model: torch.nn.Module, vocab_size: int, batch_size: int) -> tuple[dict[str, Any], list[Tensor]]:
    """The model as operators and tensors, for the scorer's batches. Raises ValueError where it can't be one."""
    from autoresearch.judge.handover import make_graph

    rows = max(1, min(batch_size, SCORED_TOKENS // MAX_SEQ_LEN))
    device, chance = next(model.parameters()).device, np.random.default_rng(1)
    batches = chance.integers(vocab_size, size=(2, rows, MAX_SEQ_LEN + 1))
    return make_graph(model, *(to_device(tokens, device)[0] for tokens in batches))


def check_model(model: torch.nn.Module, tokenizer: Tokenizer, batch_size: int) -> None:
    """Raise ValueError, with the line of train.py, if the scorer could not take this model. Call it before training."""
    training = model.training
    graph_of(model, tokenizer.get_vocab_size(), batch_size)
    model.train(training)


def hand_over(model: torch.nn.Module, vocab_size: int, batch_size: int, folder: Path) -> None:
    """Write the model into a folder, for the scorer; in a run also a map of it, for whoever proposes the next one."""
    import torch

    from autoresearch.judge.handover import write_graph

    noted.pop("evaluated", None)  # of a second one the later moments count, as its model is what is scored
    note_first("evaluated")
    graph, held = graph_of(model, vocab_size, batch_size)
    write_graph(graph, held, folder)
    if RECORD:
        from autoresearch.judge.parts import write_map

        write_record(RECORD)
        tokens = torch.zeros((1, graph["shape"][1]), dtype=torch.long, device=next(model.parameters()).device)
        write_map(model, tokens, folder / "parts.txt")


def evaluate_bpb(model: torch.nn.Module, tokenizer: Tokenizer, batch_size: int) -> float:
    """Bits per byte of the validation rows under `model`, which maps (B, T) int64 to logits (B, T, vocabulary).

    In a run of the loop the model is only handed over, and what this returns is NaN: the loop's scorer makes the number
    when the run has ended. Run by hand, the same scorer is started here. Raises ValueError where the model can't be
    handed over, or is refused: logits that depend on later tokens or on other rows, or are not finite.
    """
    if default_device() == "cuda":
        import torch

        torch.cuda.synchronize()  # what is still being trained is training time
    if RECORD:
        hand_over(model, tokenizer.get_vocab_size(), batch_size, RECORD.parent)
        return math.nan
    from autoresearch.run.scoring import score_once

    with tempfile.TemporaryDirectory() as folder:
        hand_over(model, tokenizer.get_vocab_size(), batch_size, Path(folder))
        return score_once(Path(folder), SCALE)


# -----------------------------------------------------------------------------
# Command line


def main(arguments: list[str] | None = None) -> None:
    from autoresearch.data.prepare import prepare_or_fail
    from autoresearch.machine import cores

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", help="climbmix, stdlib or a folder (default: the scale's own)")
    parser.add_argument("--shards", type=int, default=10, help="training shards of climbmix, 1 to 6541 (default: 10)")
    parser.add_argument("--scale", choices=SCALES, default=SCALE, help=f"what to prepare for (default here: {SCALE})")
    parser.add_argument("--data-dir", type=Path, default=DATA_ROOT, help=f"parent of the scale's folder ({DATA_ROOT})")
    parser.add_argument("--workers", type=int, default=cores(), help="threads (default: all cores)")
    prepare_or_fail(**vars(parser.parse_args(arguments)))


if __name__ == "__main__":
    main()
