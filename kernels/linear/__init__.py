"""Linear layer: y = x W^T (+ bias), and its gradients dx = dy W, dW = dy^T x, db = sum of dy.

Order of summation is the contract: K is cut into blocks of 256 (in bf16 of 256 pairs), each block is one
chain of fused multiply-adds in float32, first to last, the blocks are added in order, then the bias, then
comes one rounding to the output type. It does not depend on the number of rows, on tiles or on threads, so a
row of a batch of 2048 has the bits of the same row alone: what lets a cached decode step equal training
exactly. `pack_weight(weight)` lays a weight out once in the order in which the kernel reads it, for decoding,
where reading the weight is all the time there is.
"""

from dataclasses import dataclass

import torch

from .._library import Example, as_rows, like_rows, needs_grad, register
from .._select import select
from ..quantized import QuantizedWeight, linear_quantized
from ..quantized import check as check_quantized
from ..rmsnorm import check as check_norm
from ..rmsnorm import rmsnorm
from ..swiglu import swiglu

__all__ = ["linear", "norm_linear", "pack_weight", "PackedWeight"]


@dataclass(frozen=True)
class PackedWeight:
    """A weight in a backend's own layout: from `pack_weight`, accepted by `linear` in the weight's place."""

    data: torch.Tensor
    shape: tuple[int, int]  # (N, K) of the weight packed
    dtype: torch.dtype
    backend: str


def pack_weight(weight: torch.Tensor) -> PackedWeight:
    """Lay out weight (N, K) for `linear`; a copy, which does not follow later changes of the weight."""
    _check_weight(weight)
    backend = select("linear", weight.device)
    name = backend.__name__.rsplit(".", 1)[-1]
    data = backend.pack(weight.detach().contiguous())
    return PackedWeight(data, (weight.shape[0], weight.shape[1]), weight.dtype, name)


def linear(
    x: torch.Tensor,
    weight: torch.Tensor | PackedWeight | QuantizedWeight,
    bias: torch.Tensor | None = None,
    out_dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """x (..., K) times weight (N, K) transposed, plus bias (N,): (..., N).

    All float32 or all bfloat16 on one device; sums are in float32. out_dtype is x's type unless
    torch.float32 is asked for, which returns the sums unrounded. A packed weight takes no gradients; a quantised
    one neither, and it has rules of its own (kernels/quantized).

    Raises ValueError for shapes or types that do not fit together.
    """
    if isinstance(weight, QuantizedWeight):
        return linear_quantized(x, weight, bias, out_dtype)
    _check(x, weight, bias, out_dtype)
    out_dtype = out_dtype or x.dtype
    rows = as_rows(x)
    bias = None if bias is None else bias.contiguous()
    if isinstance(weight, PackedWeight):
        y = _packed(rows, weight, bias, out_dtype)
    elif torch.compiler.is_compiling() or needs_grad(x, weight, bias):
        y = _Linear.apply(rows, weight.contiguous(), bias, out_dtype)
    else:
        y = select("linear", x.device).forward(rows, weight.contiguous(), bias, out_dtype)
    return like_rows(y, x)


def norm_linear(
    x: torch.Tensor,
    norm: torch.Tensor,
    weight: torch.Tensor | PackedWeight | QuantizedWeight,
    bias: torch.Tensor | None = None,
    eps: float = 1e-6,
    residual: torch.Tensor | None = None,
    gated: bool = False,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """linear(rmsnorm(x, norm, eps, residual), weight, bias), and with `gated` swiglu of that.

    Shapes and types are those of these ops; y has the norm's type. Returns y, or (y, x + residual) when a residual is
    given. A backend may have it as one op where no gradients are wanted (Triton for weights as tensors, the CPU for few
    rows and weights packed or quantised, and for many and quantised ones), with the same bits; elsewhere the ops run
    one after another.

    Raises ValueError for shapes or types that do not fit together.
    """
    backend = select("linear", x.device)
    separate = torch.compiler.is_compiling() or not hasattr(backend, "forward_normed")
    learnt = weight if isinstance(weight, torch.Tensor) else None
    if separate or not backend.norms(x, weight, gated) or needs_grad(x, norm, learnt, bias, residual):
        h = rmsnorm(x, norm, eps, residual)
        y = linear(h[0] if isinstance(h, tuple) else h, weight, bias)
        y = swiglu(y) if gated else y
        return (y, h[1]) if isinstance(h, tuple) else y
    check_norm(x, norm, residual)
    if isinstance(weight, QuantizedWeight):
        check_quantized(norm.expand(x.shape), weight, bias, None)
    else:
        _check(norm.expand(x.shape), weight, bias, None)
    if gated and weight.shape[0] % 2:
        raise ValueError(f"norm_linear: a gated weight has an even number of rows, got {tuple(weight.shape)}")
    y, summed = backend.forward_normed(
        as_rows(x), norm.contiguous(), weight if learnt is None else learnt.contiguous(),
        None if bias is None else bias.contiguous(), eps, None if residual is None else as_rows(residual), gated,
    )  # fmt: skip
    return like_rows(y, x) if residual is None else (like_rows(y, x), like_rows(summed, x))


def examples(device: str) -> list[Example]:
    """Odd-sized calls for the probe launch: small ones, and on a card one of more tiles than any has SMs."""
    made: list[Example] = []
    sizes = [(dtype, (5, 35, 67)) for dtype in (torch.float32, torch.bfloat16)]
    if torch.device(device).type == "cuda":
        sizes.append((torch.bfloat16, (4200, 2100, 2075)))
    for dtype, (m, n, k) in sizes:
        make = torch.Generator(device=device).manual_seed(1)
        x, w, b = (
            torch.randn(*shape, generator=make, device=device).to(dtype).requires_grad_()
            for shape in ((m, k), (n, k), (n,))
        )
        made += [(linear, (x, w), {}), (linear, (x, w, b), {"out_dtype": torch.float32})]
        made.append((_linear_packed, (x.detach(), w.detach(), b.detach()), {}))
        x, w, b = x.detach(), w.detach(), b.detach()
        made.append((norm_linear, (x, w[0], w, b), {"residual": x.float()}))
        made.append((norm_linear, (x.float(), w[0], w[1:]), {"gated": True}))
    return made


def _linear_packed(x, weight, bias):
    return linear(x, pack_weight(weight), bias)


def _check_weight(weight) -> None:
    if weight.dim() != 2:
        raise ValueError(f"linear: expected a weight (N, K), got {tuple(weight.shape)}")
    if weight.dtype not in (torch.float32, torch.bfloat16):
        raise ValueError(f"linear: expected float32 or bfloat16, got {weight.dtype}")


def _check(x, weight, bias, out_dtype) -> None:
    packed = isinstance(weight, PackedWeight)
    if not packed:
        _check_weight(weight)
    if x.dim() == 0 or x.shape[-1] != weight.shape[1]:
        raise ValueError(f"linear: weight {tuple(weight.shape)} does not fit x {tuple(x.shape)}")
    if bias is not None and tuple(bias.shape) != (weight.shape[0],):
        raise ValueError(f"linear: bias {tuple(bias.shape)} does not fit weight {tuple(weight.shape)}")
    for name, other in (("weight", weight.data if packed else weight), ("bias", bias)):
        if other is not None and other.device != x.device:
            raise ValueError(f"linear: {name} is on {other.device}, x on {x.device}")
    for name, other in (("weight", weight), ("bias", bias)):
        if other is not None and other.dtype != x.dtype:
            raise ValueError(f"linear: {name} is {other.dtype}, x {x.dtype}")
    if out_dtype not in (None, torch.float32, x.dtype):
        raise ValueError(f"linear: out_dtype {out_dtype} is neither x's {x.dtype} nor float32")


def _packed(rows, weight, bias, out_dtype):
    backend = select("linear", rows.device)
    if backend.__name__.rsplit(".", 1)[-1] != weight.backend:
        raise ValueError(f"linear: the weight was packed for backend {weight.backend}; pack it again")
    if needs_grad(rows, bias):
        raise ValueError("linear: a packed weight takes no gradients; give the weight itself, or use no_grad")
    return backend.forward_packed(rows, weight.data, weight.shape[0], bias, out_dtype)


def _forward(x, weight, bias, out_dtype):
    return select("linear", x.device).forward(x, weight, bias, out_dtype)


def _forward_fake(x, weight, bias, out_dtype):
    return x.new_empty(x.shape[0], weight.shape[0], dtype=out_dtype)


def _backward(dy, x, weight, needs):
    return select("linear", x.device).backward(dy, x, weight, needs)


def _backward_fake(dy, x, weight, needs):
    return (
        torch.empty_like(x) if needs[0] else x.new_empty(0),
        torch.empty_like(weight) if needs[1] else x.new_empty(0),
        x.new_empty(weight.shape[0]) if needs[2] else x.new_empty(0),
    )


_forward_op = register(
    "linear(Tensor x, Tensor weight, Tensor? bias, ScalarType out_dtype) -> Tensor", _forward, _forward_fake
)
# needs: which of dx, dweight, dbias to compute; the others come back empty.
_backward_op = register(
    "linear_backward(Tensor dy, Tensor x, Tensor weight, bool[3] needs) -> (Tensor, Tensor, Tensor)",
    _backward,
    _backward_fake,
)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, out_dtype):
        ctx.save_for_backward(x, weight)
        return _forward_op(x, weight, bias, out_dtype)

    @staticmethod
    def backward(ctx, dy):
        x, weight = ctx.saved_tensors
        needs = list(ctx.needs_input_grad[:3])
        # float32 gradients of bf16 layers are rounded first: the products run in the layer's type
        grads = _backward_op(dy.to(x.dtype).contiguous(), x, weight, needs)
        return *(grad if need else None for grad, need in zip(grads, needs, strict=True)), None
