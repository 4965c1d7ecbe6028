"""Training on the device that tests/pretend.py makes up, for test_device.py; a process of its own.

python -m tests.train.on_device steps|triton|resume|road FOLDER
"""

import hashlib
import json
import sys
from dataclasses import replace
from pathlib import Path

import torch

from pyengine.data.loader import IGNORE
from pyengine.train.config import Config, OptimizerConfig
from pyengine.train.loop import WeightedBatch
from pyengine.train.run import Run, opened
from tests import pretend

from . import tiny

CPU = torch.device("cpu")
STEPS = 4


def weighted(step: int) -> WeightedBatch:
    """A batch with advantages and with tokens that do not count."""
    batch = tiny.batch(step, (9, 1, 20, 13))
    weights = torch.arange(43, dtype=torch.float32).sin()
    weights[::5] = 0
    targets = batch.targets.clone()
    targets[::7] = IGNORE
    return replace(batch, targets=targets, weights=weights, normaliser=20.0)


def trainer(
    run: Run, device: torch.device, dtype: torch.dtype, rule: str, steps: int, **more
) -> tiny.Trainer:
    model = tiny.Transformer(tiny.MODEL, 1, dtype, device)
    return tiny.Trainer(run, model, OptimizerConfig(rule, lr=1e-2), steps, run.path("checkpoints"), **more)


def weights(made: tiny.Trainer) -> list[torch.Tensor]:
    return [pretend.bare(parameter.data) for parameter in made.model.parameters()]


def steps(folder: Path) -> dict[str, list[str]]:
    """Steps on both kinds of batch, in pieces of 16 tokens, with the CPU's bits; returns what they waited for."""
    waited = {}
    run = Run(Config(name="tiny"), folder)
    for batches, dtype, rule in ((tiny.batch, torch.bfloat16, "muon"), (weighted, torch.float32, "adamw")):
        found = []
        with pretend.device() as device:
            for place in (CPU, device):
                made = trainer(run, place, dtype, rule, STEPS, micro_tokens=16)
                pretend.waits.clear()
                for step in range(STEPS):
                    made.step(batches(step))
                found.append(weights(made))
            assert all(t.device == device for t in made.optimizer.tensors().values())
        assert all(map(torch.equal, *found))
        waited[batches.__name__] = list(pretend.waits)
    return waited


def triton(folder: Path) -> dict[str, object]:
    """What a step of Triton's kernels, run by its interpreter, waits for; how far it ends from the CPU's."""
    run, found = Run(Config(name="tiny"), folder), []
    with pretend.device("triton") as device:
        for place in (CPU, device):
            made = trainer(run, place, torch.float32, "muon", 1, micro_tokens=16)
            pretend.waits.clear()
            made.step(weighted(0))
            found.append(weights(made))
    difference = max(float((a - b).abs().max()) for a, b in zip(*found, strict=True))
    return {"waits": pretend.waits, "difference": difference}


def resume(folder: Path) -> list[bool]:
    """Whether a training that went on elsewhere from its checkpoint is the one that stayed: there and back."""
    found = []
    with pretend.device() as device:
        for name, places in {"stays": [CPU], "goes": [CPU, device], "comes": [device, CPU]}.items():
            for last, place in zip((6,) if name == "stays" else (3, 6), places, strict=True):
                with opened(Config(name=name), folder) as run:
                    run.stage = name
                    made = trainer(run, place, torch.bfloat16, "muon", 6)
                    made.config = replace(made.config, warmup=0.0, warmdown=0.0)
                    made.steps = last
                    made.fit(tiny.batch, every=3)
            found.append(weights(made))
    return [all(map(torch.equal, found[0], other)) for other in found[1:]]


def road(folder: Path) -> dict[str, str]:
    """A hash of what every stage leaves, of the road gone on the CPU and gone on the device."""
    found, settings = {}, _short()
    for name in ("cpu", "device"):
        tiny.prepare(folder / name, settings)
        with pretend.device() as device, opened(settings, folder / name) as run:
            run.device = CPU if name == "cpu" else device
            tiny.go(run)
            learnt = hashlib.sha256()
            for stage in ("base", "sft", "know", "search", "rl", "reward", "rlhf"):
                learnt.update(run.path(stage, "model.safetensors").read_bytes())
            for file in (
                "know/labels.jsonl",
                "rl/rollouts.jsonl",
                "rlhf/rollouts.jsonl",
                "evaluate/result.json",
            ):
                learnt.update(run.path(file).read_bytes())
            found[name] = learnt.hexdigest()
    return found


def _short() -> Config:
    c = tiny.ROAD
    return replace(
        c,
        pretrain=replace(c.pretrain, steps=3, evaluations=1),
        sft=replace(c.sft, count=30),
        know=replace(c.know, samples=1, replay=4, passing=0),
        search=replace(c.search, replay=4),
        rl=replace(c.rl, steps=1, exam=8, controls=False),
    )


if __name__ == "__main__":
    made = {"steps": steps, "triton": triton, "resume": resume, "road": road}[sys.argv[1]](Path(sys.argv[2]))
    print(json.dumps(made))
