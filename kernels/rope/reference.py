"""Rotary position embedding with optional norm of queries and keys, in plain torch: the meaning of the op.

    n = x / sqrt(mean(x^2) + eps) * weight   (n = x without a weight)
    (a, b) = the two halves of n;  y = (a cos - b sin, b cos + a sin) at the token's position

Inside, all is float32 (float64 inputs stay float64) and rounded once at the end.
"""

import torch

from .table import table


def forward(qkv, heads, positions, q_weight, k_weight, theta, eps, divisors=()):
    """(q, k, v) of qkv (T, H + 2 K, D), q and k turned; positions (T,), weights (D,) or None."""
    return turned(qkv, heads, _angles(qkv, positions, theta, divisors), q_weight, k_weight, eps)


def turned(qkv, heads, angles, q_weight, k_weight, eps):
    """(q, k, v) as from forward(), by `angles`: the (cosines, sines) (T, 1, D / 2) of the tokens."""
    kv_heads = (qkv.shape[1] - heads) // 2
    q, k, v = qkv.split([heads, kv_heads, kv_heads], dim=1)
    cos, sin = angles
    both = (_turn(_norm(x, weight, eps), cos, sin) for x, weight in ((q, q_weight), (k, k_weight)))
    return *(x.to(qkv.dtype) for x in both), v.clone(memory_format=torch.contiguous_format)


def backward(dq, dk, dv, positions, qkv, q_weight, k_weight, theta, eps, divisors=()):
    """(dqkv, dq_weight, dk_weight); qkv is needed with weights only, else None."""
    cos, sin = _angles(dq, positions, theta, divisors)
    q, k = (None, None) if qkv is None else qkv.split([dq.shape[1], qkv.shape[1] - dq.shape[1]], dim=1)
    k = None if k is None else k[:, : dk.shape[1]]
    dq, dq_weight = _norm_backward(_turn(dq.to(cos.dtype), cos, -sin), q, q_weight, eps, dq)
    dk, dk_weight = _norm_backward(_turn(dk.to(cos.dtype), cos, -sin), k, k_weight, eps, dk)
    return torch.cat([dq, dk, dv], dim=1), dq_weight, dk_weight


def _angles(x, positions, theta, divisors):
    if x.shape[0] == 0:
        return x.new_empty(2, 0, 1, x.shape[-1] // 2, dtype=_wide(x))
    both = table(theta, x.shape[-1], int(positions.max()) + 1, x.device, divisors)
    return both[:, positions.to(x.device).long(), None].to(_wide(x))


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
