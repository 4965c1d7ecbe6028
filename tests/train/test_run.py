"""The run's folder: only what is missing is done, and what a kill or an edit left is noticed."""

import json
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pyengine.errors import UserError
from pyengine.train import run as run_module
from pyengine.train.config import Config, PretrainConfig, WebConfig, read_config
from pyengine.train.run import Run, opened, perform, state_of
from pyengine.train.stages import Stage

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
FETCHING = Stage(
    "first", "", "", settings=("site", "web.source", "web.max_pages"), outputs=("out/*",), precious=True
)


@pytest.fixture(autouse=True)
def stages(monkeypatch):
    calls.clear()
    monkeypatch.setattr(run_module, "STAGES", {"first": FIRST, "second": SECOND})
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


def test_the_page_is_drawn_when_a_stage_begins_and_when_it_is_done(tmp_path):
    drawn = []
    with opened(Config(name="t"), tmp_path, page=lambda run, now: drawn.append((calls[-1:], now))) as run:
        perform(run, FIRST)
        perform(run, SECOND)
    assert drawn == [([], True), (["first"], True), (["first"], True), (["second"], True)]
    run.draw()
    assert drawn[-1] == (["second"], False)


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


def test_the_time_of_a_stage_is_that_of_all_its_attempts(tmp_path, monkeypatch):
    run = go(tmp_path)
    marker, kept = run.path("stages", "second.json"), run.marker("second")
    marker.write_text(json.dumps(kept | {"state": "started", "seconds": 100.0, "cpu_seconds": 50.0}))

    def killed(run):
        run.keep_time()
        seen.append(run.marker("second")["seconds"])
        raise KeyboardInterrupt

    seen: list[float] = []
    monkeypatch.setattr(Stage, "load", lambda stage: {"first": first, "second": killed}[stage.name])
    with pytest.raises(KeyboardInterrupt):
        go(tmp_path)
    assert seen[0] >= 100 and run.marker("second")["seconds"] >= seen[0]
    monkeypatch.setattr(Stage, "load", lambda stage: {"first": first, "second": second}[stage.name])
    go(tmp_path)
    assert run.marker("second")["seconds"] >= seen[0] and run.marker("second")["cpu_seconds"] >= 50
    with opened(run.config, tmp_path) as again:
        perform(again, SECOND, force=True)
    assert run.marker("second")["seconds"] < 50  # made anew, on a clock of its own


def test_a_missing_need_and_a_second_process_are_told(tmp_path):
    with opened(Config(name="t"), tmp_path) as run:
        with pytest.raises(UserError, match="second needs the stage first"):
            perform(run, SECOND)
        with pytest.raises(UserError, match="in use by another process"):
            with opened(Config(name="t"), tmp_path):
                pass


def test_a_stage_does_not_build_on_what_other_settings_made(tmp_path):
    go(tmp_path)
    with opened(Config(name="t", pretrain=PretrainConfig(steps=9)), tmp_path) as run:
        with pytest.raises(UserError, match="second stands on the stage first, whose settings"):
            perform(run, SECOND, force=True)
    stored = read_config(tmp_path / "t" / "config.toml")
    assert stored.pretrain.steps is None  # what was not done is not remembered


def test_what_was_fetched_from_a_site_is_kept_unless_force_says_so(tmp_path):
    def fetch(force=False, **settings):
        with opened(Config(name="t", web=WebConfig(**settings)), tmp_path) as run:
            perform(run, FETCHING, force)

    fetch(source="https://a.example/")
    fetch(
        source="https://a.example/", heldout=0.2, contact="me@a.example"
    )  # nothing that the pages depend on
    assert calls == ["first"]
    for other in ({"source": "https://b.example/"}, {}, {"source": "https://a.example/", "max_pages": 9}):
        with pytest.raises(UserError, match="holds what was fetched from https://a.example/"):
            fetch(**other)
    assert (tmp_path / "t" / "out" / "a.txt").exists()
    fetch(force=True)
    assert calls == ["first"] * 2
    fetch(max_pages=9)  # the closed world is there to be crawled again
    assert calls == ["first"] * 3


def test_damaged_markers_and_gates_are_made_anew(tmp_path):
    run = go(tmp_path)
    run.path("stages", "second.json").write_text('{"stage": "sec')
    run.path("gates.json").write_text("[]")
    go(tmp_path)
    assert calls == ["first", "second", "second"]
    run.gate("wall time", 3.0, "<= 10 min", True)
    assert set(run.gates()) == {"wall time"}


def test_gates_of_a_stage_go_with_what_it_made(tmp_path):
    run = go(tmp_path)
    run.stage = "first"
    run.gate("loss", 1.0, "<= 2", True)
    go(tmp_path)
    assert set(run.gates()) == {"loss"}
    go(tmp_path, steps=4)
    assert not run.gates()


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

    with opened(Config(name="t", threads=2), tmp_path):
        assert torch.get_num_threads() == 1
        assert run_module.kernels._native.threads() == 2


def large_pages_given() -> bool:
    setting = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    return setting.exists() and "[never]" not in setting.read_text()


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries keep memory as they like")
def test_memory_freed_is_kept():
    """In a process of its own, whose memory no other test has left in pieces."""
    program = """
import resource, torch
from pyengine.train import machine

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        held = [torch.empty(n << 18).fill_(1.0) for n in (2, 6, 16, 2, 16, 24)]
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

before = faults()
machine.keep_memory()
faults()
print(before, faults())
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    before, after = map(int, done.stdout.split())
    assert after < before / 4


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries keep memory as they like")
@pytest.mark.skipif(not large_pages_given(), reason="this system gives no large pages on request")
def test_memory_kept_is_in_large_pages():
    """In a process of its own: 256 MB are handed out in some hundred pages, not in 65,536."""
    program = """
import resource, torch
from pyengine.train import machine

machine.keep_memory()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
torch.empty(1 << 26).fill_(1.0)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 1 << 14
