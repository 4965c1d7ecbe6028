"""The linear layer in plain torch: the meaning of the op.

    y = x W^T + bias      dx = dy W      dW = dy^T x      db = sum of dy over rows

Products and sums are in float32 (float64 inputs stay float64). torch chooses the order of summation here, so
this backend does not keep the promise that a row's bits are independent of the batch.
"""

import torch


def _wide(tensor):
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def forward(x, weight, bias, out_dtype):
    """y (M, N): x (M, K), weight (N, K), bias (N,) or None."""
    y = _wide(x) @ _wide(weight).T
    return (y if bias is None else y + _wide(bias)).to(out_dtype)


def backward(dy, x, weight, needs):
    """(dx, dweight, dbias), each empty where `needs` says no: dy (M, N) in x's type."""
    nothing = x.new_empty(0)
    dx = (_wide(dy) @ _wide(weight)).to(x.dtype) if needs[0] else nothing
    dweight = (_wide(dy).T @ _wide(x)).to(x.dtype) if needs[1] else nothing.clone()
    dbias = _wide(dy).sum(0).to(x.dtype) if needs[2] else nothing.clone()
    return dx, dweight, dbias


def pack(weight):
    """The reference has no layout of its own."""
    return weight.clone()


def forward_packed(x, data, n, bias, out_dtype):
    return forward(x, data, bias, out_dtype)
