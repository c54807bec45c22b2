"""nvidia-smi as a run's facts and `check` read it: a script in its place, which answers as the real one does."""

import math

import pytest
from run_helpers import GOOD

from autoresearch.run import gpu
from autoresearch.run.training import RunOptions, run_training

CARD = "NVIDIA H100 80GB HBM3, 570.86.15, 81559, 4, 1755, 1980, 700.00, 700.00, 0x0000000000000004"


@pytest.fixture
def nvidia_smi(tmp_path, monkeypatch):
    """A function that puts an nvidia-smi on PATH, with these answers."""

    def put(card=CARD, processes="", code=0):
        script = tmp_path / "nvidia-smi"
        script.write_text(
            f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\n'
            f"case \"$*\" in *query-gpu*) echo '{card}' ;; *) printf '{processes}' ;; esac\nexit {code}\n"
        )
        script.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
        return tmp_path / "asked"

    return put


def test_a_card_is_read(nvidia_smi, monkeypatch):
    asked = nvidia_smi()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    card = gpu.read_gpu()
    assert card["name"] == "NVIDIA H100 80GB HBM3" and gpu.number(card["clocks.sm"]) == 1755
    assert gpu.slowdown(card) == ""  # a cap on power is usual under load
    assert asked.read_text().startswith("-i 3 --query-gpu=name,driver_version,")
    assert gpu.read_processes() == []


def test_what_holds_the_clock_down_is_named_once(nvidia_smi):
    nvidia_smi(CARD.replace("0x0000000000000004", "0x00000000000000E8"))
    assert gpu.slowdown(gpu.read_gpu()) == "hardware slowdown, too hot, power brake"
    nvidia_smi(CARD.replace("0x0000000000000004", "[N/A]"))
    assert gpu.slowdown(gpu.read_gpu()) == ""


def test_processes_on_the_card(nvidia_smi):
    nvidia_smi(processes="4242, python, 30210\\n4243, /usr/bin/x, [N/A]\\n")
    assert gpu.read_processes() == ["4242 python, 30210 MB", "4243 /usr/bin/x, [N/A] MB"]


@pytest.mark.parametrize(
    ("card", "code", "words"),
    [
        (
            "Failed to initialize NVML: Driver/library version mismatch",
            18,
            "nvidia-smi failed: Failed to initialize NVML",
        ),
        ("H100, 1", 0, "nvidia-smi does not know"),
    ],
)
def test_an_nvidia_smi_that_fails_is_one_line(card, code, words, nvidia_smi):
    nvidia_smi(card, code=code)
    with pytest.raises(RuntimeError, match=words):
        gpu.read_gpu()


def test_without_nvidia_smi(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RuntimeError, match="there is no nvidia-smi"):
        gpu.read_gpu()
    clocks = gpu.Clocks(every=0)
    clocks.look()
    assert clocks.facts() == {} and not clocks.asked


def test_the_clock_during_a_run_is_the_median_of_what_was_seen(nvidia_smi):
    clocks = gpu.Clocks(every=0)
    for clock in ("210", "1700", "[N/A]", "1755"):
        nvidia_smi(CARD.replace("1755", clock))
        clocks.look()
    assert len(clocks.seen) == 4 and clocks.facts() == {"sm_clock_mhz": 1700}
    assert math.isnan(gpu.number("[N/A]"))


def test_a_run_looks_at_the_clock_of_its_slots_gpu(nvidia_smi, tmp_path, monkeypatch):
    asked = nvidia_smi()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    for slot, name in (({"CUDA_VISIBLE_DEVICES": "5"}, "5"), ({}, "3")):
        result = run_training(GOOD, tmp_path / "run", RunOptions("h100", 7, 60, "off", environment=slot))
        assert result.measured["sm_clock_mhz"] == 1755
        assert asked.read_text().splitlines()[-1].startswith(f"-i {name} ")


def test_a_run_looks_at_the_clock_now_and_then_and_never_at_the_cpu_scale(nvidia_smi):
    asked = nvidia_smi()
    clocks = gpu.Clocks()
    for _ in range(3):
        clocks.look()
    assert len(asked.read_text().splitlines()) == 1
    gpu.Clocks(asked=False).look()
    assert len(asked.read_text().splitlines()) == 1
