"""AdamW on the CPU: lists of addresses for csrc/cpu/adamw.cpp."""

from array import array

import torch

from .. import _native


def _addresses(tensors, like) -> array:
    return array(
        "q",
        [_native.address(t, torch.float32, other.numel()) for t, other in zip(tensors, like, strict=True)],
    )


def step(params, grads, exp_avgs, exp_avg_sqs, lr, beta1, beta2, eps, weight_decay, step, grad_scale):
    lists = [_addresses(tensors, params) for tensors in (params, grads, exp_avgs, exp_avg_sqs)]
    sizes = array("q", [p.numel() for p in params])
    _native.cpu.adamw_step(
        *(items.buffer_info()[0] for items in (*lists, sizes)),
        len(params), lr, beta1, beta2, eps, weight_decay, step, grad_scale, _native.threads(),
    )  # fmt: skip


def grad_norm(grads):
    addresses, sizes = _addresses(grads, grads), array("q", [g.numel() for g in grads])
    total = array("d", [0.0])
    pointers = (a.buffer_info()[0] for a in (addresses, sizes))
    _native.cpu.sum_of_squares(*pointers, len(grads), total.buffer_info()[0], _native.threads())
    return total[0] ** 0.5
