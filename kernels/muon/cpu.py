"""Muon on the CPU: lists of addresses for csrc/cpu/muon.cpp."""

from array import array

import torch

from .. import _native


def step(params, grads, momenta, lr, momentum, weight_decay, grad_scale):
    lists = [
        array("q", [_native.address(t, torch.float32, t.numel()) for t in tensors])
        for tensors in (params, grads, momenta)
    ]
    lists += [array("q", [p.shape[dim] for p in params]) for dim in (0, 1)]
    _native.cpu.muon_step(
        *(items.buffer_info()[0] for items in lists),
        len(params), lr, momentum, weight_decay, grad_scale, _native.threads(),
    )  # fmt: skip
