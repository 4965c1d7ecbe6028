"""RMSNorm on the CPU: allocation and the call into csrc/cpu/rmsnorm.cpp."""

import torch

from .. import _native

BLOCK = 64  # rows per partial sum of the weight gradient, as in the C++


def forward(x, weight, eps, residual=None):
    rows, channels = x.shape
    dtype, n = x.dtype, x.numel()
    y = torch.empty_like(x)
    summed = x.new_empty(0) if residual is None else torch.empty_like(x)
    rstd = torch.empty(rows, dtype=torch.float32)
    _native.kernel("rmsnorm_forward", dtype)(
        _native.address(x, dtype, n),
        _native.address(residual, dtype, n),
        _native.address(weight, dtype, channels),
        _native.address(y, dtype, n),
        0 if residual is None else _native.address(summed, dtype, n),
        _native.address(rstd, torch.float32, rows),
        rows, channels, eps, _native.threads(),
    )  # fmt: skip
    return y, summed, rstd


def backward(dy, dsummed, x, weight, rstd):
    rows, channels = x.shape
    dtype, n = x.dtype, x.numel()
    dx, dweight = torch.empty_like(x), torch.empty_like(weight)
    partial = torch.empty(-(-rows // BLOCK), channels, dtype=torch.float32)
    _native.kernel("rmsnorm_backward", dtype)(
        _native.address(dy, dtype, n),
        _native.address(dsummed, dtype, n),
        _native.address(x, dtype, n),
        _native.address(weight, dtype, channels),
        _native.address(rstd, torch.float32, rows),
        _native.address(dx, dtype, n),
        _native.address(dweight, dtype, channels),
        _native.address(partial, torch.float32, partial.numel()),
        rows, channels, _native.threads(),
    )  # fmt: skip
    return dx, dweight
