"""`agent_loop.py check`: real at the cpu scale; for a GPU, with what nvidia-smi and the probe would have said."""

import json
import os
import shutil
import subprocess
import sys
from argparse import Namespace

import pytest
import torch
from loop_helpers import git, make_repository
from searches import write_search
from shipped import TRAIN

from autoresearch.run import gpu
from autoresearch.run.training import RunOptions
from autoresearch.settings import Settings
from autoresearch.verbs import check, short_run

SHORT = {"AUTORESEARCH_BUDGET": "5"}


def run_check(folder, *args, env=None):
    """(exit code, {name: line}, everything) of `check --json`."""
    done = subprocess.run(
        [sys.executable, "agent_loop.py", "check", "--json", *args],
        cwd=folder,
        env=os.environ | {"ANTHROPIC_API_KEY": "", "ANTHROPIC_AUTH_TOKEN": ""} | (env or {}),
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert "Traceback" not in done.stderr, done.stderr
    said = json.loads(done.stdout)
    assert said["exit_code"] == done.returncode == max(check.CODES[line["state"]] for line in said["lines"])
    return done.returncode, {line["name"]: line for line in said["lines"]}, said


@pytest.fixture
def repo(tmp_path, prepared):
    return make_repository(tmp_path / "repo", TRAIN)


# -----------------------------------------------------------------------------
# At the cpu scale, for real


@pytest.mark.slow
def test_a_machine_that_is_fit(repo):
    before = git(repo, "status", "--porcelain"), git(repo, "for-each-ref")
    stale = repo / "runs/check/steps/record.json"  # what an earlier check left must not count
    stale.parent.mkdir(parents=True)
    stale.write_text("{}\n{}\n")
    code, lines, said = run_check(repo, "--proposer", "constants", "--hours", "10", env=SHORT)
    bubblewrap = lines["sandbox"]["state"] == "ok"
    assert bubblewrap or "bubblewrap" in lines["sandbox"]["text"]
    assert code == (0 if bubblewrap else 1), said
    names = ["files and git", "program.md", "scale", "prepared data", "proposer", "disk", "torch", "sandbox"]
    assert list(lines) == [*names, "20 steps", "scorer", "a whole run", "estimate"]
    assert lines["scale"]["text"] == "cpu, the small one: no GPU is used, as AUTORESEARCH_SCALE says so"
    steps, whole = lines["20 steps"]["facts"], lines["a whole run"]["facts"]
    assert steps["step_ms"] * steps["tokens_per_second"] == pytest.approx(4096 * 1000)
    assert whole["overhead_seconds"] > whole["evaluation_seconds"] > 0
    runs = int(10 * 3600 / whole["run_seconds"])
    assert lines["estimate"]["facts"]["experiments"] == runs - 1 - 2 - 2  # baseline, its repeats, confirming
    assert (git(repo, "status", "--porcelain"), git(repo, "for-each-ref")) == before
    assert not list((repo / "runs").glob("*/journal.jsonl"))


@pytest.mark.slow
def test_a_fall_back_is_said(repo):
    broken = "import torch\n\n\ndef fails(*_, **__):\n    raise RuntimeError('no such kernel')\n\n\n"
    (repo / "train.py").write_text(
        TRAIN.replace("import ctypes\n", f"{broken}torch._fused_adamw_ = fails\nimport ctypes\n")
    )
    code, lines, _ = run_check(repo, "--proposer", "constants", env=SHORT)
    assert "fused AdamW failed (RuntimeError: no such kernel); using plain AdamW" in lines["fall-back"]["text"]
    assert lines["fall-back"]["state"] == "slow" and lines["scorer"]["state"] == "ok"
    assert lines["files and git"]["text"] == "train.py has uncommitted changes"
    assert code == 2


@pytest.mark.slow
def test_a_train_py_that_crashes_is_a_line(repo):
    (repo / "train.py").write_text("raise RuntimeError('the card is on fire')\n")
    git(repo, "commit", "-qam", "broken")
    code, lines, _ = run_check(repo, "--proposer", "constants")
    assert code == 2 and "RuntimeError: the card is on fire" in lines["20 steps"]["text"]
    assert "runs/check/steps/run.log" in lines["20 steps"]["fix"] and "estimate" not in lines


@pytest.mark.slow
@pytest.mark.parametrize(
    ("breakage", "scale", "name", "text"),
    [
        ("rm -rf .git", "cpu", "git", "not a git repository"),
        ("rm program.md", "cpu", "files and git", "program.md is missing"),
        ("echo '{' > data/cpu/meta.json", "cpu", "prepared data", "meta.json is damaged"),
        ("true", "h100", "scale", "scale h100 needs an NVIDIA GPU and there is none"),
    ],
)
def test_what_is_wrong_is_a_line_with_its_fix(breakage, scale, name, text, repo, prepared, tmp_path):
    shutil.copytree(prepared, tmp_path / "data/cpu")
    (repo / "data").symlink_to(tmp_path / "data")
    subprocess.run(breakage, shell=True, cwd=repo, check=True)
    env = {"AUTORESEARCH_DATA_DIR": str(tmp_path / "data"), "AUTORESEARCH_SCALE": scale, "CUDA_VISIBLE_DEVICES": ""}
    code, lines, _ = run_check(repo, env=env)
    assert code == 2 and lines[name]["state"] == "wrong"
    assert text in lines[name]["text"] and lines[name]["fix"]
    if name in ("scale", "prepared data"):
        assert "ANTHROPIC_API_KEY is not set" in lines["proposer"]["text"]


@pytest.mark.slow
def test_bad_arguments_are_one_line(repo):
    done = subprocess.run(
        [sys.executable, "agent_loop.py", "check", "--hours", "-3"], cwd=repo, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (2, "error: --hours -3.0 is not more than 0\n")


# -----------------------------------------------------------------------------
# A GPU, as it would have been described

CARD = dict(
    zip(
        gpu.FIELDS,
        ["NVIDIA H100 80GB HBM3", "570.86", "81559", "4", "1980", "1980", "700.0", "700.0", "0x0"],
        strict=True,
    )
)
SEEN = {
    "python": "3.11.7",
    "torch": "2.13.0+cu130",
    "cuda": "13.0",
    "triton": "3.6.0",
    "sees_checkout": False,
    "sees_network": False,
    "sees_processes": False,
    "gpu": "NVIDIA H100 80GB HBM3",
    "capability": "9.0",
    "gpu_memory_gb": 79.6,
    "cudnn": 91300,
    "flash_attention": True,
    "bf16_tflops": 700.0,
}
OPTIONS = RunOptions("h100", 42, 60)


def states(lines):
    return {line.name: line.state for line in lines}


def describe_card(monkeypatch, others=(), **changes):
    monkeypatch.setattr(gpu, "read_gpu", lambda: CARD | changes)
    monkeypatch.setattr(gpu, "read_processes", lambda: list(others))
    return {line.name: line for line in short_run.card_lines()}


def test_a_card_that_is_well(monkeypatch):
    lines = describe_card(monkeypatch)
    assert states(lines.values()) == {"GPU": "ok", "power limit": "ok", "others on the GPU": "ok"}
    assert "driver 570.86, 80 GB, up to 1980 MHz" in lines["GPU"].text


def test_a_card_that_is_not(monkeypatch):
    changes = {"power.limit": "350.00", "clocks_throttle_reasons.active": "0x40"}
    lines = describe_card(monkeypatch, ["4242 python, 30210 MB"], **changes)
    assert lines["power limit"].fix == "sudo nvidia-smi -i 0 -pl 700"
    assert "too hot" in lines["GPU clock"].text and "4242 python" in lines["others on the GPU"].text
    assert {line.state for name, line in lines.items() if name != "GPU"} == {"slow"}


def test_no_driver(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    (line,) = short_run.card_lines()
    assert (line.state, line.text) == ("wrong", "there is no nvidia-smi")


def test_what_a_run_sees(monkeypatch):
    monkeypatch.setattr("autoresearch.run.sandbox.bubblewrap_problem", lambda: "")
    assert set(states(short_run.inside_lines(SEEN, OPTIONS)).values()) == {"ok"}
    slow = states(short_run.inside_lines(SEEN | {"bf16_tflops": 300.0, "triton": ""}, OPTIONS))
    assert slow == {"torch": "ok", "kernels": "slow", "bf16 product": "slow", "sandbox": "ok"}
    unknown = list(short_run.inside_lines(SEEN | {"gpu": "NVIDIA B300"}, OPTIONS))[2]
    assert unknown.state == "ok" and "not known" in unknown.text
    blind = {name: value for name, value in SEEN.items() if name != "gpu"}
    assert states(short_run.inside_lines(blind, OPTIONS)) == {"torch": "wrong", "sandbox": "ok"}
    assert states(short_run.inside_lines(blind | {"cuda": ""}, OPTIONS))["torch"] == "wrong"
    open_ = list(short_run.inside_lines(SEEN | {"sees_network": True}, OPTIONS))[-1]
    assert open_.state == "wrong" and "a run sees: network" in open_.text


@pytest.mark.skipif(not shutil.which("bwrap"), reason="needs bubblewrap")
def test_the_probe_sees_more_without_the_sandbox(prepared, tmp_path, monkeypatch):
    monkeypatch.setattr(short_run, "FOLDER", tmp_path)
    seen, problem = short_run.look_from_inside(RunOptions("cpu", 42, 120, sandbox="off"))
    assert problem == "" and seen["sees_checkout"] and seen["sees_processes"]


def test_memory_that_is_nearly_full_is_said():
    result = short_run.RunResult("ok", 30.0, 1.0, memory_gb=75.0, printed={"mfu_percent": 41.0})
    log = "| 262144 tokens per step, 2 passes |\n\rstep 20 | 100.0 % | loss 5.0 | 1600.5 k tok/s | mfu 41.0 % |"
    line = short_run.speed_line(log, result, 20, SEEN, gpu.Clocks(seen=[1700.0, 1755.0]))
    assert line.state == "slow" and "164 ms a step, 1600.5 k tokens/s, MFU 41.0 %" in line.text
    assert line.facts["sm_clock_mhz"] == 1727.5


# -----------------------------------------------------------------------------
# The estimate


def test_dollars_are_those_of_the_last_proposals(tmp_path, monkeypatch):
    repo = make_repository(tmp_path / "repo")
    monkeypatch.setattr(check, "ROOT", repo)
    line = check.estimate_line(8, 360, Settings(), "anthropic")
    assert line.facts["experiments"] == 80 - 9 and "known once one is paid" in line.text
    write_search(repo, 5)
    line = check.estimate_line(8, 360, Settings(), "anthropic")
    assert line.facts["dollars"] == pytest.approx(0.05 * 71) and "$3.55 at $0.05 for a proposal" in line.text
    assert "dollars" not in check.estimate_line(8, 360, Settings(), "constants").facts


def test_too_few_hours_are_said():
    line = check.estimate_line(0.1, 360, Settings(), "constants")
    assert line.state == "slow" and line.facts["experiments"] == 0 and "give more hours" in line.fix


def test_a_search_begins_with_the_cheap_part(repo):
    """The same checks, by the same function: what stops a search is what `check` calls wrong."""
    args = Namespace(tag="t", max_cost=None, ray=None, proposer="anthropic")
    assert list(check.start.needs(args, None)) == ["files and git", "program.md", "scale", "prepared data", "proposer"]


# -----------------------------------------------------------------------------
# The budget


@pytest.mark.parametrize("depth", [1, 4, 6, 9, 12, 20])
def test_the_sizes_are_those_of_the_shipped_model(depth, prepared):
    """Of the h100 scale's constants, on a device that holds no numbers."""
    source = TRAIN.partition("# Setup\n")[0].replace('SCALE == "h100"', "True")
    module = {"__name__": "definitions"}
    exec(compile(source, "train.py", "exec"), module)
    with torch.device("meta"):
        model = module["GPT"](module["build_config"](depth, 8192, 2048))
    parameters, work = short_run.size_at(depth)
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(parameters, rel=1e-3)
    assert model.flops_per_token() == pytest.approx(work, rel=1e-3)


@pytest.mark.parametrize(
    ("speed", "budget", "seen", "depth"),
    [
        (1.057e6, 300, "317 M tokens, 2.6 per parameter at depth 9", 9),  # the H100
        (0.18e6, 300, "54 M tokens, 0.44 per parameter at depth 9", 6),
        (0.18e6, 1800, "324 M tokens, 2.6 per parameter at depth 9", 9),
    ],
)
def test_the_depth_that_sees_as_many_tokens_as_on_an_h100(speed, budget, seen, depth):
    line = short_run.budget_line(speed, {"num_params_M": 122.9, "depth": 9.0}, budget)
    assert line.state == "ok" and seen in line.text and line.text.endswith(f"DEPTH = {depth}")
