"""Nothing is lost: killed at any moment and resumed, training ends with the same bits; damage is named."""

import json
import re
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file, save_file

from pyengine.errors import UserError
from pyengine.files import file_hash
from pyengine.model import load
from pyengine.train import checkpoint

from . import tiny


@pytest.fixture
def straight(tmp_path):
    """The digest of a training that nothing interrupted."""
    return tiny.digest(tiny.train(tmp_path / "straight"))


def numbers(root):
    """What metrics.jsonl says of a training, but for times."""
    lines = tiny.Run(tiny.Config(name="tiny"), root).metrics("tiny")
    return [[line.get(key) for key in ("kind", "step", "loss", "grad_norm", "random")] for line in lines]


@pytest.mark.parametrize("seed", range(3))
def test_killed_and_resumed_gives_the_same_bits(tmp_path, straight, seed):
    digest, kills, _ = killed(tmp_path / "killed", seed, "training")
    assert digest == straight and kills >= 1
    folder = tmp_path / "killed" / "tiny"
    lines = [line for line in tiny.Run(tiny.Config(name="tiny"), tmp_path / "killed").metrics("tiny")]
    expected = tiny.Run(tiny.Config(name="tiny"), tmp_path / "straight").metrics("tiny")
    kept = ("kind", "step", "loss", "grad_norm", "random")
    assert [[line.get(k) for k in kept] for line in lines] == [
        [line.get(k) for k in kept] for line in expected
    ]
    assert not [p for p in folder.rglob("*.part") if p.is_file()]


@pytest.mark.parametrize("seed", range(2))
def test_a_road_killed_in_any_stage_ends_with_the_same_bits(tmp_path, seed):
    for name in ("straight", "killed"):
        tiny.prepare(tmp_path / name)
    digest, kills, told = killed(tmp_path / "killed", seed, "road")
    assert digest == tiny.road(tmp_path / "straight") and kills >= 3
    torn = set(re.findall(r"^(\w+): .*\(was interrupted\)", told, re.MULTILINE))
    assert len(torn & {"pretrain", "sft", "know", "search", "rl"}) >= 1, f"only {torn} were killed"


def killed(folder, seed, work):
    """The digest that work killed again and again comes to in the end, how often it was killed, what it told."""
    command = [sys.executable, "-m", "tests.train.killed", str(folder), str(seed), work]
    done = subprocess.run(command, capture_output=True, text=True, timeout=540)
    assert done.returncode == 0, done.stderr
    digest, kills = done.stdout.strip().splitlines()[-1].split()
    return digest, int(kills), done.stdout


def test_bf16_resumes_to_the_same_bits(tmp_path):
    straight = tiny.train(tmp_path / "a", dtype=torch.bfloat16)
    with pytest.raises(Stop):
        tiny.train(tmp_path / "b", batches=stop_at(7), dtype=torch.bfloat16)
    assert tiny.digest(tiny.train(tmp_path / "b", dtype=torch.bfloat16)) == tiny.digest(straight)
    master = straight.optimizer.tensors()["master.embedding"]
    assert torch.equal(master.bfloat16(), straight.model.embedding)


class Stop(Exception):
    pass


def stop_at(step):
    def batches(current):
        if current == step:
            raise Stop
        return tiny.batch(current)

    return batches


@pytest.mark.parametrize("harm", ["cut", "flip", "remove", "manifest"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(tmp_path, straight, capsys, harm):
    with pytest.raises(Stop):
        tiny.train(tmp_path, batches=stop_at(10))
    newest = tmp_path / "tiny" / "checkpoints" / "step-000009"
    path = newest / ("manifest.json" if harm == "manifest" else "training.safetensors")
    content = path.read_bytes()
    if harm == "remove":
        path.unlink()
    elif harm == "flip":
        path.write_bytes(content[:-5] + bytes([content[-5] ^ 1]) + content[-4:])
    else:
        path.write_bytes(content[: len(content) // 2])
    assert tiny.digest(tiny.train(tmp_path)) == straight
    told = capsys.readouterr().out
    assert path.name in told and "step-000009" in told and "going on from" in told and "step-000006" in told


def test_without_a_good_checkpoint_it_starts_anew(tmp_path, straight):
    with pytest.raises(Stop):
        tiny.train(tmp_path, batches=stop_at(10))
    for path in (tmp_path / "tiny" / "checkpoints").glob("*/training.json"):
        path.write_text("{")
    assert tiny.digest(tiny.train(tmp_path)) == straight


def rewritten(path, change):
    """A file of a checkpoint as another version would have written it, its hash with it."""
    change(path)
    manifest = path.with_name("manifest.json")
    hashes = json.loads(manifest.read_text()) | {path.name: file_hash(path)}
    manifest.write_text(json.dumps(hashes))


@pytest.mark.parametrize("file, name", [("training.json", "seconds"), ("training.safetensors", "random")])
def test_a_checkpoint_of_another_version_is_told(tmp_path, file, name):
    def without(path):
        if path.suffix == ".json":
            path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != name}))
        else:
            save_file({k: v for k, v in load_file(path).items() if k != name}, path)

    with pytest.raises(Stop):
        tiny.train(tmp_path, batches=stop_at(10))
    for path in (tmp_path / "tiny" / "checkpoints").glob(f"*/{file}"):
        rewritten(path, without)
    with pytest.raises(
        UserError, match=f"{file}: holds no '{name}', so another version of pyengine wrote it"
    ):
        tiny.train(tmp_path)


def test_checkpoints_are_models_and_the_last_two_are_kept(tmp_path):
    trained = tiny.train(tmp_path)
    folder = tmp_path / "tiny" / "checkpoints"
    assert sorted(p.name for p in folder.iterdir()) == ["step-000009", "step-000012"]
    assert torch.equal(load(folder / "step-000012").embedding, trained.model.embedding)


def test_a_checkpoint_comes_with_time_too(tmp_path, straight):
    """With no minute between checkpoints there is one of every step, and none changes a bit of what follows."""
    with pytest.raises(Stop):
        tiny.train(tmp_path / "timed", batches=stop_at(8), minutes=0)
    assert checkpoint.latest(tmp_path / "timed" / "tiny" / "checkpoints").step == 8
    assert tiny.digest(tiny.train(tmp_path / "timed", minutes=0)) == straight
    assert numbers(tmp_path / "timed") == numbers(tmp_path / "straight")


def test_the_account_of_a_resumed_training_is_of_the_whole(tmp_path):
    def evaluate(step):
        time.sleep(0.3 if step == 0 else 0)
        return {"value": step}

    with pytest.raises(Stop):
        tiny.train(tmp_path, batches=stop_at(7), evaluate=evaluate)
    with tiny.opened(tiny.Config(name="tiny"), tmp_path) as run:
        run.stage = "tiny"
        trainer = tiny.trainer(run, 12)
        summary = trainer.fit(tiny.batch, evaluate, 3)
    assert summary["tokens"] == 12 * 30 and summary["tokens_per_second"] < 12 * 30 / 0.3
    assert summary["seconds"] >= 0.3, "the first attempt's evaluation counts"
    assert trainer.first == {"value": 0}


def test_it_is_saved_before_it_is_evaluated(tmp_path):
    seen = []

    def evaluate(step):
        found = checkpoint.latest(tmp_path / "tiny" / "checkpoints")
        seen.append(found.step)
        return {}

    tiny.train(tmp_path, evaluate=evaluate)
    assert seen == [0, 3, 6, 9, 12]
