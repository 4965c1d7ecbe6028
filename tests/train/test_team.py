"""Several processes train as one does: the same steps within rounding, the same checkpoints to the bit."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pyengine.files import file_hash
from pyengine.model import RewardModel
from pyengine.train.team import Team

from . import tiny, together

# How far each weight tensor (relative to its length) and each token's loss may be from those of one process after
# 12 steps: sums of gradients are rounded in another order, in bfloat16 to 8 bits.
BOUND = {torch.float32: 1e-3, torch.bfloat16: 5e-2}


def torchrun(
    processes: int, folder: Path, steps: int, dtype=torch.float32, shard: bool = False, kind: str = ""
) -> dict:
    """What `together` leaves after training with so many processes."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command += ["-m", "tests.train.together", str(folder), str(steps), str(dtype)[6:]]
    command += [*["shard"] * shard, kind]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    return torch.load(folder / "result.pt")


def hashes(folder: Path) -> dict[str, str]:
    """Of the weights and the optimiser's state in the last checkpoint."""
    last = max((folder / "tiny" / "checkpoints").glob("step-*"))
    return {name: file_hash(last / name) for name in ("model.safetensors", "training.safetensors")}


@pytest.mark.parametrize("shard", [False, True], ids=["whole", "sharded"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
def test_two_processes_train_as_one(tmp_path, dtype, shard):
    """Sharded in pieces, of which one process has fewer, too."""
    one, seen = together.train(tmp_path / "one", 12, dtype)
    two = torchrun(2, tmp_path / "two", 12, dtype, shard)
    for a, b in zip(one.model.parameters(), two["weights"], strict=True):
        assert (a - b).float().norm() < BOUND[dtype] * a.float().norm()
    for a, b in zip(seen, two["seen"], strict=True):
        assert a.shape == b.shape and (a - b).abs().mean() < BOUND[dtype]
    assert torch.equal(seen[0], two["seen"][0]), "the first losses do not depend on the number of processes"


def test_two_processes_train_a_reward_model_as_one(tmp_path):
    one, seen = together.train(tmp_path / "one", 6, kind=RewardModel)
    two = torchrun(2, tmp_path / "two", 6, shard=True, kind="reward")
    assert type(one.model) is RewardModel and one.model.head.abs().max() > 0
    for a, b in zip(one.model.parameters(), two["weights"], strict=True):
        assert a.shape == b.shape and (a - b).norm() < BOUND[torch.float32] * a.norm()
    assert all((a - b).abs().max() < BOUND[torch.float32] for a, b in zip(seen, two["seen"], strict=True))


def test_a_checkpoint_is_the_same_for_any_number_of_processes(tmp_path):
    """Read and written again by two and by three processes, a checkpoint keeps its bits; and they go on from it."""
    together.train(tmp_path, 6)
    written = hashes(tmp_path)
    torchrun(2, tmp_path, 6)
    assert hashes(tmp_path) == written
    torchrun(3, tmp_path, 6, shard=True)
    assert hashes(tmp_path) == written
    torchrun(3, tmp_path, 9, shard=True)
    of_three = hashes(tmp_path)
    assert of_three != written
    assert together.train(tmp_path, 9)[0].done == 9
    assert hashes(tmp_path) == of_three


def test_shares_are_whole_documents_of_about_equal_size():
    batch = tiny.batch(0, (9, 1, 20, 7, 3, 15))
    shares = batch.shares(2)
    assert [len(share.ids) for share in shares] == [30, 25]
    assert torch.equal(torch.cat([share.ids for share in shares]), batch.ids)
    assert [share.cu_seqlens.tolist() for share in shares] == [[0, 9, 10, 30], [0, 7, 10, 25]]
    alone = tiny.batch(0, (26,)).shares(3)
    assert sorted(len(share.ids) for share in alone) == [0, 0, 26]


def test_parameters_are_shared_out_evenly():
    team = Team()
    team.size = 3
    costs = {"a": 5.0, "b": 4.0, "c": 3.0, "d": 3.0, "e": 3.0}
    assert team.owners(costs) == {"a": 0, "b": 1, "c": 2, "d": 2, "e": 1}
    assert team.owners(costs, first=5.0) == {"a": 1, "b": 2, "c": 2, "d": 0, "e": 1}
