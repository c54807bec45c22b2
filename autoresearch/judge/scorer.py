"""
The scorer: a process that makes the numbers, and alone is shown the validation and the test rows.

It imports torch once, and then waits at a socket (its standard input) for models that were handed over: graph.json and
tensors.bin, as open files. For each it forks a child, so that nothing of one model is left for the next, and answers
with a line of JSON: the number, or why there is none. autoresearch/run/scoring.py starts it, in a sandbox of its own.

Each row is scored once, in an order that nobody can know beforehand. Then once more, beside other rows, and with
another row's text from a secret place on: no loss before that place may change. Each place is used in as many rows as
any other. So a model that looks at later tokens or at other rows, at whatever place, is found. It cannot remember
earlier rows.
"""

import json
import math
import mmap
import os
import socket
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

import prepare_data
from autoresearch.judge.graph import load_graph

# How far a loss may be from itself in other company: kernels repeat themselves nearly always to the last bit.
WORST = {torch.float32: 2e-4, torch.bfloat16: 2e-2}  # of one loss
MEAN = {torch.float32: 1e-6, torch.bfloat16: 1e-5}  # of all
CHECKED_ON_GPU = 0.25  # of the rows are scored a second time there
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


def require_blind(model: Any, inputs: Tensor, targets: Tensor, losses: Tensor, vocab_size: int, share: float) -> dict:
    """Raise ValueError if losses depend on later tokens or on other rows. Returns how much they changed."""
    secret = np.random.default_rng()  # seeded by the system
    rows, T = inputs.shape
    some = secret.permutation(rows)[: max(min(rows, model.shape[0]), round(share * rows))]
    cuts = np.ones(rows, dtype=int)
    cuts[some] = np.resize(secret.permutation(np.arange(1, T)), len(some))  # each place as often as any other
    before = torch.arange(T) < torch.from_numpy(cuts)[:, None]
    other = (np.arange(rows) + secret.integers(1, max(rows, 2), rows)) % rows  # never a row's own text
    again = losses_of(model, torch.where(before, inputs, inputs[torch.from_numpy(other)]), targets, some, vocab_size)
    change = (again - losses[some])[before[some]]
    worst, mean = change.abs().max().item(), abs(change.mean().item())
    if not (worst < WORST[model.precision] and mean < MEAN[model.precision]):
        raise ValueError(
            "not causal: losses change with later tokens or with other rows of the batch, "
            f"by up to {worst:.2g} and by {mean:.2g} on average; no val_bpb"
        )
    return {"worst_change": worst, "mean_change": mean}


@torch.no_grad()
def score(model: Any, rows: np.ndarray, token_bytes: np.ndarray) -> dict:
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
    changes = require_blind(model, inputs, targets, losses, vocab_size, share)
    nats = losses[sizes > 0].sum(dtype=torch.float64).item()
    return {"val_bpb": nats / sizes.sum().item() / math.log(2), **changes}


def answer(
    text: int, numbers: int, rows: np.ndarray, token_bytes: np.ndarray, test_rows: np.ndarray | None = None
) -> dict:
    """What is said of a model in two open files: its number, that of the test rows too, or why it is "refused"."""
    started, device = time.perf_counter(), torch.device(prepare_data.default_device())
    try:
        with open(text, "rb") as file, open(numbers, "rb") as other:
            size = os.fstat(other.fileno()).st_size
            tensors = mmap.mmap(other.fileno(), 0, access=mmap.ACCESS_COPY) if size else b""
            model = load_graph(file.read(), tensors, device)
        said = score(model, rows, token_bytes)
        if test_rows is not None:
            said["test_bpb"] = score(model, test_rows, token_bytes)["val_bpb"]
    except Exception as error:  # whatever is wrong with it, the model is refused
        name = "" if type(error) is ValueError else f"{type(error).__name__}: "
        return {"refused": name + " ".join(str(error).split())[:300]}
    return said | {"seconds": time.perf_counter() - started}


# -----------------------------------------------------------------------------
# The process


def pace_seconds(looks: int = 50) -> float:
    """CPU seconds that the fixed piece of work of the paced clock takes now: in this process no run can touch it."""
    seen = []
    for _ in range(looks):
        prepare_data.pace["rate"] = 0.0  # look, however short ago it was done
        prepare_data.look_at_pace()
        seen.append(prepare_data.PACE_SECONDS / prepare_data.pace["rate"])
    return statistics.median(seen)


def main() -> None:
    torch.set_num_threads(1 if prepare_data.SCALE == "cpu" else torch.get_num_threads())
    rows, token_bytes = prepare_data.load_rows("val"), prepare_data.Tokenizer.from_directory().token_bytes()
    test_rows = prepare_data.load_rows("test") if (prepare_data.DATA_DIR / "test.bin").exists() else None
    connection = socket.socket(fileno=0)
    while True:
        message, files, _, _ = socket.recv_fds(connection, 64, 2)
        if not message:  # who started it is gone
            return
        text, numbers = files
        pace = {"pace_seconds": pace_seconds()} if prepare_data.SCALE == "cpu" else {}
        child = os.fork()
        if not child:
            tested = test_rows if b"test" in message else None
            said = answer(text, numbers, rows, token_bytes, tested) | pace
            connection.sendall(json.dumps(said).encode() + b"\n")
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if status:
            reason = f"the scorer's process ended with {os.waitstatus_to_exitcode(status)}; out of memory?"
            connection.sendall(json.dumps({"refused": reason}).encode() + b"\n")
        for file in files:
            os.close(file)


if __name__ == "__main__":
    main()
