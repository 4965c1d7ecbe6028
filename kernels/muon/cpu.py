"""Muon on the CPU: lists of addresses for csrc/cpu/muon.cpp."""

from array import array

from .. import _native
from ..adamw.cpu import addresses


def step(params, grads, momenta, lr, momentum, weight_decay, grad_scale, copies=()):
    lists = [addresses(tensors) for tensors in (params, grads, momenta, copies)]
    lists += [array("q", [p.shape[dim] for p in params]) for dim in (0, 1)]
    _native.kernel("muon_step", grads[0].dtype)(
        *(items.buffer_info()[0] if items else 0 for items in lists),
        len(params), lr, momentum, weight_decay, grad_scale, _native.threads(),
    )  # fmt: skip
