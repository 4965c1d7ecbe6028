"""A whole training step on Triton's kernels, as it would run on a GPU: all but the card (tests/pretend.py)."""

import json
import subprocess
import sys

import pytest

from tests.conftest import INTERPRETED


@pytest.mark.skipif(not INTERPRETED, reason="runs Triton's interpreter")
def test_a_step_waits_for_its_losses_and_its_norm_alone(tmp_path):
    """No op reads the device on the way: bounds, positions and which tokens count are known on the host."""
    command = [sys.executable, "-m", "tests.train.on_device", "triton", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["waits"] == ["_to_copy to the host", "_local_scalar_dense"]
    assert (
        found["difference"] < 1e-3
    )  # a first step of Adam has its rate's length, here 1e-2, whatever the gradient
