"""The door from Python to a kernel (csrc/bind.h): numbers arrive as they are, and what does not fit is refused."""

import numpy as np
import pytest
import torch
from pyengine.kernels import _native

READ = _native.cpu.ceiling_read  # (address of floats, how many of them: int64, threads: int32) -> bytes


def test_integers_and_addresses_arrive_and_come_back():
    x = torch.randn(4096)
    assert READ(x.data_ptr(), 4096, 1) == READ(np.uint64(x.data_ptr()), np.int64(4096), True) == x.nbytes
    seeds, u = torch.tensor([-1, 2**63 - 1]), torch.empty(2)
    assert _native.cpu.uniform(seeds.data_ptr(), seeds.data_ptr(), u.data_ptr(), 2) is None
    assert ((u >= 0) & (u < 1)).all() and u[0] != u[1]


@pytest.mark.parametrize(
    "arguments, error, told",
    [
        ((0, 0), TypeError, "ceiling_read: expected 3 arguments, got 2"),
        ((0, 0, 1, 1), TypeError, "ceiling_read: expected 3 arguments, got 4"),
        ((0, 0.0, 1), TypeError, "float"),
        ((None, 0, 1), TypeError, "NoneType"),
        ((0, 0, 1 << 31), OverflowError, "2147483648 for a number of 4 bytes"),
        ((0, 0, -(1 << 31) - 1), OverflowError, "-2147483649 for a number of 4 bytes"),
        ((1 << 64, 0, 1), OverflowError, "too big"),
        ((0, -(1 << 63) - 1, 1), OverflowError, "negative"),
    ],
)
def test_what_is_no_number_or_does_not_fit_is_refused(arguments, error, told):
    with pytest.raises(error, match=told):
        READ(*arguments)


def test_a_float_is_a_number():
    step = _native.cpu.adamw_step_f32
    with pytest.raises(TypeError, match="must be real number, not str"):
        step(0, 0, 0, 0, 0, 0, 0, "1e-3", 0.9, 0.99, 1e-8, 0.0, 1, 1.0, 1)
    assert (
        step(0, 0, 0, 0, 0, 0, 0, 1, 0.9, 0.99, 1e-8, 0.0, 1, 1.0, 1) is None
    )  # no tensors; 1 is a float too
