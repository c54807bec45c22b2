"""
What a run hands over of its model: a list of torch's own operators with their arguments, and raw tensors.

evaluate_bpb() in prepare_data.py calls this when the training is over, and check_model() before it begins. The scorer
reads it with graph.py. Of the package, a sandboxed run sees this file only.
"""

from __future__ import annotations

import importlib
import json
import re
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakIdKeyDictionary

# -----------------------------------------------------------------------------
# Which operators a model may use

# These draw random numbers only for dropout, and there is none in eval mode: a second pass of the scorer would show it.
SEEDED = re.compile(
    "_scaled_dot_product|_flash_attention|_efficient_attention|_cudnn_attention|_varlen_attn|_cudnn_rnn"
)
# Files; memory that nobody wrote; operators that read past a short argument instead of refusing it, or that trust an
# index; formats that the hand-over does not know.
DENIED = re.compile(
    r"from_file|_?resize.*|_pin_memory|set_|.*_backward(_.*)?|.*batch_norm.*|_weight_norm_interface|_unsafe_masked.*"
    r"|_unsafe_index.*|_index_put_impl_?|segment_reduce|_native_multi_head_attention"
    r"|_transformer_encoder_layer_fwd|_fused_adam.*|_foreach_.*_|.*mkldnn.*|miopen_.*|.*sparse.*|_?nested.*|.*jagged.*"
    r"|_?quantize.*|_weight_int.*|_dyn_quant.*|_philox.*|_cslt.*|_reshape_alias|_convert_.*|_transform_.*|.*_helper"
)


def find_operator(name: str) -> torch._ops.OpOverload:
    """An operator by its full name, like aten.add.Tensor. Raises ValueError if a model may not use it."""
    space, operator, overload = (*name.split("."), "", "")[:3]
    if space == "torch_attn":
        importlib.import_module("torch.nn.attention.varlen")  # makes its operators known, and takes a second
    packet = getattr(getattr(torch.ops, space), operator, None) if space in ("aten", "torch_attn") else None
    found = getattr(packet, overload, None)
    if not isinstance(found, torch._ops.OpOverload):
        raise ValueError(f"{name} is not one of torch's own operators; take a plain path in eval mode")
    if torch.Tag.nondeterministic_seeded in found.tags and not SEEDED.match(operator):
        raise ValueError(f"{name} draws random numbers; leave it out in eval mode")
    if DENIED.fullmatch(operator) or not any("Tensor" in str(result.type) for result in found._schema.returns):
        raise ValueError(f"{name} is not on the list of operators that a model may use; write it with simpler ones")
    changed = [argument.alias_info is not None and argument.alias_info.is_write for argument in found._schema.arguments]
    if any(changed) and changed != [True] + [False] * (len(changed) - 1):
        raise ValueError(f"{name} changes more than its first argument; use the form that returns a new tensor")
    return found


# -----------------------------------------------------------------------------
# Recording a forward pass

DECOMPOSED = re.compile(r"(native|cudnn)_batch_norm|_native_batch_norm_legit(_no_training)?|_weight_norm_interface")
NO_GRAPH = "forward() can't be handed over to the scorer: {}. In eval mode it has to be plain PyTorch"
AS_VALUES = ("tolist", "numpy", "__array__", "__dlpack__")  # they read a tensor without any operator
BY_TOKENS = "Python looks at a value that depends on the tokens ({}), so the graph would keep one answer for all texts"


class Recorder(TorchDispatchMode):
    """Writes down every operator that is called, and where its arguments come from."""

    def __init__(self, tokens: Tensor) -> None:
        super().__init__()
        self.nodes: list[list[Any]] = []
        self.held: list[Tensor] = []  # parameters, buffers, constants
        self.names = WeakIdKeyDictionary({tokens: {"input": 0}})
        # The memory of all that depends on the tokens. A weak reference keeps an address from being given out again.
        self.dependent = {tokens.untyped_storage()._cdata: StorageWeakRef(tokens.untyped_storage())}

    def depends(self, value: Any) -> bool:
        """Whether a value, or anything in it, is made of the tokens."""
        if isinstance(value, list | tuple):
            return any(map(self.depends, value))
        return isinstance(value, Tensor) and value.untyped_storage()._cdata in self.dependent

    def encode(self, value: Any) -> Any:
        """An argument as JSON holds it."""
        if isinstance(value, Tensor):
            if value not in self.names:
                self.names[value] = {"tensor": len(self.held)}
                self.held.append(value.detach())
            return self.names[value]
        if isinstance(value, list | tuple):
            return [self.encode(each) for each in value]
        if isinstance(value, torch.dtype | torch.layout | torch.memory_format):
            return {"torch": str(value).removeprefix("torch.")}
        if isinstance(value, torch.device):
            return {"device": value.type}
        if value is None or isinstance(value, bool | int | float | str):
            return value
        raise TypeError(f"an operator is called with a {type(value).__name__}")

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if DECOMPOSED.fullmatch(
            function._opname
        ):  # into operators that may be used; the table takes a second to import
            with self:
                return torch._decomp.get_decompositions([function])[function](*args, **kwargs)
        by_tokens = self.depends([*args, *kwargs.values()])
        call = [str(function), self.encode(args), [[name, self.encode(value)] for name, value in kwargs.items()]]
        results = function(*args, **kwargs)
        several = isinstance(results, list | tuple)
        tensors = [(at, each) for at, each in enumerate(results if several else [results]) if isinstance(each, Tensor)]
        if not tensors:  # a Python value, which the graph has no use for
            if by_tokens and results is not None:
                raise ValueError(BY_TOKENS.format("`.item()`, `if tensor:` or the like"))
            return results
        find_operator(call[0])
        for at, result in tensors:
            self.names[result] = {"node": len(self.nodes), "at": at} if several else {"node": len(self.nodes)}
            if by_tokens:
                storage = result.untyped_storage()
                self.dependent[storage._cdata] = StorageWeakRef(storage)
        self.nodes.append(call)
        return results


class ValuesWatched(TorchFunctionMode):
    """Refuses to give out the values of a tensor that depends on the tokens; one_hot() looks at them for its checks."""

    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self.recorder = recorder

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if getattr(function, "__name__", "") in AS_VALUES and self.recorder.depends(args[:1]):
            raise ValueError(BY_TOKENS.format(f"`.{function.__name__}()`"))
        if function is torch.nn.functional.one_hot and (count := [*args[1:], *(kwargs or {}).values(), -1][0]) > 0:
            return (args[0].unsqueeze(-1) == torch.arange(count, device=args[0].device)).long()
        return function(*args, **(kwargs or {}))


@contextmanager
def plain_paths() -> Iterator[None]:
    """Have torch take the operators that every machine has instead of fused layers, and no compiled function."""
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    torch.clear_autocast_cache()  # its casts would not be seen
    # Where nothing was compiled, torch's compiler is not imported: it takes more than a second.
    eager = torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()
    try:
        with torch.no_grad(), eager, torch.backends.mkldnn.flags(enabled=False):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)


def record_calls(model: torch.nn.Module, tokens: Tensor) -> tuple[dict[str, Any], list[Tensor]]:
    """The operators that model(tokens) comes to, and the tensors that they work on. ValueError for bad logits."""
    torch.clear_autocast_cache()
    recorder = Recorder(tokens)
    with recorder, ValuesWatched(recorder):
        logits = model(tokens)
    shape = tuple(getattr(logits, "shape", ()))
    if len(shape) != 3 or shape[:2] != tokens.shape:
        raise ValueError(f"the logits are {shape or type(logits)}, not {(*tokens.shape, 'vocabulary')}")
    if type(logits) is not Tensor:
        raise ValueError(f"the logits are a {type(logits).__name__}, not a torch.Tensor")
    graph = {"shape": list(tokens.shape), "nodes": recorder.nodes, "logits": recorder.encode(logits)}
    return graph, recorder.held


def make_graph(model: torch.nn.Module, some: Tensor, others: Tensor) -> tuple[dict[str, Any], list[Tensor]]:
    """record_calls() of a model in eval mode, for two batches of tokens (B, T): the graph has to be the same.

    Raises ValueError, with the line of train.py, where the model can't be handed over.
    """
    model.eval()
    with plain_paths():
        try:
            model(some)  # what it keeps from its first call on, like a mask, is there then
            graph, held = record_calls(model, some)
            again, held_then = record_calls(model, others)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            frames = [
                frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename.endswith("train.py")
            ]
            place = f"line {frames[-1].lineno} of train.py (`{frames[-1].line}`): " if frames else ""
            name = "" if type(error) is ValueError else f"{type(error).__name__}: "
            reason = f"{place}{name}{' '.join(str(error).split())[:300]}"
            raise ValueError(NO_GRAPH.format(reason)) from error
    pairs = zip(held, held_then, strict=False)
    same = all(a is b or torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in pairs)  # NaN is not equal to itself
    if json.dumps(graph) != json.dumps(again) or not same:
        reason = "in eval mode it does something else for other tokens, in ways that no operator shows"
        raise ValueError(NO_GRAPH.format(reason))
    return graph, held


def write_graph(graph: dict[str, Any], held: list[Tensor], folder: Path) -> None:
    """Write graph.json and tensors.bin into a folder: text and plain numbers, which nobody has to unpickle."""
    graph = graph | {"tensors": []}
    with open(folder / "tensors.bin", "wb") as file:
        for tensor in held:
            file.write(bytes(-file.tell() % 64))
            kind = str(tensor.dtype).removeprefix("torch.")
            graph["tensors"].append({"dtype": kind, "shape": list(tensor.shape), "start": file.tell()})
            file.write(tensor.contiguous().cpu().reshape(-1).view(torch.uint8).numpy().data)
    (folder / "graph.json").write_text(json.dumps(graph))
