"""
GPT pretraining for a fixed time on one GPU (or, small, on a CPU): one file, one number. This is the file that the
search edits; data, batches, the time budget and the metric come from prepare_data.py.

    python train.py                           # after: python prepare_data.py
    AUTORESEARCH_SCALE=cpu python train.py    # the small version, on any machine
    AUTORESEARCH_SEED=7 python train.py       # another seed; AUTORESEARCH_STEPS=50: steps instead of the time budget

The recipe is that of the public autoresearch run of March 2026, with changes from nanochat's later rounds.
"""

import ctypes
import functools
import gc
import importlib.metadata
import itertools
import math
import resource
import sys
import time
from contextlib import nullcontext, suppress
from types import SimpleNamespace

import torch
import torch.nn as nn
import torch.nn.functional as F

from prepare_data import (
    MAX_SEQ_LEN,
    SCALE,
    SEED,
    STEPS,
    TIME_BUDGET,
    Tokenizer,
    check_model,
    default_device,
    evaluate_bpb,
    make_dataloader,
    training_clock,
)

started = time.perf_counter()

# -----------------------------------------------------------------------------
# Hyperparameters

# Every NAME = number here changes val_bpb at its scale; what only costs speed or memory is computed.
if SCALE == "h100":  # the best known
    DEPTH = 9  # layers: the one dial; width, heads and the rules below follow
    DEPTH_FACTOR = DEPTH / 9  # 1 where these values were found
    ASPECT_RATIO = 57  # width = DEPTH * ASPECT_RATIO, rounded up to whole heads
    HEAD_DIM = 128
    BIGRAM_ROWS = 65_536  # embeddings that pairs of tokens are hashed to; 1 is a mere bias
    TOTAL_BATCH_SIZE = 262_144  # tokens per step
    ROTARY_BASE = 200_000
    QK_SCALE = 1.2  # on q and k after their norm: a sharper softmax
    EMBEDDING_INIT = 0.8  # standard deviation
    MATRIX_INIT = 0.68  # times dim^-0.5; output projections start at zero
    FC_INIT = 0.5  # times MATRIX_INIT, for the MLP's first matrix
    RESIDUAL_FIRST, RESIDUAL_LAST = 1.15, 1.05  # scalars on the residual stream, linear over the layers
    X0_FIRST, X0_LAST = 0.20, 0.05  # scalars on the embedding added back, likewise
    MATRIX_LR = 0.04
    EMBEDDING_LR = 0.9
    UNEMBEDDING_LR = 0.005
    MUON_MOMENTUM = 0.97  # reached after MOMENTUM_WARMUP_STEPS
    MUON_MOMENTUM_LAST = 0.90  # at the end of the warm-down
    MOMENTUM_WARMUP_STEPS = 200
    WARMDOWN_FRACTION = 0.75  # the learning rate falls linearly over this last part
    FINAL_LR_FRACTION = 0.05
else:  # where the public recipe started, only smaller: untuned on purpose, so that a search has something to find
    DEPTH = 2
    DEPTH_FACTOR = DEPTH / 2
    ASPECT_RATIO = 32
    HEAD_DIM = 32
    BIGRAM_ROWS = 1
    TOTAL_BATCH_SIZE = 4096
    ROTARY_BASE = 10_000
    QK_SCALE = 1.0
    EMBEDDING_INIT, MATRIX_INIT, FC_INIT = 1.0, 1.0, 1.0
    RESIDUAL_FIRST, RESIDUAL_LAST = 1.0, 1.0
    X0_FIRST, X0_LAST = 0.1, 0.1
    MATRIX_LR = 0.04
    EMBEDDING_LR = 0.6
    UNEMBEDDING_LR = 0.004
    MUON_MOMENTUM, MUON_MOMENTUM_LAST = 0.95, 0.95
    MOMENTUM_WARMUP_STEPS = 50
    WARMDOWN_FRACTION, FINAL_LR_FRACTION = 0.5, 0.0
DEVICE_BATCH_SIZE = min(64, TOTAL_BATCH_SIZE // MAX_SEQ_LEN)  # rows per pass at most: memory only

# Rules for another depth than that of the values above (arXiv 2505.13738, 2405.13698): what is multiplied by how much.
BATCH_FACTOR = 2.0 ** round(0.383 * math.log2(DEPTH_FACTOR))  # tokens per step
LR_FACTOR = BATCH_FACTOR**0.5  # every rate
DECAY_FACTOR = LR_FACTOR / DEPTH_FACTOR  # Muon's weight decay

# Model
WINDOW_PATTERN = "SSSSL"  # attention windows, repeated over the layers: S short, L long; the last layer is always long
SHORT_WINDOW = 0.125  # of MAX_SEQ_LEN
SOFTCAP = 15  # logits = SOFTCAP * tanh(logits / SOFTCAP)
GATE_CHANNELS = 12  # channels that the value-embedding gate looks at
GATE_RANGE = 3.0
SMEAR_CHANNELS = 24
HEAD_INIT = 0.001
BACKOUT_INIT = 0.2

# Optimizer: Muon for matrices, AdamW for the rest (its rates times (dim / 768)^-0.5)
MATRIX_WEIGHT_DECAY = 0.2
MUON_MOMENTUM_FIRST, MUON_BETA2 = 0.85, 0.9
EMBEDDING_WEIGHT_DECAY = 0.001
BIGRAM_LR, BIGRAM_WEIGHT_DECAY = 0.45, 0.003
VALUE_EMBEDDING_LR, VALUE_EMBEDDING_WEIGHT_DECAY = 0.45, 0.003
UNEMBEDDING_WEIGHT_DECAY = 0.01
RESIDUAL_LR, X0_LR, SMEAR_LR = 0.005, 0.5, 0.2

# -----------------------------------------------------------------------------
# Attention

use = {"varlen_attn": True}  # until it was tried: see fast_paths


def attend(q, k, v, window):
    """Causal attention of (B, T, heads, head_dim) in which a position sees itself and `window` - 1 before it."""
    T = q.size(1)
    if window < T and q.is_cuda and use["varlen_attn"]:
        return flash_window(q, k, v, window)
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    if window < T:
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=band_mask(T, window, q.device))
    else:
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)  # by cuDNN on Hopper, FlashAttention-2 on others
    return y.transpose(1, 2)


def flash_window(q, k, v, window):
    """attend() where window < T on a GPU, by FlashAttention-2: the batch is a packed sequence of B documents."""
    from torch.nn.attention.varlen import varlen_attn

    B, T, H, D = q.shape
    offsets = torch.arange(0, B * T + 1, T, dtype=torch.int32, device=q.device)
    q, k, v = (x.reshape(B * T, H, D) for x in (q, k, v))
    return varlen_attn(q, k, v, offsets, offsets, T, T, window_size=(window - 1, 0)).view(B, T, H, D)


@functools.cache
def band_mask(T, window, device):
    """(T, T) bool: True where a query (row) may see a key (column)."""
    distance = torch.arange(T, device=device)[:, None] - torch.arange(T, device=device)
    return (distance >= 0) & (distance < window)


# -----------------------------------------------------------------------------
# Model


def build_config(depth, vocab_size, sequence_length):
    """Everything that follows from the depth. Windows are per layer, in tokens."""
    n_head = math.ceil(depth * ASPECT_RATIO / HEAD_DIM)
    short = min(max(1, int(sequence_length * SHORT_WINDOW)), sequence_length)
    letters = itertools.islice(itertools.cycle(WINDOW_PATTERN), depth - 1)
    windows = [short if letter == "S" else sequence_length for letter in letters] + [sequence_length]
    shape = {"n_layer": depth, "n_head": n_head, "n_embd": n_head * HEAD_DIM, "windows": windows}
    value_layers = range((depth - 1) % 2, depth, 2)  # alternate ones, the last included
    return SimpleNamespace(vocab_size=vocab_size, sequence_length=sequence_length, value_layers=value_layers, **shape)


def norm(x):
    return F.rms_norm(x, (x.size(-1),)).to(x.dtype)  # autocast would leave float32


def rotate(x, cos, sin):
    """Rotary embedding of (B, T, heads, head_dim); cos and sin are (1, T, 1, head_dim / 2)."""
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos + b * sin, b * cos - a * sin), dim=-1)


def bigram_hash(idx):
    """(B, T) tokens -> (B, T) rows of the bigram embedding, from each token and the one before it."""
    before = F.pad(idx, (1, 0))[:, :-1]
    return (before * 36_313 + idx * 27_191) % BIGRAM_ROWS


class Block(nn.Module):
    """Attention and MLP, each on the normed stream and added to it."""

    def __init__(self, config, layer):
        super().__init__()
        dim = config.n_embd
        self.n_head, self.window = config.n_head, config.windows[layer]
        self.qkv = nn.Parameter(torch.empty(3, dim, dim))  # one product, three matrices for Muon
        self.proj = nn.Linear(dim, dim, bias=False)
        self.fc = nn.Linear(dim, 4 * dim, bias=False)
        self.fc_proj = nn.Linear(4 * dim, dim, bias=False)
        self.gate = nn.Linear(GATE_CHANNELS, self.n_head, bias=False) if layer in config.value_layers else None

    def attention(self, x, value_embedding, cos, sin):
        B, T, dim = x.shape
        q, k, v = F.linear(x, self.qkv.flatten(0, 1)).view(B, T, 3, self.n_head, -1).unbind(2)
        if value_embedding is not None:  # mixed into v, as much as a gate per head says
            gate = GATE_RANGE * torch.sigmoid(self.gate(x[..., :GATE_CHANNELS]))
            v = v + gate.unsqueeze(-1) * value_embedding.view_as(v).to(v.dtype)
        q, k = ((rotate(norm(x), cos, sin) * QK_SCALE).to(v.dtype) for x in (q, k))
        return self.proj(attend(q, k, v, self.window).reshape(B, T, dim))

    def forward(self, x, value_embedding, cos, sin):
        x = x + self.attention(norm(x), value_embedding, cos, sin)
        return x + self.fc_proj(F.relu(self.fc(norm(x))).square())


class GPT(nn.Module):
    """(B, T) token ids -> (B, T, vocab_size) logits."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        dim, layers, vocab_size = config.n_embd, config.n_layer, config.vocab_size
        self.embedding = nn.Embedding(vocab_size, dim)
        self.bigram_embedding = nn.Embedding(BIGRAM_ROWS, dim)
        self.value_embeddings = nn.ModuleDict({str(i): nn.Embedding(vocab_size, dim) for i in config.value_layers})
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(layers))
        self.lm_head = nn.Linear(dim, vocab_size, bias=False)
        self.residual_scalars = nn.Parameter(torch.linspace(RESIDUAL_FIRST, RESIDUAL_LAST, layers))
        self.x0_scalars = nn.Parameter(torch.linspace(X0_FIRST, X0_LAST, layers))
        self.smear_gate = nn.Linear(SMEAR_CHANNELS, 1, bias=False)
        self.smear_scalar = nn.Parameter(torch.tensor(0.0))
        self.backout_scalar = nn.Parameter(torch.tensor(BACKOUT_INIT))
        frequencies = ROTARY_BASE ** -(torch.arange(0, HEAD_DIM, 2) / HEAD_DIM)
        angles = torch.outer(torch.arange(config.sequence_length), frequencies)[None, :, None]
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    @torch.no_grad()
    def init_weights(self):
        bound = MATRIX_INIT * 3**0.5 * self.config.n_embd**-0.5  # of a uniform with standard deviation dim^-0.5
        nn.init.normal_(self.embedding.weight, std=EMBEDDING_INIT)
        nn.init.zeros_(self.bigram_embedding.weight)
        nn.init.normal_(self.lm_head.weight, std=HEAD_INIT)
        for embedding in self.value_embeddings.values():
            nn.init.uniform_(embedding.weight, -bound, bound)
        for block in self.blocks:
            nn.init.uniform_(block.qkv, -bound, bound)
            nn.init.uniform_(block.fc.weight, -FC_INIT * bound, FC_INIT * bound)
            nn.init.zeros_(block.proj.weight)
            nn.init.zeros_(block.fc_proj.weight)
            if block.gate is not None:
                nn.init.uniform_(block.gate.weight, 0, 0.02)

    def features(self, idx):
        """(B, T) token ids -> (B, T, n_embd) normed states, which the head makes logits of."""
        cos, sin = self.cos[:, : idx.size(1)], self.sin[:, : idx.size(1)]
        x = norm(self.embedding(idx) + self.bigram_embedding(bigram_hash(idx)))
        x = x.bfloat16() if x.is_cuda else x  # the residual stream; the scalars have no dimension, so it stays bf16
        smear = self.smear_scalar * torch.sigmoid(self.smear_gate(x[:, 1:, :SMEAR_CHANNELS]))
        x = torch.cat((x[:, :1], x[:, 1:] + smear * x[:, :-1]), dim=1)  # each token sees a little of the one before
        x0 = x
        for i, block in enumerate(self.blocks):
            x = self.residual_scalars[i] * x + self.x0_scalars[i] * x0
            value_embedding = self.value_embeddings[str(i)](idx) if block.gate is not None else None
            x = block(x, value_embedding, cos, sin)
            if i == (len(self.blocks) - 1) // 2:
                middle = x
        return norm(x - self.backout_scalar * middle)  # what only served the early layers is taken out again

    def forward(self, idx):
        x = self.features(idx)
        return capped_logits(x, self.lm_head.weight)

    def flops_per_token(self):
        """Training FLOPs: 6 per matmul parameter, 12 per attended position and channel."""
        matmul = sum(p.numel() for p in self.blocks.parameters()) + self.lm_head.weight.numel()
        return 6 * matmul + 12 * self.config.n_embd * sum(self.config.windows)


# -----------------------------------------------------------------------------
# Loss


def capped_logits(x, weight):
    """Logits (..., vocab_size) of states (..., n_embd) under the head's weight, at least float32, softly capped."""
    logits = F.linear(x, weight.to(x.dtype))
    logits = logits.float() if logits.dtype == torch.bfloat16 else logits
    return SOFTCAP * torch.tanh(logits / SOFTCAP)


def summed_loss(x, weight, targets):
    """What is trained on: the cross-entropy in nats, summed over (N, n_embd) states and (N,) targets."""
    return F.cross_entropy(capped_logits(x, weight), targets, reduction="sum")


loss_and_gradients = torch.func.grad_and_value(summed_loss, argnums=(0, 1))


class ChunkedLoss(torch.autograd.Function):
    """The mean of summed_loss() per token, a chunk of the tokens at a time: the float32 logits never exist whole."""

    @staticmethod
    def forward(ctx, x, weight, targets, chunk):
        # It computes the gradients too, up to a factor, so no logits are kept or computed twice.
        head = weight.to(x.dtype)
        total, x_grads, weight_grad = 0, [], 0
        for some_x, some_targets in zip(x.split(chunk), targets.split(chunk), strict=True):
            (x_grad, head_grad), loss = loss_and_gradients(some_x, head, some_targets)
            total, weight_grad = total + loss, weight_grad + head_grad.to(weight.dtype)
            x_grads.append(x_grad)
        ctx.save_for_backward(torch.cat(x_grads), weight_grad)
        return total / len(targets)

    @staticmethod
    def backward(ctx, grad):
        x_grad, weight_grad = ctx.saved_tensors
        factor = grad / len(x_grad)
        return x_grad * factor, weight_grad * factor, None, None


def mean_loss(model, inputs, targets):
    """Nats per token of (B, T) inputs and targets. The logits of a CPU's small batch are cheaper whole."""
    x, targets = model.features(inputs).flatten(0, 1), targets.flatten()
    if x.is_cuda:
        chunk = 16_384  # tokens: 0.27 GB of bf16 logits at a vocabulary of 8192
        return ChunkedLoss.apply(x, model.lm_head.weight, targets, chunk)
    return summed_loss(x, model.lm_head.weight, targets) / len(targets)


# -----------------------------------------------------------------------------
# Optimizer

# Polar Express (arXiv 2505.16932): the coefficients of five steps towards the orthogonal factor of a matrix.
POLAR_EXPRESS = [
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
]


def orthogonalize(G):
    """The nearest orthogonal matrices to a stack (n, rows, columns), approximately; of tall ones, the columns are."""
    X = G.bfloat16() if G.is_cuda else G
    X = X / (X.norm(dim=(-2, -1), keepdim=True) * 1.01 + 1e-6)
    for a, b, c in POLAR_EXPRESS:
        A = X.mT @ X
        X = torch.baddbmm(X, X, torch.baddbmm(A, A, A, beta=b, alpha=c), beta=a)  # a X + X (b A + c A A)
    return X.to(G.dtype)


def muon_update(grads, params, momentum_buffer, second_moment, momentum, lr, weight_decay):
    """One Muon step on a stack (n, rows, columns) of square or tall matrices, in place.

    The rate is (n, 1, 1); momentum and decay are tensors too: as numbers, each new value would be compiled anew.
    """
    momentum_buffer.lerp_(grads, 1 - momentum)
    update = orthogonalize(grads.lerp(momentum_buffer, momentum))  # Nesterov
    # NorMuon (arXiv 2510.05491): even out the size of the rows by their second moment, keep the total.
    mean_square = update.square().mean(dim=-1, keepdim=True)
    second_moment.lerp_(mean_square, 1 - MUON_BETA2)
    scale = second_moment.clamp_min(1e-10).rsqrt()
    size_before = mean_square.sum(dim=(-2, -1), keepdim=True)
    size_after = (mean_square * scale.square()).sum(dim=(-2, -1), keepdim=True)
    update = update * scale * (size_before / size_after.clamp_min(1e-10)).sqrt()
    decay = weight_decay * params * ((update * params) >= 0)  # cautious: only where it agrees with the update
    params.sub_(lr * (update + decay))


def upright(matrices):
    """A matrix or a stack of them as a stack (n, rows, columns) with no fewer rows than columns."""
    stack = matrices.view(-1, *matrices.shape[-2:])
    return stack if stack.size(1) >= stack.size(2) else stack.mT


class Muon(torch.optim.Optimizer):
    """Muon over groups of matrices of one shape, whichever way up, each group stepped as one stack."""

    def __init__(self, params, lr, weight_decay):
        shapes = {}
        for param in params:
            shapes.setdefault(upright(param).shape[1:], []).append(param)
        groups = [{"params": group} for group in shapes.values()]
        super().__init__(groups, {"lr": lr, "weight_decay": weight_decay, "momentum": MUON_MOMENTUM})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            stacks = [upright(param) for param in group["params"]]
            params = torch.cat(stacks)
            grads = torch.cat([upright(param.grad) for param in group["params"]])
            state = self.state[group["params"][0]]
            if not state:
                state["momentum_buffer"] = torch.zeros_like(params)
                state["second_moment"] = torch.zeros_like(params[:, :, :1])
                sizes = [max(1, p.size(-2) / p.size(-1)) ** 0.5 for p in group["params"] for _ in upright(p)]
                state["lr_factors"] = torch.tensor(sizes, device=params.device).view(-1, 1, 1)
            momentum, lr, weight_decay = (torch.tensor(float(group[key])) for key in ("momentum", "lr", "weight_decay"))
            buffers = state["momentum_buffer"], state["second_moment"]
            muon_update(grads, params, *buffers, momentum, lr * state["lr_factors"], weight_decay)
            torch._foreach_copy_(stacks, list(params.split([len(stack) for stack in stacks])))


def build_optimizers(model):
    """[Muon, AdamW] over every parameter once. Each group remembers its first rates for the schedule."""
    adam_scale = LR_FACTOR * (model.config.n_embd / 768) ** -0.5

    def group(params, lr, betas, weight_decay=0.0, eps=1e-10):
        return {"params": list(params), "lr": lr, "betas": betas, "weight_decay": weight_decay, "eps": eps}

    smear = [*model.smear_gate.parameters(), model.smear_scalar, model.backout_scalar]
    values, bigrams = model.value_embeddings.parameters(), model.bigram_embedding.parameters()
    # The scalars' eps is larger: their first gradient is rounding noise only, which Adam would make a full step of.
    adam_groups = [
        group(model.lm_head.parameters(), UNEMBEDDING_LR * adam_scale, (0.8, 0.96), UNEMBEDDING_WEIGHT_DECAY),
        group(model.embedding.parameters(), EMBEDDING_LR * adam_scale, (0.8, 0.995), EMBEDDING_WEIGHT_DECAY),
        group(values, VALUE_EMBEDDING_LR * adam_scale, (0.8, 0.995), VALUE_EMBEDDING_WEIGHT_DECAY),
        group(bigrams, BIGRAM_LR * adam_scale, (0.8, 0.995), BIGRAM_WEIGHT_DECAY),
        group([model.residual_scalars], RESIDUAL_LR * LR_FACTOR, (0.8, 0.95), 0.05, eps=1e-6),
        group([model.x0_scalars], X0_LR * LR_FACTOR, (0.96, 0.95), eps=1e-6),
        group(smear, SMEAR_LR * LR_FACTOR, (0.8, 0.95), eps=1e-6),
    ]
    adamw = torch.optim.AdamW(adam_groups, fused=True)
    muon = Muon(model.blocks.parameters(), MATRIX_LR * LR_FACTOR, MATRIX_WEIGHT_DECAY * DECAY_FACTOR)
    for group in muon.param_groups + adamw.param_groups:
        group["first_lr"], group["first_weight_decay"] = group["lr"], group["weight_decay"]
    return [muon, adamw]


def set_schedule(optimizers, step, progress):
    """Rates for this step. Muon's momentum warms up over the first steps; its weight decay falls along a cosine."""
    muon, adamw = optimizers
    left = min(1.0, (1 - progress) / WARMDOWN_FRACTION)  # 1, then linearly down to 0 over the last part of the budget
    for group in muon.param_groups + adamw.param_groups:
        group["lr"] = group["first_lr"] * (left + (1 - left) * FINAL_LR_FRACTION)
    momentum = MUON_MOMENTUM_FIRST + (MUON_MOMENTUM - MUON_MOMENTUM_FIRST) * min(step / MOMENTUM_WARMUP_STEPS, 1)
    for group in muon.param_groups:
        group["momentum"] = left * momentum + (1 - left) * MUON_MOMENTUM_LAST
        group["weight_decay"] = group["first_weight_decay"] * 0.5 * (1 + math.cos(math.pi * progress))


# -----------------------------------------------------------------------------
# Setup

torch.manual_seed(SEED)
device = default_device()
if device == "cuda":
    if torch.cuda.get_device_capability() < (8, 0):
        sys.exit("this GPU is older than Ampere: it has no bfloat16; AUTORESEARCH_SCALE=cpu needs no GPU")
    torch.set_float32_matmul_precision("high")
    autocast = torch.autocast("cuda", torch.bfloat16)
else:
    torch.set_num_threads(1)  # two threads stall each other as soon as anything else runs
    autocast = nullcontext()
    with suppress(AttributeError):  # glibc only: keep freed memory, as faulting it in anew was a quarter of a step
        ctypes.CDLL(None).mallopt(-1, 2**30)  # M_TRIM_THRESHOLD
        ctypes.CDLL(None).mallopt(-3, 2**25)  # M_MMAP_THRESHOLD

tokenizer = Tokenizer.from_directory()
config = build_config(DEPTH, tokenizer.get_vocab_size(), MAX_SEQ_LEN)
rows_per_step = max(1, round(TOTAL_BATCH_SIZE * BATCH_FACTOR / MAX_SEQ_LEN))
passes = math.ceil(rows_per_step / max(1, DEVICE_BATCH_SIZE))
rows_per_pass = round(rows_per_step / passes)
rows_per_step = passes * rows_per_pass
tokens_per_step = rows_per_step * MAX_SEQ_LEN

model = GPT(config).to(device)
model.init_weights()
optimizers = build_optimizers(model)
num_params = sum(p.numel() for p in model.parameters())
flops_per_token = model.flops_per_token()
PEAKS = {"H100 PCIe": 756, "H100 NVL": 835, "H100": 989.5, "H200": 989.5, "H20": 148, "B200": 2250, "A100": 312}
PEAKS |= {"A10G": 70, "A10": 125, "A30": 165, "A40": 149.7, "A6000": 154.8, "6000 Ada": 364.2, "L40S": 362, "L40": 181}
PEAKS |= {"L4": 121, "Laptop": math.inf, "5090": 209.5, "4090": 165.2, "3090": 71}  # TFLOP/s, dense bf16
device_name = torch.cuda.get_device_name() if device == "cuda" else ""
peak_flops = 1e12 * next((peak for name, peak in PEAKS.items() if name in device_name), math.inf)
print(f"{device_name or 'CPU'} | {num_params / 1e6:.1f} M parameters | depth {DEPTH} | dim {config.n_embd}", end=" ")
print(f"| {tokens_per_step} tokens per step, {passes} passes | windows {config.windows}")

# -----------------------------------------------------------------------------
# Training

if device == "cuda":
    # Small graphs rather than one: they serve every chunk, and torch's compile cache keeps each of them whole.
    compiled = functools.partial(torch.compile, dynamic=False, fullgraph=True)
    model.features = compiled(model.features)
    loss_and_gradients, capped_logits = compiled(loss_and_gradients), compiled(capped_logits)
    muon_update = compiled(muon_update)


def train_step(batches, step, progress):
    """One optimizer step over `passes` batches. Returns the mean loss, on the device: reading it would wait."""
    total = torch.zeros((), device=device)
    for _ in range(passes):
        inputs, targets, _ = next(batches)
        with autocast:
            loss = mean_loss(model, inputs, targets) / passes
        loss.backward()
        total += loss.detach()
    set_schedule(optimizers, step, progress)
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad()
    return total


def start_reading(loss):
    """Start the copy of a loss to the host. Returns a function that waits for it and gives the number."""
    if device == "cpu":
        return loss.item
    copy, copied = loss.to("cpu", non_blocking=True), torch.cuda.Event()
    copied.record()
    return lambda: copied.synchronize() or copy.item()


def stop_if_diverged(value, step):
    """End the run with exit code 1 where the loss is NaN or twice that of guessing."""
    if not value < 2 * math.log(config.vocab_size):
        sys.exit(f"\nloss is {value} at step {step}: training has diverged")


def trial(batch, rows):
    """Loss, weights and gradients after a step, for `rows` copies of a batch's first row: any number gives the same."""
    undo_steps(weights)
    for p in model.parameters():  # with such gradients rounding hardly changes the step, and no matrix stays zero
        p.grad = torch.eye(*p.shape[-2:], device=device).expand_as(p) if p.ndim > 1 else torch.ones_like(p)
    for optimizer in optimizers:
        optimizer.step()
    model.zero_grad()
    with autocast:
        loss = mean_loss(model, *(x[:1].repeat(rows, 1) for x in batch[:2]))
    loss.backward()
    large = [p for p in model.parameters() if p.numel() > 10_000 and p.grad is not None]
    return [loss.detach(), *(p.detach().clone() for p in large), *(p.grad for p in large)]


# What is not plain PyTorch: a switch, and what takes its place where it does not work on this machine.
fast_paths = {"fused AdamW": (lambda on: [g.update(fused=on) for g in optimizers[1].param_groups], "plain AdamW")}
if device == "cuda":
    fast_paths |= {
        "windowed attention: varlen_attn": (lambda on: use.update(varlen_attn=on), "SDPA with a mask"),
        "full attention: FlashAttention-2": (torch.backends.cuda.enable_flash_sdp, "SDPA without it"),
        "full attention: cuDNN": (torch.backends.cuda.enable_cudnn_sdp, "SDPA without it"),
        "torch.compile": (lambda on: torch.compiler.set_stance("default" if on else "force_eager"), "eager mode"),
    }
    if any(importlib.metadata.distributions(name="flash-attn-4")):  # its kernels, under the same operators of torch
        fa4, fa2 = torch.nn.attention.activate_flash_attention_impl, torch.nn.attention.restore_flash_attention_impl
        fast_paths["FlashAttention-4"] = (lambda on: fa4("FA4") if on else fa2(False), "FlashAttention-2")


def use_fast_paths(batch):
    """Switch on what gives the numbers of plain PyTorch up to bf16's rounding; for the rest, a line says why not."""
    for switch, _ in fast_paths.values():
        switch(False)
    expected = trial(batch, 1)
    for name, (switch, instead) in list(fast_paths.items()):
        try:
            switch(True)
            results = trial(batch, len(batch[0]) if name in ("torch.compile", "FlashAttention-4") else 1)  # as compiled
            for x, y in zip(results, expected, strict=True):
                error = ((x - y).norm() / y.norm().clamp_min(1e-9)).item()  # rounding makes 0.1 of it, nonsense 1
                assert error < 0.3, f"its numbers are off by {error:.0%}"
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
            print(f"{name} failed ({reason[:200]}); using {instead}, slower")
            fast_paths.pop(name)[0](False)  # switched off, for good
    undo_steps(weights)


def fits_in_memory(batch):
    """Take two steps on one batch, which compiles everything. Returns False where the GPU's memory is too small."""
    kept = 38 * batch[0].numel() * config.n_layer * config.n_embd  # bytes until the backward pass, as counted
    if device == "cuda" and kept > torch.cuda.mem_get_info()[0]:
        return False  # spares the compilation of what can't fit
    try:
        use_fast_paths(batch)
        for _ in range(2):
            train_step(itertools.repeat(batch), 0, 0.0).item()
        with autocast:
            check_model(model, tokenizer, rows_per_pass)  # for the scorer: better told now than after the training
    except torch.OutOfMemoryError:
        return False
    return True


def undo_steps(weights):
    """Put everything back to where the seed set it."""
    model.load_state_dict(weights)
    model.zero_grad()
    for optimizer in optimizers:
        optimizer.state.clear()
    torch.manual_seed(SEED)


# Compile and warm up on steps that are undone: until the clock starts, the batches hold tokens by chance.
weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
while True:
    batches = make_dataloader(tokenizer, rows_per_pass, MAX_SEQ_LEN, "train")
    first_batch = next(batches)
    fits = fits_in_memory(first_batch)
    undo_steps(weights)
    if fits:
        break
    if rows_per_pass == 1:
        sys.exit("out of memory with one row per pass: the model is too large for this GPU")
    passes = next(n for n in range(2 * passes, rows_per_step + 1) if rows_per_step % n == 0)
    rows_per_pass = rows_per_step // passes
    print(f"out of memory: now {passes} passes of {rows_per_pass} rows per step")
    torch.cuda.empty_cache()
weights.clear()
if device == "cuda":
    torch.cuda.reset_peak_memory_stats()  # of what was only tried
gc.disable()  # a collection would stall the GPU in mid-step

step, progress, smooth_loss, read_previous = 0, 0.0, 0.0, None
clock_start = training_clock()
while progress < 1:
    read_loss = start_reading(train_step(batches, step, progress))
    # The loss of the step before: the GPU goes on with this step while the host waits for that number.
    value = (read_previous or read_loss)()
    stop_if_diverged(value, step)
    read_previous = read_loss
    step += 1
    training_seconds = training_clock() - clock_start
    progress = min(1.0, step / STEPS if STEPS else training_seconds / TIME_BUDGET)
    smooth_loss = 0.9 * smooth_loss + 0.1 * value
    tokens_per_second = step * tokens_per_step / training_seconds
    mfu = f"mfu {100 * flops_per_token * tokens_per_second / peak_flops:.1f} % | " if peak_flops < math.inf else ""
    seconds_left = training_seconds / progress - training_seconds
    line = f"\rstep {step} | {100 * progress:.1f} % | loss {smooth_loss / (1 - 0.9**step):.4f} | "
    line += f"{tokens_per_second / 1e3:.1f} k tok/s | {mfu}{seconds_left:.0f} s left"
    print(line, end="  ", flush=True)

stop_if_diverged(read_loss(), step)  # waits for the last step
training_seconds = training_clock() - clock_start
mfu_percent = 100 * flops_per_token * step * tokens_per_step / training_seconds / peak_flops

# -----------------------------------------------------------------------------
# Summary

model.eval()
with autocast:
    val_bpb = evaluate_bpb(model, tokenizer, rows_per_pass)
own_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
peak_mb = torch.cuda.max_memory_allocated() / 2**20 if device == "cuda" else own_mb
print("\n---")
print(f"val_bpb:          {val_bpb:.6f}")
print(f"training_seconds: {training_seconds:.1f}")
print(f"total_seconds:    {time.perf_counter() - started:.1f}")
print(f"peak_vram_mb:     {peak_mb:.1f}")
print(f"mfu_percent:      {mfu_percent:.2f}")
print(f"total_tokens_M:   {step * tokens_per_step / 1e6:.1f}")
print(f"num_steps:        {step}")
print(f"num_params_M:     {num_params / 1e6:.1f}")
print(f"depth:            {DEPTH}")
