"""SwiGLU beside torch's silu and product: 3 numbers of traffic an output forward, 5 backward."""

import pytest
import torch
import torch.nn.functional as F
from pyengine.kernels import swiglu


def plain(gate_up):
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate) * up


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "both"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
@pytest.mark.parametrize("shape", [(2048, 2 * 704), (1024, 2 * 2048)], ids=str)
def test_swiglu(paired, shape, dtype, backward):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype).requires_grad_(backward)
    dy = torch.ones(shape[0], shape[1] // 2, dtype=dtype)

    def run(function):
        return torch.autograd.grad(function(x), x, dy)[0] if backward else function(x)

    paired(
        f"swiglu {'forward+backward' if backward else 'forward'} {shape} {str(dtype)[6:]}",
        ours=lambda: run(swiglu),
        peer=lambda: run(plain),
        peer_name="torch silu * up",
        equal=lambda: torch.allclose(run(swiglu).float(), run(plain).float(), rtol=5e-2, atol=2e-2),
        bytes=(8 if backward else 3) * dy.numel() * dy.element_size(),
    )
