"""The output layer with its loss beside torch's product and cross_entropy on whole logits.

The flops counted are those of the products that the mathematics needs: one forward, two backward. Ours pays a
third in the backward pass, since it keeps no logits.
"""

import pytest
import torch
import torch.nn.functional as F
from pyengine.kernels import linear_cross_entropy


def plain(x, weight, targets):
    return F.cross_entropy(F.linear(x, weight).float(), targets, reduction="none")


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "both"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
@pytest.mark.parametrize("shape", [(2048, 256, 4096), (1024, 128, 1024)], ids=str)
def test_cross_entropy(paired, shape, dtype, backward):
    tokens, channels, vocabulary = shape
    make = torch.Generator().manual_seed(0)
    x = torch.randn(tokens, channels, generator=make).to(dtype).requires_grad_(backward)
    w = (torch.randn(vocabulary, channels, generator=make) / channels**0.5).to(dtype).requires_grad_(backward)
    targets = torch.randint(vocabulary, (tokens,), generator=make)

    def run(function):
        nll = function(x, w, targets)
        return [nll, *torch.autograd.grad(nll.mean(), [x, w])] if backward else [nll]

    def equal():
        pairs = zip(run(linear_cross_entropy), run(plain), strict=True)
        return all(torch.allclose(a, b, rtol=5e-2, atol=5e-2 * b.abs().max().item()) for a, b in pairs)

    paired(
        f"cross_entropy {'forward+backward' if backward else 'forward'} {shape} {str(dtype)[6:]}",
        ours=lambda: run(linear_cross_entropy),
        peer=lambda: run(plain),
        peer_name="torch linear + cross_entropy",
        equal=equal,
        flops=(6 if backward else 2) * tokens * channels * vocabulary,
        dtype=dtype,
    )
