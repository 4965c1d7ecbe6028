"""AdamW on every backend: many steps against torch's optimiser and float64, scaling, norms, refusals."""

import pytest
import torch
from pyengine.kernels import _native, adamw_, grad_norm

from tests.numerics import assert_as_good_as_torch

OP = "adamw"
SHAPES = [(1,), (3, 5), (0, 4), (17,), (200, 130), (40_000,)]
SETTINGS = dict(lr=0.01, beta1=0.9, beta2=0.95, eps=1e-8, weight_decay=0.1)


def inputs(device, dtype=torch.float32):
    make = torch.Generator().manual_seed(0)
    lists = [[torch.randn(s, generator=make).to(device, dtype) for s in SHAPES] for _ in range(2)]
    return *lists, *([torch.zeros_like(p) for p in lists[0]] for _ in range(2))


def ours(params, grads, m, v, steps, grad_scale=1.0):
    for step in range(1, steps + 1):
        adamw_(params, [g * step for g in grads], m, v, **SETTINGS, step=step, grad_scale=grad_scale)
    return params


def torchs(params, grads, steps):
    params = [p.clone().requires_grad_() for p in params]
    betas = SETTINGS["beta1"], SETTINGS["beta2"]
    optimiser = torch.optim.AdamW(params, SETTINGS["lr"], betas, SETTINGS["eps"], SETTINGS["weight_decay"])
    for step in range(1, steps + 1):
        for p, g in zip(params, grads, strict=True):
            p.grad = g * step
        optimiser.step()
    return [p.detach() for p in params]


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_as_good_as_torch(backend, scale):
    params, grads, m, v = inputs(backend.device)
    grads = [g * scale for g in grads]
    plain = torchs(params, grads, 5)
    truths = torchs([p.double() for p in params], [g.double() for g in grads], 5)
    for a, b, truth in zip(ours(params, grads, m, v, 5), plain, truths, strict=True):
        assert_as_good_as_torch(a, b, truth, op=OP, what="param", backend=backend)


def test_gradients_are_scaled_on_the_way_in(backend):
    first, second = inputs(backend.device), inputs(backend.device)
    ours(*first, 2, grad_scale=0.25)
    scaled = [g * 0.25 for g in second[1]]
    ours(second[0], scaled, second[2], second[3], 2)
    for a, b in zip(first[0] + first[3], second[0] + second[3], strict=True):
        assert torch.equal(a, b)


def test_bfloat16_gradients_and_copies(backend):
    """As with gradients widened before and parameters rounded after, bit for bit."""
    narrow, wide = inputs(backend.device), inputs(backend.device)
    grads = [g.bfloat16() for g in narrow[1]]
    copies = [torch.empty_like(g) for g in grads]
    versions = [copy._version for copy in copies]
    adamw_(narrow[0], grads, *narrow[2:], **SETTINGS, step=1, grad_scale=0.5, copies=copies)
    adamw_(wide[0], [g.float() for g in grads], *wide[2:], **SETTINGS, step=1, grad_scale=0.5)
    for a, b in zip(narrow[0] + narrow[3], wide[0] + wide[3], strict=True):
        assert torch.equal(a, b)
    for copy, p, version in zip(copies, wide[0], versions, strict=True):
        assert torch.equal(copy, p.bfloat16()) and copy._version > version
    assert grad_norm(grads) == grad_norm([g.float() for g in grads])


def test_threads_do_not_change_bits(backend):
    results = []
    try:
        for threads in (1, 2):
            _native.set_threads(threads)
            tensors = inputs(backend.device)
            results.append((ours(*tensors, 2), grad_norm(tensors[1])))
    finally:
        _native.set_threads(None)
    assert results[0][1] == results[1][1]
    assert all(torch.equal(a, b) for a, b in zip(results[0][0], results[1][0], strict=True))


def test_grad_norm(backend):
    grads = inputs(backend.device)[1]
    truth = sum(g.double().square().sum().item() for g in grads) ** 0.5
    assert grad_norm(grads) == pytest.approx(truth, rel=1e-6)
    assert grad_norm([]) == 0.0
    assert grad_norm([grads[1].t()]) == pytest.approx(grads[1].norm().item(), rel=1e-6)
    for bad in (float("nan"), float("inf")):
        broken = grads[4].clone()
        broken[7, 3] = bad
        assert not torch.isfinite(torch.tensor(grad_norm([*grads, broken])))


def test_a_step_moves_parameters_with_gradients_and_keeps_autograd_out(backend):
    p = torch.ones(4, device=backend.device, requires_grad=True)
    m, v = torch.zeros(4, device=backend.device), torch.zeros(4, device=backend.device)
    adamw_([p], [torch.ones_like(p)], [m], [v], **SETTINGS, step=1)
    assert p.grad_fn is None and torch.allclose(p, torch.full_like(p, 1 * (1 - 0.001) - 0.01))


def test_compiles_whole_and_passes_opcheck(backend):
    if backend.variant == "interpreter":
        pytest.skip("torch.compile does not trace Triton's interpreter")
    eager, compiled = inputs(backend.device), inputs(backend.device)
    adamw_(*eager, **SETTINGS, step=1)

    def step(p, g, m, v):
        adamw_(p, g, m, v, **SETTINGS, step=1)

    torch.compile(step, fullgraph=True, backend="aot_eager")(*compiled)
    for a, b in zip(eager[0] + eager[2], compiled[0] + compiled[2], strict=True):
        assert torch.equal(a, b)
    lists = [tensors[:2] for tensors in inputs(backend.device)]
    torch.library.opcheck(torch.ops.pyengine.adamw_, (*lists, *SETTINGS.values(), 1, 1.0, []))


def test_refuses_what_does_not_fit():
    one, two = [torch.ones(2)], [torch.ones(3)]
    for lists, step, word in [
        ((one, one, one, one), 0, "counts from 1"),
        ((one, [], one, one), 1, "length"),
        ((one, two, one, one), 1, "float32"),
        ((one, one, [torch.ones(2).bfloat16()], one), 1, "float32"),
        ((one, [torch.ones(2).double()], one, one), 1, "gradients are"),
        (([torch.ones(2, 3).t()],) * 4, 1, "contiguous"),
    ]:
        with pytest.raises(ValueError, match=word):
            adamw_(*lists, **SETTINGS, step=step)
    with pytest.raises(ValueError, match="bfloat16"):
        adamw_(one, [torch.ones(2).bfloat16()], one, one, **SETTINGS, step=1, copies=one)
    with pytest.raises(ValueError, match="all float32 or all bfloat16"):
        grad_norm([torch.ones(2), torch.ones(2).bfloat16()])
