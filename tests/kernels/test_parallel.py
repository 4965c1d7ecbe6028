"""The pool of threads: same results however many share it or fight for it, and it sleeps when nothing is asked."""

import os
import resource
import subprocess
import time
from pathlib import Path
from threading import Thread

import pytest
import torch
from pyengine.kernels import _native, linear, pack_weight, rmsnorm, set_threads
from pyengine.kernels._capture import capture


def test_steps_and_loops_of_many_python_threads_at_once():
    """A captured step holds the pool; whoever comes meanwhile works alone. More threads than cores."""
    torch.manual_seed(0)
    x, weight = torch.randn(64, 256), torch.randn(512, 256)
    packed, norm = pack_weight(weight), torch.ones(512)
    set_threads(5)
    try:
        truth = rmsnorm(linear(x, packed), norm)
        steps = []
        for _ in range(3):
            with capture() as step:
                y = rmsnorm(linear(x, packed), norm)
            steps.append((step, y))
        wrong: list[str] = []

        def replay(step, y):
            for _ in range(200):
                y.zero_()
                step.replay()
                if not torch.equal(y, truth):
                    wrong.append("step")

        def call():
            for _ in range(200):
                if not torch.equal(rmsnorm(linear(x, weight), norm), truth):
                    wrong.append("call")

        workers = [Thread(target=replay, args=pair) for pair in steps] + [
            Thread(target=call) for _ in range(3)
        ]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        assert not wrong
    finally:
        set_threads(None)


def test_shares_of_many_tasks_and_of_fewer_than_threads():
    """Each task is done, by whomever."""
    torch.manual_seed(0)
    x, norm = torch.randn(1_100_000, 1), torch.ones(1)  # 16 rows a task
    few = torch.randn(40, 8)
    set_threads(1)
    try:
        truth = rmsnorm(x, norm), rmsnorm(few, norm.expand(8))
        for threads in (2, 3, 7):
            set_threads(threads)
            for _ in range(3):
                assert torch.equal(rmsnorm(x, norm), truth[0])
                assert torch.equal(rmsnorm(few, norm.expand(8)), truth[1])
    finally:
        set_threads(None)


def test_workers_sleep_when_nothing_is_asked():
    x, packed = torch.randn(64, 256), pack_weight(torch.randn(512, 256))
    set_threads(3)
    try:
        with capture() as step:
            linear(x, packed)
        step.replay()
        time.sleep(0.2)

        def used() -> float:
            usage = resource.getrusage(resource.RUSAGE_SELF)
            return usage.ru_utime + usage.ru_stime

        before = used()
        time.sleep(0.5)
        assert used() - before < 0.1
        step.replay()  # and are there again
    finally:
        set_threads(None)


@pytest.mark.parametrize("sanitizer, late", [(None, False), ("thread", False), ("address", True)])
def test_teams(sanitizer, late, tmp_path):
    """Loops of all members, late ones, errors, callers at once, sleepers; and in a forked child, where no sanitizer
    follows. Late: workers lose their core between seeing that there is a task and claiming it."""
    csrc = Path(__file__).parents[2] / "csrc" / "cpu"
    pool, claim = (csrc / "parallel.cpp").read_text(), "if (asked()) work();"
    assert claim in pool
    nap = "if (rand() % 8 == 0) std::this_thread::sleep_for(std::chrono::microseconds(rand() % 300));"
    sources = [Path(__file__).parent / "team.cpp", tmp_path / "parallel.cpp"]
    sources[1].write_text(
        "#include <chrono>\n#include <cstdlib>\n"
        + pool.replace(claim, f"if (asked()) {{ {nap} work(); }}" if late else claim)
    )
    flags = ["-std=c++17", "-O1", "-g", "-pthread", f"-I{csrc}"]
    flags += [f"-fsanitize={sanitizer}"] if sanitizer else []
    compiler = os.environ.get("CXX", "g++").split()
    subprocess.run([*compiler, *flags, *map(str, sources), "-o", str(tmp_path / "team")], check=True)
    arguments = [] if sanitizer else ["fork"]
    found = subprocess.run([tmp_path / "team", *arguments], capture_output=True, text=True, timeout=120)
    assert found.returncode == 0, found.stdout + found.stderr


def test_rows_may_lie_apart():
    matrix = torch.arange(24.0).view(4, 6)
    assert _native.rows(matrix[:, 2:4], torch.float32) == (matrix.data_ptr() + 8, 6)
    assert _native.has_rows(matrix) and _native.has_rows(matrix[:1].t()[:1])
    assert not _native.has_rows(matrix.t()) and not _native.has_rows(matrix[:1].expand(4, 6))
