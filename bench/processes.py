"""A training step by several processes that share the cores, and by one process with all of them, in turns.

    torchrun --nproc-per-node 2 -m bench.processes 5.8M float32 9

Runs for `python -m bench train --processes 2`. The several go through Trainer.fit, and the one takes its step where
fit asks for the next batch, while the others wait: so both meet the same busy moments of the machine. The first
process prints one line of JSON: the median seconds of both, tokens a step, and whether the first losses are equal.
"""

import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
from pyengine.kernels import set_threads

from bench.bench_train import SETTINGS, SHAPES, batch
from pyengine.devices import available_cpus
from pyengine.model import Transformer
from pyengine.train.config import Config
from pyengine.train.loop import Trainer, WeightedBatch, Worker, assist
from pyengine.train.optimizer import Optimizer
from pyengine.train.run import Run
from pyengine.train.team import Team


def main(shape: str, dtype: torch.dtype, rounds: int) -> None:
    team = Team.join()
    with tempfile.TemporaryDirectory() as folder:
        run = Run(Config(name="bench"), Path(folder))
        run.prepare()
        if team.rank:
            assist(team)
        else:
            run.path("several").mkdir(parents=True)
            print(json.dumps(measure(run, shape, dtype, rounds)))
            team.tell("end")
    team.leave()


def measure(run: Run, shape: str, dtype: torch.dtype, rounds: int) -> dict:
    """The numbers of the module's last line, after two rounds that are not counted."""
    config, rows, length, several = SHAPES[shape]
    packed = batch(config, rows, length, several)[0]
    total = packed.total_weight()
    model = Transformer(config, seed=1, dtype=dtype)
    one = Worker(model, Optimizer(model, SETTINGS), len(packed.ids))
    cores = available_cpus()
    seen: list[torch.Tensor] = []
    first: list[torch.Tensor] = []
    by_one, by_several, began = [], [], [0.0]

    def next_batch(step: int) -> WeightedBatch:
        if step:
            by_several.append(time.perf_counter() - began[0])
        set_threads(cores)
        start = time.perf_counter()
        losses = one.gradients(packed, total)[1]
        one.optimizer.step(1.0, min(1.0, 1.0 / (one.optimizer.grad_norm() + 1e-6)))
        by_one.append(time.perf_counter() - start)
        first.append(losses)
        set_threads(run.threads)
        began[0] = time.perf_counter()
        return packed

    trainer = Trainer(
        run, Transformer(config, seed=1, dtype=dtype), SETTINGS, rounds + 3, run.path("several", "checkpoints"),
        watch=seen.append,
    )  # fmt: skip
    trainer.fit(next_batch)
    return {
        "several": statistics.median(by_several[2:]), "one": statistics.median(by_one[2:]),
        "tokens": len(packed.ids), "equal": torch.equal(seen[0], first[0]),
        "threads": run.threads, "cores": cores,
    }  # fmt: skip


if __name__ == "__main__":
    main(sys.argv[1], getattr(torch, sys.argv[2]), int(sys.argv[3]))
