"""A training on another device than the CPU: nothing strays, the host waits twice a step, and the bits are the CPU's.

The device is made up (tests/pretend.py): there every operator that meets tensors of two devices fails.
"""

import json
import subprocess
import sys

import pytest

from pyengine.devices import device_of
from pyengine.errors import UserError


def on_device(what: str, folder) -> dict:
    command = [sys.executable, "-m", "tests.train.on_device", what, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_a_step_has_the_bits_of_the_cpu_and_waits_for_its_losses_and_its_norm(tmp_path):
    for kind, waited in on_device("steps", tmp_path).items():
        assert waited == ["_to_copy to the host", "grad_norm"] * 4, kind


def test_a_checkpoint_goes_on_on_another_device(tmp_path):
    assert on_device("resume", tmp_path) == [True, True]


@pytest.mark.slow
def test_every_stage_leaves_on_the_device_what_it_leaves_on_the_cpu(tmp_path):
    found = on_device("road", tmp_path)
    assert found["device"] == found["cpu"]


@pytest.mark.parametrize(
    "name, gpus, processes, rank, said",
    [
        ("gpu", 1, 1, 0, "expected cpu, cuda or cuda:N"),
        ("cuda", 0, 1, 0, "there is no GPU that torch can use"),
        ("cuda:2", 2, 1, 0, "2 GPUs found, numbered from 0"),
        ("cuda", 2, 3, 2, "2 GPUs found, and this is process 2 of 3"),
        ("cuda:1", 2, 2, 0, "names one GPU for 2 processes"),
    ],
)
def test_a_device_that_is_not_there_is_told(monkeypatch, name, gpus, processes, rank, said):
    setting(monkeypatch, gpus, processes, rank)
    with pytest.raises(UserError, match=said):
        device_of(name)


def test_each_process_of_a_machine_has_a_gpu_of_its_own(monkeypatch):
    chosen = setting(monkeypatch, 2, 2, 1)
    assert str(device_of("cuda")) == "cuda:1" and chosen == [1]
    chosen = setting(monkeypatch, 2, 1, 0)
    assert str(device_of("cuda:1")) == "cuda:1" and chosen == [1]
    assert str(device_of("cpu")) == "cpu"


def setting(monkeypatch, gpus: int, processes: int, rank: int) -> list[int]:
    """So many GPUs and processes on this machine, of which this is one; which GPU it makes its own."""
    chosen: list[int] = []
    monkeypatch.setattr("torch.cuda.device_count", lambda: gpus)
    monkeypatch.setattr("torch.cuda.set_device", chosen.append)
    monkeypatch.setenv("LOCAL_RANK", str(rank))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    return chosen
