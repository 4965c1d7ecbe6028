"""The run's folder: only what is missing is done, and what a kill or an edit left is noticed."""

import json

import pytest

from pyengine.errors import UserError
from pyengine.train import run as run_module
from pyengine.train.config import Config, PretrainConfig
from pyengine.train.run import Run, Stage, opened, perform, state_of

calls: list[str] = []


def first(run: Run) -> dict:
    calls.append("first")
    run.path("out").mkdir(exist_ok=True)
    run.path("out", "a.txt").write_text(f"{run.config.pretrain.steps}")
    run.log("train", 1, loss=float("nan"))
    return {"steps": run.config.pretrain.steps}


def second(run: Run) -> None:
    calls.append("second")
    assert not run.path("left").exists() or run.path("left").read_text() == "partial"


FIRST = Stage("first", "", "", settings=("pretrain",), outputs=("out/*",))
SECOND = Stage("second", "", "", needs=("first",), scratch=("left*",))


@pytest.fixture(autouse=True)
def stages(monkeypatch):
    calls.clear()
    monkeypatch.setattr(Stage, "load", lambda stage: {"first": first, "second": second}[stage.name])


def go(tmp_path, **settings):
    config = Config(name="t", pretrain=PretrainConfig(**settings))
    with opened(config, tmp_path) as run:
        for stage in (FIRST, SECOND):
            perform(run, stage)
    return run


def test_only_what_is_missing_is_done(tmp_path):
    run = go(tmp_path)
    go(tmp_path)
    assert calls == ["first", "second"]
    go(tmp_path, steps=9)  # another setting of the first: both again, since the second reads its output
    assert calls == ["first", "second"] * 2
    assert run.summary("first") == {"steps": 9}
    assert len(run.metrics("first")) == 1  # the earlier attempt's lines are gone


def test_changed_and_lost_outputs_are_noticed(tmp_path):
    run = go(tmp_path)
    run.path("out", "a.txt").write_text("tampered")
    assert "changed" in state_of(run, FIRST)[1]
    run.path("out", "a.txt").unlink()
    assert "gone" in state_of(run, FIRST)[1]
    go(tmp_path)
    assert calls == ["first", "second", "first"]  # the same bytes came back: the second still stands


def test_an_interrupted_stage_keeps_its_scratch_unless_inputs_changed(tmp_path, monkeypatch):
    run = go(tmp_path)
    marker = run.path("stages", "second.json")
    marker.write_text(json.dumps(run.marker("second") | {"state": "started"}))
    run.path("left").write_text("partial")
    assert state_of(run, SECOND) == ("missing", "was interrupted")
    go(tmp_path)
    assert run.path("left").exists()
    go(tmp_path, steps=3)
    assert not run.path("left").exists()


def test_a_missing_need_and_a_second_process_are_told(tmp_path):
    with opened(Config(name="t"), tmp_path) as run:
        with pytest.raises(UserError, match="second needs the stage first"):
            perform(run, SECOND)
        with pytest.raises(UserError, match="in use by another process"):
            with opened(Config(name="t"), tmp_path):
                pass


def test_metrics_survive_a_line_cut_short(tmp_path):
    run = go(tmp_path)
    with open(run.path("metrics.jsonl"), "a") as file:
        file.write('{"stage": "first", "ki')
    assert [line["loss"] for line in run.metrics("first", "train")] == ["nan"]


def test_gates_are_kept(tmp_path):
    run = go(tmp_path)
    run.gate("wall time", 3.0, "<= 10 min", True)
    run.gate("recall", float("nan"), ">= 90 %", False)
    gates = json.loads(run.path("gates.json").read_text())
    assert gates["wall time"]["holds"] and gates["recall"] == {
        "stage": "second", "value": "nan", "bound": ">= 90 %", "holds": False,
    }  # fmt: skip


def test_the_seed_and_threads_are_set(tmp_path):
    import torch

    with opened(Config(name="t", threads=2), tmp_path):
        assert torch.get_num_threads() == 1
        assert run_module.kernels._native.threads() == 2
