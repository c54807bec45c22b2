"""
A trained model as its run handed it over (handover.py), read into a function of tokens.

It is data: names of torch's own operators, their arguments, and raw tensors. Nothing of it is unpickled or evaluated as
Python. An operator may compute, and change what the graph itself has made in the same call; it may not change the
model's tensors or the tokens, draw random numbers, see memory that nobody has written, or read files (handover.py). So
what comes out depends on the tokens of this call alone.
"""

import json
import math
import mmap
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from autoresearch.judge.handover import find_operator

LARGEST_TEXT = 50_000_000  # bytes of a graph.json


@dataclass
class Graph:
    """Called with tokens (B, T) int64, it gives what the model's forward() gave: logits (B, T, vocabulary)."""

    shape: tuple[int, int]
    tensors: list[Tensor]  # the model's own
    steps: list[tuple[Any, Any, Any]]  # operator, arguments, named arguments as pairs
    logits: Any
    device: torch.device
    done: list[set[int]] = field(init=False)  # for each step, the results that no later one needs

    def __post_init__(self) -> None:
        last = {at: at for at in range(len(self.steps))}
        for at, (_, args, kwargs) in enumerate(self.steps):
            last |= dict.fromkeys(nodes_in([args, kwargs]), at)
        last |= dict.fromkeys(nodes_in(self.logits), len(self.steps))
        self.done = [set() for _ in range(len(self.steps) + 1)]
        for node, at in last.items():
            self.done[at].add(node)

    @property
    def precision(self) -> torch.dtype:
        """bfloat16 where it computes in that, else float32."""
        low = {"torch": "bfloat16"} in [
            argument for _, args, kwargs in self.steps for argument in leaves([args, kwargs])
        ]
        return torch.bfloat16 if low or any(x.dtype == torch.bfloat16 for x in self.tensors) else torch.float32

    def __call__(self, tokens: Tensor) -> Tensor:
        results: dict[int, Any] = {}
        kept = {tensor.untyped_storage()._cdata for tensor in (*self.tensors, tokens)}
        for at, (operator, args, kwargs) in enumerate(self.steps):
            args = self.decode(args, results, tokens)
            kwargs = {name: self.decode(value, results, tokens) for name, value in kwargs}
            if operator._schema.is_mutable and args[0].untyped_storage()._cdata in kept:
                raise ValueError(f"{operator} changes the model's own tensors")
            results[at] = operator(*args, **kwargs)
            if operator._opname.startswith(("empty", "new_empty")):
                results[at].untyped_storage().fill_(0)  # what lay in that memory before is not the model's to know
            for node in self.done[at]:
                del results[node]
        return self.decode(self.logits, results, tokens)

    def decode(self, value: Any, results: dict[int, Any], tokens: Tensor) -> Any:
        """An argument as an operator wants it."""
        if isinstance(value, list):
            return [self.decode(each, results, tokens) for each in value]
        if not isinstance(value, dict):
            return value
        if "node" in value:
            result = results[value["node"]]
            return result[value["at"]] if "at" in value else result
        if "tensor" in value:
            return self.tensors[value["tensor"]]
        if "input" in value:
            return tokens
        if "device" in value:
            return tokens.device
        return torch_constant(value["torch"])


def leaves(value: Any) -> list[Any]:
    """What an argument is put together from: plain values, and references to something, which are dictionaries."""
    return [leaf for each in value for leaf in leaves(each)] if isinstance(value, list) else [value]


def nodes_in(value: Any) -> list[int]:
    """The steps whose results an argument refers to."""
    return [leaf["node"] for leaf in leaves(value) if isinstance(leaf, dict) and "node" in leaf]


# -----------------------------------------------------------------------------
# Reading


def load_graph(text: bytes, numbers: mmap.mmap | bytes, device: torch.device) -> Graph:
    """graph.json and tensors.bin as a Graph. ValueError where it is not one that may be run."""
    if len(text) > LARGEST_TEXT:
        raise ValueError(f"the graph has {len(text)} bytes of text")
    stored = json.loads(text)
    B, T = (int(size) for size in stored["shape"])
    tensors = [read_tensor(numbers, **each).to(device) for each in stored["tensors"]]
    steps = [(find_operator(name), args, kwargs) for name, args, kwargs in stored["nodes"]]
    return Graph((B, T), tensors, steps, stored["logits"], device)


def read_tensor(numbers: mmap.mmap | bytes, dtype: str, shape: list[int], start: int) -> Tensor:
    kind, count = torch_constant(dtype), math.prod(shape)
    if not isinstance(kind, torch.dtype) or count < 0 or start < 0 or start + count * kind.itemsize > len(numbers):
        raise ValueError("a tensor of the graph lies outside its file")
    return torch.frombuffer(numbers, dtype=kind, count=count, offset=start).view(shape) if count else torch.empty(shape)


def torch_constant(name: str) -> Any:
    """torch.bfloat16 and the like, by name."""
    found = getattr(torch, name, None)
    if not isinstance(found, torch.dtype | torch.layout | torch.memory_format):
        raise ValueError(f"torch.{name} is no dtype, layout or memory format")
    return found
