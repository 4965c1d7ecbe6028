"""Embedding: rows of a table by their numbers, widened to float32; the start of the residual stream.

Forward moves each row once; backward adds up, for each row of the table, the gradients of the tokens that
named it, in float32 and in the tokens' order, and rounds the sum once. Bound by memory.
"""

import torch

from .._library import Example, needs_grad, register
from .._select import select
from ..quantized import QuantizedWeight

__all__ = ["embedding"]


def embedding(table: torch.Tensor | QuantizedWeight, ids: torch.Tensor) -> torch.Tensor:
    """table[ids] in float32: table (V, C) float32, bfloat16 or quantised, ids (T,) int64 on one device; returns
    (T, C).

    The gradient has the table's type. Raises ValueError for other shapes or types and for ids outside 0..V-1; in
    Triton, where to raise would mean waiting for the device, the row of such an id is NaN.
    """
    if isinstance(table, QuantizedWeight):
        return table[ids]
    _check(table, ids)
    table, ids = table.contiguous(), ids.contiguous()
    if torch.compiler.is_compiling() or needs_grad(table):
        return _Embedding.apply(table, ids)
    return select("embedding", table.device).forward(table, ids)


def examples(device: str) -> list[Example]:
    """Small, odd-sized calls for the probe launch."""
    make = torch.Generator(device=device).manual_seed(1)
    table = torch.randn(11, 67, generator=make, device=device)
    ids = torch.randint(11, (25,), generator=make, device=device)
    return [
        (embedding, (table.to(dtype).requires_grad_(), ids), {}) for dtype in (torch.float32, torch.bfloat16)
    ]


def _check(table, ids) -> None:
    if table.dim() != 2 or ids.dim() != 1:
        raise ValueError(
            f"embedding: expected table (V, C) and ids (T,), got {tuple(table.shape)}, {tuple(ids.shape)}"
        )
    if table.dtype not in (torch.float32, torch.bfloat16):
        raise ValueError(f"embedding: expected a table of float32 or bfloat16, got {table.dtype}")
    if ids.dtype != torch.int64 or ids.device != table.device:
        raise ValueError(f"embedding: expected int64 ids on {table.device}, got {ids.dtype} on {ids.device}")


def _forward(table, ids):
    return select("embedding", table.device).forward(table, ids)


def _forward_fake(table, ids):
    return table.new_empty((ids.shape[0], table.shape[1]), dtype=torch.float32)


def _backward(dy, ids, table):
    return select("embedding", table.device).backward(dy, ids, table)


def _backward_fake(dy, ids, table):
    return torch.empty_like(table)


_forward_op = register("embedding(Tensor table, Tensor ids) -> Tensor", _forward, _forward_fake)
_backward_op = register(
    "embedding_backward(Tensor dy, Tensor ids, Tensor table) -> Tensor", _backward, _backward_fake
)


class _Embedding(torch.autograd.Function):
    @staticmethod
    def forward(ctx, table, ids):
        ctx.save_for_backward(ids, table)
        return _forward_op(table, ids)

    @staticmethod
    def backward(ctx, dy):
        return _backward_op(dy.contiguous(), *ctx.saved_tensors), None
