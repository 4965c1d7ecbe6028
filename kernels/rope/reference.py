"""Rotary position embedding with optional norm of queries and keys, in plain torch: the meaning of the op.

    n = x / sqrt(mean(x^2) + eps) * weight   (n = x without a weight)
    (a, b) = the two halves of n;  y = (a cos - b sin, b cos + a sin) at the token's position

Inside, all is float32 (float64 inputs stay float64) and rounded once at the end.
"""

import torch

from .table import table


def forward(q, k, positions, q_weight, k_weight, theta, eps, divisors=()):
    """(q, k) turned: q (T, H, D), k (T, K, D), positions (T,), weights (D,) or None."""
    cos, sin = _angles(q, positions, theta, divisors)
    return _turn(_norm(q, q_weight, eps), cos, sin).to(q.dtype), _turn(_norm(k, k_weight, eps), cos, sin).to(
        k.dtype
    )


def backward(dq, dk, positions, q, k, q_weight, k_weight, theta, eps, divisors=()):
    """(dq, dk, dq_weight, dk_weight) of the inputs; q and k are needed with weights only, else None."""
    cos, sin = _angles(dq, positions, theta, divisors)
    dq, dq_weight = _norm_backward(_turn(dq.to(cos.dtype), cos, -sin), q, q_weight, eps, dq)
    dk, dk_weight = _norm_backward(_turn(dk.to(cos.dtype), cos, -sin), k, k_weight, eps, dk)
    return dq, dk, dq_weight, dk_weight


def _angles(x, positions, theta, divisors):
    if x.shape[0] == 0:
        return x.new_empty(2, 0, 1, x.shape[-1] // 2, dtype=_wide(x))
    both = table(theta, x.shape[-1], int(positions.max()) + 1, x.device, divisors)
    return both[:, positions.long(), None].to(_wide(x))


def _turn(x, cos, sin):
    a, b = x.chunk(2, -1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


def _norm(x, weight, eps):
    wide = x.to(_wide(x))
    if weight is None:
        return wide
    return wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps) * weight.to(wide.dtype)


def _norm_backward(g, x, weight, eps, like):
    if weight is None:
        return g.to(like.dtype), like.new_empty(0)
    wide = x.to(g.dtype)
    rstd = torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    normed, gw = wide * rstd, g * weight.to(g.dtype)
    dx = rstd * (gw - normed * (gw * normed).mean(-1, keepdim=True))
    return dx.to(x.dtype), (g * normed).sum((0, 1)).to(weight.dtype)


def _wide(x):
    return torch.float64 if x.dtype == torch.float64 else torch.float32
