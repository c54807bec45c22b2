"""
A map of a model: parameters, floating-point operations and memory traffic of a forward pass by part and by layer, and
what each group of the optimizers holds.

A part is a module, or a method of one of train.py's own: the innermost on the stack when an operator is called. Layers
stand together as *. prepare_data.py writes the map for whoever proposes the next experiment. No decision rests on it.
"""

import gc
import re
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from autoresearch.judge.handover import plain_paths

LOOKED_UP = ("embedding", "index", "gather", "index_select")  # they read as much of their first argument as they give


class Meter(TorchDispatchMode):
    """Adds up operations and bytes by part."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.modules = {id(module): (name, module) for name, module in model.named_modules()}
        self.unseen = {id(parameter): parameter.numel() for parameter in model.parameters()}
        self.parameters, self.flops, self.bytes = Counter[str](), Counter[str](), Counter[str]()

    def part(self) -> str:
        """The innermost module on the stack; of one of train.py's own, with the method."""
        frame: Any = sys._getframe(2)
        while frame:
            name, module = self.modules.get(id(frame.f_locals.get("self")), ("", None))
            if module is not None:
                own = not type(module).__module__.startswith("torch.")
                return ".".join(filter(None, [name, frame.f_code.co_name if own else ""]))
            frame = frame.f_back
        return "other"

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        from torch.utils.flop_counter import flop_registry

        result, part = function(*args, **(kwargs or {})), self.part()
        given, made = tensors([args, kwargs]), tensors(result)
        # of the part that reads them first
        self.parameters[part] += sum(self.unseen.pop(id(each), 0) for each in given)
        memory = {each.untyped_storage()._cdata for each in given}
        if not all(each.untyped_storage()._cdata in memory for each in made) or function._schema.is_mutable:  # no view
            read = [*made, *given[1:]] if function._opname in LOOKED_UP else given
            self.bytes[part] += sum(each.numel() * each.element_size() for each in [*read, *made])
        if count := flop_registry.get(function.overloadpacket):
            self.flops[part] += count(*args, **(kwargs or {}), out_val=result)
        elif "attn" in function._opname or "attention" in function._opname:
            self.flops[part] += 4 * args[0].numel() * positions(args)
        return result


def positions(args: Any) -> int:
    """How many positions each one is compared with: all, but in varlen_attn, which has the length and a window."""
    window = next((each[0] for each in args if isinstance(each, list | tuple)), -1)
    length = args[1].size(-2) if args[0].ndim == 4 else args[6]
    return min(length, window + 1) if window >= 0 else length


def tensors(value: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]


def starred(name: str) -> str:
    return re.sub(r"\b\d+\b", "*", name)


def layer_of(name: str) -> str:
    found = re.search(r"\b\d+\b", name)
    return f"layer {found[0]}" if found else "outside the layers"


def parts_table(meter: Meter, tokens: int) -> list[str]:
    """A line for each part, in the order of the pass, then for each layer; all are per token."""
    lines = [f"{'parameters':>10} {'kFLOP':>9} {'share':>6} {'KB moved':>9}  a token's forward pass, eager"]
    everything = sum(meter.flops.values()) or 1
    for name_of in (starred, layer_of):
        for part in dict.fromkeys(map(name_of, meter.parameters)):
            own = [name for name in meter.parameters if name_of(name) == part]
            counted = meter.parameters, meter.flops, meter.bytes
            held, flops, moved = (sum(counts[name] for name in own) for counts in counted)
            figures = f"{flops / tokens / 1e3:9.1f} {flops / everything:6.1%} {moved / tokens / 1e3:9.2f}"
            lines.append(f"{held:10d} {figures}  {part}")
        lines.append("")
    return lines


def optimizer_lines(model: torch.nn.Module) -> list[str]:
    """A line for each group of each optimizer: its parameters, their number, the bytes of its state."""
    names = {id(parameter): starred(name) for name, parameter in model.named_parameters()}
    lines = [f"{'parameters':>10} {'state MB':>9}  optimizer: of what"]
    for optimizer in (each for each in gc.get_objects() if issubclass(type(each), torch.optim.Optimizer)):
        for group in optimizer.param_groups:
            own = [parameter for parameter in group["params"] if id(parameter) in names]
            state = tensors([dict(optimizer.state.get(parameter, {})) for parameter in own])
            size = sum(each.numel() * each.element_size() for each in state) / 1e6
            of = ", ".join(dict.fromkeys(names[id(parameter)] for parameter in own))
            lines.append(f"{sum(map(Tensor.numel, own)):10d} {size:9.2f}  {type(optimizer).__name__}: {of}")
    return lines


def write_map(model: torch.nn.Module, tokens: Tensor, path: Path) -> None:
    """Write the map of a model in eval mode, for a batch of tokens (B, T)."""
    meter = Meter(model)
    try:
        with plain_paths(), meter:
            model(tokens)
        lines = [*parts_table(meter, tokens.numel()), *optimizer_lines(model)]
    except Exception as error:  # of a model that counts as well without: it costs the map, not the run
        lines = [f"no map could be made: {type(error).__name__}: {error}"]
    path.write_text("\n".join(lines) + "\n")
