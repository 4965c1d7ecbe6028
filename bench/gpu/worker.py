"""Runs cases of the GPU suite, one after the other: `python -m bench.gpu.worker MODULE FIRST,SECOND,... [--dry-run]`.

Prints one JSON line when a case begins and one with its row when it ends, so that suite.py knows which case a
crash or a hang belongs to. A failing check or peer is a row that says so.
"""

import argparse
import gc
import json
import sys
import traceback
from dataclasses import replace
from importlib import import_module

import torch

from bench.gpu.case import Case, Place, Prepared
from bench.gpu.checkout import map_kernels
from bench.gpu.clock import Clock, DryClock, GpuClock
from bench.gpu.prediction import H100, Card
from bench.gpu.rows import failure, level


def ceilings(place: Place, clock: Clock) -> dict[str, float]:
    """Bytes/s of a large copy and flop/s of a large bf16 product, measured here and now."""
    source = torch.ones(place.size(3 << 28, 1 << 10), dtype=torch.int16, device=place.device)
    target = torch.empty_like(source)
    side = place.size(8192, 32)
    a, b = place.randn(side, side), place.randn(side, side)
    times = clock.seconds({"copy": lambda: target.copy_(source), "product": lambda: a @ b}, limit=3.0)
    moved = 2 * source.numel() * source.element_size()
    return {"copy": moved / times["copy"], "product": 2.0 * side**3 / times["product"]}


def row(case: Case, place: Place, clock: Clock, tops: dict[str, float]) -> dict:
    """Check, then time, one case."""
    prepared: Prepared = case.make(place)
    prepared.check()
    functions, failed = {"ours": prepared.ours}, {}
    for name, peer in prepared.peers.items():
        try:
            peer()
            functions[name] = peer
        except Exception as error:  # a peer that this machine lacks must not cost the row
            failed[name] = _sentence(error)
    memory = {name: _peak_memory(function, place) for name, function in functions.items()}
    times = clock.seconds(functions, cold=prepared.cold)
    seconds = times.pop("ours")
    ratios = {name: other / seconds for name, other in times.items()}
    card: Card = replace(H100, bandwidth=tops["copy"], products=tops["product"])
    ceiling = prepared.flops / tops["product"] if prepared.flops else prepared.work.bytes / tops["copy"]
    reached = ratios.get(case.versus) if case.versus else ceiling / seconds
    bound, engine = prepared.work.bound(card)
    return {
        "what": case.title, "area": case.area, "ours": seconds,
        "peer": times.get(case.versus), "peer_name": case.versus, "ratio": ratios.get(case.versus),
        "ratios": ratios, "peers_failed": failed, "ceiling": ceiling, "percent": 100 * ceiling / seconds,
        "bound": bound, "bound_by": engine, "predicted_h100": prepared.work.predicted(H100),
        "memory": memory, "goals": case.goals, "level": "dry run" if place.dry else level(case, reached), "equal": True,
        "goal": case.goals[0], "holds": not place.dry and reached is not None and reached >= case.goals[0], "error": "",
    }  # fmt: skip


def _sentence(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"[:300]


def _peak_memory(function, place: Place) -> int:
    """Bytes that one call needs beyond what is there before it."""
    if place.dry:
        return 0
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    function()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def say(**line) -> None:
    print(json.dumps(line), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("module")
    parser.add_argument("indices", help="which of its CASES")
    parser.add_argument("--dry-run", action="store_true")
    arguments = parser.parse_args()
    map_kernels()
    from pyengine.kernels import use_backend

    cases: list[Case] = import_module(arguments.module).CASES
    place = Place("cpu" if arguments.dry_run else "cuda", arguments.dry_run)
    torch.manual_seed(0)
    torch.set_float32_matmul_precision("highest")
    clock: Clock = DryClock() if arguments.dry_run else GpuClock()
    tops = ceilings(place, clock)
    say(ceilings=tops)
    for index in map(int, arguments.indices.split(",")):
        say(begin=index)
        try:
            with use_backend(cases[index].backend):
                say(
                    row=row(cases[index], replace(place, backend=cases[index].backend), clock, tops),
                    index=index,
                )
        except Exception as error:
            traceback.print_exc(file=sys.stderr)
            say(row=failure(cases[index], _sentence(error)), index=index)
            if "CUDA error" in str(error) or "illegal memory access" in str(error):
                sys.exit(1)  # the context is lost: a new process goes on
        gc.collect()
        if not place.dry:
            torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
