"""The end of a session, with models that are really scored: best and baseline on fresh seeds, and on the test rows."""

import json
import subprocess
import sys

import pytest
from loop_helpers import make_repository, proposer_script, run_loop

# How often each token occurs in a batch, as a model; SHARP 0: all alike.
UNIGRAMS = """
import torch
from prepare_data import MAX_SEQ_LEN, SEED, TIME_BUDGET, Tokenizer, evaluate_bpb, make_dataloader, training_clock

SHARP = 0.0
assert TIME_BUDGET
torch.manual_seed(SEED)
tokenizer = Tokenizer.from_directory()
training_clock()
_, targets, _ = next(make_dataloader(tokenizer, 64, MAX_SEQ_LEN, "train"))
counts = 1.0 + torch.bincount(targets.flatten(), minlength=tokenizer.get_vocab_size())


class Unigrams(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.logits = torch.nn.Parameter(SHARP * counts.log())

    def forward(self, idx):
        return self.logits.expand(*idx.shape, -1) + 0.0


val_bpb = evaluate_bpb(Unigrams(), tokenizer, 64)
print(f"\\n---\\nval_bpb:          {val_bpb:.6f}\\ntraining_seconds: 1.0\\npeak_vram_mb:     1.0")
"""


@pytest.mark.slow
def test_baseline_and_best_are_scored_on_the_test_rows(prepared, tmp_path):
    repo = make_repository(tmp_path / "repo", UNIGRAMS)
    program = (repo / "program.md").read_text()
    (repo / "program.md").write_text(program.replace("baseline_repeats: 2", "baseline_repeats: 0"))
    subprocess.run(["git", "commit", "-qam", "few runs"], cwd=repo, check=True)
    edit = proposer_script(repo, ['sed -i.old "s/^SHARP = .*/SHARP = 1.0/" train.py; echo "SHARP 0.0 -> 1.0"'])
    done = run_loop(repo, "--experiments", "1", "--command", edit, env={"AUTORESEARCH_STEPS": "1"}, timeout=900)
    assert "best tested" in done.stdout, done.stdout
    status = json.loads(subprocess.check_output([sys.executable, "agent_loop.py", "status", "--json"], cwd=repo))
    test = status["best"]["test"]
    assert test["runs"] == 1 and test["gain"] == pytest.approx(test["baseline"] - test["val_bpb"])
    assert test["gain"] == pytest.approx(status["gain"]["value"], rel=0.2) and status["gain"]["value"] > 0.3
