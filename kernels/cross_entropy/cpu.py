"""The output layer and its loss on the CPU: allocation and the calls into csrc/cpu/cross_entropy.cpp."""

import torch

from .. import _native
from . import check_targets

KEEPS_LOGITS = True  # forward fills `kept`, room for all logits, and backward then reads them
SKIPS_IGNORED = True  # the kernels leave out rows that are ignored, in a replayed step too
CHECKS_TARGETS = True  # forward refuses those out of range, in a replayed step too


def forward(x, weight, targets, ignore_index, kept=None):
    (rows, channels), vocabulary, dtype = x.shape, weight.shape[0], x.dtype
    nll, lse = (torch.empty(rows, dtype=kind) for kind in (torch.float32, torch.float64))
    wrong = _native.kernel("cross_entropy_forward", dtype)(
        _native.address(x, dtype, rows * channels),
        _native.address(weight, dtype, vocabulary * channels),
        _native.address(targets, torch.int64, rows),
        _native.address(nll, torch.float32, rows),
        _native.address(lse, torch.float64, rows),
        _native.address(kept, torch.float32, rows * vocabulary),
        rows, channels, vocabulary, ignore_index, _native.threads(),
    )  # fmt: skip
    if wrong >= 0:
        check_targets(targets, vocabulary)
    return nll, lse


def backward(dnll, x, weight, targets, lse, ignore_index, needs, kept=None):
    (rows, channels), vocabulary, dtype = x.shape, weight.shape[0], x.dtype
    dx = torch.empty_like(x) if needs[0] else x.new_empty(0)
    dweight = torch.empty_like(weight) if needs[1] else x.new_empty(0)
    # float32 gradients are summed where they end up
    dx_sum = dx if dtype is torch.float32 else torch.empty(dx.shape, dtype=torch.float32)
    _native.kernel("cross_entropy_backward", dtype)(
        _native.address(dnll, torch.float32, rows),
        _native.address(x, dtype, rows * channels),
        _native.address(weight, dtype, vocabulary * channels),
        _native.address(targets, torch.int64, rows),
        _native.address(lse, torch.float64, rows),
        _native.address(kept, torch.float32, rows * vocabulary),
        _native.address(dx if needs[0] else None, dtype, rows * channels),
        _native.address(dweight if needs[1] else None, dtype, vocabulary * channels),
        _native.address(dx_sum, torch.float32, dx.numel()),
        rows, channels, vocabulary, ignore_index, _native.threads(),
    )  # fmt: skip
    return dx, dweight
