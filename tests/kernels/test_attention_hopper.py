"""Attention on Hopper's engines, by the host shim or on such a card: what test_attention.py asks, at its tiles' sizes.

The shim spoils what is copied or multiplied until it is waited for, and stops where a factor changes meanwhile.
"""

import pytest
import torch
from pyengine.kernels._select import use_backend
from pyengine.kernels.attention import reference

from tests.conftest import HOPPER
from tests.kernels.test_attention import check, fused, inputs

pytestmark = pytest.mark.parametrize("hopper", HOPPER, ids=repr, indirect=True)
BF16 = torch.bfloat16
# (document lengths, H, K, D): tiles of 128 that are whole, begun, one row; several pieces of work a block
CASES = [
    ([1], 1, 1, 64),
    ([128], 2, 1, 128),
    ([129, 5, 0, 130], 4, 2, 64),
    ([257, 40], 2, 2, 128),
    ([400], 3, 1, 64),
    ([], 2, 1, 64),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_as_good_as_torch(hopper, case):
    check(*inputs(*case, BF16, hopper.device), hopper)


@pytest.mark.parametrize("scale", [1e-10, 8.0])
def test_extremes(hopper, scale):
    tensors, bounds = inputs([190], 2, 1, 64, BF16, hopper.device)
    with torch.no_grad():
        for t in tensors[:2]:
            t *= scale
    check(tensors, bounds, hopper, fused)


def forward(tensors, bounds, scale=0.125):
    return torch.ops.pyengine.attention(*(t.detach() for t in tensors), bounds, scale)


def backward(tensors, bounds, scale=0.125):
    """Gradients for the outputs' own values, a gradient as good as any."""
    tensors = [t.detach() for t in tensors]
    out, lse = forward(tensors, bounds, scale)
    return torch.ops.pyengine.attention_backward(out, *tensors, out, lse, bounds, scale)


def test_the_log_of_the_sum_is_the_references(hopper):
    tensors, bounds = inputs([200, 3, 129], 4, 2, 64, BF16, hopper.device)
    _, ours = forward(tensors, bounds)
    truth = reference.forward(*(t.detach().float() for t in tensors), bounds, 0.125)[1]
    assert (ours - truth).abs().max() < 1e-5


@pytest.mark.parametrize("worst", [float("nan"), float("inf")])
def test_other_documents_do_not_matter(hopper, worst):
    """Neither by their place nor by numbers that are none, which lie in the same tiles of keys and values."""
    lengths = [70, 150, 40]
    tensors, bounds = inputs(lengths, 2, 1, 128, BF16, hopper.device)
    results = [f(tensors, bounds) for f in (forward, backward)]
    own = [t[70:220] for t in tensors], torch.tensor([0, 150], dtype=torch.int32, device=hopper.device)
    alone = [f(*own) for f in (forward, backward)]
    with torch.no_grad():
        for t in tensors:
            t[:70], t[220:] = worst, worst
    dirty = [f(tensors, bounds) for f in (forward, backward)]
    for ours, other, spoilt in zip(*(sum(r, ()) for r in (results, alone, dirty)), strict=True):
        assert torch.equal(ours[70:220], other) and torch.equal(ours[70:220], spoilt[70:220])


@pytest.mark.parametrize(
    "dtype, dim, scale", [(torch.float32, 64, 0.125), (BF16, 32, 0.2), (BF16, 64, -0.125), (BF16, 64, 0.0)]
)
def test_what_it_has_not_is_the_cuda_backends(hopper, dtype, dim, scale):
    tensors, bounds = inputs([70, 3], 2, 1, dim, dtype, hopper.device)
    ours = [f(tensors, bounds, scale) for f in (forward, backward)]
    with use_backend("cuda"):
        for function, mine in zip((forward, backward), ours, strict=True):
            assert all(map(torch.equal, mine, function(tensors, bounds, scale)))


def test_an_odd_address_is_copied(hopper):
    """Rows that start at 2 bytes past a multiple of 16, which the copy engine does not take."""
    (q, k, v), bounds = inputs([9], 2, 2, 64, BF16, hopper.device)
    odd = [torch.cat([t.detach().flatten()[:1], t.detach().flatten()])[1:].view(t.shape) for t in (q, k, v)]
    for function in (forward, backward):
        assert all(map(torch.equal, function(odd, bounds), function((q, k, v), bounds)))


@pytest.mark.parametrize("function, lengths", [(forward, [260, 3]), (backward, [130, 3])])
def test_races(hopper, function, lengths):
    """Each wait of the kernels at least once, small enough for every GPU thread to be one of the system."""
    assert all(t.isfinite().all() for t in function(*inputs(lengths, 2, 1, 64, BF16, hopper.device)))
