"""The machine's ceilings, measured here and now: what benches give percentages of.

All threads at once, the best of several short runs (a ceiling is what the machine can do, not what it does on
average). On a GPU: a copy kernel and a large bf16 matrix product.
"""

import time
from functools import cache

import torch
from pyengine.kernels import _native
from pyengine.kernels._memory import large_empty

clock = time.perf_counter  # of all benches; time.process_time under --cpu


def best(function, runs: int = 7) -> float:
    """The highest rate, in units of what `function` returns per second."""
    function()
    rates = []
    for _ in range(runs):
        start = clock()
        work = function()
        rates.append(work / (clock() - start))
    return max(rates)


@cache
def flops(dtype: torch.dtype = torch.float32) -> float:
    """Multiply-adds in registers, flop/s: float32, or bfloat16 pairs where the hardware has them."""
    name = "ceiling_fma_f32" if dtype is torch.float32 else "ceiling_dot_bf16"
    return best(lambda: getattr(_native.cpu, name)(1_000_000, _native.threads()))


@cache
def read_bandwidth(size: int = 1 << 28) -> float:
    """Reading `size` bytes again and again, bytes/s: memory above the caches' size, a cache below it."""
    data = large_empty([size // 4], torch.float32).fill_(1)  # in large pages, as weights are
    repeat = max(1, (1 << 26) // size)

    def read():
        return sum(
            _native.cpu.ceiling_read(data.data_ptr(), data.numel(), _native.threads()) for _ in range(repeat)
        )

    return best(read)


@cache
def copy_bandwidth(size: int = 1 << 27) -> float:
    """Copying `size` bytes again and again, bytes read plus written a second."""
    source, target = torch.ones(size // 4), torch.ones(size // 4)
    repeat = max(1, (1 << 25) // size)

    def copy():
        arguments = source.data_ptr(), target.data_ptr(), source.numel(), _native.threads()
        return sum(_native.cpu.ceiling_copy(*arguments) for _ in range(repeat))

    return best(copy)


def show() -> None:
    """Print them all."""
    print(f"{_native.isa}, {_native.threads()} threads")
    print(f"f32 multiply-add  {flops() / 1e9:7.0f} Gflop/s")
    print(f"bf16 dot          {flops(torch.bfloat16) / 1e9:7.0f} Gflop/s")
    for name, size in (("memory", 1 << 28), ("16 MiB", 1 << 24), ("1 MiB", 1 << 20)):
        print(f"read {name:8s}     {read_bandwidth(size) / 1e9:7.1f} GB/s")
        print(f"copy {name:8s}     {copy_bandwidth(size) / 1e9:7.1f} GB/s")


if __name__ == "__main__":
    show()
