"""The fused output layer and loss on every backend: float64, the bits of linear, one log-sum-exp, gradients."""

import pytest
import torch
import torch.nn.functional as F
from pyengine.kernels import _native, linear, linear_cross_entropy

from tests.numerics import assert_as_good_as_torch

OP = "cross_entropy"
# (tokens, channels, vocabulary): single values, ragged tiles, a vocabulary of several tiles, empty
SHAPES = [(1, 1, 1), (1, 8, 3), (7, 67, 131), (60, 33, 1024), (9, 16, 2500), (130, 48, 1500), (0, 8, 5)]
DTYPES = [torch.float32, torch.bfloat16]
IGNORED = -100


def inputs(shape, dtype, device, scale=1.0):
    tokens, channels, vocabulary = shape
    make = torch.Generator().manual_seed(sum(shape))
    x = torch.randn(tokens, channels, generator=make)
    weight = torch.randn(vocabulary, channels, generator=make) * scale / channels**0.5
    targets = torch.randint(vocabulary, (tokens,), generator=make)
    targets[2::5] = IGNORED
    return *(t.to(device, dtype).requires_grad_() for t in (x, weight)), targets.to(device)


def plain(x, weight, targets):
    """Plain torch on whole logits, in float32 at least."""
    logits = F.linear(x, weight)
    logits = logits if x.dtype == torch.float64 else logits.float()
    return F.cross_entropy(logits, targets, reduction="none", ignore_index=IGNORED)


def through(function, x, weight, targets):
    """Losses and gradients of one call, with a random upstream gradient for each token."""
    nll = function(x, weight, targets)
    grad = torch.randn(nll.shape, generator=torch.Generator().manual_seed(7)).to(nll.device, nll.dtype)
    return [nll, *torch.autograd.grad(nll, [x, weight], grad)]


def check(backend, shape, dtype, scale):
    """Losses and gradients of a backend, against torch's and float64's."""
    x, weight, targets = inputs(shape, dtype, backend.device, scale)
    wide = [t.detach().double().requires_grad_() for t in (x, weight)]
    results = (
        through(linear_cross_entropy, x, weight, targets),
        through(plain, x, weight, targets),
        through(plain, *wide, targets),
    )
    for what, a, b, truth in zip(["nll", "dx", "dweight"], *results, strict=True):
        # a float32 logit of size s is off by some s ulps, and e^z carries that into every probability
        assert_as_good_as_torch(a, b, truth, op=OP, what=what, backend=backend, ulps=4 + 2 * scale)
        assert what != "nll" or not a[targets == IGNORED].any()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [1.0, 30.0])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_as_good_as_torch(backend, shape, dtype, scale):
    check(backend, shape, dtype, scale)


@pytest.mark.parametrize("dtype", DTYPES)
def test_one_log_probability_everywhere(backend, dtype):
    """The same bits in any batch, on any number of threads, and from logits of linear by the stated log-sum-exp."""
    if backend.name != "cpu":
        pytest.skip("the contract of the compiled CPU kernels")
    from pyengine.kernels.sample.reference import logsumexp

    x, weight, targets = inputs((300, 70, 2100), dtype, "cpu", 4.0)
    results = []
    try:
        for threads in (1, 2, 3, 5):
            _native.set_threads(threads)
            results.append(through(linear_cross_entropy, x, weight, targets))
    finally:
        _native.set_threads(None)
    assert all(torch.equal(a, b) for a, *others in zip(*results, strict=True) for b in others)
    nll = results[0][0].detach()
    with torch.no_grad():
        for part in (slice(0, 1), slice(299, 300), slice(3, 5), slice(50, 140)):
            assert torch.equal(linear_cross_entropy(x[part], weight, targets[part]), nll[part])
        logits = linear(x, weight, out_dtype=torch.float32)
    counted = targets != IGNORED
    chosen = logits.gather(1, targets.clamp(min=0)[:, None])[:, 0]
    stated = logsumexp(logits) - chosen
    assert torch.equal(nll[counted], stated[counted])


def test_infinite_logits(backend):
    """A forbidden token (logit -inf) has probability 0: it changes neither the others' loss nor gradients."""
    weight = torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, float("-inf")]], device=backend.device)
    x = torch.tensor([[1.0, 1.0]], device=backend.device).requires_grad_()
    nll = linear_cross_entropy(x, weight.nan_to_num(neginf=-1e38), torch.tensor([1], device=backend.device))
    expected = F.cross_entropy(torch.tensor([[1.0, 2.0]]), torch.tensor([1]))
    assert torch.allclose(nll.cpu(), expected.expand(1), atol=1e-6)
    (dx,) = torch.autograd.grad(nll.sum(), x)
    assert torch.isfinite(dx).all()


def test_all_ignored_and_shapes(backend):
    x, weight, targets = inputs((6, 8, 40), torch.float32, backend.device)
    nll, dx, dweight = through(linear_cross_entropy, x, weight, torch.full_like(targets, IGNORED))
    assert not nll.any() and not dx.any() and not dweight.any()
    flat = linear_cross_entropy(x, weight, targets)
    folded = linear_cross_entropy(x.view(2, 3, 8), weight.t().contiguous().t(), targets.view(2, 3))
    assert torch.equal(folded.flatten(), flat)


@pytest.mark.parametrize("dtype", DTYPES)
def test_logits_kept_or_computed_again_give_the_same_bits(monkeypatch, dtype):
    x, weight, targets = inputs((130, 48, 2500), dtype, "cpu")
    kept = through(linear_cross_entropy, x, weight, targets)
    monkeypatch.setattr("pyengine.kernels.cross_entropy.KEEP_BYTES", 0)
    again = through(linear_cross_entropy, x, weight, targets)
    assert all(torch.equal(a, b) for a, b in zip(kept, again, strict=True))


def test_ignored_tokens_are_as_if_not_there(backend):
    x, weight, targets = inputs((60, 33, 1100), torch.float32, backend.device)
    counted = targets != IGNORED
    nll, dx, dweight = through(linear_cross_entropy, x, weight, targets)
    alone = [x.detach()[counted].requires_grad_(), weight]
    grad = torch.randn(nll.shape, generator=torch.Generator().manual_seed(7)).to(nll.device)
    some = linear_cross_entropy(*alone, targets[counted])
    expected = torch.autograd.grad(some, alone, grad[counted])
    assert torch.equal(some, nll[counted])
    assert torch.equal(expected[0], dx[counted]) and torch.equal(expected[1], dweight)
    assert not dx[~counted].any()


@pytest.mark.parametrize("wanted", [0, 1])
def test_one_gradient_alone(backend, wanted):
    x, weight, targets = inputs((60, 33, 1100), torch.bfloat16, backend.device)
    both = through(linear_cross_entropy, x, weight, targets)[1:]
    leaves = [t if i == wanted else t.detach() for i, t in enumerate((x, weight))]
    nll = linear_cross_entropy(*leaves, targets)
    grad = torch.randn(nll.shape, generator=torch.Generator().manual_seed(7)).to(nll.device)
    assert torch.equal(torch.autograd.grad(nll, leaves[wanted], grad)[0], both[wanted])


def test_compiles_whole_and_passes_opcheck(backend):
    if backend.variant == "interpreter":
        pytest.skip("torch.compile does not trace Triton's interpreter")
    x, weight, targets = inputs((6, 16, 50), torch.float32, backend.device)
    compiled = torch.compile(linear_cross_entropy, fullgraph=True, backend="aot_eager")
    ours = through(linear_cross_entropy, x, weight, targets)
    assert all(torch.equal(a, b) for a, b in zip(through(compiled, x, weight, targets), ours, strict=True))
    x, weight = x.detach(), weight.detach()
    nll, lse, logits = torch.ops.pyengine.cross_entropy(x, weight, targets, IGNORED, False)
    torch.library.opcheck(torch.ops.pyengine.cross_entropy, (x, weight, targets, IGNORED, False))
    arguments = (torch.ones_like(nll), x, weight, targets, lse, logits, IGNORED, [True, False])
    torch.library.opcheck(torch.ops.pyengine.cross_entropy_backward, arguments)


def test_refuses_what_does_not_fit():
    x, w, t = torch.ones(2, 4), torch.ones(5, 4), torch.tensor([0, 4])
    for arguments, error, word in [
        ((x, torch.ones(5, 3), t), ValueError, "does not fit"),
        ((x, w, t[:1]), ValueError, "targets"),
        ((x, w, t.int()), ValueError, "int64"),
        ((x, w.bfloat16(), t), ValueError, "float32, bfloat16"),
        ((x, w, torch.tensor([0, 5])), IndexError, "has 5 ids"),
        ((x, w, torch.tensor([0, -1])), IndexError, "reach from -1"),
    ]:
        with pytest.raises(error, match=word):
            linear_cross_entropy(*arguments)
