"""A GPU that torch cannot use is told, never passed over: with an nvidia-smi of our own on PATH."""

import os
import subprocess
import sys

import pytest
import torch
from run_helpers import ROOT

from autoresearch.run import gpu

NO_CUDA = pytest.mark.skipif(torch.cuda.is_available(), reason="torch can use this machine's GPU")
pytestmark = NO_CUDA


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A machine without a GPU that the test does not put there."""
    for name in ("DRIVER", "PCI"):
        monkeypatch.setattr(gpu, name, tmp_path / name)
    monkeypatch.setattr(gpu, "NODES", (tmp_path / "proc", tmp_path / "dev"))
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return tmp_path


def put_smi(folder, answer: str, code: int = 0) -> None:
    script = folder / "nvidia-smi"
    script.write_text(f"#!/bin/sh\nprintf '{answer}\\n'\nexit {code}\n")
    script.chmod(0o755)


def test_no_gpu_is_no_problem(machine):
    assert gpu.unusable_gpu() == ""
    put_smi(machine, "No devices were found")
    assert gpu.unusable_gpu() == ""
    put_smi(machine, "NVIDIA-SMI has failed because it could not communicate with the NVIDIA driver", 9)
    assert gpu.unusable_gpu() == "" and gpu.default_scale() == "cpu"


@pytest.mark.parametrize(
    ("cuda", "answer", "words"),
    [
        (
            None,
            "NVIDIA A100-SXM4-80GB, 535.129.03",
            ["no CUDA", "A100", "535.129.03", "built without CUDA", "whl/cu126"],
        ),
        (None, "NVIDIA H100, 580.65.06", ["built without CUDA", "whl/cu130"]),
        ("13.0", "NVIDIA H100, 570.86.15", ["CUDA 13.0", "570.86.15", "needs driver 580 or later", "whl/cu126"]),
        ("12.6", "Tesla V100, 470.82.01", ["CUDA 12.6", "needs driver 525 or later"]),
        ("13.0", "| NVIDIA-SMI 570.1.2  Driver Version: 570.1.2 |", ["driver 570.1.2", "needs driver 580"]),
        ("13.0", "NVIDIA H100, 580.65.06", ["CUDA_VISIBLE_DEVICES is not set"]),
    ],
)
def test_a_gpu_that_torch_cannot_use_is_one_line(machine, monkeypatch, cuda, answer, words):
    put_smi(machine, answer)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    problem = gpu.unusable_gpu()
    assert all(word in problem for word in [*words, torch.__version__, "AUTORESEARCH_SCALE=cpu"]), problem
    assert "\n" not in problem and problem.count("; ") == 1, "what is wrong; the way out"


@pytest.mark.parametrize("value", ["", " ", "-1", "NoDevFiles", "none"])
def test_a_variable_that_hides_it_is_named(machine, monkeypatch, value):
    put_smi(machine, "NVIDIA H100, 580.65.06")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)
    assert f"CUDA_VISIBLE_DEVICES={value!r} hides it; unset" in gpu.unusable_gpu()


@pytest.mark.parametrize("where", ["proc/0000:01:00.0", "dev/nvidia0", "PCI/0000:01:00.0"])
def test_it_is_seen_without_nvidia_smi(machine, monkeypatch, where):
    (machine / where).mkdir(parents=True)
    (machine / where / "vendor").write_text("0x10de\n")
    (machine / where / "class").write_text("0x030200\n")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert "(driver none): no driver is loaded" in gpu.unusable_gpu()
    (machine / "DRIVER").write_text("535.129.03\n")
    assert "needs driver 580 or later" in gpu.unusable_gpu()


def test_other_devices_of_nvidia_are_no_gpu(machine):
    (machine / "PCI/a").mkdir(parents=True)
    (machine / "PCI/a/vendor").write_text("0x10de\n")
    (machine / "PCI/a/class").write_text("0x040300\n")  # its sound
    assert gpu.find_gpu() == ("", "")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "refused"),
    [
        (["prepare_data.py"], True),
        (["train.py"], True),
        (["prepare_data.py", "--help"], False),
        (["prepare_data.py", "--scale", "cpu", "--source", "/nowhere"], False),
    ],
)
def test_nothing_begins_at_another_scale(machine, arguments, refused):
    put_smi(machine, "NVIDIA H100, 535.129.03")
    env = {name: value for name, value in os.environ.items() if name != "AUTORESEARCH_SCALE"}
    env |= {"AUTORESEARCH_DATA_DIR": str(machine / "data")}
    done = subprocess.run([sys.executable, *arguments], cwd=ROOT, env=env, capture_output=True, text=True, timeout=900)
    assert ("cannot use the NVIDIA H100" in done.stderr) == refused, done.stderr
    assert done.returncode == (0 if "--help" in arguments else 2)
    assert "Traceback" not in done.stderr


def test_both_tables_of_peaks_are_one():
    names: dict = {}
    lines = [line for line in (ROOT / "train.py").read_text().splitlines() if line.startswith("PEAKS")]
    exec("\n".join(lines), {"math": __import__("math")}, names)
    assert names["PEAKS"] == gpu.PEAK_TFLOPS and list(names["PEAKS"]) == list(gpu.PEAK_TFLOPS)
