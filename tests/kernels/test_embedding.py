"""Embedding on every backend: values and gradients, ids that come often or never, threads, refusals."""

import pytest
import torch
from pyengine.kernels import _native, embedding
from pyengine.kernels.embedding import reference

from tests.numerics import assert_as_good_as_torch

OP = "embedding"
SHAPES = [(1, 1, 1), (7, 16, 40), (130, 67, 25), (5, 33, 1000), (300, 128, 0)]  # (V, C, T)
DTYPES = [torch.float32, torch.bfloat16]


def inputs(shape, dtype, device):
    vocabulary, channels, tokens = shape
    make = torch.Generator().manual_seed(sum(shape))
    table = torch.randn(vocabulary, channels, generator=make).to(device, dtype)
    return table.requires_grad_(), torch.randint(vocabulary, (tokens,), generator=make).to(device)


def through(function, table, ids):
    """Rows and the table's gradient of one call, with a fixed random upstream gradient."""
    y = function(table, ids)
    dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(7)).to(y.device, y.dtype)
    return [y, *torch.autograd.grad(y, table, dy)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_as_good_as_torch(backend, shape, dtype):
    table, ids = inputs(shape, dtype, backend.device)
    wide = table.detach().double().requires_grad_()
    y, dtable = through(embedding, table, ids)
    plain, truth = through(reference.forward, table, ids), through(reference.forward, wide, ids)
    assert y.dtype == torch.float32 and torch.equal(y, table[ids].float()) and dtable.dtype == dtype
    assert_as_good_as_torch(dtable, plain[1], truth[1], op=OP, what="dtable", backend=backend)
    assert torch.equal(reference.backward(torch.ones_like(y), ids, table), through_ones(table, ids))


def through_ones(table, ids):
    return torch.autograd.grad(embedding(table, ids).sum(), table)[0]


def test_a_frequent_token_loses_nothing(backend):
    """A thousand gradients of 1/1024 onto one row: added in bfloat16, most of them would vanish."""
    table = torch.zeros(3, 8, dtype=torch.bfloat16, device=backend.device, requires_grad=True)
    ids = torch.ones(1024, dtype=torch.int64, device=backend.device)
    (grad,) = torch.autograd.grad(embedding(table, ids).sum() / 1024, table)
    assert torch.equal(grad[1], torch.ones_like(grad[1])) and not grad[[0, 2]].any()


def test_sums_are_rounded_as_torch_rounds(backend):
    """To bfloat16, numbers under 2^-126 included, which vcvtneps2bf16 takes for 0, beside others and alone."""
    if backend.variant == "interpreter":
        pytest.skip("Triton's interpreter rounds halves up, and numbers under 2^-126 to others")
    bits = torch.randint(-(2**31), 2**31, (40, 67), generator=torch.Generator().manual_seed(3))
    dy = bits.to(torch.int32).view(torch.float32)
    dy[::3] = dy[::3].abs().clamp(max=1e-39)  # rows of such numbers only
    dy[1, :4] = torch.tensor([float("inf"), float("nan"), 2.0**-127, 1 + 2.0**-8])
    table = torch.zeros(40, 67, dtype=torch.bfloat16, device=backend.device, requires_grad=True)
    ids = torch.arange(40, device=backend.device)
    (found,) = torch.autograd.grad(embedding(table, ids), table, dy.to(backend.device))
    expected = dy.bfloat16()
    nan = expected.isnan()
    assert torch.equal(found.cpu().isnan(), nan)
    assert torch.equal(found.cpu()[~nan], expected[~nan])


def test_threads_do_not_change_bits(backend):
    table, ids = inputs((300, 64, 2000), torch.bfloat16, backend.device)
    results = []
    try:
        for threads in (1, 2):
            _native.set_threads(threads)
            results.append(through(embedding, table, ids))
    finally:
        _native.set_threads(None)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_compiles_whole_and_passes_opcheck(backend):
    if backend.variant == "interpreter":
        pytest.skip("torch.compile does not trace Triton's interpreter")
    table, ids = inputs((7, 16, 40), torch.float32, backend.device)
    compiled = torch.compile(embedding, fullgraph=True, backend="aot_eager")
    for a, b in zip(through(compiled, table, ids), through(embedding, table, ids), strict=True):
        assert torch.equal(a, b)
    table = table.detach()
    torch.library.opcheck(torch.ops.pyengine.embedding, (table, ids))
    torch.library.opcheck(torch.ops.pyengine.embedding_backward, (torch.ones(40, 16), ids, table))


def test_refuses_what_does_not_fit(backend):
    table, ids = (
        torch.ones(3, 4, device=backend.device),
        torch.zeros(2, dtype=torch.int64, device=backend.device),
    )
    for arguments, word in [
        ((table[0], ids), "table"),
        ((table.double(), ids), "float32 or bfloat16"),
        ((table, ids.int()), "int64"),
    ]:
        with pytest.raises(ValueError, match=word):
            embedding(*arguments)
    for wrong in (-1, 3):
        if backend.name == "triton":  # to raise would mean waiting for the device
            assert embedding(table, torch.full_like(ids, wrong)).isnan().all()
            continue
        with pytest.raises((ValueError, IndexError), match=r"outside 0\.\.2|out of (range|bounds)"):
            embedding(table, torch.full_like(ids, wrong))
