"""A whole training step (forward, backward, clipping, AdamW) beside the same model in plain PyTorch.

The default run's model on packed documents of 20 to 256 tokens, 4096 tokens a step. The peer is eager and
tuned: fused projections, scaled_dot_product_attention with a ready mask, the fused AdamW, all its threads.
"""

import pytest
import torch
from pyengine.kernels import _native, set_threads

from bench.plain_torch import PlainTransformer, document_mask
from pyengine.data.loader import make_batch
from pyengine.model import ModelConfig, Transformer
from pyengine.train.config import OptimizerConfig
from pyengine.train.optimizer import Optimizer

ROWS, CONTEXT = 16, 256
MODEL = ModelConfig.from_depth(4, vocab_size=1024)
SETTINGS = OptimizerConfig(rule="adamw", lr=1e-4)


def batch(seed=0):
    """4096 tokens in documents; each row of 256 tokens begins with a new one, so the peer can have rows."""
    make = torch.Generator().manual_seed(seed)
    sequences, rows = [], []
    for _ in range(ROWS):
        cuts = torch.randint(20, CONTEXT - 20, (1,), generator=make).tolist()
        lengths = [*cuts, CONTEXT - sum(cuts)]
        rows.append(torch.tensor([0, *torch.tensor(lengths).cumsum(0)], dtype=torch.int32))
        sequences += [torch.randint(0, MODEL.vocab_size, (n + 1,), generator=make).numpy() for n in lengths]
    packed = make_batch([s[:-1] for s in sequences], [s[1:] for s in sequences])
    return packed, torch.cat([document_mask(row) for row in rows])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
def test_step(paired, dtype):
    threads = _native.threads()
    packed, mask = batch()
    ids, targets, positions = (t.view(ROWS, CONTEXT) for t in (packed.ids, packed.targets, packed.positions))
    ours, plain = Transformer(MODEL, seed=1, dtype=dtype), PlainTransformer(Transformer(MODEL, seed=1))
    optimizer = Optimizer(ours, SETTINGS)
    peer_optimizer = torch.optim.AdamW(plain.parameters(), lr=1e-4, weight_decay=0.0, fused=True)

    def our_loss():
        return ours.loss(packed.ids, packed.targets, packed.cu_seqlens, packed.positions)

    def our_step():
        torch.set_num_threads(1)
        set_threads(threads)
        our_loss().mean().backward()
        optimizer.step(1.0, min(1.0, 1.0 / (optimizer.grad_norm() + 1e-6)))

    def peer_loss():
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            return plain.loss(ids, targets, positions, mask)

    def peer_step():
        torch.set_num_threads(threads)
        peer_optimizer.zero_grad(set_to_none=True)
        peer_loss().mean().backward()
        torch.nn.utils.clip_grad_norm_(plain.parameters(), 1.0, foreach=True)
        peer_optimizer.step()

    row = paired(
        f"training step, 4096 tokens, {str(dtype)[6:]}",
        ours=our_step,
        peer=peer_step,
        peer_name="plain torch" + (" autocast" if dtype == torch.bfloat16 else ""),
        equal=lambda: (
            (our_loss().mean() - peer_loss().mean()).abs() < (1e-4 if dtype == torch.float32 else 2e-2)
        ),
        flops=MODEL.train_flops(CONTEXT / 2) * ROWS * CONTEXT,
        dtype=dtype,
        goal=1.0,
        rounds=15,
    )
    print(f"{ROWS * CONTEXT / row['ours']:,.0f} tokens/s, plain torch {ROWS * CONTEXT / row['peer']:,.0f}")
