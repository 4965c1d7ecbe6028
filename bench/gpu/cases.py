"""What the GPU suite measures: each case makes its tensors, and says what is ours, what the peers are, and how equal.

Shapes, peers and goals are those of training and serving models of 0.1 to 8 billion parameters on one card. In
a dry run the same code runs on tensors small enough for Triton's interpreter, in float32 where a product is
involved (its bf16 products are wrong).
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from sysconfig import get_paths

import torch
import torch.nn.functional as F

from bench.gpu import prediction
from bench.gpu.prediction import Work

BF16, F32 = torch.bfloat16, torch.float32


@dataclass(frozen=True)
class Place:
    """Where a case runs: on the GPU at full size, or dry, on small CPU tensors; and on which of our backends."""

    device: str
    dry: bool
    backend: str = "triton"

    def size(self, full: int, small: int) -> int:
        return small if self.dry else full

    def dtype(self, full: torch.dtype) -> torch.dtype:
        """Of what enters a product: Triton's interpreter gets float32."""
        return F32 if self.dry and self.backend == "triton" else full

    def randn(self, *shape: int, dtype: torch.dtype = BF16, scale: float = 1.0) -> torch.Tensor:
        make = torch.Generator(device=self.device).manual_seed(sum(shape))
        return (torch.randn(shape, generator=make, device=self.device) * scale).to(self.dtype(dtype))

    def compile(self, function: Callable) -> Callable:
        return function if self.dry else torch.compile(function)


@dataclass
class Prepared:
    """One case, ready to be checked and timed."""

    ours: Callable[[], object]
    peers: dict[str, Callable[[], object]]
    check: Callable[[], None]  # raises AssertionError where ours is wrong
    work: Work
    flops: float = 0.0  # counted as useful; 0: the bytes of `work` are
    cold: bool = False  # the caches are flushed before each call


@dataclass(frozen=True)
class Case:
    """A row of the report. goals: ratio over `versus` for floor, good and moonshot; versus "" means the ceiling."""

    area: str
    name: str
    make: Callable[[Place], Prepared]
    versus: str = ""
    goals: tuple[float, float, float] = (0.0, 0.0, 0.0)
    seconds: float = 3.0  # what it is expected to cost, compiling included
    tags: frozenset[str] = frozenset()
    backend: str = "triton"

    @property
    def title(self) -> str:
        return f"{self.area}: {self.name}"


def close(ours, truth, tolerance: float = 2e-2) -> None:
    """Raise unless every tensor of ours is within `tolerance` of the truth's largest value."""
    ours, truth = ([t] if isinstance(t, torch.Tensor) else list(t) for t in (ours, truth))
    assert len(ours) == len(truth), f"{len(ours)} results instead of {len(truth)}"
    for index, (a, b) in enumerate(zip(ours, truth, strict=True)):
        assert a.shape == b.shape, f"result {index} is {tuple(a.shape)}, not {tuple(b.shape)}"
        error, scale = (a.float() - b.float()).abs().max().item(), b.float().abs().max().item()
        assert error <= tolerance * max(scale, 1e-6), f"result {index} is off by {error:.3g} of {scale:.3g}"


def grads(function: Callable, inputs: list[torch.Tensor], upstream: torch.Tensor) -> Callable[[], object]:
    """The backward pass alone, of one forward pass made now."""
    out = function(*inputs)
    out = out[0] if isinstance(out, tuple) else out
    return lambda: torch.autograd.grad(out, inputs, upstream, retain_graph=True)


# ---- attention


def _sdpa(backend: str) -> Callable:
    """scaled_dot_product_attention held to one backend: left alone it does not choose the fastest."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    def run(q, k, v):
        with sdpa_kernel(getattr(SDPBackend, backend)):
            return F.scaled_dot_product_attention(q, k, v, is_causal=True)

    return run


def _attention(place: Place, heads: int, dim: int, length: int, backward: bool) -> Prepared:
    from pyengine.kernels import attention

    tokens, heads = place.size(16384, 96), place.size(heads, 2)
    length = place.size(length, 48)
    rows = tokens // length
    q, k, v, dout = place.randn(4, tokens, heads, dim)  # equal ones would leave dq to rounding alone
    bounds = torch.arange(0, tokens + 1, length, dtype=torch.int32, device=place.device)
    theirs = [t.view(rows, length, heads, dim).transpose(1, 2).contiguous() for t in (q, k, v, dout)]

    def packed(t):
        return t.transpose(1, 2).reshape(tokens, heads, dim)

    backends = {"SDPA FLASH": "FLASH_ATTENTION", "SDPA CUDNN": "CUDNN_ATTENTION"}
    peers = {name: _sdpa("MATH" if place.dry else backend) for name, backend in backends.items()}
    first = next(iter(peers.values()))
    lengths = [length] * rows
    flops = 4.0 * dim * prediction.pairs(lengths) * heads
    how = {"triton": "", "cuda": "_by_warps", "hopper": "_on_hopper"}[place.backend]
    work = getattr(prediction, f"attention_{'backward' if backward else 'forward'}{how}")(lengths, heads, dim)

    def ours(q, k, v):
        return attention(q, k, v, bounds)

    if not backward:
        return Prepared(
            lambda: ours(q, k, v),
            {name: (lambda peer=peer: peer(*theirs[:3])) for name, peer in peers.items()},
            lambda: close(ours(q, k, v), packed(first(*theirs[:3]))),
            work,
            flops,
        )
    inputs = [t.requires_grad_() for t in (q, k, v)]
    leaves = [t.requires_grad_() for t in theirs[:3]]
    backwards = {name: _late(grads, peer, leaves, theirs[3]) for name, peer in peers.items()}
    mine = grads(ours, inputs, dout)
    return Prepared(
        mine, backwards,
        lambda: close(mine(), [packed(t) for t in next(iter(backwards.values()))()], 3e-2),
        work, 2.5 * flops,
    )  # fmt: skip


def _late(make: Callable, *arguments) -> Callable[[], object]:
    """make(*arguments)() with `make` called at the first call, so that a peer that fails costs only itself."""
    made: list[Callable] = []

    def call():
        if not made:
            made.append(make(*arguments))
        return made[0]()

    return call


def _packed_attention(place: Place) -> Prepared:
    """16k tokens in documents of very different lengths: the peer pads each to the longest."""
    from pyengine.kernels import attention

    heads, dim = place.size(16, 2), 64
    lengths = [7, 20, 33] if place.dry else [64 << (i % 6) for i in range(24)] + [256]
    tokens, longest = sum(lengths), max(lengths)
    q, k, v = (place.randn(tokens, heads, dim) for _ in range(3))
    bounds = torch.tensor([0, *lengths]).cumsum(0).int().to(place.device)
    rows = torch.cat([torch.arange(n) + i * longest for i, n in enumerate(lengths)]).to(place.device)

    def pad(t):
        out = t.new_zeros(len(lengths) * longest, heads, dim).index_copy_(0, rows, t)
        return out.view(len(lengths), longest, heads, dim).transpose(1, 2).contiguous()

    padded = [pad(t) for t in (q, k, v)]
    peer = _sdpa("MATH" if place.dry else "FLASH_ATTENTION")
    return Prepared(
        lambda: attention(q, k, v, bounds),
        {"SDPA FLASH, padded": lambda: peer(*padded)},
        lambda: close(
            attention(q, k, v, bounds), peer(*padded).transpose(1, 2).reshape(-1, heads, dim)[rows]
        ),
        prediction.attention_forward(lengths, heads, dim),
        4.0 * dim * prediction.pairs(lengths) * heads,
    )


def _decode(place: Place, requests: int, context: int) -> Prepared:
    """One query a request over a paged cache of at least 256 MB: every key and value is read once."""
    from pyengine.kernels import PAGE_SIZE, attention_paged, new_pages, write_pages

    heads, kv_heads, dim = place.size(32, 4), place.size(8, 2), place.size(128, 16)
    requests, context = place.size(requests, 2), place.size(context, 70)
    per = -(-context // PAGE_SIZE)
    pages = new_pages(requests * per, kv_heads, dim, place.dtype(BF16), place.device)
    order = torch.randperm(requests * per, generator=torch.Generator().manual_seed(0)).int().to(place.device)
    table = order.view(requests, per)
    k, v = (place.randn(requests, context, kv_heads, dim) for _ in range(2))
    spots = torch.arange(context, device=place.device)
    for r in range(requests):
        slots = table[r, spots // PAGE_SIZE] * PAGE_SIZE + (spots % PAGE_SIZE).int()
        write_pages(k[r], v[r], *pages, slots.int())
    q = place.randn(requests, heads, dim)
    starts = torch.arange(requests + 1, dtype=torch.int32, device=place.device)
    contexts = torch.full((requests,), context, dtype=torch.int32, device=place.device)

    def peer():
        rows = (t.transpose(1, 2) for t in (q[:, None], k, v))
        return F.scaled_dot_product_attention(*rows, enable_gqa=True)[:, :, 0]

    def ours():
        return attention_paged(q, *pages, table, starts, contexts)

    return Prepared(
        ours, {"SDPA, contiguous": peer}, lambda: close(ours(), peer()),
        prediction.decode_attention([context] * requests, kv_heads, dim), cold=True,
    )  # fmt: skip


# ---- what streams


def _add_norm(place: Place, channels: int) -> Prepared:
    from pyengine.kernels import rmsnorm

    rows, channels = place.size((1 << 27) // channels, 3), place.size(channels, 40)
    x, weight = place.randn(rows, channels), place.randn(channels)
    residual = torch.randn(rows, channels, device=place.device)

    def plain(x, residual, weight):
        summed = x + residual
        return F.rms_norm(summed, weight.shape, None, 1e-6).to(weight.dtype) * weight, summed

    compiled = place.compile(plain)
    return Prepared(
        lambda: rmsnorm(x, weight, residual=residual),
        {"torch.compile": lambda: compiled(x, residual, weight)},
        lambda: close(rmsnorm(x, weight, residual=residual), plain(x, residual, weight)),
        prediction.streaming(x.numel() * (4 + 8)),
    )


def _add_norm_backward(place: Place, channels: int) -> Prepared:
    from pyengine.kernels import rmsnorm

    rows, channels = place.size((1 << 26) // channels, 70), place.size(channels, 40)
    x, weight, dy = place.randn(rows, channels), place.randn(channels), place.randn(rows, channels)

    def plain(x, weight):
        return F.rms_norm(x, weight.shape, weight, 1e-6)

    inputs = [x.requires_grad_(), weight.requires_grad_()]
    ours = grads(rmsnorm, inputs, dy)
    compiled = place.compile(plain)
    return Prepared(
        ours, {"torch.compile": _late(grads, compiled, inputs, dy)},
        lambda: close(ours(), grads(plain, inputs, dy)()),
        prediction.streaming(6 * x.numel(), launches=2),
    )  # fmt: skip


def _swiglu(place: Place, backward: bool) -> Prepared:
    from pyengine.kernels import swiglu

    rows, width = place.size(16384, 3), place.size(8192, 20)
    x, dy = place.randn(rows, 2 * width), place.randn(rows, width)

    def plain(x):
        gate, up = x.chunk(2, -1)
        return F.silu(gate) * up

    compiled = place.compile(plain)
    if not backward:
        return Prepared(
            lambda: swiglu(x), {"torch.compile": lambda: compiled(x)}, lambda: close(swiglu(x), plain(x)),
            prediction.streaming(6 * rows * width, rows * width),
        )  # fmt: skip
    inputs = [x.requires_grad_()]
    ours = grads(swiglu, inputs, dy)
    return Prepared(
        ours, {"torch.compile": _late(grads, compiled, inputs, dy)},
        lambda: close(ours(), grads(plain, inputs, dy)()),
        prediction.streaming(10 * rows * width, rows * width),
    )  # fmt: skip


def _rope(place: Place, backward: bool) -> Prepared:
    from pyengine.kernels import rope
    from pyengine.kernels.rope import reference

    tokens, heads, kv_heads, dim = (
        place.size(16384, 20),
        place.size(32, 3),
        place.size(8, 1),
        place.size(128, 16),
    )
    qkv = place.randn(tokens, heads + 2 * kv_heads, dim)
    weights = [place.randn(dim) for _ in range(2)]
    positions = torch.arange(tokens, dtype=torch.int32, device=place.device)
    cos, sin = (t.to(place.device) for t in reference._angles(qkv, positions, 1e6, ()))

    def plain(qkv):
        q, k, v = qkv.split([heads, kv_heads, kv_heads], dim=1)
        out = []
        for x, weight in ((q, weights[0]), (k, weights[1])):
            a, b = F.rms_norm(x.float(), (dim,), weight.float(), 1e-6).chunk(2, -1)
            out.append(torch.cat([a * cos - b * sin, b * cos + a * sin], -1).to(x.dtype))
        return *out, v.contiguous()

    def ours(qkv):
        return rope(qkv, heads, positions, *weights, 1e6, 1e-6)

    compiled = place.compile(plain)
    numbers = qkv.numel()
    if not backward:
        return Prepared(
            lambda: ours(qkv), {"torch.compile": lambda: compiled(qkv)},
            lambda: close(ours(qkv), plain(qkv)), prediction.streaming(4 * numbers),
        )  # fmt: skip
    upstream = [torch.randn_like(t) for t in plain(qkv)]
    inputs = [qkv.requires_grad_()]

    def back(function):
        out = function(*inputs)
        return lambda: torch.autograd.grad(out, inputs, upstream, retain_graph=True)

    mine = back(ours)
    return Prepared(
        mine, {"torch.compile": _late(back, compiled)}, lambda: close(mine(), back(plain)()),
        prediction.streaming(6 * numbers),
    )  # fmt: skip


def _embedding(place: Place, backward: bool) -> Prepared:
    from pyengine.kernels import embedding

    vocabulary, channels, tokens = place.size(50304, 30), place.size(2048, 40), place.size(16384, 50)
    table = place.randn(vocabulary, channels)
    make = torch.Generator(device=place.device).manual_seed(0)
    # ids are drawn as words are: few often, most seldom
    ids = (torch.rand(tokens, generator=make, device=place.device) ** 4 * vocabulary).long()
    dy = torch.randn(tokens, channels, device=place.device)
    if not backward:
        return Prepared(
            lambda: embedding(table, ids), {"torch": lambda: F.embedding(ids, table).float()},
            lambda: close(embedding(table, ids), F.embedding(ids, table).float(), 0.0),
            prediction.streaming(6 * dy.numel()),
        )  # fmt: skip
    inputs = [table.requires_grad_()]
    ours = grads(lambda t: embedding(t, ids), inputs, dy)
    peer = grads(lambda t: F.embedding(ids, t).float(), inputs, dy)
    wide = grads(lambda t: F.embedding(ids, t.float()), inputs, dy)
    return Prepared(
        ours, {"torch": peer}, lambda: close(ours(), wide()),
        prediction.streaming(4 * dy.numel() + 2 * table.numel(), launches=6),
    )  # fmt: skip


# ---- products


def _linear(place: Place, m: int, n: int, k: int) -> Prepared:
    from pyengine.kernels import linear

    m, n, k = place.size(m, 70), place.size(n, 33), place.size(k, 65)
    x, weight = place.randn(m, k), place.randn(n, k)

    def check():
        y = linear(x, weight)
        close(y, F.linear(x, weight))
        for rows in (slice(0, 1), slice(m // 2, m // 2 + 7)):
            assert torch.equal(linear(x[rows], weight), y[rows]), "a row depends on the rows beside it"

    predict = prediction.product_on_hopper if place.backend == "hopper" else prediction.product
    return Prepared(
        lambda: linear(x, weight), {"torch": lambda: F.linear(x, weight)}, check, predict(m, n, k),
        2.0 * m * n * k if m > 256 else 0.0, cold=m <= 256,
    )  # fmt: skip


def _linear_backward(place: Place, m: int, n: int, k: int) -> Prepared:
    from pyengine.kernels import linear

    m, n, k = place.size(m, 70), place.size(n, 33), place.size(k, 65)
    inputs = [place.randn(*shape).requires_grad_() for shape in ((m, k), (n, k))]
    dy = place.randn(m, n)
    ours, peer = grads(linear, inputs, dy), grads(F.linear, inputs, dy)
    return Prepared(
        ours, {"torch": peer}, lambda: close(ours(), peer()),
        prediction.linear_backward_on_hopper(m, n, k), 4.0 * m * n * k,
    )  # fmt: skip


def _cross_entropy(place: Place, channels: int, vocabulary: int) -> Prepared:
    from pyengine.kernels import linear_cross_entropy

    tokens, channels, vocabulary = (
        place.size(16384, 20),
        place.size(channels, 40),
        place.size(vocabulary, 150),
    )
    x, weight = place.randn(tokens, channels), place.randn(vocabulary, channels, scale=channels**-0.5)
    make = torch.Generator(device=place.device).manual_seed(0)
    targets = torch.randint(vocabulary, (tokens,), generator=make, device=place.device)
    inputs = [x.requires_grad_(), weight.requires_grad_()]

    def plain(x, weight):
        return F.cross_entropy(F.linear(x, weight).float(), targets)

    compiled = place.compile(plain)

    def ours():
        loss = linear_cross_entropy(x, weight, targets).mean()
        return loss.detach(), *torch.autograd.grad(loss, inputs)

    def peer(function=compiled):
        loss = function(x, weight)
        return loss.detach(), *torch.autograd.grad(loss, inputs)

    predict = prediction.cross_entropy_on_hopper if place.backend == "hopper" else prediction.cross_entropy
    return Prepared(
        ours, {"torch.compile": peer}, lambda: close(ours(), peer(plain)),
        predict(tokens, channels, vocabulary), 6.0 * tokens * channels * vocabulary,
    )  # fmt: skip


# ---- sampling, optimisers, a training step


def _sample(place: Place, rows: int) -> Prepared:
    from pyengine.kernels import sample
    from pyengine.kernels.sample import reference

    rows, vocabulary = place.size(rows, 1), place.size(131072, 100)
    logits = place.randn(rows, vocabulary, dtype=F32, scale=3.0)
    make = torch.Generator(device=place.device).manual_seed(0)
    u = torch.rand(rows, generator=make, device=place.device)
    settings = dict(
        temperature=torch.full((rows,), 0.8, device=place.device),
        top_k=torch.full((rows,), 50, dtype=torch.int32, device=place.device),
        top_p=torch.full((rows,), 0.95, device=place.device),
        min_p=torch.zeros(rows, device=place.device),
    )

    def peer():
        """The usual chain: sort, cut, draw."""
        scaled = logits / settings["temperature"][:, None]
        scaled = scaled.masked_fill(scaled < scaled.topk(50, -1).values[:, -1:], -torch.inf)
        ordered, order = scaled.sort(-1, descending=True)
        weights = ordered.softmax(-1)
        weights = weights.masked_fill(weights.cumsum(-1) - weights > 0.95, 0.0)
        return order.gather(1, torch.multinomial(weights, 1))

    def check():
        ids, logprobs = sample(logits, u, **settings)
        truth, true_logprobs = reference.sample(logits, u, *settings.values())
        assert torch.equal(ids, truth), "the ids are not the reference's"
        close(logprobs, true_logprobs, 1e-4)

    return Prepared(
        lambda: sample(logits, u, **settings), {"torch sort path": peer}, check,
        prediction.streaming(logits.numel() * 4, launches=3), cold=True,
    )  # fmt: skip


def _encoding(place: Place, fresh: bool) -> Prepared:
    """Python's own library as text on the device. fresh: with nothing known of its pieces, as in a first pass."""
    from pyengine.kernels import bpe
    from pyengine.kernels.bpe import cuda

    files = sorted(Path(get_paths()["stdlib"]).rglob("*.py"))
    documents, left = [], place.size(64 << 20, 3000)
    for file in files:
        documents.append(file.read_bytes()[:left])
        left -= len(documents[-1])
        if not left:
            break
    lexer, counts = bpe.split_pattern("cl100k"), bpe.WordCounts()
    counts.add_texts(documents[:: place.size(8, 1)], lexer)
    merges = bpe.train(counts, bpe.BYTE_ORDER, place.size(32768, 400))
    encoder = bpe.Encoder(bpe.spell(bpe.BYTE_ORDER, merges), merges, lexer)
    text = torch.frombuffer(bytearray().join(documents), dtype=torch.uint8).to(place.device)
    offsets = torch.tensor([0, *map(len, documents)], device=place.device).cumsum(0)

    def ours():
        if fresh:
            cuda.kept(encoder, text.device)[1].zero_()
        return bpe.encode_tensor(encoder, text, offsets)

    def peer():
        return encoder.encode_batch(documents, threads=os.cpu_count() or 1)

    def check():
        ids, ends = peer()
        for _ in range(2):
            encoded = ours()
            assert encoded.offsets.tolist() == ends.tolist(), "the offsets are not the C++ encoder's"
            assert (encoded.ids.cpu().numpy() == ids).all(), "the ids are not the C++ encoder's"

    size = text.numel()
    pieces = size * 10 // 43  # bytes a piece of code, and the share of pieces first seen that are no token
    return Prepared(
        ours, {"C++, all threads": peer}, check,
        prediction.encoding(size, pieces, pieces // 40 if fresh else 0),
    )  # fmt: skip


def _parameters(place: Place, layers: int, channels: int) -> list[tuple[int, int]]:
    """Shapes of a transformer's matrices."""
    channels, layers = place.size(channels, 24), place.size(layers, 1)
    one = [(3 * channels, channels), (channels, channels), (4 * channels, channels), (channels, 4 * channels)]
    return one * layers


def _adamw(place: Place, layers: int, channels: int) -> Prepared:
    from pyengine.kernels import adamw_

    shapes = _parameters(place, layers, channels)
    params, gradients = ([torch.randn(s, device=place.device) for s in shapes] for _ in range(2))
    first, second = ([torch.zeros_like(p) for p in params] for _ in range(2))
    leaves = [p.clone().requires_grad_() for p in params]
    for leaf, grad in zip(leaves, gradients, strict=True):
        leaf.grad = grad
    peer = torch.optim.AdamW(leaves, lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1, fused=not place.dry)

    def ours(step=1):
        adamw_(params, gradients, first, second, 1e-3, 0.9, 0.95, 1e-8, 0.1, step)

    def check():
        for step in (1, 2):
            ours(step)
            peer.step()
        close(params, [leaf.detach() for leaf in leaves], 1e-5)

    numbers = sum(p.numel() for p in params)
    return Prepared(ours, {"torch fused": peer.step}, check, prediction.streaming(28 * numbers))


def _muon(place: Place, layers: int, channels: int) -> Prepared:
    from pyengine.kernels import muon_
    from pyengine.kernels.muon import reference

    shapes = _parameters(place, layers, channels)
    params, gradients = ([torch.randn(s, device=place.device) for s in shapes] for _ in range(2))
    momenta = [torch.zeros_like(p) for p in params]

    def plain(dtype):
        """The update as it is usually written: one matrix after the other, in `dtype`."""
        a, b, c = reference.NEWTON_SCHULZ
        for g in gradients:
            x = g.to(dtype) if g.shape[0] <= g.shape[1] else g.T.to(dtype)
            x = x / (x.norm() + 1e-7)
            for _ in range(5):
                gram = x @ x.T
                x = a * x + (b * gram + c * gram @ gram) @ x

    def check():
        other, moved = [p.clone() for p in params], [m.clone() for m in momenta]
        muon_(params, gradients, momenta, 0.02)
        reference.step(other, gradients, moved, 0.02, 0.95, 0.0, 1.0)
        close(params, other, 1e-4)

    return Prepared(
        lambda: muon_(params, gradients, momenta, 0.02),
        {"torch float32": lambda: plain(F32), "torch bf16": lambda: plain(BF16)},
        check, prediction.muon(shapes),
    )  # fmt: skip


def _training_step(place: Place, depth: int, channels: int, vocabulary: int, length: int) -> Prepared:
    """Forward, backward and AdamW on one model, ours in bf16 with float32 masters, the peer under autocast."""
    from pyengine.kernels import adamw_, grad_norm

    from bench.plain_torch import PlainTransformer
    from pyengine.model import ModelConfig, Transformer

    heads = place.size(channels // 64, 2)
    channels = place.size(channels, 32)
    config = ModelConfig(
        vocab_size=place.size(vocabulary, 97), hidden_size=channels, layers=place.size(depth, 1), heads=heads,
        kv_heads=heads, head_dim=place.size(64, 16), intermediate_size=place.size(channels * 8 // 3 // 64 * 64, 48),
    )  # fmt: skip
    rows, length = place.size(16384 // length, 2), place.size(length, 17)
    make = torch.Generator().manual_seed(0)
    tokens = torch.randint(config.vocab_size, (rows, length + 1), generator=make).to(place.device)
    ids, targets = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
    positions = torch.arange(length, dtype=torch.int32, device=place.device).repeat(rows)
    bounds = torch.arange(0, rows * length + 1, length, dtype=torch.int32, device=place.device)
    start = Transformer(config, seed=1)
    model = Transformer(config, seed=None, dtype=place.dtype(BF16), device=place.device)
    model.load_state_dict(start.state_dict())
    plain = PlainTransformer(start).to(place.device)
    plain.cos, plain.sin = plain.cos.to(place.device), plain.sin.to(place.device)
    masters = [p.detach().float().clone() for p in model.parameters()]
    moments = [[torch.zeros_like(m) for m in masters] for _ in range(2)]
    peer_optimizer = torch.optim.AdamW(plain.parameters(), lr=1e-4, weight_decay=0.0, fused=not place.dry)

    def our_loss():
        return model.loss(ids.flatten(), targets.flatten(), bounds, positions).mean()

    def ours():
        our_loss().backward()
        gradients = [p.grad.float() for p in model.parameters()]
        clip = min(1.0, 1.0 / (grad_norm(gradients) + 1e-6))
        adamw_(masters, gradients, *moments, 1e-4, 0.9, 0.95, 1e-8, 0.0, 1, clip)
        with torch.no_grad():
            torch._foreach_copy_(list(model.parameters()), masters)
        model.zero_grad(set_to_none=True)

    spots = positions.view(rows, length).long()
    compiled = place.compile(plain.loss)

    def peer_loss(function):
        with torch.autocast(place.device, BF16, enabled=not place.dry):
            return function(ids, targets, spots, None).mean()

    def peer():
        peer_loss(compiled).backward()
        torch.nn.utils.clip_grad_norm_(plain.parameters(), 1.0, foreach=True)
        peer_optimizer.step()
        peer_optimizer.zero_grad(set_to_none=True)

    def check():
        close(our_loss().detach(), peer_loss(plain.loss).detach(), 1e-2)

    numbers = sum(p.numel() for p in model.parameters())
    flops = float(config.train_flops(length / 2)) * rows * length
    return Prepared(
        ours, {"torch.compile": peer}, check,
        Work(products=flops * 4 / 3, bytes=40 * numbers, launches=20 * config.layers, reach=0.55), flops,
    )  # fmt: skip


def _decoding(place: Place, name: str, *arguments) -> Prepared:
    """A case of decoding.py, which imports this module."""
    from bench.gpu import decoding

    return getattr(decoding, name)(place, *arguments)


def _cases() -> list[Case]:
    found = []

    called_so = {"triton": "", "cuda": ", CUDA C++", "hopper": ", Hopper's engines"}

    def add(
        area, name, make, *arguments, versus="", goals=(0.0, 0.0, 0.0), seconds=3.0, quick=False,
        backends=("triton",),
    ):  # fmt: skip
        """backends: whose kernels are measured, each in a row of its own; the first's may have to be compiled."""
        tags = frozenset({"quick"} if quick else ())
        for backend in backends:
            called = name + called_so[backend] if len(backends) > 1 else name
            needs = seconds if backend == backends[0] else seconds / 3
            case = Case(
                area, called, lambda place: make(place, *arguments), versus, goals, needs, tags, backend
            )
            found.append(case)

    for heads, dim, goals in ((16, 128, (1.08, 1.4, 1.75)), (32, 64, (1.2, 1.35, 1.55))):
        for length in (2048, 8192, 16384):
            add("attention forward", f"causal D={dim} S={length}", _attention, heads, dim, length, False,
                versus="SDPA FLASH", goals=goals, quick=length == 8192,
                backends=("triton", "cuda", "hopper"))  # fmt: skip
    for heads, dim, length in ((16, 128, 2048), (16, 128, 8192), (32, 64, 4096)):
        add("attention backward", f"causal D={dim} S={length}", _attention, heads, dim, length, True,
            versus="SDPA FLASH", goals=(0.85, 1.2, 1.5), quick=length == 4096,
            backends=("triton", "cuda", "hopper"))  # fmt: skip
    add("attention forward", "packed, 64 to 2,048 tokens, D=64", _packed_attention,
        versus="SDPA FLASH, padded", goals=(1.5, 2.0, 3.0))  # fmt: skip
    for requests, context in ((64, 1024), (8, 8192), (1, 65536)):
        add("decode attention", f"paged, {requests} x {context}, GQA 4", _decode, requests, context,
            goals=(0.75, 0.85, 0.93), quick=requests == 64)  # fmt: skip
    add("cross entropy", "forward + backward, d=768 V=50,257", _cross_entropy, 768, 50257,
        versus="torch.compile", goals=(1 / 1.15, 1.0, 1 / 0.92), seconds=15, quick=True,
        backends=("triton", "hopper"))  # fmt: skip
    add("cross entropy", "forward + backward, d=1,024 V=151,936", _cross_entropy, 1024, 151936,
        versus="torch.compile", goals=(1 / 1.15, 1.0, 1 / 0.92), seconds=15,
        backends=("triton", "hopper"))  # fmt: skip
    for channels in (1024, 4096, 32768):
        add(
            "add + rmsnorm", f"forward, C={channels}", _add_norm, channels, goals=(0.8, 0.88, 0.93), seconds=8
        )
    add("add + rmsnorm", "backward, C=4096", _add_norm_backward, 4096, goals=(0.8, 0.88, 0.93), seconds=8)
    for backward in (False, True):
        what = "backward" if backward else "forward"
        add("swiglu", f"{what}, 16k x 8,192", _swiglu, backward, goals=(0.8, 0.88, 0.93), seconds=8)
        add("rope", f"{what} with q/k norm, D=128", _rope, backward, goals=(0.8, 0.88, 0.93), seconds=8)
        add("embedding", f"{what}, V=50,304 C=2,048", _embedding, backward, goals=(0.6, 0.75, 0.85))
    for n, k in ((4096, 4096), (3072, 768)):
        size = f"16k x {n:,} x {k:,}"
        add("linear", size, _linear, 16384, n, k, versus="torch", goals=(0.8, 0.9, 1.0),
            quick=k == 4096, backends=("triton", "hopper"))  # fmt: skip
        add("linear", f"backward, {size}, Hopper's engines", _linear_backward, 16384, n, k, versus="torch",
            goals=(0.8, 0.9, 1.0), seconds=1.5, quick=k == 4096, backends=("hopper",))  # fmt: skip
    for rows in (1, 64):
        add("linear", f"{rows} x 14,336 x 4,096", _linear, rows, 14336, 4096, goals=(0.6, 0.75, 0.88))
    for rows in (1, 32, 128):
        add("sample", f"top-k 50 + top-p 0.95, B={rows} V=131,072", _sample, rows,
            versus="torch sort path", goals=(3.0, 8.0, 15.0), quick=rows == 1, backends=("triton", "cuda"))  # fmt: skip
    for name, fresh in (("first pass", True), ("known pieces", False)):
        found.append(
            Case(
                "encoding", f"code, cl100k's pattern, {name}", partial(_encoding, fresh=fresh),
                "C++, all threads", (2.0, 5.0, 10.0), 8.0, frozenset({"quick"} if fresh else ()), "cuda",
            )
        )  # fmt: skip
    for name, layers, channels in (("85M", 12, 768), ("1.2B", 24, 2048)):
        add("adamw", name, _adamw, layers, channels, goals=(0.8, 0.88, 0.93), quick=layers == 12)
        add("muon", name, _muon, layers, channels, versus="torch bf16", goals=(1.1, 1.4, 1.8), seconds=5)
    add("training step", "GPT-2 124M, S=1,024", _training_step, 12, 768, 50304, 1024,
        versus="torch.compile", goals=(1.05, 1.12, 1.25), seconds=60)  # fmt: skip
    add("training step", "1.1B, S=2,048", _training_step, 22, 2048, 32000, 2048,
        versus="torch.compile", goals=(1.05, 1.12, 1.25), seconds=75)  # fmt: skip
    for size, batch, goals in (
        ("1M", 1, (0.0, 0.0, 0.0)), ("0.6B", 1, (0.45, 0.65, 0.82)), ("8B", 1, (0.8, 0.87, 0.93)),
        ("8B", 128, (0.55, 0.7, 0.82)),
    ):  # fmt: skip
        add("decode step", f"{size}, B={batch}, context 1,024", _decoding, "decode_step", size, batch, 1024,
            goals=goals, seconds=16, quick=size == "0.6B")  # fmt: skip
    add("decode step, persistent", "1M, B=1, context 1,024", _decoding, "decode_step", "1M", 1, 1024, True,
        seconds=3, backends=("cuda",))  # fmt: skip
    add("rollout", "0.6B, 32 problems x 8, 128 + 64 tokens", _decoding, "rollout", "0.6B", 32, 8, 128, 64,
        goals=(0.5, 0.6, 0.7), seconds=14)  # fmt: skip
    add("fine-tuning", "0.6B, packed, 128 to 1,408 tokens", _decoding, "finetuning", "0.6B",
        versus="torch.compile, padded", goals=(1.3, 1.6, 2.0), seconds=55)  # fmt: skip
    for bits, kind in ((8, "Q8_0"), (4, "Q4_1")):
        for rows in (1, 16, 512):
            goals = (0.6, 0.75, 0.88) if rows == 1 else (0.5, 0.6, 0.75) if rows == 16 else (0.25, 0.4, 0.6)
            add("quantized", f"{kind}, {rows} x 14,336 x 4,096", _decoding, "quantized", rows, bits,
                goals=goals, quick=rows == 1)  # fmt: skip
    for batch in (1, 64):
        add("head + sample", f"B={batch}, d=1,024 V=151,936", _decoding, "head_and_sample", batch,
            versus="torch's product alone", goals=(1 / 1.1, 1 / 1.05, 1 / 1.03), seconds=6)  # fmt: skip
    # last, so that a kernel never seen on a card, should it hang, takes its own rows' time alone
    return sorted(found, key=lambda case: case.backend == "hopper")


CASES: list[Case] = _cases()
