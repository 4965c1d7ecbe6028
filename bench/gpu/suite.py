"""The GPU suite's own process: starts workers, keeps time, collects rows, writes JSON and a page. See the package.

Never touches the GPU itself, so a kernel that takes the device down takes a worker with it and no more.
"""

import argparse
import html
import json
import os
import platform
import queue
import subprocess
import sys
import threading
import time
from functools import cache
from importlib import import_module
from importlib.metadata import version

from bench.gpu.case import Case
from bench.gpu.checkout import ROOT, build, map_kernels
from bench.gpu.prediction import H100
from bench.gpu.rows import failure, text
from pyengine.files import atomic_write, write_json

STARTUP = 90.0  # seconds a worker may take before its first line
SLACK = 45.0  # and a case beyond what it is expected to cost
DRY_SLACK = 300.0  # on a processor that may be busy with other work


def choose(cases: list[Case], names: list[str], quick: bool) -> list[int]:
    """Cases whose area or name holds one of the names; all without any."""
    found = [
        index
        for index, case in enumerate(cases)
        if (not quick or "quick" in case.tags) and (not names or any(n in case.title for n in names))
    ]
    if not found:
        known = ", ".join(sorted({case.area for case in cases}))
        raise SystemExit(f"no case is named {' or '.join(map(repr, names))}; areas are {known}")
    return found


def run(module: str, wanted: list[int], seconds: float, dry: bool) -> tuple[list[dict], dict]:
    """Rows of the wanted cases, in order, and the ceilings; a case that no worker survives has a row that says so."""
    cases: list[Case] = import_module(module).CASES
    end = time.monotonic() + seconds
    rows: dict[int, dict] = {}
    tops: dict = {}
    left = list(wanted)
    while left and time.monotonic() < end:
        worker = _Worker(module, left, dry)
        current: int | None = None
        before, limit = len(left), STARTUP
        while True:
            line = worker.line(min(limit, end - time.monotonic()))
            if line is None:
                break
            tops = line.get("ceilings", tops)
            if "begin" in line:
                current = line["begin"]
                limit = cases[current].seconds + (DRY_SLACK if dry else SLACK)
            if "row" in line:
                rows[line["index"]] = line["row"]
                left.remove(line["index"])
                current = None
                print(text(line["row"]), flush=True)
        why = worker.stop()
        if time.monotonic() >= end:
            break
        if current is not None:
            rows[current] = failure(cases[current], why)
            left.remove(current)
            print(text(rows[current]), flush=True)
        elif len(left) == before:  # it did not come to the first case, and the next would not either
            rows |= {index: failure(cases[index], why) for index in left}
            break
    late = "not reached within the time given"
    rows = {index: failure(cases[index], late) for index in wanted} | rows
    return [rows[index] for index in wanted], tops


@cache
def _shim() -> str:
    """The CUDA kernels compiled for the CPU."""
    command = [sys.executable, "-m", "tests.cuda_shim", "build/shim"]
    return subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True).stdout.strip()


class _Worker:
    """A worker process whose lines are read with a time limit."""

    def __init__(self, module: str, indices: list[int], dry: bool):
        command = [sys.executable, "-m", "bench.gpu.worker", module, ",".join(map(str, indices))]
        environment = dict(os.environ)
        if dry:
            command.append("--dry-run")
            # both must be there before the kernels are imported
            environment |= {"TRITON_INTERPRET": "1", "PYENGINE_CUDA_SHIM": _shim()}
        self._process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        self._lines: queue.Queue[str | None] = queue.Queue()
        self._errors: list[str] = []
        for read in (self._read, self._read_errors):
            threading.Thread(target=read, daemon=True).start()
        self._hung = False

    def _read(self) -> None:
        for line in self._process.stdout or ():
            self._lines.put(line)
        self._lines.put(None)

    def _read_errors(self) -> None:
        for line in self._process.stderr or ():
            self._errors = [*self._errors[-40:], line.rstrip()]

    def line(self, limit: float) -> dict | None:
        """The next message, or None at the end, or when none came in time."""
        end = time.monotonic() + max(limit, 0.0)
        while True:
            try:
                text = self._lines.get(timeout=max(end - time.monotonic(), 0.01))
            except queue.Empty:
                self._hung = True
                return None
            if text is None:
                return None
            if text.startswith("{"):
                return json.loads(text)

    def stop(self) -> str:
        """End the process; why it gave no more."""
        if self._hung:
            self._process.kill()
        code = self._process.wait()
        for line in self._errors:
            print(f"    {line}", file=sys.stderr)
        said = next((line for line in reversed(self._errors) if line.strip()), "")
        return "no answer in time" if self._hung else f"the worker ended with {code}: {said}"[:300]


def machine(dry: bool) -> dict:
    """What the rows were made on; the GPU is asked through nvidia-smi, not through a context of ours."""
    import torch

    found = {
        "python": platform.python_version(), "torch": torch.__version__, "cuda": torch.version.cuda,
        "dry_run": dry,
    }  # fmt: skip
    for name in ("triton", "numpy"):
        found[name] = version(name)
    query = "--query-gpu=name,driver_version,clocks.max.sm,power.limit,memory.total"
    try:
        done = subprocess.run(["nvidia-smi", query, "--format=csv,noheader"], capture_output=True, text=True)
        found["gpu"] = done.stdout.strip()
    except OSError:
        found["gpu"] = ""
    return found


def page(rows: list[dict], tops: dict, about: dict) -> str:
    """One self-contained page: what was measured, beside what was predicted before."""
    cells = []
    for row in rows:
        failed = "".join(f"<br>{html.escape(n)}: {html.escape(e)}" for n, e in row["peers_failed"].items())
        peers = "<br>".join(f"{ratio:.2f}x {html.escape(name)}" for name, ratio in row["ratios"].items())
        numbers = (
            f"<td>{row['ours'] * 1e6:,.1f}</td><td>{row['predicted_h100'] * 1e6:,.1f}</td>"
            f"<td>{row['percent']:.0f} %</td><td>{html.escape(row['bound_by'])}</td><td>{peers}{failed}</td>"
            if row["ours"] is not None
            else f'<td colspan="5">{html.escape(row["error"])}</td>'
        )
        cells.append(
            f"<tr class={row['level'].split()[0]}><td>{html.escape(row['what'])}</td>{numbers}"
            f"<td>{row['level']}</td></tr>"
        )
    facts = "".join(f"<li>{html.escape(k)}: {html.escape(str(v))}</li>" for k, v in about.items())
    facts += "".join(f"<li>ceiling, {html.escape(k)}: {v:.4g} a second</li>" for k, v in tops.items())
    dry = (
        "<p><b>A dry run: no GPU, no times. Every clock reading is one second.</b></p>"
        if about["dry_run"]
        else ""
    )
    return f"""<!doctype html><html lang="en"><meta charset="utf-8"><title>pyengine: GPU suite</title>
<style>body{{font:15px system-ui;margin:2em auto;max-width:75em;padding:0 1em}}table{{border-collapse:collapse}}
td,th{{padding:.3em .7em;border-bottom:1px solid #ddd;text-align:left;vertical-align:top}}
.failed,.below{{background:#fdecea}}.good,.moonshot{{background:#eaf7ea}}</style>
<h1>GPU suite</h1>{dry}<ul>{facts}</ul>
<p>Times in microseconds, medians, ours and peers in turns in one process. The prediction is for an
{html.escape(H100.name)} and was computed from bytes, flops and exponentials before anything ran; it is no
measurement. A ratio is the peer's time over ours.</p>
<table><tr><th>what<th>measured<th>predicted<th>of ceiling<th>bound by<th>over the peer<th>level</tr>
{chr(10).join(cells)}</table></html>
"""


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench gpu", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help="areas or parts of a case's name; all if none"
    )
    parser.add_argument("--seconds", type=float, default=530, help="for all of it, building included")
    parser.add_argument("--quick", action="store_true", help="one case of each kind")
    parser.add_argument("--json", help="write machine, ceilings and rows to this file")
    parser.add_argument("--page", help="write the page to this file")
    parser.add_argument(
        "--dry-run", action="store_true", help="without a GPU: all but the clock, on small tensors"
    )
    parser.add_argument("--cases", default="bench.gpu.cases", help=argparse.SUPPRESS)
    chosen = parser.parse_args(arguments)
    end = time.monotonic() + chosen.seconds
    build()
    map_kernels()
    wanted = choose(import_module(chosen.cases).CASES, chosen.names, chosen.quick)
    rows, tops = run(chosen.cases, wanted, end - time.monotonic(), chosen.dry_run)
    about = machine(chosen.dry_run)
    if chosen.json:
        write_json(chosen.json, {"machine": about, "ceilings": tops, "rows": rows})
    if chosen.page:
        with atomic_write(chosen.page) as file:
            file.write(page(rows, tops, about))
    failed = [row for row in rows if row["error"]]
    print(
        f"{len(rows)} cases, {len(failed)} without numbers, {sum(row['holds'] for row in rows)} at or above the floor"
    )
    return 1 if failed else 0
