"""
Idioms of PyTorch that a researcher may write into forward(), each with the reason for a refusal, or "".

    python tests/judge/idioms.py [NAME ...]     # a line for each: handed over and equal to the eager model, or why not

An idiom is an expression of x, states (B, T, 32) float32, and idx, tokens (B, T). Some name layers of `layers`.
"""

import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations

RANDOM, TOKENS, MUTATED = "draws random numbers", "depends on the tokens", "changes the model's own tensors"
VOCABULARY, WIDTH, ROWS, T = 64, 32, 2, 16


def layers() -> nn.ModuleDict:
    """Layers by name, small enough to be made for every idiom."""
    torch.manual_seed(0)
    made = {
        "linear": nn.Linear(WIDTH, WIDTH),
        "gru": nn.GRU(WIDTH, WIDTH, batch_first=True),
        "gru2": nn.GRU(WIDTH, WIDTH, 2, batch_first=True),
        "lstm": nn.LSTM(WIDTH, WIDTH, batch_first=True),
        "rnn": nn.RNN(WIDTH, WIDTH, batch_first=True),
        "gru_cell": nn.GRUCell(WIDTH, WIDTH),
        "lstm_cell": nn.LSTMCell(WIDTH, WIDTH),
        "encoder": nn.TransformerEncoderLayer(WIDTH, 4, 64, batch_first=True),
        "attention": nn.MultiheadAttention(WIDTH, 4, batch_first=True),
        "batch_norm": nn.BatchNorm1d(WIDTH),
        "layer_norm": nn.LayerNorm(WIDTH),
        "group_norm": nn.GroupNorm(4, WIDTH),
        "instance_norm": nn.InstanceNorm1d(WIDTH),
        "rms_norm": nn.RMSNorm(WIDTH),
        "prelu": nn.PReLU(WIDTH),
        "conv": nn.Conv1d(WIDTH, WIDTH, 3, padding=2),
        "depthwise": nn.Conv1d(WIDTH, WIDTH, 4, groups=WIDTH, padding=3),
        "conv_transpose": nn.ConvTranspose1d(WIDTH, WIDTH, 3),
        "bilinear": nn.Bilinear(WIDTH, WIDTH, WIDTH),
        "orthogonal": parametrizations.orthogonal(nn.Linear(WIDTH, WIDTH, bias=False)),
        "cayley": parametrizations.orthogonal(nn.Linear(WIDTH, WIDTH, bias=False), orthogonal_map="cayley"),
        "weight_norm": parametrizations.weight_norm(nn.Linear(WIDTH, WIDTH)),
        "spectral_norm": parametrizations.spectral_norm(nn.Linear(WIDTH, WIDTH)),
        "dropout": nn.Dropout(0.5),
        "embedding": nn.Embedding(VOCABULARY, WIDTH),
        "embedding_bag": nn.EmbeddingBag(VOCABULARY, WIDTH, mode="sum"),
        "unflatten": nn.Unflatten(-1, (4, 8)),
    }
    return nn.ModuleDict(made)


SHAPES = """
    x.squeeze()
    x.unsqueeze(1).squeeze(1)
    x.clone().unsqueeze_(0).squeeze_(0)
    x.clone().transpose_(1, 2).mT
    x.reshape(-1, WIDTH).view_as(x)
    x.permute(0, 2, 1).contiguous().transpose(1, 2)
    x.movedim(1, 2).movedim(2, 1)
    x.flatten(1).unflatten(1, (-1, WIDTH))
    n["unflatten"](x).flatten(2)
    x.swapaxes(1, 2).swapaxes(1, 2)
    torch.cat([x[:, :1] * 0, x[:, :-1]], 1)
    F.pad(x, (0, 0, 1, 0))[:, :-1]
    torch.stack([x, x]).sum(0)
    torch.chunk(x, 2, -1)[0].repeat(1, 1, 2)
    torch.hstack(x.split(8, -1)).view_as(x)
    x.tile(1, 1, 2)[..., :WIDTH]
    x.roll(1, 1) * 0 + x
    x.flip(-1)
    torch.rot90(x, 2, (0, 2)).flip(0)
    x.expand(3, -1, -1, -1)[0]
    x.repeat_interleave(2, -1)[..., :WIDTH]
    x.narrow(-1, 0, 16).repeat(1, 1, 2)
    x.unfold(1, 1, 1).squeeze(-1)
    x.view(torch.int32).view(torch.float32)
    x.as_strided(x.shape, x.stride())
    torch.einsum("btc,bsc->bts", x, x).tril() @ x
    F.pixel_shuffle(x.view(ROWS, T, 8, 4).permute(0, 3, 1, 2), 2).reshape(x.shape)
    x[..., ::2].repeat(1, 1, 2)
    torch.block_diag(*x[:, :, :1].unbind(0)).sum() * 0 + x
    torch.diag_embed(x).sum(-1)
    x.diff(dim=1, prepend=x[:, :1])
    torch.broadcast_to(x[:, :, :1], x.shape)
    x.take_along_dim(x.argsort(-1), -1)
    torch.atleast_3d(x)
    torch.tensor_split(x, 3, dim=-1)[0].repeat(1, 1, 3)[..., :WIDTH]
    x.unbind(1)[0].unsqueeze(1) + x
"""
ARITHMETIC = """
    (idx // 2).unsqueeze(-1) + x
    (idx % 7).unsqueeze(-1) + x
    x // 0.5
    torch.fmod(x, 0.3)
    torch.remainder(x, 0.3)
    F.hardswish(x)
    F.hardsigmoid(x)
    F.hardtanh(x)
    F.silu(x)
    F.gelu(x)
    F.gelu(x, approximate="tanh")
    F.mish(x)
    F.elu(x)
    F.selu(x)
    F.celu(x)
    F.leaky_relu(x)
    F.softplus(x)
    F.relu6(x)
    F.logsigmoid(x)
    F.tanhshrink(x)
    n["prelu"](x.mT).mT
    F.glu(x.repeat(1, 1, 2))
    F.threshold(x, 0.1, 0.0)
    x.clamp(-1, 1)
    x.lerp(x * 2, 0.5)
    torch.where(x > 0, x, 0.0)
    torch.addcmul(x, x, x)
    torch.addcdiv(x, x, x.abs() + 1)
    torch.hypot(x, x)
    torch.atan2(x, x)
    torch.erf(x)
    torch.special.i0(x)
    torch.logaddexp(x, x)
    torch.heaviside(x, x)
    torch.copysign(x, -x)
    x.nan_to_num()
    x.softmax(-1)
    x.log_softmax(-1)
    torch.logsumexp(x, -1, keepdim=True) + x
    F.normalize(x, dim=-1)
    F.softmin(x, -1)
    F.cosine_similarity(x, x, -1).unsqueeze(-1) + x
    torch.cdist(x, x).tril() @ x
    F.pairwise_distance(x, x).unsqueeze(-1) + x
    torch.nextafter(x, x)
    x.frac()
    x.sign() * x.square()
    x.rsqrt().nan_to_num()
    torch.polar(x, x).real
    torch.complex(x, x).abs()
    x.clone().mul_(2).add_(1)
    x.clone().clamp_(0, 1)
    x.clone().masked_fill_(x > 1, 0.0)
    torch.zeros_like(x).copy_(x)
"""
REDUCTIONS = """
    x.sort(-1).values
    x.sort(stable=True, dim=-1).values
    x.argsort(stable=True, dim=-1).float()
    x.topk(4, -1).values.repeat(1, 1, 8)
    x.kthvalue(3, -1, keepdim=True).values + x
    x.median(-1, keepdim=True).values + x
    x.quantile(0.5, -1, keepdim=True) + x
    x.cumsum(1)
    x.cumprod(1)
    x.cummax(1).values
    x.logcumsumexp(1)
    x.std(-1, keepdim=True) + x
    x.var(-1, keepdim=True) + x
    x.amax(-1, keepdim=True) + x
    torch.aminmax(x, dim=-1, keepdim=True).min + x
    x.norm(dim=-1, keepdim=True) + x
    x.mode(-1, True).values + x
    x.masked_select(x > -99).view_as(x)
    torch.searchsorted(x[0, 0].sort().values, x).float()
    torch.bucketize(x, x[0, 0].sort().values).float()
    x.gather(-1, x.argsort(-1))
    x.scatter(-1, x.argsort(-1), x)
    x.index_select(-1, torch.arange(WIDTH))
    x.index_add(1, torch.arange(T), x)
    torch.zeros_like(x).scatter_add_(-1, x.argsort(-1), x)
    torch.bincount(idx.flatten(), minlength=64).sum() * 0 + x
    torch.isin(idx, torch.tensor([1, 2])).unsqueeze(-1) * x
    x.count_nonzero(-1).unsqueeze(-1) + x
    F.one_hot(idx, VOCABULARY).float() @ n["embedding"].weight
    F.embedding(idx, n["embedding"].weight)
    n["embedding_bag"](idx.view(-1, 1)).view(x.shape)
    torch.unique_consecutive(idx * 0).sum() + x
    torch.histc(x, 4).sum() * 0 + x
"""
LINEAR_ALGEBRA = """
    torch.linalg.solve_triangular(torch.eye(WIDTH).expand(ROWS, -1, -1), x.mT, upper=True).mT
    x @ torch.linalg.inv(torch.eye(WIDTH) * 2)
    torch.linalg.qr(n["linear"].weight)[0].sum() * 0 + x
    torch.linalg.matrix_exp(n["linear"].weight).sum() * 0 + x
    x @ n["linear"].weight
    torch.linalg.svdvals(n["linear"].weight).sum() + x
    torch.linalg.det(n["linear"].weight) + x
    torch.linalg.cholesky(torch.eye(4)).sum() + x
    torch.linalg.solve(torch.eye(T) * 2, x)
    torch.linalg.eigh(torch.eye(4)).eigenvalues.sum() + x
    torch.linalg.matrix_norm(x)[:, None, None] + x
    torch.fft.rfft(x, dim=-1).abs().repeat(1, 1, 2)[..., :WIDTH]
    torch.fft.fft(x, dim=-1).real
    torch.fft.irfft(torch.fft.rfft(x, dim=-1), n=WIDTH, dim=-1)
    torch.fft.ifft(torch.fft.fft(x, dim=-1) * torch.fft.fft(x, dim=-1)).real
    torch.view_as_real(torch.view_as_complex(x.view(ROWS, T, -1, 2))).flatten(2)
    torch.kron(torch.eye(2), torch.ones(2, 2)).sum() + x
    torch.outer(x[0, 0], x[0, 1]).sum() * 0 + x
    torch.baddbmm(x, x @ x.mT, x)
    torch.tensordot(x, n["linear"].weight, 1)
    n["orthogonal"](x)
    n["cayley"](x)
    n["weight_norm"](x)
    n["spectral_norm"](x)
    torch.trapezoid(x, dim=-1).unsqueeze(-1) + x
    torch.cross(x[..., :3], x[..., :3], dim=-1).repeat(1, 1, 11)[..., :WIDTH]
"""
LAYERS = """
    n["gru"](x)[0]
    n["gru2"](x)[0]
    n["lstm"](x)[0]
    n["rnn"](x)[0]
    n["gru_cell"](x.flatten(0, 1)).view_as(x)
    n["lstm_cell"](x.flatten(0, 1))[0].view_as(x)
    n["encoder"](x, is_causal=True, src_mask=nn.Transformer.generate_square_subsequent_mask(T))
    n["attention"](x, x, x, need_weights=False)[0]
    n["attention"](x, x, x)[0]
    n["batch_norm"](x.mT).mT
    n["layer_norm"](x)
    n["group_norm"](x.mT).mT
    n["instance_norm"](x.mT).mT
    n["rms_norm"](x)
    n["dropout"](x)
    n["conv"](x.mT)[..., :T].mT
    n["depthwise"](x.mT)[..., :T].mT
    n["conv_transpose"](x.mT)[..., :T].mT
    n["bilinear"](x, x)
    F.conv1d(x.mT, torch.ones(WIDTH, 1, 1), groups=WIDTH).mT
    F.avg_pool1d(x, 2, 2).repeat(1, 1, 2)
    F.max_pool1d(x, 2, 2).repeat(1, 1, 2)
    F.adaptive_avg_pool1d(x, WIDTH)
    F.interpolate(x, scale_factor=1.0)
    F.interpolate(x, size=WIDTH, mode="linear")
    F.scaled_dot_product_attention(x, x, x, is_causal=True)
    F.scaled_dot_product_attention(x, x, x, attn_mask=torch.ones(T, T).tril().bool())
    F.layer_norm(x, (WIDTH,))
    F.local_response_norm(x, 2)
    F.mse_loss(x, x * 2) + x
    F.smooth_l1_loss(x, x * 2) + x
    F.huber_loss(x, x) + x
    F.nll_loss(x.log_softmax(-1).flatten(0, 1), idx.flatten() % WIDTH) * 0 + x
    F.binary_cross_entropy(x.sigmoid(), x.sigmoid()) + x
    F.cross_entropy(x.flatten(0, 1), idx.flatten() % WIDTH) * 0 + x
    F.kl_div(x.log_softmax(-1), x.softmax(-1)) + x
    F.binary_cross_entropy_with_logits(x, x) + x
    torch.fake_quantize_per_tensor_affine(x, 0.1, 0, -128, 127)
    x.to(torch.bfloat16).float()
    x.to(torch.float8_e4m3fn).float()
    x.double().float()
    x.half().float()
    x.int().float()
    torch.vmap(lambda row: row * 2)(x)
    torch.utils.checkpoint.checkpoint(n["linear"], x, use_reentrant=False)
    torch.jit.script(F.silu)(x)
    torch.func.functional_call(n["linear"], dict(n["linear"].named_parameters()), (x,))
"""
REFUSED = {
    "x + torch.randn_like(x)": RANDOM,
    "F.dropout(x, 0.1, training=True)": RANDOM,
    "x + torch.rand(1)": RANDOM,
    "x * torch.bernoulli(torch.full_like(x, 0.5))": RANDOM,
    "x[:, torch.randperm(T)]": RANDOM,
    "F.gumbel_softmax(x)": RANDOM,
    "F.rrelu(x)": RANDOM,
    "x + 1 if (idx == 3).any() else x": TOKENS,
    "x * idx.float().mean().item()": TOKENS,
    "x * len(idx.tolist())": TOKENS,
    "x + torch.from_numpy(idx.numpy() * 2).unsqueeze(-1)": TOKENS,
    "x * float(x.max())": TOKENS,
    "x[:, : int(idx[0, 0]) + 1].sum() + x": TOKENS,
    "x * 2 if torch.equal(idx, idx.flip(0)) else x": TOKENS,
    "n['linear'](x) + n['linear'].bias.data.add_(1)": MUTATED,
}
GROUPS = (SHAPES, ARITHMETIC, REDUCTIONS, LINEAR_ALGEBRA, LAYERS)
IDIOMS = {line.strip(): "" for group in GROUPS for line in group.strip().splitlines()} | REFUSED
NAMES = {"torch": torch, "F": F, "nn": nn, "WIDTH": WIDTH, "ROWS": ROWS, "T": T, "VOCABULARY": VOCABULARY}


class Model(nn.Module):
    """(B, T) tokens -> (B, T, VOCABULARY) logits, by way of one idiom."""

    def __init__(self, idiom: str) -> None:
        super().__init__()
        self.layers = layers()
        self.head = nn.Linear(WIDTH, VOCABULARY)
        self.function = eval(f"lambda x, idx, n: {idiom}", NAMES)

    def forward(self, idx):
        return self.head(self.function(self.layers["embedding"](idx), idx, self.layers))


def check_idiom(idiom: str, folder: Path) -> str:
    """ "" if a model of this idiom is handed over and its graph gives what it gives; else the reason."""
    from autoresearch.judge.graph import load_graph
    from autoresearch.judge.handover import make_graph, write_graph

    model = Model(idiom)
    some, others = torch.randint(VOCABULARY, (2, ROWS, T), generator=torch.Generator().manual_seed(1))
    try:
        write_graph(*make_graph(model, some, others), folder)
        graph = load_graph((folder / "graph.json").read_bytes(), (folder / "tensors.bin").read_bytes(), some.device)
        with torch.no_grad():
            expected, given = model(others), graph(others)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    torch.testing.assert_close(given, expected, equal_nan=True)
    return ""


def main() -> None:
    import tempfile

    for idiom in sys.argv[1:] or IDIOMS:
        with tempfile.TemporaryDirectory() as folder:
            print(f"{idiom:100} {check_idiom(idiom, Path(folder)) or 'ok'}", flush=True)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2]))
    main()
