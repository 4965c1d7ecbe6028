"""RMSNorm in CUDA C++: allocation and the call into csrc/cuda/rmsnorm.cu on the current stream."""

import torch

from .. import _native

WIDE = torch.float32


def forward(x, weight, eps, residual=None):
    rows, channels = x.shape
    dtype, n = weight.dtype, x.numel()
    y = torch.empty_like(x, dtype=dtype)
    summed = x.new_empty(0 if residual is None else x.shape, dtype=WIDE)
    rstd = x.new_empty(rows, dtype=WIDE)
    _native.launch(
        "rmsnorm_forward", (dtype, x.dtype), x.device,
        _native.address(x, x.dtype, n, "cuda"),
        _native.address(residual, WIDE, n, "cuda"),
        _native.address(weight, dtype, channels, "cuda"),
        _native.address(y, dtype, n, "cuda"),
        0 if residual is None else _native.address(summed, WIDE, n, "cuda"),
        _native.address(rstd, WIDE, rows, "cuda"),
        rows, channels, eps,
    )  # fmt: skip
    return y, summed, rstd


def backward(dy, dsummed, s, weight, rstd, residual):
    rows, channels = s.shape
    dtype, n = weight.dtype, s.numel()
    dx, dweight = torch.empty_like(s, dtype=dtype if residual else s.dtype), torch.empty_like(weight)
    both = residual and dtype != WIDE
    dresidual = s.new_empty(s.shape if both else 0, dtype=WIDE)
    blocks = -(-rows // _native.cuda().RMSNORM_BLOCK)
    partial = s.new_empty((blocks, channels), dtype=WIDE)
    _native.launch(
        "rmsnorm_backward", (dtype, s.dtype, dx.dtype), s.device,
        _native.address(dy, dtype, n, "cuda"),
        _native.address(dsummed, WIDE, n, "cuda"),
        _native.address(s, s.dtype, n, "cuda"),
        _native.address(weight, dtype, channels, "cuda"),
        _native.address(rstd, WIDE, rows, "cuda"),
        _native.address(dx, dx.dtype, n, "cuda"),
        _native.address(dresidual, WIDE, n, "cuda") if both else 0,
        _native.address(dweight, dtype, channels, "cuda"),
        _native.address(partial, WIDE, partial.numel(), "cuda"),
        rows, channels,
    )  # fmt: skip
    return dx, dresidual, dweight
