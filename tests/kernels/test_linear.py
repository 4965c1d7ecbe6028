"""The linear layer on every backend: against float64, one order of summation, packed weights, opcheck."""

import itertools

import pytest
import torch
from pyengine.kernels import (
    _native,
    linear,
    norm_linear,
    pack_quantized,
    pack_weight,
    rmsnorm,
    swiglu,
    use_backend,
)
from pyengine.kernels.linear import reference

from tests.numerics import assert_as_good_as_torch

from .test_quantized import weight as quantised

OP = "linear"
# (rows, N, K): single values, ragged tiles and panels, odd K (half a pair in bf16), K beyond one sweep, empty
SHAPES = [(1, 1, 1), (3, 5, 7), (7, 33, 64), (15, 100, 129), (67, 131, 77), (4, 40, 2500), (200, 256, 128)]
EMPTY = [(0, 4, 4), (4, 0, 4), (4, 4, 0)]
DTYPES = [torch.float32, torch.bfloat16]


def inputs(shape, dtype, device, scale=1.0):
    m, n, k = shape
    make = torch.Generator().manual_seed(sum(shape))
    tensors = [torch.randn(size, generator=make) * scale for size in ((m, k), (n, k), (n,))]
    return [t.to(device, dtype).requires_grad_() for t in tensors]


def through(function, x, weight, bias, out_dtype):
    """Output and gradients of one call, with a fixed random upstream gradient in the layer's type."""
    y = function(x, weight, bias, out_dtype)
    dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(7)).to(y.device, torch.bfloat16)
    return [y, *torch.autograd.grad(y, [x, weight, bias], dy.to(y.dtype))]


def plain(x, weight, bias, out_dtype):
    return torch.nn.functional.linear(x, weight, bias).to(out_dtype or x.dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES + EMPTY, ids=str)
def test_as_good_as_torch(backend, shape, dtype):
    tensors = inputs(shape, dtype, backend.device)
    wide = [t.detach().double().requires_grad_() for t in tensors]
    names = ["y", "dx", "dweight", "dbias"]
    results = through(linear, *tensors, None), through(plain, *tensors, None), through(plain, *wide, None)
    for what, a, b, truth in zip(names, *results, strict=True):
        assert_as_good_as_torch(a, b, truth, op=OP, what=what, backend=backend)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_float32_output_of_bf16_is_unrounded(backend, shape):
    x, weight, bias = (t.detach() for t in inputs(shape, torch.bfloat16, backend.device))
    y = linear(x, weight, bias, out_dtype=torch.float32)
    truth = plain(x.double(), weight.double(), bias.double(), None)
    torchs = reference.forward(x, weight, bias, torch.float32)
    assert_as_good_as_torch(y, torchs, truth, op=OP, what="y float32", backend=backend, ulps=8)
    if backend.variant != "interpreter":  # which cuts numbers off where it should round them to bf16
        assert torch.equal(y.bfloat16(), linear(x, weight, bias))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [1e-18, 1e18])
def test_extremes(backend, dtype, scale):
    x, weight, bias = (t.detach() for t in inputs((5, 33, 65), dtype, backend.device, scale))
    truth = plain(x.double(), weight.double(), bias.double(), None)
    torchs = plain(x, weight, bias, None)
    assert_as_good_as_torch(linear(x, weight, bias), torchs, truth, op=OP, what="y", backend=backend)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n, k", [(97, 130), (320, 1300)])
def test_a_row_has_one_order_of_summation(backend, dtype, n, k):
    """The same bits in any batch, packed or not, on one thread or two, beside NaN or not."""
    if backend.name == "reference":
        pytest.skip("the contract of our own kernels")
    tokens = 300 if backend.variant == "interpreter" else 2048
    x, weight, bias = (t.detach() for t in inputs((tokens, n, k), dtype, backend.device))
    packed = pack_weight(weight)
    whole = linear(x, weight, bias)
    for start, rows in [(0, 1), (5, 1), (tokens - 1, 1), (3, 2), (100, 7), (17, 15), (31, 32), (1, 299)]:
        part = slice(start, start + rows)
        assert torch.equal(linear(x[part], weight, bias), whole[part]), f"{rows} rows"
        assert torch.equal(linear(x[part], packed, bias), whole[part]), f"{rows} rows, packed"
    for columns in (slice(0, 1), slice(40, 75)):
        assert torch.equal(linear(x[:9], weight[columns], bias[columns]), whole[:9, columns])
    bad = x.clone()
    bad[1] = float("nan")
    assert torch.equal(linear(bad, weight, bias)[2:], whole[2:])


@pytest.mark.parametrize("dtype", DTYPES)
def test_threads_do_not_change_bits(backend, dtype):
    if backend.name != "cpu":
        pytest.skip("only the CPU kernels have threads of their own")
    tensors = inputs((700, 150, 260), dtype, "cpu")
    results = []
    try:
        for threads in (1, 2, 3, 5):
            _native.set_threads(threads)
            results.append(through(linear, *tensors, None))
    finally:
        _native.set_threads(None)
    assert all(torch.equal(a, b) for a, *others in zip(*results, strict=True) for b in others)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1100, 60, 70), (2200, 33, 550)], ids=str)
def test_gradients_have_the_order_of_summation_of_the_output(backend, shape, dtype):
    """The same bits as the layer's product of the transposed factors, a few rows at a time: over several sweeps of K,
    where all columns of a block of K stay in cache and where they do not."""
    if backend.name != "cpu":
        pytest.skip("the contract of the CPU kernels")
    x, weight, _ = inputs(shape, dtype, "cpu")
    dy = torch.randn(shape[0], shape[1], generator=torch.Generator().manual_seed(7)).to(dtype)
    dx, dweight = torch.autograd.grad(linear(x, weight), [x, weight], dy)
    for gradient, a, b in ((dx, dy, weight.detach().T), (dweight, dy.T, x.detach().T)):
        for rows in (slice(0, 1), slice(5, 20), slice(len(a) - 4, len(a))):
            assert torch.equal(linear(a[rows], b), gradient[rows])


def test_float32_is_one_chain_of_multiply_adds(backend):
    """Bit for bit: a fused step rounds once, and so does float64 arithmetic followed by one rounding."""
    if backend.name != "cpu" or backend.variant == "base":
        pytest.skip("the contract of the builds with fused multiply-add")
    make = torch.Generator().manual_seed(3)
    x, weight = (torch.randint(-(2**12), 2**12, (9, 50), generator=make).float() / 7 for _ in range(2))
    chain = torch.zeros(9, 9)
    for k in range(50):  # products of floats are exact in float64, their sum with the chain nearly always
        chain = (x[:, k, None].double() * weight[None, :, k].double() + chain.double()).float()
    assert torch.equal(linear(x, weight), chain)


def test_a_packed_weight_works_in_every_build():
    x, weight, bias = (t.detach() for t in inputs((5, 70, 33), torch.bfloat16, "cpu"))
    before, packed = _native.isa, pack_weight(weight)
    try:
        for isa in _native.runnable():
            _native.use_isa(isa)
            assert torch.equal(linear(x, packed, bias), linear(x, weight, bias))
    finally:
        _native.use_isa(before)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "shape, gated, residual",
    [
        ((3, 34, 67), True, True),
        ((1, 40, 128), False, True),
        ((5, 96, 33), True, False),
        ((70, 32, 1), True, True),
    ],
    ids=str,
)
def test_a_norm_before_and_a_gate_behind_change_no_bits(backend, shape, gated, residual, dtype):
    """As one op or one after another, and a row alone or among others."""
    if backend.name == "hopper":
        pytest.skip("a product alone")
    m, n, k = shape
    make = torch.Generator().manual_seed(sum(shape))
    x, norm, weight, bias = (
        torch.randn(size, generator=make).to(backend.device, dtype) for size in ((m, k), (k,), (n, k), (n,))
    )
    bias = None if gated else bias
    stream = torch.randn(m, k, generator=make).to(backend.device) if residual else None

    def through(rows):
        found = norm_linear(
            x[:rows], norm, weight, bias, 1e-5, stream if stream is None else stream[:rows], gated
        )
        return found if residual else (found,)

    h = rmsnorm(x, norm, 1e-5, stream)
    h, *summed = h if residual else (h,)
    y = linear(h, weight, bias)
    whole = swiglu(y) if gated else y, *summed
    assert all(torch.equal(a, b) for a, b in zip(through(m), whole, strict=True))
    if backend.name != "reference":  # plain torch promises no bits
        assert all(torch.equal(a, b[:1]) for a, b in zip(through(1), whole, strict=True))
    with use_backend("reference"):
        torch.testing.assert_close(
            through(m)[0], whole[0], rtol=2e-2, atol=2e-2 * float(whole[0].float().abs().max())
        )


@pytest.mark.parametrize("kind", ["f32", "bf16", "bf16 first", "Q8_0", "Q6_K"])
@pytest.mark.parametrize("isa", _native.runnable())
def test_a_norm_before_and_a_gate_behind_a_packed_weight_change_no_bits(isa, kind):
    """In one call or one after another, on any number of threads; of quantised weights many rows too, in blocks."""
    before = _native.isa
    _native.use_isa(isa)
    make = torch.Generator().manual_seed(3)
    dtype = torch.float32 if kind == "f32" or kind[0] == "Q" else torch.bfloat16
    stream = torch.float32 if "first" in kind else dtype
    try:
        for m, n, k in (
            (1, 192, 1312),
            (3, 448, 544),
            (2, 1344, 64),
            (16, 64, 96),
            (17, 128, 160),
            (199, 128, 2592),
        ):
            x, norm, bias = (torch.randn(s, generator=make) for s in ((m, k), (k,), (n,)))
            x, norm, bias, weight = x.to(stream), norm.to(dtype), bias.to(dtype), torch.randn(n, k).to(dtype)
            packed = pack_quantized(*quantised(kind, n, k)) if kind[0] == "Q" else pack_weight(weight)
            residual = None if "first" in kind else torch.randn(m, k, generator=make)
            h = rmsnorm(x, norm, 1e-5, residual)
            h, *summed = h if isinstance(h, tuple) else (h,)
            for threads, gated in itertools.product((1, 2, 3), (False, True)):
                _native.set_threads(threads)
                y = linear(h, packed, bias)
                found = norm_linear(x, norm, packed, bias, 1e-5, residual, gated)
                found = found if isinstance(found, tuple) else (found,)
                for ours, theirs in zip(found, (swiglu(y) if gated else y, *summed), strict=True):
                    assert torch.equal(ours, theirs)
    finally:
        _native.set_threads(None)
        _native.use_isa(before)


def test_what_a_product_with_a_norm_refuses():
    x, norm, packed = torch.ones(2, 64), torch.ones(64), pack_quantized(*quantised("Q8_0", 64, 64))
    for wrong, told in (
        ((torch.ones(2, 32), torch.ones(32), packed), "does not fit"),
        ((x, norm, packed, torch.ones(3)), "bias"),
        ((x, norm, pack_weight(torch.ones(64, 32))), "does not fit"),
        ((x, norm, pack_weight(torch.ones(64, 64).bfloat16())), "bfloat16"),
    ):
        with pytest.raises(ValueError, match=told):
            norm_linear(*wrong)


def test_a_gated_weight_has_pairs_of_rows(backend):
    x, norm, weight = torch.ones(2, 4), torch.ones(4), torch.ones(3, 4)
    with pytest.raises(ValueError, match="gated weight has an even number|expected \\(..., 2F\\)"):
        norm_linear(x, norm, weight, gated=True)


def test_leading_dimensions_and_non_contiguous_inputs(backend):
    x, weight, bias = (t.detach() for t in inputs((24, 16, 10), torch.float32, backend.device))
    flat = linear(x, weight, bias)
    assert torch.equal(linear(x.view(2, 3, 4, 10), weight, bias), flat.view(2, 3, 4, 16))
    assert torch.equal(linear(x.t().contiguous().t(), weight.t().contiguous().t(), bias), flat)
    assert torch.equal(linear(x[0], weight, bias), linear(x[:1], weight, bias)[0])


def test_only_what_needs_a_gradient_gets_one(backend):
    x, weight, bias = inputs((6, 8, 10), torch.float32, backend.device)
    linear(x, weight.detach(), bias.detach()).sum().backward()
    assert torch.allclose(x.grad, weight.sum(0).expand_as(x), rtol=1e-5, atol=1e-5)
    linear(x.detach(), weight, None).sum().backward()
    assert torch.allclose(weight.grad, x.sum(0).expand_as(weight), rtol=1e-5, atol=1e-5)


def test_compiles_whole(backend):
    if backend.variant == "interpreter":
        pytest.skip("torch.compile does not trace Triton's interpreter")
    tensors = inputs((6, 32, 16), torch.bfloat16, backend.device)
    compiled = torch.compile(linear, fullgraph=True, backend="aot_eager")
    for out_dtype in (None, torch.float32):
        ours, traced = through(linear, *tensors, out_dtype), through(compiled, *tensors, out_dtype)
        assert all(torch.equal(a, b) for a, b in zip(ours, traced, strict=True))


def test_opcheck(backend):
    if backend.variant == "interpreter":
        pytest.skip("opcheck traces, which Triton's interpreter does not support")
    x, weight, bias = (t.detach() for t in inputs((6, 32, 16), torch.bfloat16, backend.device))
    torch.library.opcheck(torch.ops.pyengine.linear, (x, weight, bias, torch.float32))
    dy = torch.ones(6, 32, dtype=x.dtype, device=x.device)
    torch.library.opcheck(torch.ops.pyengine.linear_backward, (dy, x, weight, [True, False, True]))


def test_refuses_what_does_not_fit():
    x, w = torch.ones(2, 4), torch.ones(3, 4)
    for arguments, word in [
        ((x, torch.ones(3, 5)), "does not fit"),
        ((x, torch.ones(4)), "expected a weight"),
        ((x, w, torch.ones(4)), "bias"),
        ((x, w.bfloat16()), "weight is"),
        ((x.double(), w.double()), "float32 or bfloat16"),
        ((x, w, None, torch.bfloat16), "out_dtype"),
        ((x.requires_grad_(), pack_weight(w)), "no gradients"),
    ]:
        with pytest.raises(ValueError, match=word):
            linear(*arguments)
