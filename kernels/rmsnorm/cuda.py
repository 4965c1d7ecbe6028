"""RMSNorm in CUDA C++: allocation and the call into csrc/cuda/rmsnorm.cu on the current stream."""

import torch

from .. import _native

BLOCK = 64  # rows per partial sum of the weight gradient, as in the kernel


def forward(x, weight, eps, residual=None):
    rows, channels = x.shape
    dtype, n = x.dtype, x.numel()
    y = torch.empty_like(x)
    summed = x.new_empty(0) if residual is None else torch.empty_like(x)
    rstd = x.new_empty(rows, dtype=torch.float32)
    _native.launch(
        "rmsnorm_forward", dtype, x.device,
        _native.address(x, dtype, n, "cuda"),
        _native.address(residual, dtype, n, "cuda"),
        _native.address(weight, dtype, channels, "cuda"),
        _native.address(y, dtype, n, "cuda"),
        0 if residual is None else _native.address(summed, dtype, n, "cuda"),
        _native.address(rstd, torch.float32, rows, "cuda"),
        rows, channels, eps,
    )  # fmt: skip
    return y, summed, rstd


def backward(dy, dsummed, x, weight, rstd):
    rows, channels = x.shape
    dtype, n = x.dtype, x.numel()
    dx, dweight = torch.empty_like(x), torch.empty_like(weight)
    partial = x.new_empty((-(-rows // BLOCK), channels), dtype=torch.float32)
    _native.launch(
        "rmsnorm_backward", dtype, x.device,
        _native.address(dy, dtype, n, "cuda"),
        _native.address(dsummed, dtype, n, "cuda"),
        _native.address(x, dtype, n, "cuda"),
        _native.address(weight, dtype, channels, "cuda"),
        _native.address(rstd, torch.float32, rows, "cuda"),
        _native.address(dx, dtype, n, "cuda"),
        _native.address(dweight, dtype, channels, "cuda"),
        _native.address(partial, torch.float32, partial.numel(), "cuda"),
        rows, channels,
    )  # fmt: skip
    return dx, dweight
