"""A whole training step on the Triton backends, under the interpreter or on a card, beside the reference's."""

import pytest
import torch
from pyengine.kernels import _select

from pyengine.data.loader import make_batch
from pyengine.model import ModelConfig, Transformer
from pyengine.train.config import OptimizerConfig
from pyengine.train.optimizer import Optimizer
from tests.conftest import INTERPRETED

pytestmark = pytest.mark.skipif(
    not (INTERPRETED or torch.cuda.is_available()), reason="needs Triton's interpreter or a GPU"
)
CONFIG = ModelConfig(
    vocab_size=97,
    hidden_size=32,
    layers=2,
    heads=4,
    kv_heads=2,
    head_dim=16,
    intermediate_size=48,
    qk_norm=True,
)


def trained(backend: str, steps: int) -> list[torch.Tensor]:
    """Losses and the final parameters of a few steps on packed documents."""
    device = "cpu" if INTERPRETED else "cuda"
    make = torch.Generator().manual_seed(0)
    documents = [torch.randint(0, 97, (n + 1,), generator=make).numpy() for n in (5, 17, 1, 40)]
    batch = make_batch([d[:-1] for d in documents], [d[1:] for d in documents])
    ids, targets, bounds, positions = (
        t.to(device) for t in (batch.ids, batch.targets, batch.cu_seqlens, batch.positions)
    )
    losses = []
    with _select.use_backend(backend):
        model = Transformer(CONFIG, seed=1, device=device)
        optimizer = Optimizer(model, OptimizerConfig(rule="muon", lr=0.01))
        for _ in range(steps):
            loss = model.loss(ids, targets, bounds, positions).mean()
            loss.backward()
            optimizer.step(1.0, min(1.0, 1.0 / (optimizer.grad_norm() + 1e-6)))
            losses.append(loss.detach())
    return [torch.stack(losses), *(p.detach() for p in model.parameters())]


def test_trains_as_the_reference_does():
    ours, reference = trained("triton", 2), trained("reference", 2)
    assert ours[0][-1] < ours[0][0]
    for a, b in zip(ours, reference, strict=True):
        torch.testing.assert_close(a, b, rtol=2e-4, atol=2e-4)
