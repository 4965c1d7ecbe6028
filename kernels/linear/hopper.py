"""The linear layer on Hopper's own engines (csrc/cuda/linear_hopper.cu), forward and backward, in bfloat16.

Proven without a card only, so it is asked for by name (PYENGINE_BACKEND=hopper, use_backend) and then probed on the
card first. float32, which tensor cores would round, is torch's own product, and so is what has no numbers.
"""

import torch

from .. import _native
from .._memory import in_chunks, narrow, wide
from . import reference


def forward(x, weight, bias, out_dtype):
    (m, k), n = x.shape, weight.shape[0]
    if _is_not_for_it(x, n):
        return reference.forward(x, weight, bias, out_dtype)
    x, weight = in_chunks(x), in_chunks(weight)
    y = x.new_empty((m, wide(n)), dtype=out_dtype)
    bias_at = _native.address(bias, x.dtype, n, "cuda")
    _native.launch(
        "linear_forward_hopper", (out_dtype,), x.device,
        *map(_address, (x, weight)), bias_at, _address(y), m, n, k,
    )  # fmt: skip
    return narrow(y, n)


def backward(dy, x, weight, needs):
    (m, k), n = x.shape, weight.shape[0]
    if _is_not_for_it(x, n):
        return reference.backward(dy, x, weight, needs)
    dx, dweight, dbias = (x.new_empty(0) for _ in range(3))
    padded_dy = in_chunks(dy)
    if needs[0]:
        dx = x.new_empty((m, wide(k)))
        _launch("linear_dx_hopper", padded_dy, in_chunks(weight), dx, m, n, k)
    if needs[1]:
        dweight = weight.new_empty((n, wide(k)))
        _launch("linear_dweight_hopper", padded_dy, in_chunks(x), dweight, m, n, k)
    if needs[2]:
        dbias = dy.sum(0, dtype=torch.float32).to(x.dtype)
    return narrow(dx, k), narrow(dweight, k), dbias


def pack(weight):
    """The weight as it is: rows of K are what the kernel reads."""
    return weight.clone()


def forward_packed(x, data, n, bias, out_dtype):
    return forward(x, data, bias, out_dtype)


def _is_not_for_it(x: torch.Tensor, n: int) -> bool:
    return x.dtype is not torch.bfloat16 or not x.numel() or not n


def _launch(name: str, left: torch.Tensor, right: torch.Tensor, out: torch.Tensor, *sizes: int) -> None:
    _native.launch(name, None, out.device, *map(_address, (left, right, out)), *sizes)


def _address(t: torch.Tensor) -> int:
    return _native.address(t, t.dtype, t.numel(), "cuda")
