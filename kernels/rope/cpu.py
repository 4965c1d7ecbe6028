"""Rotary position embedding on the CPU: the table, allocation, and the calls into csrc/cpu/rope.cpp.

The kernel tells where a position is past the table; the table is then made longer and the call repeated, so the
positions are looked at once.
"""

import torch

from .. import _native
from .table import table

BLOCK = 16  # tokens per partial sum of the weights' gradients, as in the C++
MOST_DIM = 1024  # of a head, as in the C++


def forward(q, k, positions, q_weight, k_weight, theta, eps, divisors=()):
    tokens, heads, dim = q.shape
    kv_heads, dtype = k.shape[1], q.dtype
    q_out, k_out = torch.empty_like(q), torch.empty_like(k)

    def call(angles):
        return _native.kernel("rope_forward", dtype)(
            _native.address(q, dtype, q.numel()),
            _native.address(k, dtype, k.numel()),
            _native.address(positions, torch.int32, tokens),
            _native.address(q_weight, dtype, dim),
            _native.address(k_weight, dtype, dim),
            _native.address(angles, torch.float32, angles.numel()), angles.shape[1],
            _native.address(q_out, dtype, q.numel()),
            _native.address(k_out, dtype, k.numel()),
            tokens, heads, kv_heads, dim, eps, _native.threads(),
        )  # fmt: skip

    _with_table(call, positions, theta, dim, divisors)
    return q_out, k_out


def backward(dq, dk, positions, q, k, q_weight, k_weight, theta, eps, divisors=()):
    tokens, heads, dim = dq.shape
    kv_heads, dtype = dk.shape[1], dq.dtype
    dq_out, dk_out = torch.empty_like(dq), torch.empty_like(dk)
    weights = [dq.new_empty(0) if w is None else torch.empty_like(w) for w in (q_weight, k_weight)]
    partial = torch.empty(-(-tokens // BLOCK), 2, dim)

    def call(angles):
        return _native.kernel("rope_backward", dtype)(
            _native.address(dq, dtype, dq.numel()),
            _native.address(dk, dtype, dk.numel()),
            _native.address(positions, torch.int32, tokens),
            _native.address(q, dtype, dq.numel()),
            _native.address(k, dtype, dk.numel()),
            _native.address(q_weight, dtype, dim),
            _native.address(k_weight, dtype, dim),
            _native.address(angles, torch.float32, angles.numel()), angles.shape[1],
            _native.address(dq_out, dtype, dq.numel()),
            _native.address(dk_out, dtype, dk.numel()),
            _native.address(partial, torch.float32, partial.numel()),
            *(w.data_ptr() for w in weights),
            tokens, heads, kv_heads, dim, eps, _native.threads(),
        )  # fmt: skip

    _with_table(call, positions, theta, dim, divisors)
    return dq_out, dk_out, *weights


def _with_table(call, positions, theta, dim, divisors):
    if dim > MOST_DIM:
        raise NotImplementedError(f"rope cpu: D = {dim} is larger than {MOST_DIM}")
    angles = table(theta, dim, 1, divisors=divisors)
    wrong = call(angles)
    if wrong >= 0:
        if int(positions.min()) < 0:
            raise ValueError(f"rope: positions must not be negative, got {int(positions.min())}")
        call(table(theta, dim, int(positions.max()) + 1, divisors=divisors))
