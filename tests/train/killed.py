"""Works in `folder`, killed by SIGKILL again and again, and prints the digest of the weights in the end.

    python -m tests.train.killed FOLDER SEED training      one training
    python -m tests.train.killed FOLDER SEED road          every stage from the tokenizer on

Each attempt is a forked process that kills itself at a random one of its file operations and training steps
(before opening, flushing or renaming a file, before a step): every moment that could tear something.
"""

import os
import random
import shutil
import signal
import sys
from pathlib import Path

from pyengine.train import loop

from . import tiny


def kill_at(moment: int) -> None:
    """Let this process be killed when it comes to its moment-th file operation or step."""
    left = [moment]

    def deadly(function):
        def call(*arguments, **keywords):
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments, **keywords)

        return call

    for module, name in ((os, "fsync"), (os, "replace"), (os, "rename"), (shutil, "rmtree")):
        setattr(module, name, deadly(getattr(module, name)))
    loop.Trainer.step = deadly(loop.Trainer.step)
    loop.Trainer._gradients = deadly(loop.Trainer._gradients)


WORK = {"training": lambda folder: tiny.digest(tiny.train(folder)), "road": tiny.road}
KILLS = {"training": 8, "road": 20}
WITHIN = {"training": 70, "road": 150}  # operations and steps; writing shards alone takes more than 50


def main(folder: Path, seed: int, work: str) -> None:
    moments, kills = random.Random(seed), 0
    while True:
        child = os.fork()
        if child == 0:
            if kills < KILLS[work]:
                kill_at(moments.randrange(1, WITHIN[work]))
            print(WORK[work](folder), kills, flush=True)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if os.WIFEXITED(status):
            sys.exit(os.WEXITSTATUS(status))
        kills += 1


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
