"""AdamW over many tensors in one call, and the global norm of their gradients (Loshchilov and Hutter, 2019).

One pass: a parameter, its gradient and its two moments are read once and written once, 28 bytes a number in
float32 for about 15 flops, so memory is the bound. Gradients are scaled on the way in (clipping, averaging),
so clipping costs no pass of its own.
"""

from collections.abc import Sequence

import torch

from .._library import Example, register
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
    copies: Sequence[torch.Tensor] = (),
) -> None:
    """One AdamW step in place: params and both moments, all float32 and contiguous, on one device.

        g = grad * grad_scale;  m = b1 m + (1 - b1) g;  v = b2 v + (1 - b2) g^2
        p = p (1 - lr wd) - lr (m / (1 - b1^step)) / (sqrt(v / (1 - b2^step)) + eps)

    step counts from 1. Gradients are all float32 or all bfloat16; copies, if given, are of their type and get
    the new params, rounded. Raises ValueError for lists or tensors that do not fit together.
    """
    if step < 1:
        raise ValueError(f"adamw_: step counts from 1, got {step}")
    check_lists("adamw_", params, grads, (exp_avgs, exp_avg_sqs), copies)
    if params:
        grads = [grad.contiguous() for grad in grads]
        run = _adamw_op if torch.compiler.is_compiling() else _adamw
        with torch.no_grad():
            run(
                list(params), grads, list(exp_avgs), list(exp_avg_sqs),
                lr, beta1, beta2, eps, weight_decay, step, grad_scale, list(copies),
            )  # fmt: skip


def check_lists(
    op: str,
    params: Sequence[torch.Tensor],
    grads: Sequence[torch.Tensor],
    states: Sequence[Sequence[torch.Tensor]],
    copies: Sequence[torch.Tensor],
) -> None:
    """ValueError unless the lists of an optimiser fit together; also for kernels/muon."""
    if any(len(tensors) != len(params) for tensors in (grads, *states, copies or params)):
        raise ValueError(f"{op}: the lists of tensors differ in length")
    if not params:
        return
    device, narrow = params[0].device, grads[0].dtype
    if narrow not in (torch.float32, torch.bfloat16):
        raise ValueError(f"{op}: gradients are {narrow}, expected float32 or bfloat16")
    expected = [torch.float32, narrow, *[torch.float32] * len(states), narrow]
    for index, group in enumerate(zip(params, grads, *states, copies or grads, strict=True)):
        shape = group[0].shape
        for tensor, dtype in zip(group, expected, strict=True):
            if tensor.dtype != dtype or tensor.shape != shape or tensor.device != device:
                raise ValueError(
                    f"{op}: tensors {index}: expected {dtype} {tuple(shape)} on {device}, "
                    f"got {tensor.dtype} {tuple(tensor.shape)} on {tensor.device}"
                )
        written = (group[0], *group[2:]) if copies else (group[0], *group[2:-1])
        if not all(tensor.is_contiguous() for tensor in written):
            raise ValueError(f"{op}: tensors {index}: what is written must be contiguous")


def grad_norm(grads: Sequence[torch.Tensor]) -> float:
    """Euclidean norm of tensors, all float32 or all bfloat16, taken as one vector, in a fixed order.

    NaN or inf if any number is. Squares are summed in float32 and wider.
    """
    if {grad.dtype for grad in grads} not in (set(), {torch.float32}, {torch.bfloat16}):
        raise ValueError("grad_norm: expected tensors all float32 or all bfloat16")
    if not grads:
        return 0.0
    return select("adamw", grads[0].device).grad_norm([grad.detach().contiguous() for grad in grads])


def examples(device: str) -> list[Example]:
    """Small, odd-sized calls for the probe launch; a rate of 1, so that the step shows beside the weights."""
    make = torch.Generator(device=device).manual_seed(1)
    params, grads, means, squares = (
        [torch.randn(n, generator=make, device=device) for n in (67, 1, 1030)] for _ in range(4)
    )
    squares = [square.abs() + 0.1 for square in squares]
    narrow = [grad.bfloat16() for grad in grads]
    return [
        (adamw_, (params, some, means, squares, 1.0, 0.9, 0.95, 1e-8, 0.1, 3, 0.5), {"copies": copies})
        for some, copies in ((grads, ()), (narrow, [g.clone() for g in narrow]))
    ] + [
        (grad_norm, (grads,), {}),
    ]


def _adamw(
    params, grads, exp_avgs, exp_avg_sqs, lr, beta1, beta2, eps, weight_decay, step, grad_scale, copies=()
):
    select("adamw", params[0].device).step(
        params, grads, exp_avgs, exp_avg_sqs, lr, beta1, beta2, eps, weight_decay, step, grad_scale, copies
    )
    torch.autograd.graph.increment_version([*params, *copies])  # kernels write behind torch's back


def _adamw_fake(
    params, grads, exp_avgs, exp_avg_sqs, lr, beta1, beta2, eps, weight_decay, step, grad_scale, copies=()
):
    return None


_adamw_op = register(
    "adamw_(Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] exp_avgs, Tensor(c!)[] exp_avg_sqs, float lr, "
    "float beta1, float beta2, float eps, float weight_decay, int step, float grad_scale, "
    "Tensor(d!)[] copies) -> ()",
    _adamw,
    _adamw_fake,
)
