"""
A look at this machine from inside a run: trained instead of train.py, in the same sandbox, by `agent_loop.py check`.

It stands alone, as train.py does: in the sandbox there is no autoresearch. Its last line is one of JSON.
"""

import importlib.metadata
import json
import os
import platform
import socket
import time
from pathlib import Path
from typing import Any

import torch


def bf16_tflops(size: int = 8192) -> float:
    """TFLOP/s of a product of two matrices of random numbers, for about a second."""
    a, b = (torch.randn(size, size, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    for _ in range(5):
        a @ b
    torch.cuda.synchronize()
    count, started = 0, time.perf_counter()
    while time.perf_counter() - started < 1:
        for _ in range(10):
            a @ b
        torch.cuda.synchronize()
        count += 10
    return 2 * size**3 * count / (time.perf_counter() - started) / 1e12


def version_of(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def on_gpu() -> dict[str, Any]:
    """The card as torch sees it; nothing where it sees none."""
    if not torch.cuda.is_available():
        return {}
    properties = torch.cuda.get_device_properties(0)
    return {
        "gpu": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "gpu_memory_gb": properties.total_memory / 2**30,
        "cudnn": torch.backends.cudnn.version(),
        "flash_attention": torch.backends.cuda.is_flash_attention_available(),
        "bf16_tflops": bf16_tflops(8192 if properties.total_memory > 8 * 2**30 else 4096),
    }


def main() -> None:
    seen = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda or "",
        "triton": version_of("triton"),
        "sees_checkout": Path(os.environ["PROBE_CHECKOUT"], "program.md").exists(),
        "sees_network": any(name != "lo" for _, name in socket.if_nameindex()),
        "sees_processes": Path(f"/proc/{os.environ['PROBE_PROCESS']}").exists(),
    }
    print(json.dumps(seen | on_gpu()))


if __name__ == "__main__":
    main()
