"""A training by as many processes as torchrun starts, for test_team.py.

torchrun --nproc-per-node 2 -m tests.train.together FOLDER STEPS DTYPE [shard] [reward]
"""

import sys
from dataclasses import replace
from pathlib import Path

import torch

from pyengine.model import RewardModel
from pyengine.train.loop import WeightedBatch, assist
from pyengine.train.team import Team

from . import tiny

DOCUMENTS = (9, 1, 20, 7, 3, 15)
SHARDED = {"shard": True, "micro_tokens": 25}  # so that of two processes one has two pieces, the other one


def ranked(step: int) -> WeightedBatch:
    """The documents as a reward model's: every second one should score lower."""
    batch = tiny.batch(step, DOCUMENTS)
    weights = torch.zeros(len(batch.ids))
    weights[batch.cu_seqlens[1:].long() - 1] = torch.tensor([1.0, -1.0] * (len(DOCUMENTS) // 2))
    return replace(batch, weights=weights, normaliser=3.0)


def train(folder: Path, steps: int, dtype: torch.dtype = torch.float32, **more):
    """The training, on the process that leads or on one alone; what it saw of the losses is in `seen`."""
    seen: list[torch.Tensor] = []
    trained = tiny.train(
        folder,
        steps,
        batches=ranked if more.get("kind") is RewardModel else lambda step: tiny.batch(step, DOCUMENTS),
        dtype=dtype,
        watch=seen.append,
        **more,
    )
    return trained, seen


def main(folder: str, steps: str, dtype: str, *more: str) -> None:
    team = Team.join()
    if team.rank:
        assist(team)
        team.leave()
        return
    options = (SHARDED if "shard" in more else {}) | ({"kind": RewardModel} if "reward" in more else {})
    trained, seen = train(Path(folder), int(steps), getattr(torch, dtype), **options)
    team.tell("end")
    team.leave()
    torch.save({"weights": list(trained.model.parameters()), "seen": seen}, Path(folder) / "result.pt")


if __name__ == "__main__":
    main(*sys.argv[1:])
