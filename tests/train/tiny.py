"""A training small enough to be run, killed and resumed dozens of times in a test."""

import hashlib
from pathlib import Path

import torch

from pyengine.model import ModelConfig, Transformer
from pyengine.train import loop
from pyengine.train.config import Config, OptimizerConfig
from pyengine.train.loop import Trainer, WeightedBatch
from pyengine.train.run import Run, opened

MODEL = ModelConfig(61, 32, 2, 2, 1, 16, 40)
loop.peak_flops = lambda dtype, threads: 1e9  # no time for measuring it


def batch(step: int, documents=(9, 1, 20)) -> WeightedBatch:
    """Documents that count upwards from a random start: easy to learn."""
    generator = torch.Generator().manual_seed(step)
    starts = torch.randint(0, 40, (len(documents),), generator=generator).tolist()
    rows = [torch.arange(start, start + n + 1) for start, n in zip(starts, documents, strict=True)]
    return WeightedBatch(
        ids=torch.cat([row[:-1] for row in rows]),
        targets=torch.cat([row[1:] for row in rows]),
        positions=torch.cat([torch.arange(n, dtype=torch.int32) for n in documents]),
        cu_seqlens=torch.tensor([0, *torch.tensor(documents).cumsum(0)], dtype=torch.int32),
    )


def trainer(run: Run, steps: int, dtype=torch.float32, **more) -> Trainer:
    settings = OptimizerConfig(lr=1e-2) if "config" not in more else more.pop("config")
    model = Transformer(MODEL, seed=run.config.seed, dtype=dtype)
    return Trainer(run, model, settings, steps, run.path("checkpoints"), **more)


def train(root: Path, steps: int = 12, every: int = 3, batches=batch, evaluate=None, **more) -> Trainer:
    """Train in root/tiny from the newest checkpoint there, evaluating with a use of the random generator."""
    with opened(Config(name="tiny"), root) as run:
        run.stage = "tiny"
        torch.manual_seed(run.config.seed)
        made = trainer(run, steps, **more)
        made.fit(batches, evaluate or (lambda step: {"random": torch.rand(()).item()}), every)
    return made


def digest(trained: Trainer) -> str:
    """Hash of every bit of the weights and of the optimiser's state."""
    found = hashlib.sha256()
    for tensor in (*trained.model.parameters(), *trained.optimizer.tensors().values()):
        found.update(tensor.detach().contiguous().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()
