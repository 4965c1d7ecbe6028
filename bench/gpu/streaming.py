"""Cases bound by memory: norms, SwiGLU, rotation, the embedding."""

import torch
import torch.nn.functional as F
from pyengine.kernels.rope import reference

from bench.gpu import prediction
from bench.gpu.case import Place, Prepared, close, grads, late
from pyengine import kernels


def add_norm(place: Place, channels: int) -> Prepared:
    rows, channels = place.size((1 << 27) // channels, 3), place.size(channels, 40)
    x, weight = place.randn(rows, channels), place.randn(channels)
    residual = torch.randn(rows, channels, device=place.device)

    def plain(x, residual, weight):
        summed = x + residual
        return F.rms_norm(summed, weight.shape, None, 1e-6).to(weight.dtype) * weight, summed

    compiled = place.compile(plain)
    return Prepared(
        lambda: kernels.rmsnorm(x, weight, residual=residual),
        {"torch.compile": lambda: compiled(x, residual, weight)},
        lambda: close(kernels.rmsnorm(x, weight, residual=residual), plain(x, residual, weight)),
        prediction.streaming(x.numel() * (4 + 8)),
    )


def add_norm_backward(place: Place, channels: int) -> Prepared:
    rows, channels = place.size((1 << 26) // channels, 70), place.size(channels, 40)
    x, weight, dy = place.randn(rows, channels), place.randn(channels), place.randn(rows, channels)

    def plain(x, weight):
        return F.rms_norm(x, weight.shape, weight, 1e-6)

    inputs = [x.requires_grad_(), weight.requires_grad_()]
    ours = grads(kernels.rmsnorm, inputs, dy)
    compiled = place.compile(plain)
    return Prepared(
        ours, {"torch.compile": late(grads, compiled, inputs, dy)},
        lambda: close(ours(), grads(plain, inputs, dy)()),
        prediction.streaming(6 * x.numel(), launches=2),
    )  # fmt: skip


def swiglu(place: Place, backward: bool) -> Prepared:
    rows, width = place.size(16384, 3), place.size(8192, 20)
    x, dy = place.randn(rows, 2 * width), place.randn(rows, width)

    def plain(x):
        gate, up = x.chunk(2, -1)
        return F.silu(gate) * up

    compiled = place.compile(plain)
    if not backward:
        return Prepared(
            lambda: kernels.swiglu(x), {"torch.compile": lambda: compiled(x)},
            lambda: close(kernels.swiglu(x), plain(x)), prediction.streaming(6 * rows * width, rows * width),
        )  # fmt: skip
    inputs = [x.requires_grad_()]
    ours = grads(kernels.swiglu, inputs, dy)
    return Prepared(
        ours, {"torch.compile": late(grads, compiled, inputs, dy)},
        lambda: close(ours(), grads(plain, inputs, dy)()),
        prediction.streaming(10 * rows * width, rows * width),
    )  # fmt: skip


def rope(place: Place, backward: bool) -> Prepared:
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
        return kernels.rope(qkv, heads, positions, *weights, 1e6, 1e-6)

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
        mine, {"torch.compile": late(back, compiled)}, lambda: close(mine(), back(plain)()),
        prediction.streaming(6 * numbers),
    )  # fmt: skip


def embedding(place: Place, backward: bool) -> Prepared:
    vocabulary, channels, tokens = place.size(50304, 30), place.size(2048, 40), place.size(16384, 50)
    table = place.randn(vocabulary, channels)
    make = torch.Generator(device=place.device).manual_seed(0)
    # ids are drawn as words are: few often, most seldom
    ids = (torch.rand(tokens, generator=make, device=place.device) ** 4 * vocabulary).long()
    dy = torch.randn(tokens, channels, device=place.device)
    if not backward:
        return Prepared(
            lambda: kernels.embedding(table, ids), {"torch": lambda: F.embedding(ids, table).float()},
            lambda: close(kernels.embedding(table, ids), F.embedding(ids, table).float(), 0.0),
            prediction.streaming(6 * dy.numel()),
        )  # fmt: skip
    inputs = [table.requires_grad_()]
    ours = grads(lambda t: kernels.embedding(t, ids), inputs, dy)
    peer = grads(lambda t: F.embedding(ids, t).float(), inputs, dy)
    wide = grads(lambda t: F.embedding(ids, t.float()), inputs, dy)
    return Prepared(
        ours, {"torch": peer}, lambda: close(ours(), wide()),
        prediction.streaming(4 * dy.numel() + 2 * table.numel(), launches=6),
    )  # fmt: skip
