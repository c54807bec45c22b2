"""
How many validation rows a number needs: what rows drawn by chance do to the difference of two models.

    AUTORESEARCH_DATA_DIR=/tmp/rows python prepare_data.py --scale cpu --source FOLDER
    AUTORESEARCH_DATA_DIR=/tmp/rows python benchmarks/scoring_rows.py FOLDER [long]    # no GPU

Trains train.py at the cpu scale for a fixed number of steps: with some seeds, with another learning rate, with `long`
also for longer. Scores each model on the validation text of FOLDER, and compares two on the same rows. "Row" is a piece
of text as long as a row of the h100 scale, 8 kB in one document. The error of a difference on n rows is measured by
drawing rows, and is the rows' standard deviation over the square root of n. The last table scales it to the h100 scale
in two ways: as if two models differed there by as much per row as here (too careful), and in proportion to the noise of
a run. Results: scoring_rows.txt.
"""

import math
import os
import re
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import prepare_data
from autoresearch.data.documents import documents, source_files
from autoresearch.data.packing import pack_rows, tokenize
from autoresearch.files import GRAPH
from autoresearch.judge.scorer import losses_of, read_model
from autoresearch.run.training import RunOptions, run_training

SOURCE = (Path(__file__).resolve().parents[1] / "train.py").read_text()
BYTES = 8_000  # of text in a row of the h100 scale: 2048 tokens of 3.9 bytes
ROWS = 12_288  # of the cpu scale that are scored
STEPS, LONG = 240, 960  # 20 paced seconds, and four times that
DRAWS = 4000
NOISE = {"cpu": 0.009, "h100": 0.0003}  # of a run, in val_bpb: docs/performance.md
ALL = 10_240  # rows of the h100 scale


def validation_rows(folder, tokenizer):
    """The first ROWS rows of the validation text, in its own order: neighbours are of one document."""
    files = source_files(folder, 10, 2, prepare_data.DATA_DIR)
    blocks = pack_rows(tokenize(tokenizer, documents(files, "val"), 2), prepare_data.MAX_SEQ_LEN + 1)
    rows, count = [], 0
    while count < ROWS:
        rows.append(next(blocks))
        count += len(rows[-1])
    return np.concatenate(rows)[:ROWS]


def bits_of(source, seed, steps, tokens, sizes):
    """Bits that each row costs a model that is trained here."""
    with tempfile.TemporaryDirectory() as name:
        result = run_training(source, Path(name), RunOptions("cpu", seed, 3600, steps=steps))
        assert result.status == "ok", result.error
        model = read_model(*(os.open(Path(name, file), os.O_RDONLY) for file in GRAPH))
        with torch.no_grad():
            inputs, targets = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
            losses = losses_of(model, inputs, targets, np.arange(len(tokens)), len(sizes))
    return torch.where(sizes[targets] > 0, losses, 0).sum(1, dtype=torch.float64).numpy() / math.log(2)


def compare(name, first, second, size):
    """Print what the difference of two models is, and its error on rows that are drawn. Returns the rows' deviation."""
    difference = second.sum() / size.sum() - first.sum() / size.sum()
    residual = (second - first) - difference * size  # of a ratio of sums
    deviation = residual.std(ddof=1) / size.mean()
    alone = (first - first.sum() / size.sum() * size).std(ddof=1) / size.mean()
    chance, drawn = np.random.default_rng(0), []
    for n in (32, 128):
        some = [chance.choice(len(size), n) for _ in range(DRAWS)]
        drawn.append(np.std([(second - first)[rows].sum() / size[rows].sum() for rows in some]))
    print(f"{name:32} {difference:+.4f}   {alone:.4f}   {deviation:.4f}   ", end="")
    print(f"{drawn[0]:.5f} ({deviation / 32**0.5:.5f})   {drawn[1]:.5f} ({deviation / 128**0.5:.5f})", flush=True)
    return deviation


def main():
    tokenizer = prepare_data.Tokenizer.from_directory()
    sizes = torch.from_numpy(tokenizer.token_bytes())
    rows = torch.from_numpy(validation_rows(sys.argv[1], tokenizer).astype(np.int64))
    row_bytes = sizes[rows[:, 1:]].sum(1).numpy()
    together = round(BYTES / row_bytes.mean())
    whole = len(rows) // together * together

    def trained(seed, steps=STEPS, source=SOURCE):
        return bits_of(source, seed, steps, rows, sizes)[:whole].reshape(-1, together).sum(1)

    size = row_bytes[:whole].reshape(-1, together).sum(1)
    print(f"torch {torch.__version__}; {len(size)} rows of {size.mean():.0f} bytes, {together} of the cpu scale each")
    print(f"{'':32} difference  sd alone  sd paired  error of 32 rows    of 128 rows (by the formula)", flush=True)
    faster = re.sub(r"^( *MATRIX_LR) = (\S+)", lambda m: f"{m[1]} = {float(m[2]) * 1.5}", SOURCE, flags=re.M)
    base = trained(42)
    deviations = [compare("another seed", base, trained(1), size), compare("a third seed", base, trained(2), size)]
    deviations.append(compare("MATRIX_LR x 1.5, same seed", base, trained(42, source=faster), size))
    deviation = float(np.mean(deviations))
    print(f"\nerror of a difference over the noise of a difference of two runs; sd of a row {deviation:.4f}")
    print(f"{'rows':>6}  as many bits per row as here: error, share    in proportion to the noise: error, share")
    for n in (640, 1280, 2560, 5120, ALL):
        errors = [deviation / n**0.5, deviation / n**0.5 * NOISE["h100"] / NOISE["cpu"]]
        shares = [error / (2**0.5 * NOISE["h100"]) for error in errors]
        print(f"{n:6}  " + "      ".join(f"{e:.6f} {share:7.3f}" for e, share in zip(errors, shares, strict=True)))
    if "long" in sys.argv:
        compare("four times the steps, two seeds", trained(42, LONG), trained(1, LONG), size)


if __name__ == "__main__":
    main()
