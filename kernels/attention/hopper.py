"""Attention on Hopper's own engines (csrc/cuda/attention_hopper.cu): the forward of bfloat16 heads of 64 or 128.

Proven without a card only: the same source runs on the host shim, and its machine code is counted. So it is asked
for by name (PYENGINE_BACKEND=hopper, use_backend) and then probed on the card first. All else of attention on such
a card is the cuda backend's, and so are other types, widths and scales.
"""

import torch

from .. import _native
from .._memory import in_chunks
from . import cuda
from ._tiles import tiles
from .cuda import append_paged, backward, forward_paged, write_pages

__all__ = ["append_paged", "backward", "forward", "forward_paged", "write_pages"]
WIDTHS = (64, 128)


def forward(q, k, v, cu_seqlens, scale):
    if q.dtype is not torch.bfloat16 or q.shape[2] not in WIDTHS or not scale > 0:
        return cuda.forward(q, k, v, cu_seqlens, scale)
    q, k, v = map(in_chunks, (q, k, v))
    tokens, heads, dim = q.shape
    out, lse = torch.empty_like(q), q.new_empty((tokens, heads), dtype=torch.float32)
    work = tiles(cu_seqlens, _native.cuda().attention_hopper_rows(), q.device)
    _native.launch(
        "attention_forward_hopper", None, q.device,
        *cuda.addresses(q, q, k, v, out),
        _native.address(lse, torch.float32, lse.numel(), "cuda"),
        _native.address(work, torch.int32, work.numel(), "cuda"),
        tokens, len(work), heads, k.shape[1], dim, scale,
    )  # fmt: skip
    return out, lse
