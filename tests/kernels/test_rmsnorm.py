"""RMSNorm on every backend: against float64, forward and backward, odd shapes, extremes, compile, opcheck."""

import pytest
import torch
from pyengine.kernels import _native, rmsnorm
from pyengine.kernels.rmsnorm import reference

from tests.numerics import assert_as_good_as_torch

OP = "rmsnorm"
SHAPES = [(1, 1), (3, 5), (64, 64), (65, 128), (2, 3, 67), (129, 1000), (0, 16), (7, 16)]
DTYPES = [torch.float32, torch.bfloat16]


def inputs(shape, dtype, device, residual, scale=1.0, x_dtype=None):
    make = torch.Generator().manual_seed(sum(shape))
    tensors = [torch.randn(shape, generator=make) * scale, torch.randn(shape[-1], generator=make)]
    types = [x_dtype or dtype, dtype]
    if residual:
        tensors.append(torch.randn(shape, generator=make) * scale)
        types.append(torch.float32)
    return [t.to(device, kind).requires_grad_() for t, kind in zip(tensors, types, strict=True)]


def through(function, x, weight, residual=None):
    """Outputs and gradients of one call, with a fixed random upstream gradient."""
    outputs = function(x, weight, residual)
    make = torch.Generator().manual_seed(7)
    loss = sum((o.double() * torch.randn(o.shape, generator=make).to(o.device)).sum() for o in outputs)
    leaves = [t for t in (x, weight, residual) if t is not None]
    return list(outputs) + list(torch.autograd.grad(loss, leaves))


def ours(x, weight, residual):
    out = rmsnorm(x, weight, residual=residual)
    return (out,) if residual is None else out


def plain(x, weight, residual):
    """The reference on the same inputs in their own type: what plain torch gives."""
    c = x.shape[-1]
    y, summed, _ = reference.forward(
        x.reshape(-1, c), weight, 1e-6, None if residual is None else residual.reshape(-1, c)
    )
    return (y.view(x.shape),) if residual is None else (y.view(x.shape), summed.view(x.shape))


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_as_good_as_torch(backend, shape, dtype, residual):
    tensors = inputs(shape, dtype, backend.device, residual)
    wide = [t.detach().double().requires_grad_() for t in tensors]
    results = zip(through(ours, *tensors), through(plain, *tensors), through(plain, *wide), strict=True)
    names = ["y", "summed", "dx", "dweight", "dresidual"] if residual else ["y", "dx", "dweight"]
    for what, (a, b, truth) in zip(names, results, strict=True):
        assert a.dtype == b.dtype
        assert_as_good_as_torch(a, b, truth, op=OP, what=what, backend=backend)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_stream_of_a_narrow_model_stays_wide(backend, shape):
    """x in float32 under a bfloat16 weight, as at the first layer: y is rounded once, dx not at all."""
    tensors = inputs(shape, torch.bfloat16, backend.device, False, x_dtype=torch.float32)
    wide = [t.detach().double().requires_grad_() for t in tensors]
    results = zip(through(ours, *tensors), through(plain, *tensors), through(plain, *wide), strict=True)
    for what, dtype, (a, b, truth) in zip(
        ["y", "dx", "dweight"], [torch.bfloat16, torch.float32, torch.bfloat16], results, strict=True
    ):
        assert a.dtype == dtype
        assert_as_good_as_torch(a, b, truth, op=OP, what=what, backend=backend)


@pytest.mark.parametrize("dtype", DTYPES)
def test_small_updates_of_the_stream_are_not_lost(backend, dtype):
    """A thousand additions of 1/1024 to 1: each alone would vanish in bfloat16."""
    update = torch.full((1, 16), 2.0**-10, device=backend.device, dtype=dtype)
    weight, stream = torch.ones_like(update[0]), torch.ones(1, 16, device=backend.device)
    with torch.no_grad():
        for _ in range(1024):
            _, stream = rmsnorm(update, weight, residual=stream)
    assert torch.equal(stream, torch.full_like(stream, 2.0))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [1e-20, 1e-4, 1e4, 1e15])
def test_extremes(backend, dtype, scale):
    x, weight = inputs((4, 130), dtype, backend.device, False, scale)
    with torch.no_grad():
        truth = plain(x.double(), weight.double(), None)[0]
        assert_as_good_as_torch(
            rmsnorm(x, weight), plain(x, weight, None)[0], truth, op=OP, what="y", backend=backend
        )


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_do_not_depend_on_each_other(backend, dtype):
    x, weight = inputs((70, 96), dtype, backend.device, False)
    with torch.no_grad():
        whole = rmsnorm(x, weight)
        for rows in (slice(0, 1), slice(3, 5), slice(63, 70)):
            assert torch.equal(rmsnorm(x[rows], weight), whole[rows])
        bad = x.clone()
        bad[1] = float("nan")
        assert torch.equal(rmsnorm(bad, weight)[2:], whole[2:])


def test_threads_do_not_change_bits(backend):
    if backend.name != "cpu":
        pytest.skip("only the CPU kernels have threads of their own")
    tensors = inputs((300, 64), torch.float32, "cpu", True)
    try:
        _native.set_threads(1)
        one = through(ours, *tensors)
        _native.set_threads(2)
        two = through(ours, *tensors)
    finally:
        _native.set_threads(None)
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


def test_non_contiguous_is_copied(backend):
    x, weight = inputs((32, 48), torch.float32, backend.device, False)
    with torch.no_grad():
        assert torch.equal(rmsnorm(x.t(), weight[:32]), rmsnorm(x.t().contiguous(), weight[:32].clone()))


def test_races(backend):
    """One call of each kernel, small enough to run with every GPU thread as a thread of the system."""
    through(ours, *inputs((3, 520), torch.float32, backend.device, True))


def test_only_the_sum_is_used(backend):
    """A gradient that reaches the residual stream alone passes through unchanged."""
    x, weight, residual = inputs((5, 24), torch.float32, backend.device, True)
    _, summed = rmsnorm(x, weight, residual=residual)
    dx, dr = torch.autograd.grad(summed.sum(), [x, residual])
    assert torch.equal(dx, torch.ones_like(x)) and torch.equal(dr, dx)


@pytest.mark.parametrize("residual", [False, True])
def test_compiles_whole(backend, residual):
    if backend.variant in ("interpreter", "shim"):
        pytest.skip("tracing needs the real backend, not its emulation")
    tensors = inputs((6, 32), torch.float32, backend.device, residual)
    compiled = torch.compile(lambda x, w, r: ours(x, w, r), fullgraph=True, backend="aot_eager")
    for a, b in zip(through(compiled, *tensors), through(ours, *tensors), strict=True):
        assert torch.equal(a, b)


def test_opcheck(backend):
    if backend.variant in ("interpreter", "shim"):
        pytest.skip("tracing needs the real backend, not its emulation")
    x, weight, residual = (t.detach() for t in inputs((6, 32), torch.float32, backend.device, True))
    _, summed, rstd = torch.ops.pyengine.rmsnorm(x, weight, 1e-6, residual)
    torch.library.opcheck(torch.ops.pyengine.rmsnorm, (x, weight, 1e-6, residual))
    torch.library.opcheck(torch.ops.pyengine.rmsnorm_backward, (x, None, summed, weight, rstd, True))


def test_refuses_what_does_not_fit():
    x, w = torch.ones(2, 4), torch.ones(4)
    for arguments, word in [
        ((x, torch.ones(3)), "weight"),
        ((x.double(), w.double()), "float32 or bfloat16"),
        ((x.bfloat16(), w), "weight is"),
        ((x, w.bfloat16(), 1e-6, x), "weight is"),
        ((x.bfloat16(), w.bfloat16(), 1e-6, x.bfloat16()), "residual is"),
        ((x, w, 1e-6, torch.ones(4)), "residual"),
        ((torch.ones(2, 0), torch.ones(0)), "no channels"),
    ]:
        with pytest.raises(ValueError, match=word):
            rmsnorm(*arguments)
