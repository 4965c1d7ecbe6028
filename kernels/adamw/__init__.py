"""AdamW over many tensors in one call, and the global norm of their gradients (Loshchilov and Hutter, 2019).

One pass: a parameter, its gradient and its two moments are read once and written once, 28 bytes a number in
float32 for about 15 flops, so memory is the bound. Gradients are scaled on the way in (clipping, averaging),
so clipping costs no pass of its own.
"""

from collections.abc import Sequence

import torch

from .._library import register
from .._select import select

__all__ = ["adamw_", "grad_norm"]


def adamw_(
    params: Sequence[torch.Tensor],
    grads: Sequence[torch.Tensor],
    exp_avgs: Sequence[torch.Tensor],
    exp_avg_sqs: Sequence[torch.Tensor],
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    step: int,
    grad_scale: float = 1.0,
) -> None:
    """One AdamW step in place: params and both moments, all float32 and contiguous, on one device.

        g = grad * grad_scale;  m = b1 m + (1 - b1) g;  v = b2 v + (1 - b2) g^2
        p = p (1 - lr wd) - lr (m / (1 - b1^step)) / (sqrt(v / (1 - b2^step)) + eps)

    step counts from 1. Raises ValueError for lists or tensors that do not fit together.
    """
    if step < 1:
        raise ValueError(f"adamw_: step counts from 1, got {step}")
    if not len(params) == len(grads) == len(exp_avgs) == len(exp_avg_sqs):
        raise ValueError("adamw_: params, grads, exp_avgs and exp_avg_sqs differ in length")
    for index, group in enumerate(zip(params, grads, exp_avgs, exp_avg_sqs, strict=True)):
        shape, device = group[0].shape, params[0].device
        for tensor in group:
            if tensor.dtype != torch.float32 or tensor.shape != shape or tensor.device != device:
                raise ValueError(
                    f"adamw_: tensors {index}: expected float32 {tuple(shape)} on {device}, "
                    f"got {tensor.dtype} {tuple(tensor.shape)} on {tensor.device}"
                )
        if not all(tensor.is_contiguous() for tensor in (group[0], *group[2:])):
            raise ValueError(f"adamw_: tensors {index}: parameters and moments must be contiguous")
    if params:
        grads = [grad.contiguous() for grad in grads]
        run = _adamw_op if torch.compiler.is_compiling() else _adamw
        with torch.no_grad():
            run(
                list(params), grads, list(exp_avgs), list(exp_avg_sqs),
                lr, beta1, beta2, eps, weight_decay, step, grad_scale,
            )  # fmt: skip


def grad_norm(grads: Sequence[torch.Tensor]) -> float:
    """Euclidean norm of float32 tensors taken as one vector, in a fixed order; NaN or inf if any is."""
    if any(grad.dtype != torch.float32 for grad in grads):
        raise ValueError("grad_norm: expected float32 tensors")
    if not grads:
        return 0.0
    return select("adamw", grads[0].device).grad_norm([grad.detach().contiguous() for grad in grads])


def _adamw(params, grads, exp_avgs, exp_avg_sqs, lr, beta1, beta2, eps, weight_decay, step, grad_scale):
    select("adamw", params[0].device).step(
        params, grads, exp_avgs, exp_avg_sqs, lr, beta1, beta2, eps, weight_decay, step, grad_scale
    )
    torch.autograd.graph.increment_version(params)  # kernels write behind torch's back


def _adamw_fake(params, grads, exp_avgs, exp_avg_sqs, lr, beta1, beta2, eps, weight_decay, step, grad_scale):
    return None


_adamw_op = register(
    "adamw_(Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] exp_avgs, Tensor(c!)[] exp_avg_sqs, float lr, "
    "float beta1, float beta2, float eps, float weight_decay, int step, float grad_scale) -> ()",
    _adamw,
    _adamw_fake,
)
