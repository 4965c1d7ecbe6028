"""RMSNorm with residual add: y = s / sqrt(mean(s^2) + eps) * weight, s = x + residual.

One pass over memory: a row is read once, stays in L1 (or in registers on a GPU), and is written once; with a
residual the sum is written too, so that the next layer need not add again. 4 flops a number against 4-16 bytes:
bound by bandwidth everywhere. This package is the template of every op: `reference.py` is the meaning, one
file a backend, and here the public function, the two registered ops and the autograd.Function.
"""

import torch

from .._library import register
from .._select import select

__all__ = ["rmsnorm"]


def rmsnorm(
    x: torch.Tensor, weight: torch.Tensor, eps: float = 1e-6, residual: torch.Tensor | None = None
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """Root-mean-square normalisation over the last dimension (Zhang and Sennrich, 2019).

    x (..., C), weight (C,), residual like x; all float32 or all bfloat16 on one device. Non-contiguous inputs
    are copied. Sums are in float32. Returns y like x, or (y, x + residual) when a residual is given; the norm
    then sees the sum as rounded to x's type. A row's result does not depend on the other rows.

    Raises ValueError for shapes or types that do not fit together.
    """
    _check(x, weight, residual)
    rows = x.reshape(-1, x.shape[-1]).contiguous()
    other = None if residual is None else residual.reshape(rows.shape).contiguous()
    weight = weight.contiguous()
    if torch.compiler.is_compiling() or _needs_grad(x, weight, residual):
        y, summed = _RMSNorm.apply(rows, weight, eps, other)
    else:
        y, summed, _ = select("rmsnorm", x.device).forward(rows, weight, eps, other)
    return y.view(x.shape) if residual is None else (y.view(x.shape), summed.view(x.shape))


def examples(device: str) -> list[tuple[tuple, dict]]:
    """Small, odd-sized calls for the probe launch."""
    made: list[tuple[tuple, dict]] = []
    for dtype in (torch.float32, torch.bfloat16):
        make = torch.Generator(device=device).manual_seed(1)
        x, r = (
            torch.randn(5, 67, generator=make, device=device).to(dtype).requires_grad_() for _ in range(2)
        )
        w = torch.randn(67, generator=make, device=device).to(dtype).requires_grad_()
        made += [((x, w), {}), ((x, w, 1e-5, r), {})]
    return made


def _check(x, weight, residual) -> None:
    if x.dim() == 0 or weight.shape != x.shape[-1:]:
        raise ValueError(
            f"rmsnorm: weight {tuple(weight.shape)} does not fit x {tuple(x.shape)}; expected (C,)"
        )
    if residual is not None and residual.shape != x.shape:
        raise ValueError(f"rmsnorm: residual {tuple(residual.shape)} differs from x {tuple(x.shape)}")
    for name, other in (("weight", weight), ("residual", residual)):
        if other is not None and (other.dtype != x.dtype or other.device != x.device):
            raise ValueError(f"rmsnorm: {name} is {other.dtype} on {other.device}, x {x.dtype} on {x.device}")
    if x.dtype not in (torch.float32, torch.bfloat16):
        raise ValueError(f"rmsnorm: expected float32 or bfloat16, got {x.dtype}")


def _needs_grad(*tensors) -> bool:
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def _forward(x, weight, eps, residual):
    return select("rmsnorm", x.device).forward(x, weight, eps, residual)


def _forward_fake(x, weight, eps, residual):
    summed = x.new_empty(0) if residual is None else torch.empty_like(x)
    return torch.empty_like(x), summed, x.new_empty(x.shape[0], dtype=torch.float32)


def _backward(dy, dsummed, x, weight, rstd):
    return select("rmsnorm", x.device).backward(dy, dsummed, x, weight, rstd)


def _backward_fake(dy, dsummed, x, weight, rstd):
    return torch.empty_like(x), torch.empty_like(weight)


_forward_op = register(
    "rmsnorm(Tensor x, Tensor weight, float eps, Tensor? residual) -> (Tensor, Tensor, Tensor)",
    _forward,
    _forward_fake,
)
_backward_op = register(
    "rmsnorm_backward(Tensor dy, Tensor? dsummed, Tensor x, Tensor weight, Tensor rstd) -> (Tensor, Tensor)",
    _backward,
    _backward_fake,
)


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, eps, residual):
        y, summed, rstd = _forward_op(x, weight, eps, residual)
        ctx.has_residual = residual is not None
        ctx.save_for_backward(summed if ctx.has_residual else x, weight, rstd)
        ctx.set_materialize_grads(False)
        return y, summed

    @staticmethod
    def backward(ctx, dy, dsummed):
        x, weight, rstd = ctx.saved_tensors
        dy = torch.zeros_like(x) if dy is None else dy.contiguous()
        extra = dsummed.contiguous() if ctx.has_residual and dsummed is not None else None
        dx, dweight = _backward_op(dy, extra, x, weight, rstd)
        return dx, dweight, None, dx if ctx.has_residual else None
