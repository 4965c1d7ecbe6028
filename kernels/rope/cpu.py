"""Rotary position embedding on the CPU: the table, allocation, and the calls into csrc/cpu/rope.cpp.

The kernel tells where a position is past the table; the table is then made longer and the call repeated, so the
positions are looked at once.
"""

import torch

from .. import _native
from ..attention import cpu as attention
from .table import table

BLOCK = 16  # tokens per partial sum of the weights' gradients, as in the C++
MOST_DIM = 1024  # of a head, as in the C++


def forward(qkv, heads, positions, q_weight, k_weight, theta, eps, divisors=()):
    tokens, columns, dim = qkv.shape
    kv_heads, dtype = (columns - heads) // 2, qkv.dtype
    q = torch.empty(tokens, heads, dim, dtype=dtype)
    k, v = (torch.empty(tokens, kv_heads, dim, dtype=dtype) for _ in range(2))

    def call(angles):
        return _native.kernel("rope_forward", dtype)(
            _native.address(qkv, dtype, tokens * columns * dim),
            _native.address(positions, torch.int32, tokens),
            _native.address(q_weight, dtype, dim),
            _native.address(k_weight, dtype, dim),
            _native.address(angles, torch.float32, angles.numel()), angles.shape[1],
            *(_native.address(t, dtype, t.numel()) for t in (q, k, v)),
            tokens, heads, kv_heads, dim, eps, _native.threads(),
        )  # fmt: skip

    _with_table(call, positions, theta, dim, divisors)
    return q, k, v


def forward_append(
    qkv, heads, positions, q_weight, k_weight, theta, eps, divisors, k_pages, v_pages, slots, block_table, q_start,
    context_lens, scale,
):  # fmt: skip
    """append_paged() of what forward() gives, in one call."""
    tokens, columns, dim = qkv.shape
    kv_heads, dtype, stored = (columns - heads) // 2, qkv.dtype, k_pages.dtype
    q, k = qkv.new_empty(tokens, heads, dim), qkv.new_empty(tokens, kv_heads, dim)
    out = torch.empty_like(q)
    places = len(context_lens) + tokens  # what comes past these is a token whose position the table lacks

    def call(angles):
        wrong = _native.kernel("rope_append", dtype, stored)(
            _native.address(qkv, dtype, qkv.numel()),
            _native.address(positions, torch.int32, tokens),
            _native.address(q_weight, dtype, dim),
            _native.address(k_weight, dtype, dim),
            _native.address(angles, torch.float32, angles.numel()), angles.shape[1], eps,
            *(_native.address(t, dtype, t.numel()) for t in (q, k)),
            *(_native.address(pages, stored, pages.numel()) for pages in (k_pages, v_pages)), len(k_pages),
            _native.address(slots, torch.int32, tokens),
            *attention.requests_of(block_table, q_start, context_lens),
            tokens, heads, kv_heads, dim, scale,
            _native.address(out, dtype, q.numel()), _native.threads(),
        )  # fmt: skip
        if wrong < places:
            attention.check(wrong, k_pages, block_table, q_start, context_lens, slots)
        return wrong - places

    _with_table(call, positions, theta, dim, divisors)
    return out


def backward(dq, dk, dv, positions, qkv, q_weight, k_weight, theta, eps, divisors=()):
    (tokens, heads, dim), kv_heads, dtype = dq.shape, dk.shape[1], dq.dtype
    dqkv = torch.empty(tokens, heads + 2 * kv_heads, dim, dtype=dtype)
    weights = [dq.new_empty(0) if w is None else torch.empty_like(w) for w in (q_weight, k_weight)]
    partial = torch.empty(-(-tokens // BLOCK), 2, dim)

    def call(angles):
        return _native.kernel("rope_backward", dtype)(
            _native.address(dq, dtype, tokens * heads * dim),
            *(_native.address(t, dtype, tokens * kv_heads * dim) for t in (dk, dv)),
            _native.address(positions, torch.int32, tokens),
            _native.address(qkv, dtype, dqkv.numel()),
            _native.address(q_weight, dtype, dim),
            _native.address(k_weight, dtype, dim),
            _native.address(angles, torch.float32, angles.numel()), angles.shape[1],
            _native.address(dqkv, dtype, dqkv.numel()),
            _native.address(partial, torch.float32, partial.numel()),
            *(_native.address(w, dtype, w.numel()) for w in weights),
            tokens, heads, kv_heads, dim, eps, _native.threads(),
        )  # fmt: skip

    _with_table(call, positions, theta, dim, divisors)
    return dqkv, *weights


def _with_table(call, positions, theta, dim, divisors):
    if dim > MOST_DIM:
        raise NotImplementedError(f"rope cpu: D = {dim} is larger than {MOST_DIM}")
    angles = table(theta, dim, 1, divisors=divisors)
    wrong = call(angles)
    if wrong >= 0:
        if int(positions.min()) < 0:
            raise ValueError(f"rope: positions must not be negative, got {int(positions.min())}")
        call(table(theta, dim, int(positions.max()) + 1, divisors=divisors))
