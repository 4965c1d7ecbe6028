"""Times functions in turns on the GPU's own clock, and the clock of the dry run, which always says one second."""

import statistics
from collections.abc import Callable
from typing import Protocol

import torch

WARM_UPS = 25
ROUNDS = 7
TURN = 4e-3  # seconds of work between two readings of the clock
FLUSH = 256 << 20  # bytes written so that nothing of the call before is left in the L2 cache


class Clock(Protocol):
    """Something that times functions."""

    def seconds(
        self, functions: dict[str, Callable[[], object]], cold: bool = False, limit: float = 6.0
    ) -> dict[str, float]:
        """Median seconds of one call of each; cold: the L2 cache is flushed before each call."""
        ...


class GpuClock:
    """CUDA events around repeated calls; every round times all functions, in alternating order (A B B A)."""

    def __init__(self) -> None:
        self._flush = torch.empty(FLUSH // 4, dtype=torch.int32, device="cuda")

    def seconds(
        self, functions: dict[str, Callable[[], object]], cold: bool = False, limit: float = 6.0
    ) -> dict[str, float]:
        repeats = {name: self._warm(function) for name, function in functions.items()}
        names, readings = list(functions), {name: [] for name in functions}
        spent, rounds = 0.0, 0
        while rounds < ROUNDS and (rounds < 3 or spent < limit):
            for name in names:
                times = self._cold(functions[name]) if cold else [self._turn(functions[name], repeats[name])]
                readings[name] += times
                spent += sum(times) * (1 if cold else repeats[name])
            names.reverse()
            rounds += 1
        return {name: statistics.median(times) for name, times in readings.items()}

    def _warm(self, function) -> int:
        """Calls until the clocks have settled; returns how many calls fill a turn."""
        function()  # compiles
        once = self._turn(function, 1)
        calls = max(3, min(WARM_UPS, int(1.0 / max(once, 1e-6))))
        return max(1, min(200, round(TURN / max(self._turn(function, calls), 1e-7))))

    def _turn(self, function, repeats: int) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(repeats):
            function()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) * 1e-3 / repeats

    def _cold(self, function, calls: int = 5) -> list[float]:
        times = []
        for _ in range(calls):
            self._flush.zero_()
            times.append(self._turn(function, 1))
        return times


class DryClock:
    """Calls each function once and says that it took a second."""

    def seconds(
        self, functions: dict[str, Callable[[], object]], cold: bool = False, limit: float = 6.0
    ) -> dict[str, float]:
        for function in functions.values():
            function()
        return dict.fromkeys(functions, 1.0)
