"""A whole training step (forward, backward, clipping, AdamW) beside the same model in plain PyTorch.

Shapes: the default run's model on packed documents, 5.8M parameters on 8 x 256 tokens, and GPT-2's 124M on 4 x
256 and on 1 x 1,024 (left out by --quick). The peer is tuned: fused projections, scaled_dot_product_attention, the
fused AdamW, all its threads, bfloat16 by autocast, memory kept as for us; with --compile also torch.compile, which
takes a minute of processor time a shape and is the strongest peer we know; one that takes longer than COMPILE_SECONDS
by the clock is given up. With --processes N: N processes against one, see processes.py.
"""

import json
import subprocess
import sys

import pytest
import torch
from pyengine.kernels import _native, set_threads

from bench.conftest import ROWS, at_most
from bench.plain_torch import PlainTransformer, document_mask
from pyengine.data.loader import Batch, make_batch
from pyengine.model import ModelConfig, Transformer
from pyengine.train.config import OptimizerConfig
from pyengine.train.loop import WeightedBatch, Worker
from pyengine.train.machine import keep_memory
from pyengine.train.optimizer import Optimizer

GPT2 = ModelConfig(50_304, 768, 12, 12, 12, 64, 2048, qk_norm=False)
# name: (model, rows, tokens a row, whether a row holds several documents)
SHAPES = {
    "default": (ModelConfig.from_depth(4, 2048), 8, 256, True),
    "5.8M": (ModelConfig(4096, 256, 6, 8, 8, 32, 688, qk_norm=False), 8, 256, False),
    "gpt2": (GPT2, 4, 256, False),
    "gpt2-1024": (GPT2, 1, 1024, False),
}
COMPILE_SECONDS = 600
SETTINGS = OptimizerConfig(rule="adamw", lr=1e-4)


class Ours:
    """pyengine's step, as its trainer takes it."""

    def __init__(self, model: Transformer, settings: OptimizerConfig, threads: int):
        self.model, self.settings, self.threads = model, settings, threads
        self.optimizer = Optimizer(model, settings)
        self.worker = Worker(model, self.optimizer, micro_tokens=1 << 20)

    def losses(self, batch: Batch) -> torch.Tensor:
        torch.set_num_threads(1)
        set_threads(self.threads)
        return self.model.loss(batch.ids, batch.targets, batch.cu_seqlens, batch.positions)

    def step(self, batch: Batch, scale: float) -> float:
        torch.set_num_threads(1)
        set_threads(self.threads)
        loss, _ = self.worker.gradients(WeightedBatch.of(batch), batch.trained)
        clip = self.settings.clip
        self.optimizer.step(scale, min(1.0, clip / (self.optimizer.grad_norm() + 1e-6)))
        return loss


def batch(config, rows, length, packed, seed=0):
    """Documents, and the peer's mask; each row begins with a new document, so that the peer can have rows."""
    make = torch.Generator().manual_seed(seed)
    sequences, masks = [], []
    for _ in range(rows):
        cuts = torch.randint(20, length - 20, (1 if packed else 0,), generator=make).tolist()
        lengths = [*cuts, length - sum(cuts)]
        masks.append(document_mask(torch.tensor([0, *torch.tensor(lengths).cumsum(0)], dtype=torch.int32)))
        sequences += [torch.randint(0, config.vocab_size, (n + 1,), generator=make).numpy() for n in lengths]
    made = make_batch([s[:-1] for s in sequences], [s[1:] for s in sequences])
    return WeightedBatch.of(made), torch.cat(masks) if packed else None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
@pytest.mark.parametrize("shape", SHAPES)
def test_step(paired, quick, compiled, shape, dtype):
    if quick and SHAPES[shape][0] is GPT2:
        pytest.skip("left out by --quick")
    config, rows, length, several = SHAPES[shape]
    threads = _native.threads()
    keep_memory()
    packed, mask = batch(config, rows, length, several)
    ids, targets, positions = (t.view(rows, length) for t in (packed.ids, packed.targets, packed.positions))
    ours = Ours(Transformer(config, seed=1, dtype=dtype), SETTINGS, threads)
    plain = PlainTransformer(Transformer(config, seed=1))
    peer_optimizer = torch.optim.AdamW(plain.parameters(), lr=1e-4, weight_decay=0.0, fused=True)
    plain_loss = torch.compile(plain.loss) if compiled else plain.loss

    def peer_loss():
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            return plain_loss(ids, targets, positions, mask)

    def peer_step():
        torch.set_num_threads(threads)
        peer_optimizer.zero_grad(set_to_none=True)
        peer_loss().mean().backward()
        torch.nn.utils.clip_grad_norm_(plain.parameters(), 1.0, foreach=True)
        peer_optimizer.step()

    if compiled:
        with at_most(COMPILE_SECONDS, f"torch.compile of the peer {shape}, {str(dtype)[6:]},"):
            peer_loss().mean().backward()  # no step: both sides have the same weights until they were compared
    tokens = rows * length
    row = paired(
        f"training step {shape}, {tokens} tokens, {str(dtype)[6:]}",
        ours=lambda: ours.step(packed, 1.0),
        peer=peer_step,
        peer_name="torch"
        + (" autocast" if dtype == torch.bfloat16 else "")
        + (" compiled" if compiled else ""),
        equal=lambda: (
            (ours.losses(packed).mean() - peer_loss().mean()).abs()
            < (1e-4 if dtype == torch.float32 else 2e-2)
        ),
        flops=config.train_flops(length / 2) * tokens,
        dtype=dtype,
        goal=1.0,
        rounds=15,
    )
    print(f"{tokens / row['ours']:,.0f} tokens/s, torch {tokens / row['peer']:,.0f}")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
def test_processes(request, quick, dtype):
    """Steps shared by several processes against one process with all the cores; --processes says how many."""
    count = request.config.getoption("--processes")
    if not count:
        pytest.skip("asked for by --processes")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
    command += ["-m", "bench.processes", "5.8M", str(dtype)[6:], "3" if quick else "9"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    ratio = found["one"] / found["several"]
    ROWS.append({
        "what": f"training step 5.8M, {count} processes, {str(dtype)[6:]}", "ours": found["several"],
        "peer": found["one"], "peer_name": f"one process of {found['cores']} threads", "ratio": ratio,
        "ceiling": None, "percent": None, "equal": found["equal"], "goal": None, "holds": found["equal"],
    })  # fmt: skip
    several, one = (f"{found['tokens'] / found[name]:,.0f} tokens/s" for name in ("several", "one"))
    print(f"{several} by {count} processes of {found['threads']} threads, {one} by one of {found['cores']}")
    assert found["equal"], "the first losses differ"
