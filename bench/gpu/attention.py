"""Cases of attention: training's, on documents of one length and of many, and one query a request over pages."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from bench.gpu import prediction
from bench.gpu.case import BF16, Place, Prepared, close, grads, late
from pyengine import kernels


def _sdpa(backend: str) -> Callable:
    """scaled_dot_product_attention held to one backend: left alone it does not choose the fastest."""

    def run(q, k, v):
        with sdpa_kernel(getattr(SDPBackend, backend)):
            return F.scaled_dot_product_attention(q, k, v, is_causal=True)

    return run


def causal(place: Place, heads: int, dim: int, length: int, backward: bool) -> Prepared:
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
        return kernels.attention(q, k, v, bounds)

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
    backwards = {name: late(grads, peer, leaves, theirs[3]) for name, peer in peers.items()}
    mine = grads(ours, inputs, dout)
    return Prepared(
        mine, backwards,
        lambda: close(mine(), [packed(t) for t in next(iter(backwards.values()))()], 3e-2),
        work, 2.5 * flops,
    )  # fmt: skip


def packed(place: Place) -> Prepared:
    """16k tokens in documents of very different lengths: the peer pads each to the longest."""
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
        lambda: kernels.attention(q, k, v, bounds),
        {"SDPA FLASH, padded": lambda: peer(*padded)},
        lambda: close(
            kernels.attention(q, k, v, bounds), peer(*padded).transpose(1, 2).reshape(-1, heads, dim)[rows]
        ),
        prediction.attention_forward(lengths, heads, dim),
        4.0 * dim * prediction.pairs(lengths) * heads,
    )


def paged(place: Place, requests: int, context: int) -> Prepared:
    """One query a request over a paged cache of at least 256 MB: every key and value is read once."""
    heads, kv_heads, dim = place.size(32, 4), place.size(8, 2), place.size(128, 16)
    requests, context = place.size(requests, 2), place.size(context, 70)
    per = -(-context // kernels.PAGE_SIZE)
    pages = kernels.new_pages(requests * per, kv_heads, dim, place.dtype(BF16), place.device)
    order = torch.randperm(requests * per, generator=torch.Generator().manual_seed(0)).int().to(place.device)
    table = order.view(requests, per)
    k, v = (place.randn(requests, context, kv_heads, dim) for _ in range(2))
    spots = torch.arange(context, device=place.device)
    for r in range(requests):
        slots = table[r, spots // kernels.PAGE_SIZE] * kernels.PAGE_SIZE + (spots % kernels.PAGE_SIZE).int()
        kernels.write_pages(k[r], v[r], *pages, slots.int())
    q = place.randn(requests, heads, dim)
    starts = torch.arange(requests + 1, dtype=torch.int32, device=place.device)
    contexts = torch.full((requests,), context, dtype=torch.int32, device=place.device)

    def peer():
        rows = (t.transpose(1, 2) for t in (q[:, None], k, v))
        return F.scaled_dot_product_attention(*rows, enable_gqa=True)[:, :, 0]

    def ours():
        return kernels.attention_paged(q, *pages, table, starts, contexts)

    return Prepared(
        ours, {"SDPA, contiguous": peer}, lambda: close(ours(), peer()),
        prediction.decode_attention([context] * requests, kv_heads, dim), cold=True,
    )  # fmt: skip
