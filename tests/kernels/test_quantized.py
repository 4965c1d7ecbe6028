"""The quantised linear layer: float64, every layout, rows alone, threads, rows as an embedding, capture."""

import pytest
import torch
from pyengine.kernels import (
    _native,
    linear,
    linear_quantized,
    norm_linear,
    pack_quantized,
    rmsnorm,
    set_threads,
    stack_quantized,
    swiglu,
)
from pyengine.kernels._capture import capture
from pyengine.kernels.quantized import reference

from tests.numerics import assert_as_good_as_torch

OP = "quantized"
# bits, numbers a scale counts for, code of zero, type of the scales, whether there are minima
LAYOUTS = {
    "Q8_0": (8, 32, 128, torch.float16, False),
    "Q4_0": (4, 32, 8, torch.float16, False),
    "Q4_1": (4, 32, 0, torch.float16, True),
    "Q4_K": (4, 32, 0, torch.float32, True),
    "Q6_K": (8, 16, 32, torch.float32, False),
}
SHAPES = [
    (1, 1, 32),
    (3, 33, 64),
    (6, 64, 96),
    (7, 31, 608),
    (130, 70, 32),
    (130, 70, 2304),
    (2, 601, 64),  # outputs by runs of panels, the last of them short
    (0, 5, 32),
]  # M, N, K


def weight(layout, n, k, seed=0):
    """(codes, zero, scale, minimum) of random weights about 1 / sqrt(K)."""
    bits, group, zero, dtype, minimum = LAYOUTS[layout]
    make = torch.Generator().manual_seed(seed)
    most = 64 if layout == "Q6_K" else 2**bits
    codes = torch.randint(0, most, (n, k), generator=make, dtype=torch.uint8)
    codes[0, 0] = most - 1
    scale = ((torch.rand(n, k // group, generator=make) - 0.3) / most / k**0.5).to(dtype)
    low = (-scale.float() * most * torch.rand(scale.shape, generator=make)).to(dtype) if minimum else None
    return codes, zero, scale, low


def inputs(m, k, dtype=torch.float32, seed=1):
    return torch.randn(m, k, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.fixture(params=LAYOUTS)
def layout(request):
    return request.param


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_as_good_as_torch(backend, layout, shape, dtype):
    m, n, k = shape
    parts = weight(layout, n, k)
    x, bias = inputs(m, k, dtype), inputs(1, n, dtype)[0]
    w = reference.pack(parts[0], 8, *parts[1:])
    truth = reference.rounded(x) @ w.double().T
    plain = reference.rounded(x).float() @ w.T
    packed = pack_quantized(*parts)
    assert packed.parts[0].bits == LAYOUTS[layout][0]
    ours = linear(x, packed, out_dtype=torch.float32)
    assert_as_good_as_torch(ours, plain, truth, op=OP, what=f"y {layout}", backend=backend)
    with_bias = linear(x, packed, bias)
    assert with_bias.dtype == dtype
    # Triton's interpreter cuts numbers off on the way to bfloat16
    slack = 2**-7 if backend.variant == "interpreter" and dtype is torch.bfloat16 else 0.0
    torch.testing.assert_close(with_bias, (ours + bias.float()).to(dtype), rtol=slack, atol=0.0)


def test_rounding_x_costs_little(layout):
    """Against the weights as floats, on x as it is: an error of about 1 / 254 of a block's largest number."""
    parts = weight(layout, 64, 768)
    x, w = inputs(50, 768), reference.pack(parts[0], 8, *parts[1:])
    ours, exact = linear(x, pack_quantized(*parts)), x @ w.T
    assert (ours - exact).norm() / exact.norm() < 0.01


def test_rows_are_computed_alone(backend, layout):
    if backend.name == "reference":
        pytest.skip("the reference leaves the order of its sums to torch")
    parts = weight(layout, 97, 352)
    packed, x = pack_quantized(*parts), inputs(131, 352)
    whole = linear(x, packed)
    for threads in backend.threads:
        set_threads(threads)
        try:
            counts = (1, 15, 17, 33, 131) if backend.variant == "interpreter" else (*range(1, 20), 64, 131)
            for count in counts:
                assert torch.equal(linear(x[:count], packed), whole[:count])
            for row in (0, 5, 77, 130):
                assert torch.equal(linear(x[row : row + 1], packed)[0], whole[row])
        finally:
            set_threads(None)


@pytest.mark.parametrize("rows, k", [(500, 64), (500, 2304), (20, 1 << 16)], ids=str)
@pytest.mark.parametrize("layout", ["Q8_0", "Q4_1", "Q6_K"])
def test_rows_of_several_blocks_are_computed_alone(backend, layout, rows, k):
    if backend.name != "cpu":
        pytest.skip("about how the CPU cuts rows and K to fit its caches")
    packed, x = pack_quantized(*weight(layout, 40, k)), inputs(rows, k)
    spans = [(first, count) for first, count in ((0, 1), (1, 6), (7, 13), (380, 13)) if first + count <= rows]
    alone = [linear(x[first : first + count], packed) for first, count in (*spans, (rows - 1, 1))]
    for threads in (1, 2, 3):
        set_threads(threads)
        try:
            whole = linear(x, packed)
        finally:
            set_threads(None)
        for (first, count), some in zip((*spans, (rows - 1, 1)), alone, strict=True):
            assert torch.equal(some, whole[first : first + count])


def test_columns_are_computed_alone(backend, layout):
    if backend.name == "reference":
        pytest.skip("the reference leaves the order of its sums to torch")
    codes, zero, scale, low = weight(layout, 200, 64)
    x = inputs(9, 64)
    whole = linear(x, pack_quantized(codes, zero, scale, low))
    some = pack_quantized(codes[70:], zero, scale[70:], None if low is None else low[70:])
    if some.parts[0].bits == LAYOUTS[layout][0]:
        assert torch.equal(linear(x, some), whole[:, 70:])


def test_parts_are_one_weight(backend, layout):
    one, other = pack_quantized(*weight(layout, 33, 64)), pack_quantized(*weight("Q4_1", 7, 64))
    x, bias = inputs(9, 64), inputs(1, 40)[0]
    both = torch.cat([linear(x, one, bias[:33]), linear(x, other, bias[33:])], dim=1)
    stacked = stack_quantized([one, other])
    assert stacked.shape == (40, 64) and torch.equal(linear(x, stacked, bias), both)
    with pytest.raises(ValueError, match="parts cannot be picked"):
        stacked[torch.tensor([0])]


def test_as_an_embedding(backend, layout):
    parts = weight(layout, 77, 96)
    ids = torch.tensor([76, 0, 3, 3, 45])
    truth = reference.pack(parts[0], 8, *parts[1:])
    assert torch.equal(pack_quantized(*parts)[ids], truth[ids])
    for wrong in (77, -1):
        if backend.name == "triton":  # to raise would mean waiting for the device
            assert pack_quantized(*parts)[torch.tensor([wrong])].isnan().all()
            continue
        with pytest.raises(IndexError):
            pack_quantized(*parts)[torch.tensor([wrong if backend.name == "cpu" else 77])]


def test_rows_of_an_embedding_by_several_threads(backend, layout):
    parts = weight(layout, 77, 96)
    ids = torch.randint(0, 77, (400,), generator=torch.Generator().manual_seed(2))
    truth = reference.pack(parts[0], 8, *parts[1:])[ids]
    for threads in backend.threads:
        set_threads(threads)
        try:
            assert torch.equal(pack_quantized(*parts)[ids], truth)
        finally:
            set_threads(None)


def test_extremes_stay_in_their_row(backend, layout):
    parts = weight(layout, 40, 64)
    packed, x = pack_quantized(*parts), inputs(7, 64)
    before = linear(x, packed)
    x[1, 3], x[3, 40], x[5, 0] = float("nan"), float("inf"), -float("inf")
    after = linear(x, packed)
    assert after[[1, 3, 5]].isnan().all()
    assert torch.equal(after[[0, 2, 4, 6]], before[[0, 2, 4, 6]])
    assert torch.equal(linear(torch.zeros(2, 64), packed), torch.zeros(2, 40))
    w = reference.pack(parts[0], 8, *parts[1:])
    for size in (1e-38, 1e30):
        x = inputs(3, 64) * size
        exact = (reference.rounded(x) @ w.double().T).float()
        torch.testing.assert_close(linear(x, packed), exact, rtol=1e-4, atol=1e-4 * size)


def test_tiny_results_are_kept(backend):
    """The processor's own rounding to bfloat16 takes numbers under 2^-126 for 0; ours keeps them, as torch does."""
    if backend.name != "cpu":
        pytest.skip("about the CPU's instructions")
    codes, zero, scale, _ = weight("Q6_K", 128, 64)
    scale *= torch.tensor([1e-3, 1e36]).repeat_interleave(64)[:, None]  # tiny gates let something through
    x, norm = inputs(7, 64, torch.bfloat16), (inputs(1, 64)[0] * 1e-35).bfloat16()
    packed, h = pack_quantized(codes, zero, scale), rmsnorm(x, norm, 1e-5)
    y, exact = linear(h, packed), linear(h, packed, out_dtype=torch.float32)
    assert torch.equal(y, exact.bfloat16())
    for some in (y[:, :64], swiglu(y)):
        assert ((some != 0) & (some.abs() < 2**-126)).any()
    assert torch.equal(linear(h, pack_quantized(codes[:70], zero, scale[:70])), y[:, :70])
    assert torch.equal(norm_linear(x, norm, packed, None, 1e-5, None, True), swiglu(y))


def test_a_captured_step_follows(layout):
    packed, x = pack_quantized(*weight(layout, 70, 64)), inputs(3, 64)
    ids = torch.tensor([3, 1, 2])
    with capture() as step:
        y, rows = linear(x, packed), packed[ids]
    x.copy_(inputs(3, 64, seed=9))
    ids.copy_(torch.tensor([69, 0, 5]))
    step.replay()
    assert torch.equal(y, linear(x, packed)) and torch.equal(rows, packed[ids])
    ids[0] = 70
    with pytest.raises(ValueError, match="quantized_rows"):
        step.replay()


def test_instruction_sets_agree(layout):
    parts, x = weight(layout, 50, 128), inputs(5, 128)
    before, results = _native.isa, []
    try:
        for isa in _native.runnable():
            _native.use_isa(isa)
            results.append(linear(x, pack_quantized(*parts)))
    finally:
        _native.use_isa(before)
    for other in results[1:]:
        torch.testing.assert_close(other, results[0], rtol=1e-5, atol=1e-6)


def test_what_does_not_fit_is_refused():
    codes, zero, scale, low = weight("Q4_1", 4, 64)
    with pytest.raises(ValueError, match="multiple of 32"):
        pack_quantized(codes[:, :40], zero, scale[:, :1])
    with pytest.raises(ValueError, match="float16 or float32"):
        pack_quantized(codes, zero, scale.double())
    with pytest.raises(ValueError, match="minimum .* differs"):
        pack_quantized(codes, zero, scale, low.float())
    packed = pack_quantized(codes, zero, scale, low)
    with pytest.raises(ValueError, match="does not fit x"):
        linear_quantized(torch.zeros(2, 32), packed)
    with pytest.raises(ValueError, match="no gradients"):
        linear_quantized(torch.zeros(2, 64, requires_grad=True), packed)
    with pytest.raises(ValueError, match="bias"):
        linear_quantized(torch.zeros(2, 64), packed, torch.zeros(5))
    with pytest.raises(ValueError, match="expected float32 or bfloat16"):
        linear_quantized(torch.zeros(2, 64, dtype=torch.float16), packed)
