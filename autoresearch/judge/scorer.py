"""
The scorer: a process that makes the numbers, and alone is shown the validation and the test rows.

It imports torch once, and then waits at a socket (its standard input) for models that were handed over: graph.json and
tensors.bin, as open files. It answers with a line of JSON: the number, or the reason why there is none.
autoresearch/run/scoring.py starts it, in a sandbox of its own.

A model runs in a child that is forked for it, so nothing of one model is left for the next. On a CPU that child is
forked from a process that never had the rows: it gets inputs and gives logits by shared memory, and the losses are
computed here. An operator that reads past its arguments finds no targets there. On a GPU the rows are in the host's
memory, out of a kernel's reach; the child has them.

Each row is scored once, in an order that nobody can know beforehand. Then once more, with other rows in its batch, and
with another row's text from a secret place on: no loss before that place may change. Each place is used in as many rows
as any other. So a model that looks at later tokens or at other rows, at whatever place, is found. It cannot remember
earlier rows.
"""

import json
import math
import mmap
import os
import select
import socket
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

import prepare_data
from autoresearch.judge.graph import Graph, load_graph
from autoresearch.nouns import Json

# How far a loss may be from itself in other company: kernels repeat themselves nearly always to the last bit.
WORST = {torch.float32: 2e-4, torch.bfloat16: 2e-2}  # of one loss
MEAN = {torch.float32: 1e-6, torch.bfloat16: 1e-5}  # of all
NEAREST = {torch.float32: 1e-5, torch.bfloat16: 5e-4}  # of the last one, or the last eight, before each secret place
CHECKED_ON_GPU = 0.25  # of the rows are scored a second time there
FORGOTTEN = b"forgotten"  # the last word about a model
ENDED = "the process that ran the model ended with {}; out of memory?"
LOOK_EVERY = 1.0  # seconds between two looks at how slow the machine is, while a run trains
LOGITS_AT_ONCE = 8  # rows whose logits are turned into float32 at a time: they are large

# -----------------------------------------------------------------------------
# One model


def token_losses(model: Callable[[Tensor], Tensor], inputs: Tensor, targets: Tensor, vocab_size: int) -> Tensor:
    """The cross-entropy of each target in nats, (B, T) float32. ValueError if the logits have another shape."""
    logits = model(inputs.clone())  # a tensor of its own: behind the inputs lie no targets
    if logits.ndim != 3 or logits.shape[:2] != inputs.shape or logits.shape[2] < vocab_size:  # it may be padded
        raise ValueError(f"the logits are {tuple(logits.shape)}, not {(*inputs.shape, vocab_size)}")
    losses = [
        torch.nn.functional.cross_entropy(some.float().flatten(0, 1), wanted.flatten(), reduction="none")
        for some, wanted in zip(logits.split(LOGITS_AT_ONCE), targets.split(LOGITS_AT_ONCE), strict=True)
    ]
    return torch.cat(losses).view_as(targets)


def losses_of(model: Any, inputs: Tensor, targets: Tensor, order: np.ndarray, vocab_size: int) -> Tensor:
    """The losses of the rows in `order`, batch by batch; rows from its beginning fill the last one."""
    B = model.shape[0]
    filled = torch.from_numpy(np.resize(order, math.ceil(len(order) / B) * B))
    device = model.device
    losses = [
        token_losses(model, inputs[some].to(device), targets[some].to(device), vocab_size).cpu()
        for some in filled.split(B)
    ]
    return torch.cat(losses)[: len(order)]


def require_blind(
    model: Any, inputs: Tensor, targets: Tensor, counted: Tensor, losses: Tensor, vocab_size: int, share: float
) -> Json:
    """Raise ValueError if counted losses depend on later tokens or on other rows. Returns how much they changed."""
    secret = np.random.default_rng()  # seeded by the system
    rows, T = inputs.shape
    some = secret.permutation(rows)[: max(min(rows, model.shape[0]), round(share * rows))]
    cuts = np.ones(rows, dtype=int)
    cuts[some] = np.resize(secret.permutation(np.arange(1, T)), len(some))  # each place as often as any other
    distance = torch.from_numpy(cuts)[:, None] - torch.arange(T)  # 1: the last place before the secret one
    other = (np.arange(rows) + secret.integers(1, max(rows, 2), rows)) % rows  # never a row's own text
    mixed = torch.where(distance > 0, inputs, inputs[torch.from_numpy(other)])
    change = losses_of(model, mixed, targets, some, vocab_size) - losses[some]
    distance = torch.where(counted, distance, 0)[some]
    worst = change[distance > 0].abs().max().item()
    # One look ahead shows at the nearest places only, and would be thin in the mean of all.
    mean, eight, last = (abs(change[(distance > 0) & (distance <= within)].mean().item()) for within in (T, 8, 1))
    nearest = max(eight, last) if last == last else eight  # nan: no counted target was next to a secret place
    if not (worst < WORST[model.precision] and mean < MEAN[model.precision] and nearest < NEAREST[model.precision]):
        raise ValueError(
            "not causal: losses change with later tokens or with other rows of the batch, by up to "
            f"{worst:.2g}, by {mean:.2g} on average and by {nearest:.2g} next to the change; no val_bpb"
        )
    return {"worst_change": worst, "mean_change": mean}


@torch.no_grad()
def score(model: Any, rows: np.ndarray, token_bytes: np.ndarray) -> Json:
    """Bits per byte of the rows, summed in float64 over the targets that stand for text. ValueError: none."""
    tokens = torch.from_numpy(rows.astype(np.int64))
    inputs, targets = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
    if inputs.shape[1] != model.shape[1]:
        raise ValueError(f"the model was handed over for {model.shape[1]} tokens a row, not {inputs.shape[1]}")
    order, vocab_size = np.random.default_rng().permutation(len(rows)), len(token_bytes)
    losses = torch.empty(inputs.shape)
    losses[torch.from_numpy(order)] = losses_of(model, inputs, targets, order, vocab_size)
    sizes = torch.from_numpy(token_bytes)[targets]  # the special token has no bytes, and does not count
    if not losses[sizes > 0].isfinite().all():
        raise ValueError("the logits are not finite; no val_bpb")
    share = CHECKED_ON_GPU if model.device.type == "cuda" else 1.0
    changes = require_blind(model, inputs, targets, sizes > 0, losses, vocab_size, share)
    nats = losses[sizes > 0].sum(dtype=torch.float64).item()
    return {"val_bpb": nats / sizes.sum().item() / math.log(2), **changes}


def answer(
    text: int,
    numbers: int,
    rows: np.ndarray,
    token_bytes: np.ndarray,
    test_rows: np.ndarray | None = None,
    read: Callable[[int, int], Any] | None = None,
) -> Json:
    """What is said of a model in two open files: its number, that of the test rows too, or why it is "refused"."""
    started = time.perf_counter()
    try:
        model = (read or read_model)(text, numbers)
        said = score(model, rows, token_bytes)
        if test_rows is not None:
            said["test_bpb"] = score(model, test_rows, token_bytes)["val_bpb"]
    except Exception as error:  # whatever is wrong with it, the model is refused
        return refusal(error)
    return said | {"seconds": time.perf_counter() - started}


def refusal(error: Exception) -> Json:
    """The answer where there is no number, in words."""
    text = " ".join(str(error).split())[:300]
    if isinstance(error, MemoryError):
        text = "it does not fit into the memory while it is scored"
    elif type(error) is not ValueError:
        text = f"the model that was handed over could not be run ({type(error).__name__}: {text})"
    return {"refused": text}


def read_model(text: int, numbers: int) -> Graph:
    """The model in two open files, which are closed. Raises ValueError if it is none."""
    with open(text, "rb") as file, open(numbers, "rb") as other:
        size = os.fstat(other.fileno()).st_size
        tensors = mmap.mmap(other.fileno(), 0, access=mmap.ACCESS_COPY) if size else b""
        return load_graph(file.read(), tensors, torch.device(prepare_data.default_device()))


# -----------------------------------------------------------------------------
# A model in a process without rows


class Runner:
    """A process that runs models. Called with inputs, it gives the logits of the model that was read last."""

    device = torch.device("cpu")

    def __init__(self, vocab_size: int) -> None:
        tokens = prepare_data.SCORED_TOKENS
        self.inputs = torch.frombuffer(mmap.mmap(-1, 8 * tokens), dtype=torch.int64)
        self.logits = torch.frombuffer(mmap.mmap(-1, 8 * tokens * vocab_size), dtype=torch.float32)  # may be padded
        self.shape, self.precision = (0, 0), torch.float32
        self.ours, self.theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        if not os.fork():
            self.ours.close()
            os.close(0)  # who waits there is to hear when the scorer ends
            serve_models(self)
            os._exit(0)
        self.theirs.close()

    def read(self, text: int, numbers: int) -> "Runner":
        """Have it read the model in two open files. Raises ValueError if it is none."""
        socket.send_fds(self.ours, [b"read"], [text, numbers])
        said = self.said()
        self.shape, self.precision = tuple(said["shape"]), getattr(torch, said["precision"])
        return self

    def __call__(self, tokens: Tensor) -> Tensor:
        self.inputs[: tokens.numel()] = tokens.flatten()
        self.ours.send(b"run")
        shape = self.said()["logits"]
        return self.logits[: math.prod(shape)].view(shape)

    def said(self) -> Json:
        """Its next answer. Raises ValueError where it refuses the model."""
        said = json.loads(self.ours.recv(65536) or b'{"refused": "the process that ran the model has ended"}')
        if "refused" in said:
            raise ValueError(said["refused"])
        return said

    def end(self) -> None:
        """Have it forget the model, and drop what it still says of it."""
        self.ours.send(b"end")
        while self.ours.recv(65536) not in (FORGOTTEN, b""):
            pass


def serve_models(runner: Runner) -> None:
    """Wait for models, and fork a child for each."""
    while True:
        message, files, _, _ = socket.recv_fds(runner.theirs, 64, 2)
        if not message:  # the scorer is gone
            return
        if files:
            child = os.fork()
            if not child:
                run_model(runner, *files)
                os._exit(0)
            for file in files:
                os.close(file)
            if code := os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]):
                runner.theirs.send(json.dumps({"refused": ENDED.format(code)}).encode())
            runner.theirs.send(FORGOTTEN)


@torch.no_grad()
def run_model(runner: Runner, text: int, numbers: int) -> None:
    """Read one model, and run it until the scorer has had enough."""
    try:
        model = read_model(text, numbers)
        B, T = model.shape
        if not 0 < B * T <= len(runner.inputs):
            raise ValueError(f"a batch of {B} x {T} tokens is more than {len(runner.inputs)}")
        said = {"shape": model.shape, "precision": str(model.precision).removeprefix("torch.")}
        while runner.theirs.send(json.dumps(said).encode()) and runner.theirs.recv(64) == b"run":
            logits = model(runner.inputs[: B * T].view(B, T).clone())
            if logits.numel() > len(runner.logits):
                raise ValueError(f"the logits are {tuple(logits.shape)}, more than twice the vocabulary")
            runner.logits[: logits.numel()].view(logits.shape).copy_(logits)
            said = {"logits": logits.shape}
    except Exception as error:
        runner.theirs.send(json.dumps(refusal(error)).encode())


# -----------------------------------------------------------------------------
# The process


def wait_for_message(connection: socket.socket, seen: list[float]) -> tuple[bytes, list[int]]:
    """(message, files). Until it comes, see now and then how slow the machine is, where no run can touch the clock."""
    while prepare_data.SCALE == "cpu" and not select.select([connection], [], [], LOOK_EVERY)[0]:
        seen.append(prepare_data.look())
    message, files, _, _ = socket.recv_fds(connection, 64, 2)
    return message, files


def main() -> None:
    torch.set_num_threads(1 if prepare_data.SCALE == "cpu" else torch.get_num_threads())
    token_bytes = prepare_data.Tokenizer.from_directory().token_bytes()
    runner = Runner(len(token_bytes)) if prepare_data.default_device() == "cpu" else None  # forked before rows are here
    rows = prepare_data.load_rows("val")
    test_rows = prepare_data.load_rows("test") if (prepare_data.DATA_DIR / "test.bin").exists() else None
    connection = socket.socket(fileno=0)
    seen: list[float] = []
    while True:
        message, files = wait_for_message(connection, seen)
        if not message:  # who started it is gone
            return
        if b"score" not in message:  # a run begins
            seen.clear()
            continue
        text, numbers = files
        pace = {"pace_seconds": statistics.fmean(seen or [prepare_data.look()])} if prepare_data.SCALE == "cpu" else {}
        tested = test_rows if b"test" in message else None
        if runner:
            said = answer(text, numbers, rows, token_bytes, tested, runner.read)
            runner.end()
        elif not os.fork():
            connection.sendall(json.dumps(answer(text, numbers, rows, token_bytes, tested)).encode() + b"\n")
            os._exit(0)
        else:
            code = os.waitstatus_to_exitcode(os.wait()[1])
            said = {"refused": ENDED.format(code)} if code else {}  # else the child has answered
        if said:
            connection.sendall(json.dumps(said | pace).encode() + b"\n")
        for file in files:
            os.close(file)


if __name__ == "__main__":
    main()
