"""Attention in CUDA C++: allocation and the calls into csrc/cuda/attention.cu on the current stream."""

import torch

from .. import _native
from .._memory import in_chunks
from ._tiles import tiles

WIDEST = 128


def forward(q, k, v, cu_seqlens, scale):
    (q, k, v), dim = _in_steps(q, k, v)
    tokens, heads, wide = q.shape
    out, lse = torch.empty_like(q), q.new_empty((tokens, heads), dtype=torch.float32)
    work = tiles(cu_seqlens, _rows(wide, q.dtype, False), q.device)
    _native.launch(
        "attention_forward", (q.dtype,), q.device,
        *addresses(q, q, k, v, out),
        _native.address(lse, torch.float32, lse.numel(), "cuda"),
        _native.address(work, torch.int32, work.numel(), "cuda"),
        len(work), heads, k.shape[1], wide, scale,
    )  # fmt: skip
    return _out_of_steps(out, dim), lse


def backward(dout, q, k, v, out, lse, cu_seqlens, scale):
    (dout, q, k, v, out), dim = _in_steps(dout, q, k, v, out)
    heads, kv_heads, wide = q.shape[1], k.shape[1], q.shape[2]
    dq, dk, dv = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
    delta = torch.empty_like(lse)
    rows = _rows(wide, q.dtype, True)
    by_query, by_key = (tiles(cu_seqlens, rows, q.device, keys) for keys in (False, True))
    _native.launch(
        "attention_backward", (q.dtype,), q.device,
        *addresses(q, dout, q, k, v, out),
        _native.address(lse, torch.float32, lse.numel(), "cuda"),
        _native.address(delta, torch.float32, delta.numel(), "cuda"),
        *addresses(q, dq, dk, dv),
        *(_native.address(t, torch.int32, t.numel(), "cuda") for t in (by_query, by_key)),
        len(by_key), heads, kv_heads, wide, scale,
    )  # fmt: skip
    return tuple(_out_of_steps(t, dim) for t in (dq, dk, dv))


def forward_paged(q, k_pages, v_pages, block_table, q_start, context_lens, scale):
    (q,), dim = _in_steps(q)
    tokens, heads, wide = q.shape
    out, requests = torch.empty_like(q), len(context_lens)
    numbers = block_table, q_start.contiguous(), context_lens.contiguous()
    _native.launch(
        "attention_paged", (q.dtype, k_pages.dtype), q.device,
        *addresses(q, q), *addresses(k_pages, k_pages, v_pages), *addresses(q, out),
        *(_native.address(t, torch.int32, t.numel(), "cuda") for t in numbers),
        tokens, requests, block_table.shape[1], heads, k_pages.shape[1], wide, dim, scale,
    )  # fmt: skip
    return _out_of_steps(out, dim)


def write_pages(k, v, k_pages, v_pages, slots):
    tokens, kv_heads, dim = k.shape
    (k_at, k_row), (v_at, v_row) = (_native.rows(t, k.dtype, "cuda") for t in (k, v))
    _native.launch(
        "write_pages", (k.dtype, k_pages.dtype), k.device,
        k_at, v_at, *addresses(k_pages, k_pages, v_pages),
        _native.address(slots, torch.int32, tokens, "cuda"),
        k_row, v_row, tokens, kv_heads, dim,
    )  # fmt: skip


def append_paged(q, k, v, k_pages, v_pages, slots, block_table, q_start, context_lens, scale):
    write_pages(k, v, k_pages, v_pages, slots)
    return forward_paged(q, k_pages, v_pages, block_table, q_start, context_lens, scale)


def _rows(dim: int, dtype: torch.dtype, backward: bool) -> int:
    return getattr(_native.cuda(), f"attention_rows_{_native.SUFFIX[dtype]}")(dim, backward)


def addresses(like: torch.Tensor, *tensors: torch.Tensor) -> list[int]:
    """Of contiguous tensors of the type of `like`."""
    return [_native.address(t, like.dtype, t.numel(), "cuda") for t in tensors]


def _in_steps(*tensors: torch.Tensor) -> tuple[list[torch.Tensor], int]:
    """(tensors whose rows start at multiples of 16 bytes, their heads' own width): copies with zeros where need be.

    Zeros behind a head change no product, and what they yield is cut off again.
    """
    dim = tensors[0].shape[-1]
    if dim > WIDEST:
        raise NotImplementedError(
            f"attention: cuda handles heads of at most {WIDEST}, got {dim}; PYENGINE_BACKEND=triton handles 256"
        )
    return [in_chunks(t) for t in tensors], dim


def _out_of_steps(t: torch.Tensor, dim: int) -> torch.Tensor:
    return t if t.shape[-1] == dim else t[..., :dim].contiguous()
