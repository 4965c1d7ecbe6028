"""Muon on every backend: several steps against float64, orthogonality, threads, refusals."""

import pytest
import torch
from pyengine.kernels import _native, muon_
from pyengine.kernels.muon import reference

from tests.numerics import assert_as_good_as_torch

OP = "muon"
SHAPES = [(1, 1), (3, 5), (0, 4), (48, 20), (33, 130), (128, 128)]
SETTINGS = dict(lr=0.02, momentum=0.95, weight_decay=0.1)


def inputs(device, dtype=torch.float32, shapes=SHAPES):
    make = torch.Generator().manual_seed(0)
    lists = [[torch.randn(s, generator=make).to(device, dtype) for s in shapes] for _ in range(2)]
    return *lists, [torch.zeros_like(p) for p in lists[0]]


def steps(function, params, grads, momenta, grad_scale=1.0):
    for step in range(1, 4):
        function(params, [g * step for g in grads], momenta, *SETTINGS.values(), grad_scale)
    return params + momenta


@pytest.mark.parametrize("grad_scale", [1.0, 1e-6, 1e6])
def test_as_good_as_torch(backend, grad_scale):
    results = (
        steps(muon_, *inputs(backend.device), grad_scale),
        steps(reference.step, *inputs(backend.device), grad_scale),
        steps(reference.step, *inputs(backend.device, torch.float64), grad_scale),
    )
    names = ["param"] * len(SHAPES) + ["momentum"] * len(SHAPES)
    for what, a, b, truth in zip(names, *results, strict=True):
        assert_as_good_as_torch(a, b, truth, op=OP, what=what, backend=backend, ulps=8)


@pytest.mark.parametrize("shape", [(64, 64), (96, 32), (32, 96)], ids=str)
def test_the_update_is_nearly_orthogonal(backend, shape):
    (param,), grads, momenta = inputs(backend.device, shapes=[shape])
    before = param.clone()
    muon_([param], grads, momenta, lr=1.0)
    scale = max(1.0, shape[0] / shape[1]) ** 0.5
    singular = torch.linalg.svdvals(before - param) / scale
    assert 0.3 < singular.min() and singular.max() < 1.3


def test_threads_and_company_do_not_change_bits(backend):
    results = []
    try:
        for threads in (1, 2):
            _native.set_threads(threads)
            results.append(steps(muon_, *inputs(backend.device)))
        alone = inputs(backend.device)
        steps(muon_, *(tensors[4:5] for tensors in alone))
    finally:
        _native.set_threads(None)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    assert torch.equal(alone[0][4], results[0][4])


def test_a_gradient_of_zero_leaves_the_parameter(backend):
    param, zero = torch.ones(4, 6, device=backend.device), torch.zeros(4, 6, device=backend.device)
    muon_([param], [zero], [zero.clone()], lr=0.1)
    assert torch.equal(param, torch.ones_like(param))


def test_bfloat16_gradients_and_copies(backend):
    """As with gradients widened before and parameters rounded after, bit for bit."""
    narrow, wide = inputs(backend.device), inputs(backend.device)
    grads = [g.bfloat16() for g in narrow[1]]
    copies = [torch.empty_like(g) for g in grads]
    muon_(narrow[0], grads, narrow[2], **SETTINGS, grad_scale=0.5, copies=copies)
    muon_(wide[0], [g.float() for g in grads], wide[2], **SETTINGS, grad_scale=0.5)
    for a, b in zip(narrow[0] + narrow[2], wide[0] + wide[2], strict=True):
        assert torch.equal(a, b)
    assert all(torch.equal(copy, p.bfloat16()) for copy, p in zip(copies, wide[0], strict=True))


def test_passes_opcheck(backend):
    if backend.variant == "interpreter":
        pytest.skip("opcheck traces, which Triton's interpreter does not support")
    torch.library.opcheck(torch.ops.pyengine.muon_, (*inputs(backend.device), *SETTINGS.values(), 1.0, []))


def test_refuses_what_does_not_fit():
    one = [torch.ones(2, 3)]
    for lists, word in [
        ((one, [], one), "length"),
        ((one, [torch.ones(3, 2)], one), "float32"),
        (([torch.ones(2)],) * 3, "matrix"),
        (([torch.ones(3, 2).t()],) * 3, "contiguous"),
    ]:
        with pytest.raises(ValueError, match=word):
            muon_(*lists, lr=0.1)
