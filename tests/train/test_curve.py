"""The loss curve on the compiled kernels is the reference's: a few steps in the suite, 200 with the slow tests."""

import pytest
import torch
from pyengine.kernels import use_backend

from pyengine.model import Transformer
from pyengine.train.config import OptimizerConfig
from pyengine.train.optimizer import Optimizer

from . import tiny

# Largest difference of a step's loss, in nats: (the first 20 steps, the mean over windows of 20 up to 200). Steps of
# Muon and AdamW keep their length as gradients shrink, so rounding errors grow with the steps; curves do not part.
BOUND = {torch.float32: (1e-3, 0.02), torch.bfloat16: (0.03, 0.03)}


def curve(backend: str, dtype: torch.dtype, rule: str, steps: int) -> torch.Tensor:
    """Losses of a training on documents drawn anew at each step."""
    model = Transformer(tiny.MODEL, seed=1, dtype=dtype)
    optimizer = Optimizer(model, OptimizerConfig(rule=rule, lr=3e-3))
    losses = []
    with use_backend(backend):
        for step in range(steps):
            batch = tiny.batch(step, (9, 1, 20, 15))
            loss = model.loss(batch.ids, batch.targets, batch.cu_seqlens, batch.positions).mean()
            loss.backward()
            optimizer.step(1.0, min(1.0, 1.0 / (optimizer.grad_norm() + 1e-6)))
            losses.append(loss.item())
    return torch.tensor(losses)


@pytest.mark.parametrize("rule", ["adamw", "muon"])
@pytest.mark.parametrize("dtype", BOUND, ids=["f32", "bf16"])
@pytest.mark.parametrize("steps", [20, pytest.param(200, marks=pytest.mark.slow)])
def test_the_reference_learns_alike(dtype, rule, steps):
    ours, reference = (curve(backend, dtype, rule, steps) for backend in ("cpu", "reference"))
    first, window = BOUND[dtype]
    assert (ours - reference)[:20].abs().max() < first
    assert (ours - reference).unflatten(0, (-1, 20)).mean(1).abs().max() < window
    assert steps < 200 or ours[-20:].mean() < 0.6 * ours[:20].mean()
