"""Worker processes: one bad item costs itself and nothing else."""

import ctypes
import os
import pickle
import signal
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from pyengine.sandbox import Sandbox

HERE = __name__


def work(item, options):
    """What the workers of these tests do."""
    kind, value = item
    if kind == "raise":
        raise ValueError(f"cannot take {value}")
    if kind == "spin":
        while True:
            pass
    if kind == "crash":
        ctypes.string_at(0)
    if kind == "exit":
        os._exit(3)
    if kind == "eat":
        return len(bytearray(8 << 30))
    if kind == "set":
        return {value}
    if kind == "forge":  # what a page that has taken over its worker could send
        Connection(os.dup(int(sys.argv[1]))).send_bytes(value)
        time.sleep(60)
    if kind == "large":
        return "x" * value
    return value * options


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.getcwd())


def test_a_parent_that_stops_early_leaves_no_traceback(capfd):
    with Sandbox(1, workers=2) as box:
        for _ in zip(range(2), box.map(f"{HERE}:work", [("large", 1 << 20)] * 20), strict=False):
            pass
    assert capfd.readouterr().err == ""


def test_results_come_in_order():
    with Sandbox(3, workers=3) as box:
        items = [("ok", i) for i in range(300)]
        assert [out.value for out in box.map(f"{HERE}:work", iter(items))] == [3 * i for i in range(300)]
        assert [out.value for out in box.map(f"{HERE}:work", items[:2])] == [0, 3]
        assert list(box.map(f"{HERE}:work", [])) == []


def test_bad_items_are_lost_alone_and_with_a_reason():
    kinds = ["ok", "raise", "spin", "crash", "exit", "eat"]
    items = [(kinds[i % 6], i) for i in range(12)]
    with Sandbox(1, workers=2, cpu_seconds=0.3) as box:
        outcomes = list(box.map(f"{HERE}:work", items))
    reasons = {"raise": "cannot take", "spin": "took more than 0.3 s", "crash": "SIGSEGV",
    "exit": "ended with 3",
               "eat": "MemoryError"}  # fmt: skip
    for (kind, value), out in zip(items, outcomes, strict=True):
        if kind == "ok":
            assert (out.value, out.reason) == (value, "")
        else:
            assert out.value is None and reasons[kind] in out.reason


def test_large_items_and_results_do_not_block():
    items = [("large", 3_000_000), ("ok", "y" * 3_000_000)] * 10
    with Sandbox(1, workers=2) as box:
        sizes = [len(out.value) for out in box.map(f"{HERE}:work", items)]
    assert sizes == [3_000_000] * 20


class Trap:
    """Unpickling one makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_what_a_worker_says_is_only_read_never_run(tmp_path):
    trap = tmp_path / "sprung"
    forged = [pickle.dumps((Trap(trap), "")), b"[1, 2]", b"[1]", b"7", b"\xff", b"[" * 100_000]
    with Sandbox(1, workers=1) as box:
        outcomes = list(box.map(f"{HERE}:work", [*(("forge", f) for f in forged), ("set", 1), ("ok", 5)]))
    assert not trap.exists()
    assert all(out.value is None and "cannot be read" in out.reason for out in outcomes[:-2])
    assert "not JSON serializable" in outcomes[-2].reason
    assert outcomes[-1].value == 5


def test_workers_end_with_the_caller():
    with Sandbox(1) as box:
        list(box.map(f"{HERE}:work", [("ok", 1)]))
        processes = [worker.process for worker in box.workers]
        processes[0].send_signal(signal.SIGKILL)
        assert [out.value for out in box.map(f"{HERE}:work", [("ok", 1)] * 5)].count(1) >= 4
    time.sleep(0)
    assert all(worker.process.poll() is not None for worker in box.workers)
