"""The linear layer on the CPU: allocation and the calls into csrc/cpu/linear.cpp."""

import torch

from .. import _native
from .._memory import weight_empty

PANEL = 32  # columns of a packed panel, as in csrc/cpu/gemm.h


def forward(x, weight, bias, out_dtype):
    return _forward(x, weight, weight.numel(), False, weight.shape[0], bias, out_dtype)


def forward_packed(x, data, n, bias, out_dtype):
    return _forward(x, data, data.numel(), True, n, bias, out_dtype)


def _forward(x, weight, weight_numel, is_packed, n, bias, out_dtype):
    m, k = x.shape
    y = torch.empty(m, n, dtype=out_dtype)
    _native.kernel("linear_forward", x.dtype)(
        _native.address(x, x.dtype, m * k),
        _native.address(weight, x.dtype, weight_numel),
        is_packed,
        _native.address(bias, x.dtype, n),
        _native.address(y, out_dtype, m * n),
        out_dtype is torch.float32,
        m, n, k, _native.threads(),
    )  # fmt: skip
    return y


def backward(dy, x, weight, needs):
    (m, k), n, dtype = x.shape, weight.shape[0], x.dtype
    dx = torch.empty_like(x) if needs[0] else x.new_empty(0)
    dweight = torch.empty_like(weight) if needs[1] else x.new_empty(0)
    dbias = x.new_empty(n) if needs[2] else x.new_empty(0)
    _native.kernel("linear_backward", dtype)(
        _native.address(dy, dtype, m * n),
        _native.address(x, dtype, m * k),
        _native.address(weight, dtype, n * k),
        _native.address(dx if needs[0] else None, dtype, m * k),
        _native.address(dweight if needs[1] else None, dtype, n * k),
        _native.address(dbias if needs[2] else None, dtype, n),
        m, n, k, _native.threads(),
    )  # fmt: skip
    return dx, dweight, dbias


def pack(weight):
    """One-dimensional: panels of 32 columns, (K, 32) each; in bf16 (K / 2, 32, 2), K rounded up to pairs."""
    n, k = weight.shape
    steps = k + k % 2 if weight.dtype is torch.bfloat16 else k
    data = weight_empty([-(-n // PANEL) * PANEL * steps], weight.dtype)
    _native.kernel("linear_pack", weight.dtype)(
        _native.address(weight, weight.dtype, n * k),
        _native.address(data, weight.dtype, data.numel()),
        n, k, _native.threads(),
    )  # fmt: skip
    return data
