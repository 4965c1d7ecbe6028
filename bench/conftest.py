"""The `paired` fixture: ours and a peer, timed in turns in one run, equality first.

    def test_rmsnorm(paired):
        paired("rmsnorm 2048 x 256 f32", ours=lambda: ..., peer=lambda: ..., peer_name="torch",
               equal=lambda: ..., bytes=2 * x.numel() * 4, goal=1.2)

It rests on pytest-benchmark (whose --benchmark-json holds every round of ours): the peer runs and is timed in
each round's setup, so that a busy moment of the machine meets both. Short calls are repeated to about a
millisecond a round. A row says {what, ours, peer, peer_name, ratio, ceiling, percent, equal, goal, holds};
times in seconds, ratio = peer / ours from medians, percent of the ceiling for the bytes or flops given; for
reads=(bytes, times) of a plain read of so many, so often.

With --quick a row has fewer rounds, as many as fit into some seconds: two at least where a call takes longer than that.

On a machine that other work shares, --cpu measures the processor's time of one thread in place of the clock's. Where
the work is another process's, `clocks` are two functions that tell ours' and the peer's time.
"""

import json
import os
import signal
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from pyengine.kernels import set_threads

from bench import ceiling

ROWS: list[dict] = []
QUICK_SECONDS = 3.0  # of a row's rounds under --quick
LONG = 0.2  # seconds of a peer's call that is as fast without one before it
SPIN = 0.02  # seconds that a side's threads may spin on after their work, on the cores that the other needs
WARM = 0.01  # seconds after which cores, caches and threads are awake again


def pytest_addoption(parser):
    parser.addoption("--quick", action="store_true", help="fewer rounds: a named subset within a minute")
    parser.addoption("--rows", help="write the rows to this JSON file")
    parser.addoption("--cpu", action="store_true", help="processor time of one thread")
    parser.addoption("--processes", type=int, default=0, help="so many processes against one")
    parser.addoption("--compile", action="store_true", help="peers of whole models go through torch.compile")


def pytest_configure(config):
    if config.getoption("--cpu"):
        ceiling.clock = time.process_time
        torch.set_num_threads(1)
        set_threads(1)


@pytest.fixture
def quick(request) -> bool:
    return request.config.getoption("--quick")


@pytest.fixture
def compiled(request, tmp_path_factory, monkeypatch) -> bool:
    """Whether peers go through torch.compile, which then keeps what it makes in a folder of this run."""
    asked = request.config.getoption("--compile")
    if asked:
        monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path_factory.getbasetemp() / "inductor"))
    return asked


@contextmanager
def at_most(seconds: int, what: str) -> Iterator[None]:
    """Skips the test if the block takes longer by the clock."""
    late = False

    def stop(*_):
        nonlocal late
        late = True
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    except Exception:  # torch wraps what interrupts its compiler
        if not late:
            raise
        pytest.skip(f"{what} did not end within {seconds} s")
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.fixture
def paired(benchmark, quick):
    def run(what, ours, peer=None, peer_name="", *, equal, bytes=0, flops=0, dtype=None, working_set=None,
            reads=(0, 0), goal=None, rounds=30, clocks=None):  # fmt: skip
        our_clock, peer_clock = clocks or (ceiling.clock, ceiling.clock)
        same = bool(equal())
        repeats, our_seconds = _repeats(ours, 2)
        peer_repeats, peer_seconds = _repeats(peer, 1) if peer else (0, 0.0)
        times, peer_times = [], []

        def time_peer():
            """The peer's turn; then ours is made ready for its own."""
            if peer:
                if peer_seconds < LONG:
                    _ready(peer)
                start = peer_clock()
                for _ in range(peer_repeats):
                    peer()
                peer_times.append((peer_clock() - start) / peer_repeats)
                _ready(ours)

        def repeated():
            start = our_clock()
            for _ in range(repeats):
                ours()
            times.append((our_clock() - start) / repeats)

        warmups = 2
        if quick:
            long = max(our_seconds, peer_seconds) >= LONG
            fit = int(QUICK_SECONDS / (repeats * our_seconds + peer_repeats * peer_seconds))
            rounds, warmups = (max(2, min(5, fit)), 0) if long else (max(5, rounds // 5), 2)
        benchmark.pedantic(repeated, setup=time_peer, rounds=rounds, warmup_rounds=warmups)
        seconds = statistics.median(times[-rounds:])
        peer_median = statistics.median(peer_times) if peer_times else None
        top = None
        if bytes:
            top = bytes / ceiling.copy_bandwidth(_cache_size(working_set or bytes))
        if reads[0]:
            top = reads[0] * reads[1] / ceiling.read_bandwidth(reads[0])
        if flops:
            top = flops / (ceiling.flops(dtype) if dtype else ceiling.flops())
        ratio = peer_median / seconds if peer_median else None
        row = {
            "what": what, "ours": seconds, "peer": peer_median, "peer_name": peer_name, "ratio": ratio,
            "ceiling": top, "percent": 100 * top / seconds if top else None, "equal": same, "goal": goal,
            "holds": same and (goal is None or (ratio is not None and ratio >= goal)),
        }  # fmt: skip
        ROWS.append(row)
        benchmark.extra_info.update(row)
        assert same, f"{what}: results differ from {peer_name or 'the reference'}"
        return row

    return run


def _ready(function) -> None:
    """Calls one side until it is warm, once the other's threads are asleep."""
    time.sleep(SPIN)
    end = time.perf_counter() + WARM
    function()
    while time.perf_counter() < end:
        function()


def _repeats(function, least: int) -> tuple[int, float]:
    """(calls that take about a millisecond, seconds of one): by a second call, or by the first if `least` is 1 and it
    is long."""
    for call in range(1, 3):
        start = time.perf_counter()
        function()
        seconds = max(time.perf_counter() - start, 1e-7)
        if call >= least and seconds >= LONG:
            break
    return max(1, min(1000, round(1e-3 / seconds))), seconds


def _cache_size(bytes: int) -> int:
    """The power of two at or below, between 1 MiB and 128 MiB: one ceiling for each level of the caches."""
    return 1 << max(20, min(27, bytes.bit_length() - 1))


def pytest_sessionfinish(session):
    if not ROWS:
        return
    print()
    for row in ROWS:
        ratio = f"{row['ratio']:6.2f}x {row['peer_name']}" if row["ratio"] else ""
        percent = f"{row['percent']:4.0f} % of ceiling" if row["percent"] else ""
        goal = f"(goal {row['goal']}x: {'holds' if row['holds'] else 'MISSED'})" if row["goal"] else ""
        print(f"{row['what']:44s} {row['ours'] * 1e6:10.1f} us  {percent:18s} {ratio} {goal}")
    if path := session.config.getoption("--rows"):
        temporary = f"{path}.part"
        with open(temporary, "w", encoding="utf-8") as file:
            json.dump(ROWS, file, indent=1)
        os.replace(temporary, path)
