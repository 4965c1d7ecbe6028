"""Attention beside torch's scaled_dot_product_attention: training shapes, packed documents, decoding over a cache.

Flops are those of the causal half: 4 D a pair of query and key forward, 10 D more backward.
"""

import pytest
import torch
import torch.nn.functional as F
from pyengine.kernels import PAGE_SIZE, attention, attention_paged, new_pages, write_pages

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
SHAPES = pytest.mark.parametrize("shape", [(4, 8, 256, 32), (8, 4, 256, 32), (1, 12, 1024, 64)], ids=str)


def name(dtype):
    return str(dtype)[6:]


def close(ours, theirs):
    return all(
        torch.allclose(a.float(), b.float(), rtol=5e-2, atol=2e-2 * b.float().abs().max().item())
        for a, b in zip(ours, theirs, strict=True)
    )


def training(batch, heads, length, dim, dtype):
    """(our tensors, bounds, torch's tensors): the same numbers, packed for us, (B, H, T, D) for torch."""
    make = torch.Generator().manual_seed(0)
    packed = [torch.randn(batch * length, heads, dim, generator=make).to(dtype) for _ in range(4)]
    theirs = [t.view(batch, length, heads, dim).transpose(1, 2).contiguous() for t in packed]
    bounds = torch.arange(0, batch * length + 1, length, dtype=torch.int32)
    return packed, bounds, theirs


def pack(t):
    return t.transpose(1, 2).flatten(0, 1)


@DTYPES
@SHAPES
def test_forward(paired, shape, dtype):
    (q, k, v, _), bounds, (tq, tk, tv, _) = training(*shape, dtype)
    batch, heads, length, dim = shape
    ours = lambda: attention(q, k, v, bounds)  # noqa: E731
    peer = lambda: F.scaled_dot_product_attention(tq, tk, tv, is_causal=True)  # noqa: E731
    paired(
        f"attention forward {shape} {name(dtype)}", ours, peer, "torch SDPA",
        equal=lambda: close([ours()], [pack(peer())]),
        flops=4 * dim * batch * heads * length * (length + 1) // 2, dtype=dtype,
    )  # fmt: skip


@DTYPES
@SHAPES
def test_forward_and_backward(paired, shape, dtype):
    packed, bounds, theirs = training(*shape, dtype)
    batch, heads, length, dim = shape
    q, k, v = (t.requires_grad_() for t in packed[:3])
    tq, tk, tv = (t.requires_grad_() for t in theirs[:3])
    ours = lambda: torch.autograd.grad(attention(q, k, v, bounds), [q, k, v], packed[3])  # noqa: E731
    peer = lambda: torch.autograd.grad(  # noqa: E731
        F.scaled_dot_product_attention(tq, tk, tv, is_causal=True), [tq, tk, tv], theirs[3]
    )
    paired(
        f"attention forward+backward {shape} {name(dtype)}", ours, peer, "torch SDPA",
        equal=lambda: close(ours(), [pack(t) for t in peer()]),
        flops=14 * dim * batch * heads * length * (length + 1) // 2, dtype=dtype,
        goal=2.0 if length == 256 else None,
    )  # fmt: skip


@DTYPES
def test_packed_documents(paired, dtype):
    """16 documents of 64 to 124 tokens: the peer pads each to the longest, as without packing one must."""
    lengths = list(range(64, 128, 4))
    (q, k, v, _), _, _ = training(1, 8, sum(lengths), 32, dtype)
    bounds = torch.tensor([0, *lengths]).cumsum(0).int()
    longest = max(lengths)
    rows = torch.cat([torch.arange(n) + i * longest for i, n in enumerate(lengths)])

    def padded(t):
        out = t.new_zeros(len(lengths) * longest, 8, 32).index_copy_(0, rows, t)
        return out.view(-1, longest, 8, 32).transpose(1, 2).contiguous()

    tq, tk, tv = (padded(t) for t in (q, k, v))
    ours = lambda: attention(q, k, v, bounds)  # noqa: E731
    peer = lambda: F.scaled_dot_product_attention(tq, tk, tv, is_causal=True)  # noqa: E731
    paired(
        f"attention forward 16 packed documents {name(dtype)}", ours, peer, "torch SDPA, padded",
        equal=lambda: close([ours()], [pack(peer())[rows]]),
        flops=4 * 32 * 8 * sum(n * (n + 1) // 2 for n in lengths), dtype=dtype,
    )  # fmt: skip


@DTYPES
@pytest.mark.parametrize("context", [512, 4096])
@pytest.mark.parametrize("kept", [None, torch.int8], ids=["", "int8 KV"])
def test_decode(paired, kept, context, dtype):
    """One token of one request, 12 query and 4 kv heads of 64, over a cache; bound by reading it once."""
    make = torch.Generator().manual_seed(0)
    k, v = (torch.randn(context, 4, 64, generator=make).to(dtype) for _ in range(2))
    q = torch.randn(1, 12, 64, generator=make).to(dtype)
    pages = new_pages(context // PAGE_SIZE, 4, 64, kept or dtype)
    write_pages(k, v, *pages, torch.arange(context, dtype=torch.int32))
    table = torch.arange(context // PAGE_SIZE, dtype=torch.int32)[None]
    start, length = torch.tensor([0, 1], dtype=torch.int32), torch.tensor([context], dtype=torch.int32)
    tq, tk, tv = (t.transpose(0, 1)[None].contiguous() for t in (q, k, v))
    ours = lambda: attention_paged(q, *pages, table, start, length)  # noqa: E731
    peer = lambda: F.scaled_dot_product_attention(tq, tk, tv, enable_gqa=True)  # noqa: E731
    paired(
        f"attention decode 12/4 heads, {context} tokens {name(dtype)}{', int8 KV' * bool(kept)}", ours, peer,
        "torch SDPA", equal=lambda: close([ours()], [pack(peer())]), bytes=sum(part.nbytes for part in pages),
    )  # fmt: skip
