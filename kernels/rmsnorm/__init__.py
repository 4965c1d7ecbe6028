"""RMSNorm with residual add: y = s / sqrt(mean(s^2) + eps) * weight, s = x + residual.

One pass over memory: a row is read once, stays in L1 (or in registers on a GPU), and is written once; with a
residual the sum is written too, so that the next layer need not add again. 4 flops a number against 4-16 bytes:
bound by bandwidth everywhere. This package is the template of every op: `reference.py` is the meaning, one
file a backend, and here the public function, the two registered ops and the autograd.Function.
"""

import torch

from .._library import Example, as_rows, like_rows, needs_grad, register
from .._select import select

__all__ = ["rmsnorm"]


def rmsnorm(
    x: torch.Tensor, weight: torch.Tensor, eps: float = 1e-6, residual: torch.Tensor | None = None
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """Root-mean-square normalisation over the last dimension (Zhang and Sennrich, 2019).

    x (..., C), weight (C,) float32 or bfloat16; residual float32, of x's shape; all on one device. x has the
    weight's type, or is float32 where no residual is given. Non-contiguous inputs are copied. Sums are in
    float32. Returns y of the weight's type, or (y, x + residual) when a residual is given: the sum is float32,
    so that what many layers add up is not rounded at each of them. A row's result does not depend on the
    other rows.

    Raises ValueError for shapes or types that do not fit together.
    """
    check(x, weight, residual)
    rows = as_rows(x)
    other = None if residual is None else as_rows(residual)
    weight = weight.contiguous()
    if torch.compiler.is_compiling() or needs_grad(x, weight, residual):
        y, summed = _RMSNorm.apply(rows, weight, eps, other)
    else:
        y, summed, _ = select("rmsnorm", x.device).forward(rows, weight, eps, other)
    return like_rows(y, x) if residual is None else (like_rows(y, x), like_rows(summed, x))


def examples(device: str) -> list[Example]:
    """Small, odd-sized calls for the probe launch."""
    made: list[Example] = []
    for dtype in (torch.float32, torch.bfloat16):
        make = torch.Generator(device=device).manual_seed(1)
        x, r = (torch.randn(5, 67, generator=make, device=device).requires_grad_() for _ in range(2))
        narrow = x.detach().to(dtype).requires_grad_()
        w = torch.randn(67, generator=make, device=device).to(dtype).requires_grad_()
        made += [(rmsnorm, a, {}) for a in ((narrow, w), (x, w), (narrow, w, 1e-5, r))]
    return made


def check(x, weight, residual) -> None:
    """Raise ValueError for what rmsnorm() does not take."""
    if x.dim() == 0 or weight.shape != x.shape[-1:]:
        raise ValueError(
            f"rmsnorm: weight {tuple(weight.shape)} does not fit x {tuple(x.shape)}; expected (C,)"
        )
    if x.shape[-1] == 0:
        raise ValueError(f"rmsnorm: x {tuple(x.shape)} has no channels to take a mean of")
    if residual is not None and residual.shape != x.shape:
        raise ValueError(f"rmsnorm: residual {tuple(residual.shape)} differs from x {tuple(x.shape)}")
    if weight.dtype not in (torch.float32, torch.bfloat16):
        raise ValueError(f"rmsnorm: expected float32 or bfloat16, got {weight.dtype}")
    if x.dtype != weight.dtype and (residual is not None or x.dtype != torch.float32):
        raise ValueError(f"rmsnorm: x is {x.dtype}, weight is {weight.dtype}")
    if residual is not None and residual.dtype != torch.float32:
        raise ValueError(f"rmsnorm: residual is {residual.dtype}, expected float32")
    for name, other in (("weight", weight), ("residual", residual)):
        if other is not None and other.device != x.device:
            raise ValueError(f"rmsnorm: {name} is on {other.device}, x on {x.device}")


def _forward(x, weight, eps, residual):
    return select("rmsnorm", x.device).forward(x, weight, eps, residual)


def _forward_fake(x, weight, eps, residual):
    y = torch.empty_like(x, dtype=weight.dtype)
    summed = x.new_empty(0 if residual is None else x.shape, dtype=torch.float32)
    return y, summed, x.new_empty(x.shape[0], dtype=torch.float32)


def _backward(dy, dsummed, s, weight, rstd, residual):
    return select("rmsnorm", s.device).backward(dy, dsummed, s, weight, rstd, residual)


def _backward_fake(dy, dsummed, s, weight, rstd, residual):
    dx = torch.empty_like(s, dtype=weight.dtype if residual else s.dtype)
    both = residual and weight.dtype != torch.float32
    dresidual = s.new_empty(s.shape if both else 0, dtype=torch.float32)
    return dx, dresidual, torch.empty_like(weight)


_forward_op = register(
    "rmsnorm(Tensor x, Tensor weight, float eps, Tensor? residual) -> (Tensor, Tensor, Tensor)",
    _forward,
    _forward_fake,
)
_backward_op = register(
    "rmsnorm_backward(Tensor dy, Tensor? dsummed, Tensor s, Tensor weight, Tensor rstd, bool residual)"
    " -> (Tensor, Tensor, Tensor)",
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
        s, weight, rstd = ctx.saved_tensors
        dy = torch.zeros_like(s, dtype=weight.dtype) if dy is None else dy.contiguous()
        extra = dsummed.contiguous() if ctx.has_residual and dsummed is not None else None
        dx, dresidual, dweight = _backward_op(dy, extra, s, weight, rstd, ctx.has_residual)
        if not ctx.has_residual:
            return dx, dweight, None, None
        return dx, dweight, None, dresidual if dresidual.numel() else dx
