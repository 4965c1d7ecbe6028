"""Attention on the CPU: allocation and the calls into csrc/cpu/attention*.cpp."""

import torch

from .. import _native
from .._memory import scratch_empty
from . import PAGE_SIZE


def forward(q, k, v, cu_seqlens, scale):
    tokens, heads, dim = q.shape
    kv_heads, dtype = k.shape[1], q.dtype
    half = _most_pages(tokens, cu_seqlens) * _page_numbers(kv_heads, dim)
    room = scratch_empty(2 * half, dtype)  # pages of keys, then of values
    pages = _native.address(room, dtype, 2 * half)
    out, lse = torch.empty_like(q), torch.empty(tokens, heads)
    _native.kernel("attention_forward", dtype)(
        _native.address(q, dtype, tokens * heads * dim),
        _native.address(k, dtype, tokens * kv_heads * dim),
        _native.address(v, dtype, tokens * kv_heads * dim),
        _native.address(cu_seqlens, torch.int32, len(cu_seqlens)),
        len(cu_seqlens) - 1, heads, kv_heads, dim, scale,
        pages, pages + half * dtype.itemsize,
        _native.address(out, dtype, q.numel()),
        _native.address(lse, torch.float32, tokens * heads),
        _native.threads(),
    )  # fmt: skip
    return out, lse


def backward(dout, q, k, v, out, lse, cu_seqlens, scale):
    tokens, heads, dim = q.shape
    kv_heads, dtype = k.shape[1], q.dtype
    # Without groups a thread has room of its own for what it makes of a head.
    pages = _most_pages(tokens, cu_seqlens) if heads > kv_heads else 0
    room = scratch_empty(3 * pages * _page_numbers(kv_heads, dim), dtype)
    partial = scratch_empty(2 * pages * _page_numbers(heads, dim), torch.float32)
    dq, dk, dv = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
    _native.kernel("attention_backward", dtype)(
        *(_native.address(t, dtype, q.numel()) for t in (dout, q)),
        *(_native.address(t, dtype, k.numel()) for t in (k, v)),
        _native.address(out, dtype, q.numel()),
        _native.address(lse, torch.float32, tokens * heads),
        _native.address(cu_seqlens, torch.int32, len(cu_seqlens)),
        len(cu_seqlens) - 1, heads, kv_heads, dim, scale,
        _native.address(room, dtype, room.numel()),
        _native.address(partial, torch.float32, partial.numel()),
        _native.address(dq, dtype, q.numel()),
        *(_native.address(t, dtype, k.numel()) for t in (dk, dv)),
        _native.threads(),
    )  # fmt: skip
    return dq, dk, dv


def _most_pages(tokens, cu_seqlens) -> int:
    """However the documents share out the tokens: a replayed step meets other bounds. Pages not written are free."""
    return tokens // PAGE_SIZE + len(cu_seqlens) - 1


def _page_numbers(heads, dim) -> int:
    """Of each page, whichever way its numbers lie."""
    return heads * PAGE_SIZE * -(-dim // 16) * 16


def forward_paged(q, k_pages, v_pages, block_table, q_start, context_lens, scale):
    tokens, heads, dim = q.shape
    dtype, stored, out = q.dtype, k_pages.dtype, torch.empty_like(q)
    wrong = _native.kernel("attention_paged", dtype, stored)(
        _native.address(q, dtype, q.numel()),
        _native.address(k_pages, stored, k_pages.numel()),
        _native.address(v_pages, stored, v_pages.numel()),
        k_pages.shape[0],
        *requests_of(block_table, q_start, context_lens),
        tokens, heads, k_pages.shape[1], dim, scale,
        _native.address(out, dtype, q.numel()), _native.threads(),
    )  # fmt: skip
    check(wrong, k_pages, block_table, q_start, context_lens, None)
    return out


def write_pages(k, v, k_pages, v_pages, slots):
    tokens, kv_heads, dim = k.shape
    dtype, stored = k.dtype, k_pages.dtype
    wrong = _native.kernel("write_pages", dtype, stored)(
        *_native.rows(k, dtype),
        *_native.rows(v, dtype),
        _native.address(k_pages, stored, k_pages.numel()),
        _native.address(v_pages, stored, v_pages.numel()),
        len(k_pages),
        _native.address(slots, torch.int32, tokens),
        tokens, kv_heads, dim, _native.threads(),
    )  # fmt: skip
    if wrong >= 0:
        _refuse_slot(slots, wrong, k_pages)


def append_paged(q, k, v, k_pages, v_pages, slots, block_table, q_start, context_lens, scale):
    tokens, heads, dim = q.shape
    dtype, stored, out = q.dtype, k_pages.dtype, torch.empty_like(q)
    wrong = _native.kernel("attention_append", dtype, stored)(
        _native.address(q, dtype, q.numel()),
        *_native.rows(k, dtype),
        *_native.rows(v, dtype),
        _native.address(k_pages, stored, k_pages.numel()),
        _native.address(v_pages, stored, v_pages.numel()),
        len(k_pages),
        _native.address(slots, torch.int32, tokens),
        *requests_of(block_table, q_start, context_lens),
        tokens, heads, k_pages.shape[1], dim, scale,
        _native.address(out, dtype, q.numel()), _native.threads(),
    )  # fmt: skip
    check(wrong, k_pages, block_table, q_start, context_lens, slots)
    return out


def requests_of(block_table, q_start, context_lens):
    """The C++ arguments that say whose queries and pages these are."""
    requests, width = block_table.shape
    return (
        _native.address(block_table, torch.int32, requests * width), width,
        _native.address(q_start, torch.int32, requests + 1),
        _native.address(context_lens, torch.int32, requests),
        requests,
    )  # fmt: skip


def check(wrong, k_pages, block_table, q_start, context_lens, slots):
    """Raise ValueError for the request, or past them the token, that a call refused; -1 is neither."""
    if wrong < 0:
        return
    if wrong >= len(context_lens):
        _refuse_slot(slots, wrong - len(context_lens), k_pages)
    raise ValueError(
        f"attention_paged: request {wrong} does not fit: queries {q_start.tolist()}, contexts "
        f"{context_lens.tolist()}, a table of {block_table.shape[1]} pages of {len(k_pages)}"
    )


def _refuse_slot(slots, token, k_pages):
    raise ValueError(
        f"write_pages: slot {int(slots[token])} of token {token} is outside {len(k_pages)} pages"
    )
