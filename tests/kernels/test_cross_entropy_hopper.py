"""The output layer's loss on Hopper's engines, by the host shim or on such a card: what test_cross_entropy.py asks."""

import pytest
import torch
from pyengine.kernels import _probe, linear, linear_cross_entropy
from pyengine.kernels.cross_entropy import hopper as ours

from tests.conftest import HOPPER
from tests.kernels.test_cross_entropy import IGNORED, OP, check, inputs, plain, through

pytestmark = pytest.mark.parametrize("hopper", HOPPER, ids=repr, indirect=True)
BF16 = torch.bfloat16
# (tokens, channels, vocabulary): one number, a row of no whole eights, tiles of 128 x 256 begun again, empty
SHAPES = [(1, 1, 1), (7, 67, 131), (130, 24, 600), (9, 330, 256), (0, 8, 5)]


@pytest.mark.parametrize("scale", [1.0, 30.0])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_as_good_as_torch(hopper, shape, scale):
    check(hopper, shape, BF16, scale)


def test_chunks_add_up(hopper, monkeypatch):
    """Of tokens, forward and backward: the same losses, gradients up to the order of their sums."""
    x, weight, targets = inputs((21, 24, 300), BF16, hopper.device)
    whole = through(linear_cross_entropy, x, weight, targets)
    monkeypatch.setattr(ours, "FORWARD_CHUNK", 8)
    monkeypatch.setattr(ours, "CHUNK", 8)
    parts = through(linear_cross_entropy, x, weight, targets)
    assert torch.equal(parts[0], whole[0]) and torch.equal(parts[1], whole[1])
    assert (parts[2].float() - whole[2].float()).abs().max() <= 2**-7 * whole[2].abs().max()


def test_logits_are_those_of_linear(hopper):
    """To the bit, so losses differ by what exponentials and sums do."""
    x, weight, targets = (t.detach() for t in inputs((20, 72, 300), BF16, hopper.device, 4.0))
    logits = linear(x, weight, out_dtype=torch.float32).double()
    counted = targets != IGNORED
    stated = (logits.logsumexp(1) - logits.gather(1, targets.clamp(min=0)[:, None])[:, 0])[counted]
    assert (linear_cross_entropy(x, weight, targets)[counted] - stated).abs().max() < 1e-5


def test_logits_far_below_zero(hopper):
    """Beside what fills up a tile of words, whose sums are zero, and a row of gradients, which would be infinite."""
    x = torch.full((3, 8), 16.0, dtype=BF16, device=hopper.device).requires_grad_()
    weight = torch.full((300, 8), -16.0, dtype=BF16, device=hopper.device).requires_grad_()
    nll, dx, dweight = through(
        linear_cross_entropy, x, weight, torch.zeros(3, dtype=torch.int64, device=hopper.device)
    )
    assert torch.allclose(nll, torch.full_like(nll, 300).log(), atol=1e-3)
    assert dx.isfinite().all() and dweight.isfinite().all()


def test_a_target_out_of_range_is_no_number(hopper, monkeypatch):
    """And touches no other token; the kernels do not look for it, nor take it for that of a chunk before."""
    x, weight, targets = (t.detach() for t in inputs((9, 24, 300), BF16, hopper.device))
    truth = ours.forward(x, weight, targets, IGNORED)[0]
    monkeypatch.setattr(ours, "FORWARD_CHUNK", 4)
    targets[5] = 300
    nll, _ = ours.forward(x, weight, targets, IGNORED)
    assert nll[5].isnan() and torch.equal(nll[:5], truth[:5]) and torch.equal(nll[6:], truth[6:])


def test_float32_is_the_references(hopper):
    x, weight, targets = inputs((6, 8, 40), torch.float32, hopper.device)
    for mine, torchs in zip(
        through(linear_cross_entropy, x, weight, targets), through(plain, x, weight, targets), strict=True
    ):
        torch.testing.assert_close(mine, torchs, rtol=1e-5, atol=1e-5)


def test_the_probe_agrees(hopper):
    _probe.compare(OP, "hopper", hopper.device)


def test_races(hopper):
    """Three tiles of losses and gradients, and a share of dweight added to another; see test_linear_hopper.py."""
    x, weight, targets = inputs((5, 24, 600), BF16, hopper.device)
    assert all(t.isfinite().all() for t in through(linear_cross_entropy, x, weight, targets))
