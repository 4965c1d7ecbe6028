"""Muon over many matrices in one call (Jordan et al., 2024, github.com/KellerJordan/Muon).

A matrix moves along the nearest orthogonal matrix of its momentum, found by five Newton-Schulz iterations, so
that every direction moves alike. That is fifteen small products a matrix: what counts is that the matrices are
shared out among the threads, not the products, and that a matrix stays in cache from first to last.
"""

from collections.abc import Sequence

import torch

from .._library import Example, register
from .._select import select
from ..adamw import check_lists

__all__ = ["muon_"]


def muon_(
    params: Sequence[torch.Tensor],
    grads: Sequence[torch.Tensor],
    momenta: Sequence[torch.Tensor],
    lr: float,
    momentum: float = 0.95,
    weight_decay: float = 0.0,
    grad_scale: float = 1.0,
    copies: Sequence[torch.Tensor] = (),
) -> None:
    """One Muon step in place: params and momenta (rows, columns) float32 and contiguous, on one device.

        g = grad * grad_scale;  m = m + (1 - momentum) (g - m);  u = g + momentum (m - g)
        p = p (1 - lr wd) - lr sqrt(max(1, rows / columns)) orthogonal(u)

    Gradients are all float32 or all bfloat16; copies, if given, are of their type and get the new params,
    rounded. Raises ValueError for lists or tensors that do not fit together.
    """
    check_lists("muon_", params, grads, (momenta,), copies)
    for index, param in enumerate(params):
        if param.dim() != 2:
            raise ValueError(f"muon_: tensors {index}: expected a matrix, got {tuple(param.shape)}")
    if params:
        grads = [grad.contiguous() for grad in grads]
        run = _muon_op if torch.compiler.is_compiling() else _muon
        with torch.no_grad():
            run(list(params), grads, list(momenta), lr, momentum, weight_decay, grad_scale, list(copies))


def examples(device: str) -> list[Example]:
    """Small, odd-sized calls for the probe launch; a rate of 1, so that the step shows beside the weights."""
    make = torch.Generator(device=device).manual_seed(1)
    params, grads, momenta = (
        [torch.randn(shape, generator=make, device=device) / 8 for shape in ((33, 67), (67, 33), (33, 67))]
        for _ in range(3)
    )
    narrow = [grad.bfloat16() for grad in grads]
    return [
        (muon_, (params, some, momenta, 1.0, 0.9, 0.1, 0.5), {"copies": copies})
        for some, copies in ((grads, ()), (narrow, [g.clone() for g in narrow]))
    ]


def _muon(params, grads, momenta, lr, momentum, weight_decay, grad_scale, copies=()):
    backend = select("muon", params[0].device)
    backend.step(params, grads, momenta, lr, momentum, weight_decay, grad_scale, copies)
    torch.autograd.graph.increment_version([*params, *copies])  # kernels write behind torch's back


def _muon_fake(params, grads, momenta, lr, momentum, weight_decay, grad_scale, copies=()):
    return None


_muon_op = register(
    "muon_(Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] momenta, float lr, float momentum, "
    "float weight_decay, float grad_scale, Tensor(c!)[] copies) -> ()",
    _muon,
    _muon_fake,
)
