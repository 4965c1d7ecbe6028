"""The default run as a user starts it, at three seeds: every gate holds. Some ten minutes each."""

import json

import pytest

from pyengine.train.__main__ import main


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_every_gate_holds(tmp_path, monkeypatch, seed):
    monkeypatch.chdir(tmp_path)
    assert main(["--seed", str(seed)]) == 0
    gates = json.loads((tmp_path / "runs" / "default" / "gates.json").read_text("utf-8"))
    missed = {name: gate for name, gate in gates.items() if not gate["holds"]}
    assert len(gates) == 19 and not missed
