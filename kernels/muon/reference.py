"""Muon in plain torch: the meaning of the op (Jordan et al., 2024, github.com/KellerJordan/Muon)."""

import torch

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # Jordan's coefficients: fast, not exact


@torch.no_grad()
def step(params, grads, momenta, lr, momentum, weight_decay, grad_scale, copies=()):
    """One step in place; `copies`, if any, get the parameters in their own type."""
    for p, grad, m in zip(params, grads, momenta, strict=True):
        g = grad.to(p.dtype) * grad_scale
        m.lerp_(g, 1 - momentum)
        update = orthogonalise(g.lerp(m, momentum))
        # a tall matrix's update is scaled up, so that each output moves as far as a square one's
        rate = lr * max(1.0, p.shape[0] / max(p.shape[1], 1)) ** 0.5
        p.mul_(1 - lr * weight_decay).add_(update, alpha=-rate)
    for copy, p in zip(copies, params, strict=False):
        copy.copy_(p)


def orthogonalise(matrix: torch.Tensor, iterations: int = 5) -> torch.Tensor:
    """Roughly the nearest matrix with singular values of 1 (they come out between 0.7 and 1.2)."""
    a, b, c = NEWTON_SCHULZ
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    x = wide / (wide.norm() + 1e-7)
    for _ in range(iterations):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x if wide is matrix else x.T
