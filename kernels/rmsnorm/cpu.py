"""RMSNorm on the CPU: allocation and the call into csrc/cpu/rmsnorm.cpp."""

import torch

from .. import _native

WIDE = torch.float32


def forward(x, weight, eps, residual=None):
    rows, channels = x.shape
    dtype, n = weight.dtype, x.numel()
    y = torch.empty_like(x, dtype=dtype)
    summed = torch.empty(0 if residual is None else x.shape, dtype=WIDE)
    rstd = torch.empty(rows, dtype=WIDE)
    _native.kernel("rmsnorm_forward", dtype, x.dtype)(
        _native.address(x, x.dtype, n),
        _native.address(residual, WIDE, n),
        _native.address(weight, dtype, channels),
        _native.address(y, dtype, n),
        0 if residual is None else _native.address(summed, WIDE, n),
        _native.address(rstd, WIDE, rows),
        rows, channels, eps, _native.threads(),
    )  # fmt: skip
    return y, summed, rstd


def backward(dy, dsummed, s, weight, rstd, residual):
    rows, channels = s.shape
    dtype, n = weight.dtype, s.numel()
    dx, dweight = torch.empty_like(s, dtype=dtype if residual else s.dtype), torch.empty_like(weight)
    both = residual and dtype != WIDE
    dresidual = torch.empty(s.shape if both else 0, dtype=WIDE)
    blocks = -(-rows // _native.cpu.RMSNORM_BLOCK)
    partial = torch.empty(blocks, channels, dtype=WIDE)
    _native.kernel("rmsnorm_backward", dtype, s.dtype, dx.dtype)(
        _native.address(dy, dtype, n),
        _native.address(dsummed, WIDE, n),
        _native.address(s, s.dtype, n),
        _native.address(weight, dtype, channels),
        _native.address(rstd, WIDE, rows),
        _native.address(dx, dx.dtype, n),
        _native.address(dresidual, WIDE, n) if both else 0,
        _native.address(dweight, dtype, channels),
        _native.address(partial, WIDE, partial.numel()),
        rows, channels, _native.threads(),
    )  # fmt: skip
    return dx, dresidual, dweight
