"""
Data, tokenizer, batches and the metric: everything that train.py is measured with. Do not edit it during a search.

    python prepare_data.py                        # climbmix on a GPU machine, the standard library's sources on others
    python prepare_data.py --shards 20            # more of climbmix than the default 10 shards
    python prepare_data.py --source ~/my_corpus   # your own folder of .parquet, .txt, .md or .jsonl files

Run once as a script, it downloads text, trains a BPE tokenizer, and packs the tokens into rows of MAX_SEQ_LEN + 1 in
~/.cache/autoresearch/<scale>/. Run again, it goes on where it stopped. autoresearch/data/ does that work. Imported by
train.py, this file serves those rows as batches and scores a model on the validation rows in bits per byte.

Environment: AUTORESEARCH_SCALE (h100 or cpu), AUTORESEARCH_SEED, AUTORESEARCH_BUDGET (seconds of training instead of
the scale's), AUTORESEARCH_STEPS (train this many steps instead), AUTORESEARCH_DATA_DIR (instead of
~/.cache/autoresearch), AUTORESEARCH_RECORD (a file for the evaluator's record); HF_ENDPOINT and HF_TOKEN.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import itertools
import json
import math
import os
import sys
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
    """End the program with one line on stderr and exit code 2: the mistake is the user's to mend."""
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
    """The scale named by AUTORESEARCH_SCALE, else h100 where CUDA is there and cpu where it is not."""
    name = os.environ.get("AUTORESEARCH_SCALE")
    if not name:
        import torch

        return "h100" if torch.cuda.is_available() else "cpu"
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
DATA_ROOT = Path(os.environ.get("AUTORESEARCH_DATA_DIR") or "~/.cache/autoresearch").expanduser().resolve()
DATA_DIR = DATA_ROOT / SCALE
FORMAT = 1  # of the prepared folder; raised when its files change their meaning
BOS = "<|bos|>"

# -----------------------------------------------------------------------------
# Prepared folder: meta.json and the tokenizer


def read_meta(directory: Path | None = None, scale: str = SCALE) -> dict:
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
process_times, cpu_seconds = os.times, time.process_time  # bound here: a train.py might replace those
noted: dict[str, Any] = {"val_reads": 0, "batches": 0, "training_tokens": 0, "optimizer_steps": 0}
step_hooks: list[Any] = []
pace = {"cpu": 0.0, "seconds": 0.0, "rate": 0.0, "looked": -1.0}  # the clock of the cpu scale
PACE_SECONDS = 0.0047  # CPU time of the work in look_at_pace() on the machine that the cpu scale was made on
PACE_EVERY = 0.2  # CPU seconds between two looks at how fast the machine is now


def paced_seconds() -> float:
    """CPU time of this process, in seconds of the machine that the cpu scale was made on.

    It stands still until look_at_pace(). One core does 5 to 10 % more or less from minute to minute, with what its
    neighbours do to caches and memory, and the number of steps with it: that was most of the noise of val_bpb.
    """
    now = cpu_seconds()
    pace["seconds"] += (now - pace["cpu"]) * pace["rate"]
    pace["cpu"] = now
    return pace["seconds"]


def look_at_pace() -> None:
    """See how fast the machine is now, by a fixed piece of work that is like training and counts as no time."""
    import torch

    paced_seconds()
    if pace["cpu"] - pace["looked"] < PACE_EVERY and pace["rate"]:
        return
    hidden, weight = torch.linspace(-1, 1, 512 * 64).view(512, 64), torch.linspace(-1, 1, 64 * 1024).view(64, 1024)
    started = cpu_seconds()
    torch.nn.functional.cross_entropy(15 * torch.tanh(hidden @ weight / 15), torch.arange(512))
    pace["cpu"] = pace["looked"] = cpu_seconds()
    pace["rate"] = PACE_SECONDS / (pace["cpu"] - started)


def note_first(event: str) -> None:
    """Note when `event` happened for the first time, and how much had been trained by then."""
    if event not in noted:
        now = process_times()
        clocks = {"cpu": now.user + now.system, "wall": now.elapsed, "paced": paced_seconds()}
        noted[event] = clocks | {name: noted[name] for name in ("batches", "optimizer_steps")}


def note_batch(split: str, tokens: int) -> None:
    """Count a batch that train.py gets; from the first one on, optimizer steps too, until the clock starts."""
    if split == "train":
        if RECORD and not noted["batches"]:
            count_optimizer_steps()
        note_first("first_batch")
        noted["batches"] += 1
        noted["training_tokens"] += tokens


def count_optimizer_steps() -> None:
    """Count the steps of every torch optimizer before the clock starts: a warm-up compiles, it does not train."""
    from torch.optim.optimizer import register_optimizer_step_post_hook

    def count(*_):
        noted["optimizer_steps"] += "clock_started" not in noted

    step_hooks.append(register_optimizer_step_post_hook(count))


def write_record(**measured: float | str) -> None:
    """Add a line to the record, if the loop asked for one: two lines are two evaluations."""
    for event in ("first_batch", "clock_started", "finished"):  # what never happened, happens now
        note_first(event)
    if RECORD:
        with open(RECORD, "a") as file:
            file.write(json.dumps(noted | measured) + "\n")


note_first("imported")

# -----------------------------------------------------------------------------
# Batches


def load_rows(split: str) -> np.ndarray:
    """The packed rows of a split, (rows, MAX_SEQ_LEN + 1) uint16, memory-mapped."""
    assert split in ("train", "val"), f"split is {split!r}, not 'train' or 'val'"
    noted["val_reads"] += split == "val"
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
    """
    assert T <= MAX_SEQ_LEN and MAX_SEQ_LEN % T == 0, f"T={T} does not divide MAX_SEQ_LEN={MAX_SEQ_LEN}"
    rows = load_rows(split)
    pieces = MAX_SEQ_LEN // T
    assert len(rows) * pieces >= B, f"B={B} is more than the {len(rows) * pieces} rows of {split}"
    device = default_device()

    def batches():
        for epoch in itertools.count(1):
            for start in range(0, len(rows) * pieces - B + 1, B):
                index = np.arange(start, start + B)
                piece = (index % pieces * T)[:, None] + np.arange(T + 1)
                tokens = rows[start : start + B] if pieces == 1 else rows[(index // pieces)[:, None], piece]
                yield *to_device(tokens, device), epoch

    for batch, _ in itertools.pairwise(batches()):  # the next one is on its way while the caller works on this one
        note_batch(split, B * T)
        yield batch


# -----------------------------------------------------------------------------
# Metric


def training_clock() -> float:
    """Seconds, for timing training: the wall clock on a GPU; on a CPU paced_seconds(), so that neither a busy neighbour
    nor a slow minute shortens the training. The first call is taken as the start of the budget."""
    on_gpu = default_device() == "cuda"
    if not on_gpu:
        look_at_pace()
    if "clock_started" not in noted:
        note_first("clock_started")
        while step_hooks:
            step_hooks.pop().remove()
    return time.perf_counter() if on_gpu else paced_seconds()


def token_losses(model: torch.nn.Module, inputs: Tensor, targets: Tensor, vocab_size: int) -> Tensor:
    """Cross-entropy of each target in nats, (B, T) float32. ValueError if the logits are not (B, T, vocab_size)."""
    import torch

    logits = model(inputs.clone())  # whatever the model does to its input, it is not what is scored
    shape = tuple(getattr(logits, "shape", ()))
    if len(shape) != 3 or shape[:2] != inputs.shape or shape[2] < vocab_size:  # a padded vocabulary is fine
        raise ValueError(f"the logits are {shape or type(logits)}, not {(*inputs.shape, vocab_size)}; no val_bpb")
    if type(logits) is not torch.Tensor:  # a subclass can bring a cross-entropy of its own
        raise ValueError(f"the logits are a {type(logits).__name__}, not a torch.Tensor; no val_bpb")
    losses = [
        torch.nn.functional.cross_entropy(some.float().flatten(0, 1), wanted.flatten(), reduction="none")
        for some, wanted in zip(logits.split(8), targets.split(8), strict=True)  # float32 logits are large
    ]
    return torch.cat(losses).view_as(targets)


def require_same(losses: Tensor, expected: Tensor, problem: str) -> None:
    """Raise ValueError unless two measurements agree, as far as kernels (in bf16 on a GPU) repeat themselves."""
    tolerance = 1e-2 if losses.is_cuda else 2e-4
    if not losses.allclose(expected, rtol=tolerance, atol=tolerance):
        raise ValueError(f"{problem}; no val_bpb")


def check_arithmetic(model: torch.nn.Module, inputs: Tensor, targets: Tensor, expected: Tensor) -> None:
    """Raise ValueError if the losses are not what numpy makes of the logits: torch was changed under our feet."""
    logits = np.array(model(inputs)[0, :32].float().tolist())
    logits -= logits.max(axis=1, keepdims=True)
    chosen = logits[np.arange(len(logits)), targets[0, :32].tolist()]
    losses = np.log(np.exp(logits).sum(1)) - chosen
    require_same(expected[0, :32], expected.new_tensor(losses), "the cross-entropy is not that of the logits")


def check_context(model: torch.nn.Module, inputs: Tensor, targets: Tensor, expected: Tensor, vocab_size: int) -> None:
    """Raise ValueError if losses change with tokens of other rows, or with later tokens of their own row.

    About half of the rows are reversed. Then each row, from a position of its own on, gets the text of another.
    """
    B, T = inputs.shape
    same_rows = inputs.new_tensor(np.random.default_rng(0).random(B) >= 0.5).bool()[:, None].expand(B, T)
    cuts = inputs.new_tensor([1 + (2 * row + 1) * (T - 1) // (2 * B) for row in range(B)])
    before = inputs.new_tensor(range(T)) < cuts[:, None]
    causal = "not causal: what comes before a position changes with the tokens after it"
    for same, others, problem in (
        (same_rows, inputs.flip(1), "rows are not independent: one changes with others of its batch"),
        (before, inputs.roll(1, 0) if B > 1 else inputs.flip(1), causal),
    ):
        losses = token_losses(model, inputs.where(same, others), targets, vocab_size)
        require_same(losses[same], expected[same], problem)


def probe(model: torch.nn.Module, inputs: Tensor, targets: Tensor, vocab_size: int) -> Tensor:
    """Raise ValueError if the model is not one that val_bpb is defined for. Returns the losses of this batch."""
    losses = token_losses(model, inputs, targets, vocab_size)
    if not losses.isfinite().all():
        raise ValueError("the logits are not finite; no val_bpb")
    again = token_losses(model, inputs, targets, vocab_size)
    require_same(again, losses, "the same rows give another loss the second time")
    check_arithmetic(model, inputs, targets, losses)
    check_context(model, inputs, targets, losses, vocab_size)
    chance = inputs.new_tensor(np.random.default_rng(0).integers(vocab_size, size=tuple(inputs.shape)))
    if token_losses(model, inputs, chance, vocab_size).mean() < 0.9 * math.log(vocab_size):
        raise ValueError("the logits know targets that the inputs do not tell; no val_bpb")
    return losses


def weights_checksum(model: torch.nn.Module) -> list[int]:
    """The sum of the bytes of every parameter and buffer."""
    import torch

    tensors = [tensor.detach().reshape(-1) for tensor in (*model.parameters(), *model.buffers())]
    sums = [tensor.view(torch.uint8).sum(dtype=torch.int64) for tensor in tensors if tensor.numel()]
    return torch.stack(sums).tolist() if sums else []


def scored_fingerprint(rows: np.ndarray, token_bytes: np.ndarray) -> str:
    """A hash of what is scored: the validation rows and how many bytes each token stands for."""
    return hashlib.sha256(rows.tobytes() + token_bytes.astype(np.int64).tobytes()).hexdigest()[:16]


def evaluate_bpb(model: torch.nn.Module, tokenizer: Tokenizer, batch_size: int) -> float:
    """Bits per byte of the validation rows under `model`, which maps (B, T) int64 to logits (B, T, vocabulary).

    The cross-entropy is computed here, in float32, and summed in float64 over the targets that stand for text (the
    special token has no bytes), then divided by ln 2 times their bytes. Every row is scored once, whatever the batch
    size. Raises ValueError where logits have the wrong shape, are not finite, or depend on later tokens or other rows,
    and where the model learns from or remembers what it was evaluated on.
    """
    import torch

    if default_device() == "cuda":
        torch.cuda.synchronize()  # what is still being trained is training time
    note_first("evaluated")
    with torch.no_grad():
        rows, sizes_of_tokens = load_rows("val"), tokenizer.token_bytes()
        batch_size = min(batch_size, len(rows))
        device = next(model.parameters()).device
        token_bytes = torch.tensor(sizes_of_tokens, device=device)
        weights = weights_checksum(model)
        first_batch = to_device(rows[:batch_size], device)
        first_losses = probe(model, *first_batch, len(token_bytes))
        nats = torch.zeros((), dtype=torch.float64, device=device)
        total_bytes = torch.zeros((), dtype=torch.int64, device=device)
        for start in range(0, len(rows), batch_size):
            # The last batch is moved back to full size (one shape, one compilation); rows seen before count nothing.
            first = min(start, len(rows) - batch_size)
            inputs, targets = to_device(rows[first : first + batch_size], device)
            sizes = token_bytes[targets]
            sizes[: start - first] = 0
            losses = token_losses(model, inputs, targets, len(token_bytes))
            if start == 0:
                require_same(losses, first_losses, "the same rows give another loss the second time")
            nats += torch.where(sizes > 0, losses, 0).sum(dtype=torch.float64)
            total_bytes += sizes.sum()
        losses = token_losses(model, *first_batch, len(token_bytes))
        require_same(losses, first_losses, "the same rows give another loss after the others: the model remembers")
        if weights_checksum(model) != weights:
            raise ValueError("the model's parameters or buffers changed while it was evaluated; no val_bpb")
    bpb = nats.item() / (math.log(2) * total_bytes.item())
    if not math.isfinite(bpb):
        raise ValueError(f"val_bpb is {bpb}: the logits are not finite")
    scored = scored_fingerprint(rows, sizes_of_tokens)
    write_record(val_bpb=bpb, nats=nats.item(), bytes=total_bytes.item(), tokens=rows[:, 1:].size, fingerprint=scored)
    return bpb


# -----------------------------------------------------------------------------
# Command line


def main(arguments: list[str] | None = None) -> None:
    from autoresearch.data.prepare import prepare_or_fail

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", help="climbmix, stdlib or a folder (default: the scale's own)")
    parser.add_argument("--shards", type=int, default=10, help="training shards of climbmix, 1 to 6542 (default: 10)")
    parser.add_argument("--scale", choices=SCALES, default=SCALE, help=f"what to prepare for (default here: {SCALE})")
    parser.add_argument("--data-dir", type=Path, default=DATA_ROOT, help=f"parent of the scale's folder ({DATA_ROOT})")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="threads (default: all cores)")
    prepare_or_fail(**vars(parser.parse_args(arguments)))


if __name__ == "__main__":
    main()
