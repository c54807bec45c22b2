"""
Takes the place of train.py in a run: some steps of the real one under torch.profiler, then a page of text, and out.

The train.py needs no change. What it takes from prepare_data says how far it is: training_clock() is asked at the start
and after every step, so its calls, or where torch's optimizers step, those, tell the steps. Warm-up and compilation lie
before the clock starts and are left out, as are the first steps; then some steps are timed, and some more profiled.

profile_source() puts the text of a train.py into SOURCE. This file sees the standard library, torch and prepare_data.
"""

import os
import re
import resource
import runpy
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SOURCE = ""  # the train.py
HEADING = "=== profile"  # what follows in the log is the profile
WARM, TIMED, PROFILED = 5, 10, 10  # steps, one after the other
ROWS = 25  # of the table
IN_MODULE = "forward of "
STEPS = 1000  # that its run is given, so that slow steps do not use up the budget first


def profile_source(source: str) -> str:
    """This file with a train.py in it: what a run is given instead of that train.py."""
    return Path(__file__).read_text().replace('SOURCE = ""', f"SOURCE = {source!r}", 1)


def read_profile(log: str) -> str:
    """The profile at the end of a run's log, "" if there is none."""
    return log.rpartition(f"\n{HEADING}\n")[2] if f"\n{HEADING}\n" in log else ""


class Watch:
    """Follows a train.py from step to step."""

    def __init__(self) -> None:
        self.calls = self.tokens = 0
        self.stepped: Counter[int] = Counter()  # by optimizer
        self.marks: list[tuple[float, int, int]] = []  # (seconds, tokens, steps) where timing and profiling begin, end
        self.profiler: Any = None
        self.names: dict[str, Any] = {}  # the variables of train.py

    @property
    def steps(self) -> int:
        """Since the clock was first asked: a train.py may ask more than once in a step, and have no torch optimizer."""
        return max(self.stepped.values(), default=self.calls - 1)

    def clock(self) -> float:
        """In place of training_clock()."""
        self.calls += 1
        self.names = sys._getframe(1).f_globals
        if self.calls == 1:
            self.stepped.clear()
        if self.steps >= (WARM, WARM + TIMED, WARM + TIMED + PROFILED)[len(self.marks)]:
            self.mark()
        return time.perf_counter()

    def mark(self) -> None:
        import torch

        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
        self.marks.append((time.perf_counter(), self.tokens, self.steps))
        if len(self.marks) == 2:
            activities = [torch.profiler.ProfilerActivity.CPU]
            if torch.cuda.is_initialized():
                activities.append(torch.profiler.ProfilerActivity.CUDA)
            else:
                name_modules(self.names.get("model"))
            self.profiler = torch.profiler.profile(activities=activities, acc_events=True)
            self.profiler.start()
        elif len(self.marks) == 3:
            self.profiler.stop()
            leave("\n".join(self.report()))

    def report(self) -> list[str]:
        (begun, tokens_begun, first), (timed, tokens, last), (ended, _, end) = self.marks
        step, profiled = 1000 * (timed - begun) / (last - first), 1000 * (ended - timed) / (end - last)  # ms
        size, speed = (tokens - tokens_begun) // (last - first), (tokens - tokens_begun) / (timed - begun)
        lines = [
            f"{device_name()}: {end - last} steps, after {last} that were left out or only timed",
            f"{step:.2f} ms per step ({profiled:.2f} under the profiler), {size} tokens per step, "
            f"{speed / 1e3:.1f} k tokens per second",
            self.flops(speed),
            f"peak memory {peak_memory():.0f} MB",
            "",
        ]
        return [line for line in lines if line is not None] + table(self.profiler, end - last)

    def flops(self, speed: float) -> Any:
        """By train.py's own count of the operations per token, if it has one under that name."""
        count, peak = self.names.get("flops_per_token"), self.names.get("peak_flops", float("inf"))
        if not isinstance(count, int | float):
            return None
        share = f", MFU {100 * count * speed / peak:.1f} %" if count * speed / peak > 0 else ""
        return f"{count * speed / 1e12:.4g} TFLOP/s by the model's own count{share}"

    def counted(self, batches: Iterator[Any], size: int) -> Iterator[Any]:
        for batch in batches:
            self.tokens += size
            yield batch

    def evaluate(self, *arguments: Any) -> None:
        """In place of evaluate_bpb(): train.py was over too soon."""
        leave(f"train.py took {self.steps} steps; {WARM + TIMED + PROFILED} are needed", 1)


def name_modules(model: Any) -> None:
    """Have the profiler add up the forward passes of the modules; layers together, as in the map of the model."""
    import torch

    entered: list[Any] = []
    for name, module in model.named_modules() if isinstance(model, torch.nn.Module) else ():
        if name:
            part = IN_MODULE + re.sub(r"\b\d+\b", "*", name)
            enter = lambda *_, part=part: entered.append(torch.profiler.record_function(part).__enter__())  # noqa: E731
            module.register_forward_pre_hook(lambda *given, enter=enter: enter(*given))
            module.register_forward_hook(lambda *_: entered.pop().__exit__(None, None, None))


def leave(text: str, code: int = 0) -> None:
    """Print and end: whatever train.py would do on its way out does not matter."""
    print(f"\n{HEADING}\n{text}" if code == 0 else f"\n{text}", flush=True)
    os._exit(code)


def device_name() -> str:
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_initialized() else f"CPU, {torch.get_num_threads()} thread"


def peak_memory() -> float:
    """MB: of the GPU, or of the process."""
    import torch

    if torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def table(profiler: Any, steps: int) -> list[str]:
    """Return a table of the time: kernels on a GPU, else operators, each without what it called; optimizers last."""
    import torch

    on_gpu = torch.cuda.is_initialized()
    side = torch.autograd.DeviceType.CUDA if on_gpu else torch.autograd.DeviceType.CPU
    events = [event for event in profiler.key_averages() if event.device_type == side]
    own = [event for event in events if not getattr(event, "is_user_annotation", False)]
    times = {id(event): (event.self_device_time_total if on_gpu else event.self_cpu_time_total) for event in own}  # us
    total = sum(times.values()) or 1
    lines = [f"{'ms per step':>11}  {'share':>6}  {'calls per step':>14}  {'kernel' if on_gpu else 'operation'}"]
    for event in sorted(own, key=lambda event: -times[id(event)])[:ROWS]:
        spent = times[id(event)]
        name = event.key[:90]
        lines.append(f"{spent / steps / 1e3:11.3f}  {100 * spent / total:5.1f} %  {event.count / steps:14.1f}  {name}")
    lines.append(f"{total / steps / 1e3:11.3f}  100.0 %  {'':14}  all {'kernels' if on_gpu else 'operations'}")
    for event in events if not on_gpu else ():
        if event.key.startswith(("Optimizer.step#", IN_MODULE)):
            lines.append(f"{event.cpu_time_total / steps / 1e3:11.3f}  of these in {event.key}")
    return lines


def main() -> None:
    from torch.optim.optimizer import register_optimizer_step_post_hook

    import prepare_data

    watch, make_dataloader = Watch(), prepare_data.make_dataloader

    def count_step(optimizer: Any, *_: Any) -> None:
        watch.stepped[id(optimizer)] += 1

    def counted_loader(tokenizer: Any, B: int, T: int, split: str) -> Iterator[Any]:
        return watch.counted(make_dataloader(tokenizer, B, T, split), B * T)

    register_optimizer_step_post_hook(count_step)
    replaced = {"training_clock": watch.clock, "make_dataloader": counted_loader, "evaluate_bpb": watch.evaluate}
    for name, function in replaced.items():
        setattr(prepare_data, name, function)
    Path("profiled.py").write_text(SOURCE)  # a file, as Triton reads the source of its kernels from it
    runpy.run_path("profiled.py", run_name="__main__")
    watch.evaluate()


if __name__ == "__main__":
    main()
