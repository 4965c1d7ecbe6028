"""AdamW beside torch's fused optimiser: 28 bytes of traffic a parameter."""

import pytest
import torch
from pyengine.kernels import adamw_, grad_norm

SIZES = {"a small model, 60 tensors": [(256, 256)] * 40 + [(256,)] * 20, "one large tensor": [(4096, 1024)]}


@pytest.mark.parametrize("which", SIZES)
def test_step(paired, which):
    params = [torch.randn(shape) for shape in SIZES[which]]
    grads = [torch.randn_like(p) for p in params]
    moments = [[torch.zeros_like(p) for p in params] for _ in range(2)]
    twins = [p.clone().requires_grad_() for p in params]
    for twin, grad in zip(twins, grads, strict=True):
        twin.grad = grad.clone()
    optimiser = torch.optim.AdamW(twins, lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1, fused=True)

    def ours():
        adamw_(params, grads, *moments, 1e-3, 0.9, 0.95, 1e-8, 0.1, step=1)

    def equal():
        ours()
        optimiser.step()
        return all(torch.allclose(a, b, atol=1e-5) for a, b in zip(params, twins, strict=True))

    paired(
        f"adamw {which}",
        ours=ours,
        peer=optimiser.step,
        peer_name="torch fused",
        equal=equal,
        bytes=28 * sum(p.numel() for p in params),
    )


@pytest.mark.parametrize("which", SIZES)
def test_norm(paired, which):
    grads = [torch.randn(shape) for shape in SIZES[which]]

    def peer():
        return torch.nn.utils.get_total_norm(grads).item()

    paired(
        f"gradient norm {which}",
        ours=lambda: grad_norm(grads),
        peer=peer,
        peer_name="torch get_total_norm",
        equal=lambda: abs(grad_norm(grads) / peer() - 1) < 1e-3,
        bytes=4 * sum(g.numel() for g in grads),
    )
