"""The linear layer on Hopper's engines, by the host shim or on such a card: what test_linear.py asks, at its sizes."""

import pytest
import torch
from pyengine.kernels import _probe, linear, pack_weight
from pyengine.kernels.linear import reference

from tests.conftest import HOPPER
from tests.kernels.test_linear import OP, inputs, plain, through
from tests.numerics import assert_as_good_as_torch

BF16 = torch.bfloat16
pytestmark = pytest.mark.parametrize("hopper", HOPPER, ids=repr, indirect=True)
# (M, N, K): tiles of 128 x 256 over 64, and the gradients' with their sizes exchanged: one number, whole, begun
# again, K around the ring of stages, more tiles than blocks, rows that are no multiple of 16 bytes
SHAPES = [(1, 1, 1), (5, 35, 67), (128, 256, 64), (129, 257, 130), (300, 40, 600), (70, 600, 24)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_as_good_as_torch(hopper, shape):
    tensors = inputs(shape, BF16, hopper.device)
    wide = [t.detach().double().requires_grad_() for t in tensors]
    results = through(linear, *tensors, None), through(plain, *tensors, None), through(plain, *wide, None)
    for what, a, b, truth in zip(("y", "dx", "dweight", "dbias"), *results, strict=True):
        assert_as_good_as_torch(a, b, truth, op=OP, what=what, backend=hopper)


@pytest.mark.parametrize("shape", [(5, 35, 67), (130, 300, 72)], ids=str)
def test_float32_output_is_unrounded(hopper, shape):
    x, weight, bias = (t.detach() for t in inputs(shape, BF16, hopper.device))
    y = linear(x, weight, bias, out_dtype=torch.float32)
    truth = plain(x.double(), weight.double(), bias.double(), None)
    torchs = reference.forward(x, weight, bias, torch.float32)
    assert_as_good_as_torch(y, torchs, truth, op=OP, what="y float32", backend=hopper, ulps=8)
    assert torch.equal(y.bfloat16(), linear(x, weight, bias))


def test_bands_of_tiles_reach_all(hopper):
    """More than 16 tiles above each other, the second band of other height than the first."""
    x, weight, _ = (t.detach() for t in inputs((2100, 260, 8), BF16, hopper.device))
    truth = reference.forward(x, weight, None, torch.float32)
    assert (linear(x, weight, out_dtype=torch.float32) - truth).abs().max() < 1e-4


def test_a_row_has_one_order_of_summation(hopper):
    """The same bits in any batch, packed or not, and beside NaN."""
    x, weight, bias = (t.detach() for t in inputs((150, 97, 330), BF16, hopper.device))
    whole = linear(x, weight, bias)
    for start, rows in [(0, 1), (149, 1), (100, 7), (60, 80)]:
        part = slice(start, start + rows)
        assert torch.equal(linear(x[part], weight, bias), whole[part]), f"{rows} rows"
    assert torch.equal(linear(x[:9], pack_weight(weight), bias), whole[:9])
    assert torch.equal(linear(x[:9], weight[40:75], bias[40:75]), whole[:9, 40:75])
    x[1] = float("nan")
    assert torch.equal(linear(x, weight, bias)[2:], whole[2:])


def test_only_what_needs_a_gradient_gets_one(hopper):
    x, weight, bias = inputs((6, 8, 10), BF16, hopper.device)
    ones = torch.ones(6, 8, dtype=BF16, device=hopper.device)
    whole = torch.autograd.grad(linear(x, weight, bias), [x, weight, bias], ones)
    linear(x, weight.detach(), None).backward(ones)
    linear(x.detach(), weight, None).backward(ones)
    assert torch.equal(x.grad, whole[0]) and torch.equal(weight.grad, whole[1])


@pytest.mark.parametrize(
    "shape, dtype", [((3, 5, 7), torch.float32), ((0, 4, 4), BF16), ((4, 0, 4), BF16), ((4, 4, 0), BF16)]
)
def test_what_it_has_not_is_torchs(hopper, shape, dtype):
    tensors = inputs(shape, dtype, hopper.device)
    for ours, torchs in zip(through(linear, *tensors, None), through(plain, *tensors, None), strict=True):
        torch.testing.assert_close(ours, torchs, rtol=1e-5, atol=1e-5)


def test_an_odd_address_is_copied(hopper):
    """Rows that start at 2 bytes past a multiple of 16, which the copy engine does not take."""
    tensors = [t.detach() for t in inputs((9, 16, 24), BF16, hopper.device)]
    odd = [torch.cat([t.flatten()[:1], t.flatten()])[1:].view(t.shape) for t in tensors]
    assert torch.equal(linear(*odd), linear(*tensors))


def test_the_probe_agrees(hopper):
    _probe.compare(OP, "hopper", hopper.device)


def test_races(hopper):
    """Each wait of the kernel at least once, small enough for every GPU thread to be one of the system."""
    x, weight, bias = (t.detach() for t in inputs((260, 8, 330), BF16, hopper.device))
    assert linear(x, weight, bias).isfinite().all()
