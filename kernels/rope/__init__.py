"""Rotary position embedding (Su et al., 2021) of queries and keys, after an optional RMS norm of each head.

One pass: a head's row is read, normalised, turned and written while it sits in registers or L1; the cosines and
sines come from one table for all layers. 6 flops a number against 4-8 bytes: bound by bandwidth. The halves
convention ("rotate_half") is that of Llama and Qwen3 checkpoints.
"""

from collections.abc import Sequence

import torch

from .._library import register
from .._select import select

__all__ = ["rope"]


def rope(
    q: torch.Tensor,
    k: torch.Tensor,
    positions: torch.Tensor,
    q_weight: torch.Tensor | None = None,
    k_weight: torch.Tensor | None = None,
    theta: float = 10000.0,
    eps: float = 1e-6,
    divisors: Sequence[float] = (),
) -> tuple[torch.Tensor, torch.Tensor]:
    """(q, k) rotated to their positions; with weights (D,), first RMS-normalised over D, as in Qwen3.

    q (T, H, D), k (T, K, D) with D even, positions (T,) int32, not negative; float32 or bfloat16 throughout.
    q_weight and k_weight are given together or not at all. divisors: D / 2 numbers that divide the frequencies
    theta^(-2i / D), as in Llama 3's scaling; none leaves them as they are. Non-contiguous inputs are copied. A
    row's result does not depend on the other rows.

    Raises ValueError for shapes or types that do not fit together.
    """
    _check(q, k, positions, q_weight, k_weight, divisors)
    if q_weight is not None and k_weight is not None:
        q_weight, k_weight = q_weight.contiguous(), k_weight.contiguous()
    arguments = (
        q.contiguous(),
        k.contiguous(),
        positions.contiguous(),
        q_weight,
        k_weight,
        float(theta),
        float(eps),
        [float(d) for d in divisors],
    )
    if torch.compiler.is_compiling() or _needs_grad(q, k, q_weight, k_weight):
        return _Rope.apply(*arguments)
    return _forward(*arguments)


def examples(device: str) -> list[tuple[tuple, dict]]:
    """Small, odd-sized calls for the probe launch."""
    made: list[tuple[tuple, dict]] = []
    positions = torch.tensor([0, 1, 2, 0, 1500], dtype=torch.int32, device=device)
    for dtype in (torch.float32, torch.bfloat16):
        make = torch.Generator(device=device).manual_seed(1)
        q, k, wq, wk = (
            torch.randn(shape, generator=make, device=device).to(dtype).requires_grad_()
            for shape in ((5, 3, 34), (5, 1, 34), (34,), (34,))
        )
        divided = {"divisors": [1.0] * 8 + [8.0] * 9}
        made += [((q, k, positions), divided), ((q, k, positions, wq, wk, 1e6), {})]
    return made


def _check(q, k, positions, q_weight, k_weight, divisors) -> None:
    if q.dim() != 3 or k.dim() != 3 or q.shape[0] != k.shape[0] or q.shape[2] != k.shape[2] or q.shape[2] % 2:
        raise ValueError(
            f"rope: expected q (T, H, D), k (T, K, D), D even; got {tuple(q.shape)}, {tuple(k.shape)}"
        )
    if positions.shape != q.shape[:1] or positions.dtype != torch.int32:
        raise ValueError(
            f"rope: positions must be ({len(q)},) int32, got {tuple(positions.shape)} {positions.dtype}"
        )
    if len(divisors) not in (0, q.shape[2] // 2):
        raise ValueError(f"rope: expected D / 2 = {q.shape[2] // 2} divisors or none, got {len(divisors)}")
    if (q_weight is None) != (k_weight is None):
        raise ValueError("rope: give both q_weight and k_weight, or neither")
    if q.dtype not in (torch.float32, torch.bfloat16):
        raise ValueError(f"rope: expected float32 or bfloat16, got {q.dtype}")
    for name, other in (("k", k), ("q_weight", q_weight), ("k_weight", k_weight)):
        if other is not None and (other.dtype != q.dtype or other.device != q.device):
            raise ValueError(f"rope: {name} is {other.dtype} on {other.device}, q {q.dtype} on {q.device}")
    for weight in (q_weight, k_weight):
        if weight is not None and weight.shape != q.shape[2:]:
            raise ValueError(f"rope: weight {tuple(weight.shape)} does not fit D = {q.shape[2]}")


def _needs_grad(*tensors) -> bool:
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def _forward(q, k, positions, q_weight, k_weight, theta, eps, divisors=()):
    return select("rope", q.device).forward(q, k, positions, q_weight, k_weight, theta, eps, divisors)


def _forward_fake(q, k, positions, q_weight, k_weight, theta, eps, divisors=()):
    return torch.empty_like(q), torch.empty_like(k)


def _backward(dq, dk, positions, q, k, q_weight, k_weight, theta, eps, divisors=()):
    backend = select("rope", dq.device)
    return backend.backward(dq, dk, positions, q, k, q_weight, k_weight, theta, eps, divisors)


def _backward_fake(dq, dk, positions, q, k, q_weight, k_weight, theta, eps, divisors=()):
    weights = [dq.new_empty(0) if w is None else torch.empty_like(w) for w in (q_weight, k_weight)]
    return torch.empty_like(dq), torch.empty_like(dk), *weights


_forward_op = register(
    "rope(Tensor q, Tensor k, Tensor positions, Tensor? q_weight, Tensor? k_weight, float theta, float eps, "
    "float[] divisors=[]) -> (Tensor, Tensor)",
    _forward,
    _forward_fake,
)
_backward_op = register(
    "rope_backward(Tensor dq, Tensor dk, Tensor positions, Tensor? q, Tensor? k, Tensor? q_weight, "
    "Tensor? k_weight, float theta, float eps, float[] divisors=[]) -> (Tensor, Tensor, Tensor, Tensor)",
    _backward,
    _backward_fake,
)


class _Rope(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, positions, q_weight, k_weight, theta, eps, divisors):
        ctx.constants = theta, eps, divisors
        ctx.normed = q_weight is not None
        ctx.save_for_backward(positions, *((q, k, q_weight, k_weight) if ctx.normed else ()))
        return _forward_op(q, k, positions, q_weight, k_weight, theta, eps, divisors)

    @staticmethod
    def backward(ctx, dq, dk):
        positions, *saved = ctx.saved_tensors
        q, k, q_weight, k_weight = saved or (None,) * 4
        grads = _backward_op(
            dq.contiguous(), dk.contiguous(), positions, q, k, q_weight, k_weight, *ctx.constants
        )
        dq, dk, dq_weight, dk_weight = grads
        if not ctx.normed:
            dq_weight = dk_weight = None
        return dq, dk, None, dq_weight, dk_weight, None, None, None
