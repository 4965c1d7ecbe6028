"""Rope with q/k norm beside plain torch (rms_norm, then Hugging Face's rotate_half): one read and one write."""

import pytest
import torch
import torch.nn.functional as F
from pyengine.kernels import rope
from pyengine.kernels.rope.table import table


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
@pytest.mark.parametrize("shape", [(2048, 8, 8, 32), (1024, 12, 4, 64), (1, 12, 4, 64)], ids=str)
def test_with_norm(paired, shape, dtype):
    tokens, heads, kv_heads, dim = shape
    make = torch.Generator().manual_seed(0)
    qkv = torch.randn(tokens, heads + 2 * kv_heads, dim, generator=make).to(dtype)
    q, k, v = qkv.split([heads, kv_heads, kv_heads], dim=1)
    wq, wk = (torch.randn(dim, generator=make).to(dtype) for _ in range(2))
    positions = torch.arange(tokens, dtype=torch.int32)
    cos, sin = (t[:tokens].repeat(1, 2)[:, None].to(dtype) for t in table(10000.0, dim, tokens))

    def turned(x, weight):
        x = F.rms_norm(x, (dim,), weight, 1e-6)
        a, b = x.chunk(2, -1)
        return x * cos + torch.cat((-b, a), -1) * sin

    ours = lambda: rope(qkv, heads, positions, wq, wk)  # noqa: E731
    peer = lambda: (turned(q, wq), turned(k, wk), v.contiguous())  # noqa: E731
    paired(
        f"rope with norm {shape} {str(dtype)[6:]}", ours, peer, "plain torch",
        equal=lambda: all(
            torch.allclose(a.float(), b.float(), rtol=5e-2, atol=5e-2) for a, b in zip(ours(), peer(), strict=True)
        ),
        bytes=2 * qkv.numel() * qkv.element_size(),
    )  # fmt: skip
