"""SwiGLU: y = silu(gate) * up, gate and up side by side in one tensor (Shazeer, 2020, arXiv:2002.05202).

One pass: reads 2F numbers of a row and writes F; about 20 flops a number, most of them the exponential. The
backward pass recomputes the sigmoid from the inputs, so nothing but the input is kept.
"""

import torch

from .._library import Example, as_rows, like_rows, needs_grad, register
from .._select import select

__all__ = ["swiglu"]


def swiglu(gate_up: torch.Tensor) -> torch.Tensor:
    """silu(gate) * up: gate_up (..., 2F) float32 or bfloat16, the gate in the first F; returns (..., F).

    Computed in float32, rounded once. Raises ValueError for an odd last dimension or another type.
    """
    if gate_up.dim() == 0 or gate_up.shape[-1] % 2:
        raise ValueError(f"swiglu: expected (..., 2F), got {tuple(gate_up.shape)}")
    if gate_up.dtype not in (torch.float32, torch.bfloat16):
        raise ValueError(f"swiglu: expected float32 or bfloat16, got {gate_up.dtype}")
    rows = as_rows(gate_up)
    if torch.compiler.is_compiling() or needs_grad(gate_up):
        y = _SwiGLU.apply(rows)
    else:
        y = select("swiglu", rows.device).forward(rows)
    return like_rows(y, gate_up)


def examples(device: str) -> list[Example]:
    """Small, odd-sized calls for the probe launch."""
    make = torch.Generator(device=device).manual_seed(1)
    x = torch.randn(5, 134, generator=make, device=device)
    return [(swiglu, (x.to(dtype).requires_grad_(),), {}) for dtype in (torch.float32, torch.bfloat16)]


def _forward(gate_up):
    return select("swiglu", gate_up.device).forward(gate_up)


def _forward_fake(gate_up):
    return gate_up.new_empty(gate_up.shape[0], gate_up.shape[1] // 2)


def _backward(dy, gate_up):
    return select("swiglu", gate_up.device).backward(dy, gate_up)


def _backward_fake(dy, gate_up):
    return torch.empty_like(gate_up)


_forward_op = register("swiglu(Tensor gate_up) -> Tensor", _forward, _forward_fake)
_backward_op = register("swiglu_backward(Tensor dy, Tensor gate_up) -> Tensor", _backward, _backward_fake)


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx, gate_up):
        ctx.save_for_backward(gate_up)
        return _forward_op(gate_up)

    @staticmethod
    def backward(ctx, dy):
        return _backward_op(dy.contiguous(), *ctx.saved_tensors)
