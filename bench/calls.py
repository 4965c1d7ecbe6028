"""Where a training step goes: each kernel call of a recorded step by itself, beside what its arithmetic needs.

    python -m bench.calls 5.8M --dtype bfloat16

A call runs after the one before it, as in the step, so it meets the caches that it meets there. On one thread
processor's time is measured, which other work on the machine disturbs little; on several the clock. Percentages are of
the multiply-adds that registers alone allow (bench/ceiling.py), for the calls that are matrix products.
"""

import argparse
import statistics
import time
from typing import NamedTuple

import torch
from pyengine.kernels import _native, set_threads

from bench import ceiling
from bench.bench_train import SETTINGS, SHAPES, Ours, batch
from pyengine.model import ModelConfig, Transformer
from pyengine.train.machine import keep_memory


class Row(NamedTuple):
    """Calls of one kernel and one size."""

    name: str
    size: tuple[int, ...]  # (rows, N, K) of a product
    count: int
    seconds: float  # of all of them: the sum of their medians
    flops: int  # of the products in them


def measure(
    config: ModelConfig, rows: int, length: int, several: bool, dtype: torch.dtype, threads: int, repeats: int
) -> tuple[float, list[Row]]:
    """(seconds of a whole step with its update, its calls) of a model on rows x length tokens; medians of `repeats`."""
    clock = time.process_time if threads == 1 else time.perf_counter
    data, _ = batch(config, rows, length, several)
    ours = Ours(Transformer(config, seed=1, dtype=dtype), SETTINGS, threads)
    for _ in range(3):  # the first is computed call by call, the second is recorded
        ours.step(data, 1.0)

    def timed(function) -> float:
        start = clock()
        function()
        return clock() - start

    whole = statistics.median(timed(lambda: ours.step(data, 1.0)) for _ in range(repeats))
    (step,) = ours.worker.captured.steps()
    calls = list(step.calls())
    taken = list(zip(*([timed(call.run) for call in calls] for _ in range(repeats)), strict=True))
    found: dict[tuple[str, tuple[int, ...]], Row] = {}
    for call, times in zip(calls, taken, strict=True):
        size, flops = product(call.name, call.arguments)
        before = found.get((call.name, size), Row(call.name, size, 0, 0.0, 0))
        found[call.name, size] = before._replace(
            count=before.count + 1,
            seconds=before.seconds + statistics.median(times),
            flops=before.flops + flops,
        )
    return whole, list(found.values())


def product(name: str, arguments: tuple[int, ...]) -> tuple[tuple[int, ...], int]:
    """(rows, N, K) of a call that is a matrix product or two, and its multiply-adds twice; ((), 0) of any other."""
    operation = name.rsplit("_", 1)[0]
    if operation == "linear_forward":
        size, products = arguments[6:9], 1
    elif operation == "linear_backward":
        size, products = arguments[6:9], sum(address != 0 for address in arguments[3:5])  # dx, dweight
    elif operation == "cross_entropy_forward":
        (m, k, n), products = arguments[6:9], 1
        size = m, n, k
    elif operation == "cross_entropy_backward":
        (m, k, n), products = arguments[9:12], 2 if arguments[5] else 3  # logits kept, or computed again
        size = m, n, k
    else:
        return (), 0
    m, n, k = size
    return size, 2 * products * m * n * k


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.calls", description=__doc__.split("\n\n")[0])
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="bfloat16")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=7)
    arguments = parser.parse_args()
    dtype = getattr(torch, arguments.dtype)
    keep_memory()
    set_threads(arguments.threads)
    ceiling.clock = time.process_time if arguments.threads == 1 else time.perf_counter
    peak = ceiling.flops(dtype)
    whole, rows = measure(*SHAPES[arguments.shape], dtype, arguments.threads, arguments.repeats)
    total, flops = sum(row.seconds for row in rows), sum(row.flops for row in rows)
    print(
        f"{arguments.shape} {arguments.dtype}, {_native.isa}, {arguments.threads} threads: {1e3 * whole:.1f} ms a step"
    )
    for row in sorted(rows, key=lambda row: -row.seconds):
        share = f"{row.flops / row.seconds / peak:5.0%} of the peak" if row.flops else ""
        size = " x ".join(map(str, row.size))
        print(
            f"{row.name:32} {size:18} x {row.count:<3} {1e3 * row.seconds:8.2f} ms {row.seconds / total:6.1%}  {share}"
        )
    print(
        f"all calls {1e3 * total:.1f} ms; products at {peak / 1e9:.0f} Gflop/s would be {1e3 * flops / peak:.1f} ms"
    )


if __name__ == "__main__":
    main()
