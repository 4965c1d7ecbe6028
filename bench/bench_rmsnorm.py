"""RMSNorm beside torch's own rms_norm: forward reads and writes each number once, backward reads two, writes one."""

import pytest
import torch
import torch.nn.functional as F
from pyengine.kernels import rmsnorm


def tensors(rows, channels, dtype):
    make = torch.Generator().manual_seed(0)
    x = torch.randn(rows, channels, generator=make).to(dtype)
    return x, torch.randn(channels, generator=make).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
@pytest.mark.parametrize("shape", [(2048, 256), (1024, 768), (16384, 4096)], ids=str)
def test_forward(paired, shape, dtype):
    x, w = tensors(*shape, dtype)
    paired(
        f"rmsnorm forward {shape[0]} x {shape[1]} {str(dtype)[6:]}",
        ours=lambda: rmsnorm(x, w),
        peer=lambda: F.rms_norm(x, w.shape, w, 1e-6),
        peer_name="torch rms_norm",
        equal=lambda: torch.allclose(
            rmsnorm(x, w).float(), F.rms_norm(x, w.shape, w, 1e-6).float(), rtol=2e-2, atol=1e-3
        ),
        bytes=2 * x.numel() * x.element_size(),
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
@pytest.mark.parametrize("shape", [(2048, 256), (1024, 768)], ids=str)
def test_forward_and_backward(paired, shape, dtype):
    x, w = (t.requires_grad_() for t in tensors(*shape, dtype))
    dy = torch.randn(shape).to(dtype)

    def ours():
        return torch.autograd.grad(rmsnorm(x, w), [x, w], dy)

    def peer():
        return torch.autograd.grad(F.rms_norm(x, w.shape, w, 1e-6), [x, w], dy)

    paired(
        f"rmsnorm forward+backward {shape[0]} x {shape[1]} {str(dtype)[6:]}",
        ours=ours,
        peer=peer,
        peer_name="torch rms_norm",
        equal=lambda: all(
            torch.allclose(a.float(), b.float(), rtol=5e-2, atol=5e-2 * b.float().abs().max().item())
            for a, b in zip(ours(), peer(), strict=True)
        ),
        bytes=5 * x.numel() * x.element_size(),
    )
