"""What it costs that a row's bits never depend on its batch: our products and attention beside torch's, whose do.

A ratio below 1 is the price at that size, above 1 there is none. Equality here is the promise: a row alone has the bits
that it has in the batch. What the peer does instead is printed: how far its first row, alone and among the
others, lies apart, in units of the last place of the row's largest number.
"""

import pytest
import torch
import torch.nn.functional as F
from pyengine.kernels import PAGE_SIZE, attention_paged, linear, new_pages, pack_weight, write_pages

from bench.bench_linear import DTYPES, tensors

N, K = 3072, 768
HEADS, KV_HEADS, DIM, CONTEXT = 12, 4, 64, 1024


def apart(alone: torch.Tensor, among: torch.Tensor) -> str:
    """How far two results for one row are from each other."""
    largest = among.float().abs().amax()
    step = torch.finfo(among.dtype).eps * largest.log2().floor().exp2()
    return f"{((alone.float() - among.float()).abs().amax() / step).item():.2g} units of the last place"


@DTYPES
@pytest.mark.parametrize("rows", [1, 8, 32, 512])
def test_product(paired, rows, dtype):
    x, w, _ = tensors(rows, N, K, dtype)
    packed = pack_weight(w)
    row = paired(
        f"rows alone: product {rows} x {K} x {N} {str(dtype)[6:]}",
        ours=lambda: linear(x, packed),
        peer=lambda: F.linear(x, w),
        peer_name="torch",
        equal=lambda: torch.equal(linear(x[:1], packed), linear(x, packed)[:1]),
        flops=2 * rows * N * K if rows > 32 else 0,
        bytes=w.nbytes if rows <= 32 else 0,
        dtype=dtype,
    )
    print(
        f"{row['what']}: torch's first row alone is {apart(F.linear(x[:1], w), F.linear(x, w)[:1])} from itself"
    )


@DTYPES
@pytest.mark.parametrize("requests", [1, 8, 32])
def test_attention(paired, requests, dtype):
    make = torch.Generator().manual_seed(0)
    q = torch.randn(requests, HEADS, DIM, generator=make).to(dtype)
    k, v = (torch.randn(requests, CONTEXT, KV_HEADS, DIM, generator=make).to(dtype) for _ in range(2))
    per = CONTEXT // PAGE_SIZE
    pages = new_pages(requests * per, KV_HEADS, DIM, dtype)
    write_pages(k.flatten(0, 1), v.flatten(0, 1), *pages, torch.arange(requests * CONTEXT, dtype=torch.int32))
    table = torch.arange(requests * per, dtype=torch.int32).view(requests, per)
    starts = torch.arange(requests + 1, dtype=torch.int32)
    lengths = torch.full((requests,), CONTEXT, dtype=torch.int32)
    keys, values = (t.transpose(1, 2).contiguous() for t in (k, v))

    def ours(count=requests):
        return attention_paged(q[:count], *pages, table[:count], starts[: count + 1], lengths[:count])

    def peer(count=requests):
        return F.scaled_dot_product_attention(
            q[:count, :, None], keys[:count], values[:count], enable_gqa=True
        )[:, :, 0]

    row = paired(
        f"rows alone: attention {requests} x {CONTEXT} {str(dtype)[6:]}",
        ours=ours,
        peer=peer,
        peer_name="torch SDPA",
        equal=lambda: (
            torch.equal(ours(1), ours()[:1]) and torch.allclose(ours().float(), peer().float(), atol=2e-2)
        ),
        bytes=2 * k.nbytes,
        dtype=dtype,
    )
    print(f"{row['what']}: torch's first request alone is {apart(peer(1), peer()[:1])} from itself")
