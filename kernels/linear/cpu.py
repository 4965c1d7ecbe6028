"""The linear layer on the CPU: allocation and the calls into csrc/cpu/linear.cpp."""

import torch

from .. import _native
from .._memory import weight_empty
from ..quantized import QuantizedWeight
from ..quantized.cpu import format_of

PANEL = 32  # columns of a packed panel, as in csrc/cpu/gemm.h and quantized.cpp
NORMED = 16  # rows at most that each thread normalises for itself
DEALT = 128  # rows at least of a quantised product that threads deal out, its norm's as well


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


def norms(x, weight, gated):
    """Whether forward_normed() takes it: a weight that was packed here as one, outputs in whole panels, few rows.

    Or many of a quantised weight; of rows between, members of a team would normalise too many alike.
    """
    if (
        isinstance(weight, torch.Tensor)
        or weight.backend != "cpu"
        or (gated and weight.shape[0] % (2 * PANEL))
    ):
        return False
    rows = x.numel() // x.shape[-1] if x.shape[-1] else 0
    if isinstance(weight, QuantizedWeight):
        return len(weight.parts) == 1 and not NORMED < rows < DEALT
    return rows <= NORMED


def forward_normed(x, norm, weight, bias, eps, residual, gated):
    """(y, x + residual): the product of rmsnorm(x, norm, eps, residual), with swiglu where gated, in one call."""
    (m, k), n, dtype = x.shape, weight.shape[0], norm.dtype
    y = norm.new_empty(m, n // (1 + gated))
    summed = x.new_empty(0 if residual is None else x.shape, dtype=torch.float32)
    if isinstance(weight, QuantizedWeight):
        (part,) = weight.parts
        name, data, layout = "norm_linear_quantized", part.data, format_of(part)
    else:
        name, data, layout = "norm_linear", weight.data, ()
    unknown = _native.kernel(name, dtype, x.dtype)(
        _native.address(x, x.dtype, m * k),
        _native.address(residual, torch.float32, m * k),
        _native.address(norm, dtype, k),
        eps,
        0 if residual is None else _native.address(summed, torch.float32, m * k),
        _native.address(data, data.dtype, data.numel()),
        *layout,
        _native.address(bias, dtype, n),
        _native.address(y, dtype, y.numel()),
        gated, m, n, k, _native.threads(),
    )  # fmt: skip
    if unknown is not None and unknown >= 0:
        raise NotImplementedError(f"linear cpu: no kernel for {layout}, x {x.dtype} {(m, k)}")
    return y, summed


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
