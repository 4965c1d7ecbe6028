"""A training by as many processes as torchrun starts, for test_team.py.

torchrun --nproc-per-node 2 -m tests.train.together FOLDER STEPS DTYPE [shard]
"""

import sys
from pathlib import Path

import torch

from pyengine.train.loop import assist
from pyengine.train.team import Team

from . import tiny

DOCUMENTS = (9, 1, 20, 7, 3, 15)
SHARDED = {"shard": True, "micro_tokens": 25}  # so that of two processes one has two pieces, the other one


def train(folder: Path, steps: int, dtype: torch.dtype = torch.float32, **more):
    """The training, on the process that leads or on one alone; what it saw of the losses is in `seen`."""
    seen: list[torch.Tensor] = []
    trained = tiny.train(
        folder,
        steps,
        batches=lambda step: tiny.batch(step, DOCUMENTS),
        dtype=dtype,
        watch=seen.append,
        **more,
    )
    return trained, seen


def main(folder: str, steps: str, dtype: str, shard: str = "") -> None:
    team = Team.join()
    if team.rank:
        assist(team)
        team.leave()
        return
    trained, seen = train(Path(folder), int(steps), getattr(torch, dtype), **(SHARDED if shard else {}))
    team.tell("end")
    team.leave()
    torch.save({"weights": list(trained.model.parameters()), "seen": seen}, Path(folder) / "result.pt")


if __name__ == "__main__":
    main(*sys.argv[1:])
