"""SwiGLU on every backend: against float64, forward and backward, odd shapes, extremes, compile, opcheck."""

import pytest
import torch
from pyengine.kernels import _native, swiglu
from pyengine.kernels.swiglu import reference

from tests.numerics import assert_as_good_as_torch

OP = "swiglu"
SHAPES = [(1, 2), (3, 10), (65, 128), (2, 3, 134), (40, 1000), (0, 16), (3, 0)]
DTYPES = [torch.float32, torch.bfloat16]


def inputs(shape, dtype, device, scale=1.0):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))) * scale
    return x.to(device, dtype).requires_grad_()


def through(function, x):
    """Output and gradient of one call, with a fixed random upstream gradient."""
    y = function(x)
    dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(7)).to(y.device, torch.bfloat16)
    return [y, *torch.autograd.grad(y, x, dy.to(y.dtype))]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [1e-4, 1.0, 30.0])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_as_good_as_torch(backend, shape, dtype, scale):
    x = inputs(shape, dtype, backend.device, scale)
    wide = x.detach().double().requires_grad_()
    results = through(swiglu, x), through(reference.forward, x), through(reference.forward, wide)
    for what, a, b, truth in zip(["y", "dgate_up"], *results, strict=True):
        assert_as_good_as_torch(a, b, truth, op=OP, what=what, backend=backend)


@pytest.mark.parametrize("dtype", DTYPES)
def test_saturated_gates_and_nan(backend, dtype):
    gate = torch.tensor([1e4, -1e4, 88.0, -88.0, 0.0, float("nan")])
    x = torch.cat([gate, torch.full_like(gate, 2.0)]).to(backend.device, dtype).requires_grad_()
    y, dx = through(swiglu, x)
    expected = torch.tensor([2e4, 0.0, 176.0, 0.0, 0.0]).to(dtype)
    assert torch.allclose(y[:5].detach().cpu(), expected, atol=1e-30) and y[5].isnan()
    assert not dx[:5].isnan().any() and not dx[6:11].isnan().any() and dx[5].isnan()


def test_rows_and_threads_do_not_change_bits(backend):
    x = inputs((70, 96), torch.bfloat16, backend.device)
    results = []
    try:
        for threads in (1, 2):
            _native.set_threads(threads)
            results.append(through(swiglu, x))
    finally:
        _native.set_threads(None)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    with torch.no_grad():
        assert torch.equal(swiglu(x[3:5]), results[0][0][3:5])
        assert torch.equal(swiglu(x.t().contiguous().t()), results[0][0])


def test_compiles_whole_and_passes_opcheck(backend):
    if backend.variant == "interpreter":
        pytest.skip("torch.compile does not trace Triton's interpreter")
    x = inputs((6, 32), torch.float32, backend.device)
    compiled = torch.compile(swiglu, fullgraph=True, backend="aot_eager")
    assert all(torch.equal(a, b) for a, b in zip(through(compiled, x), through(swiglu, x), strict=True))
    torch.library.opcheck(torch.ops.pyengine.swiglu, (x.detach(),))
    torch.library.opcheck(torch.ops.pyengine.swiglu_backward, (x.detach()[:, :16].contiguous(), x.detach()))


def test_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match="2F"):
        swiglu(torch.ones(3, 5))
    with pytest.raises(ValueError, match="float32 or bfloat16"):
        swiglu(torch.ones(3, 4).double())
