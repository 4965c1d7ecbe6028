"""Attention on Hopper's own engines (csrc/cuda/attention*_hopper.cu): bfloat16 heads of 64 or 128, forward, backward.

Proven without a card only: the same source runs on the host shim, and its machine code is counted. So it is asked
for by name (PYENGINE_BACKEND=hopper, use_backend) and then probed on the card first. All else of attention on such
a card is the cuda backend's, and so are other types, widths and scales.
"""

import torch

from .. import _native
from .._memory import in_chunks
from . import cuda
from ._tiles import tiles
from .cuda import append_paged, forward_paged, write_pages

__all__ = ["append_paged", "backward", "forward", "forward_paged", "write_pages"]
WIDTHS = (64, 128)


def forward(q, k, v, cu_seqlens, scale):
    if not _is_for_it(q, scale):
        return cuda.forward(q, k, v, cu_seqlens, scale)
    q, k, v = map(in_chunks, (q, k, v))
    tokens, heads, dim = q.shape
    out, lse = torch.empty_like(q), q.new_empty((tokens, heads), dtype=torch.float32)
    work = _tiles(cu_seqlens, q.device)
    _native.launch(
        "attention_forward_hopper", None, q.device,
        *cuda.addresses(q, q, k, v, out),
        _native.address(lse, torch.float32, lse.numel(), "cuda"),
        _native.address(work, torch.int32, work.numel(), "cuda"),
        tokens, len(work), heads, k.shape[1], dim, scale,
    )  # fmt: skip
    return out, lse


def backward(dout, q, k, v, out, lse, cu_seqlens, scale):
    if not _is_for_it(q, scale):
        return cuda.backward(dout, q, k, v, out, lse, cu_seqlens, scale)
    dout, q, k, v, out = map(in_chunks, (dout, q, k, v, out))
    tokens, heads, dim = q.shape
    dq, dk, dv = (torch.empty_like(t) for t in (q, k, v))
    delta = torch.empty_like(lse)
    by_query, by_key = (_tiles(cu_seqlens, q.device, keys) for keys in (False, True))
    _native.launch(
        "attention_backward_hopper", None, q.device,
        *cuda.addresses(q, dout, q, k, v, out), *cuda.addresses(lse, lse, delta), *cuda.addresses(q, dq, dk, dv),
        *cuda.addresses(by_query, by_query, by_key),
        tokens, len(by_key), heads, k.shape[1], dim, scale,
    )  # fmt: skip
    return dq, dk, dv


def _is_for_it(q: torch.Tensor, scale: float) -> bool:
    return q.dtype is torch.bfloat16 and q.shape[2] in WIDTHS and scale > 0


def _tiles(cu_seqlens: torch.Tensor, device: torch.device, keys: bool = False) -> torch.Tensor:
    return tiles(cu_seqlens, _native.cuda().attention_hopper_rows(), device, keys)
