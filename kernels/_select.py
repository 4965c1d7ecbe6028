"""The one place that decides which backend runs an op.

A backend of an op exists exactly when its file `kernels/<op>/<backend>.py` exists. The choice is made once per
(op, device type) and cached: `with use_backend("triton")`, else the environment's PYENGINE_BACKEND, else the
device's order. On a GPU a backend is used only after one small launch of the op, forward and backward, on that
very card agreed with the reference; the launch happens in a subprocess with a time limit, since a kernel that
does not fit a card may hang or poison the process, and its result is cached per card, version and source.
What an op cannot do raises; nothing is caught and retried elsewhere.
"""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from types import ModuleType

import torch

from . import _native

ORDER = {"cpu": ("cpu", "reference"), "cuda": ("cuda", "triton", "reference")}
DEVICES = {"cpu": ("cpu",), "cuda": ("cuda",), "triton": ("cuda",), "reference": ("cpu", "cuda")}
HERE = Path(__file__).parent
PROBE_SECONDS = 120

_chosen: dict[tuple[str, str], tuple[ModuleType, str]] = {}
_forced: list[str] = []
epoch = 0  # moves when choices may have changed


def ops() -> list[str]:
    """The names of all ops: the folders that have a reference."""
    return sorted(path.parent.name for path in HERE.glob("*/reference.py"))


def backends(op: str) -> list[str]:
    """The backends of an op that exist as files."""
    return [name for name in DEVICES if (HERE / op / f"{name}.py").exists()]


def select(op: str, device: torch.device) -> ModuleType:
    """The backend module that runs `op` on `device`."""
    chosen = _chosen.get((op, device.type))
    if chosen is None:
        chosen = _chosen[op, device.type] = _decide(op, device)
    return chosen[0]


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Run every op inside the block on backend `name` ("reference", "cpu", "triton" or "cuda")."""
    if name not in DEVICES:
        raise ValueError(f"use_backend: expected one of {', '.join(DEVICES)}, got {name!r}")
    global epoch
    _forced.append(name)
    _chosen.clear()
    epoch += 1
    try:
        yield
    finally:
        _forced.pop()
        _chosen.clear()
        epoch += 1


def table(device: torch.device | str = "cpu") -> list[tuple[str, str, str]]:
    """(op, backend, why) for every op on `device`: what `python -m pyengine.info` prints."""
    device = torch.device(device)
    rows = []
    for op in ops():
        try:
            select(op, device)
            module, why = _chosen[op, device.type]
            rows.append((op, module.__name__.rsplit(".", 1)[-1], why))
        except NotImplementedError as error:
            rows.append((op, "-", str(error)))
    return rows


def _decide(op: str, device: torch.device) -> tuple[ModuleType, str]:
    wish = _forced[-1] if _forced else os.environ.get("PYENGINE_BACKEND")
    if wish:
        if wish not in DEVICES:
            raise ValueError(f"PYENGINE_BACKEND={wish!r}: expected one of {', '.join(DEVICES)}")
        emulated = {"triton": os.environ.get("TRITON_INTERPRET") == "1", "cuda": bool(_native.CUDA_SHIM)}
        if wish not in backends(op) or not (device.type in DEVICES[wish] or emulated.get(wish)):
            raise NotImplementedError(f"{op}: there is no {wish} backend for {device.type} tensors")
        return _load(op, wish), "asked for"
    refused = []
    for name in ORDER.get(device.type, ("reference",)):
        if name not in backends(op):
            continue
        if device.type == "cuda" and name != "reference" and (problem := _probe(op, name)):
            refused.append(f"{name}: {problem}")
            continue
        return _load(op, name), "; ".join(refused) or f"first of {device.type}'s order"
    raise NotImplementedError(f"{op}: no backend for {device.type} tensors ({'; '.join(refused)})")


def _load(op: str, backend: str) -> ModuleType:
    return import_module(f"{__package__}.{op}.{backend}")


def _probe(op: str, backend: str) -> str:
    """Empty if one small launch in a subprocess agreed with the reference, else what went wrong."""
    key = _probe_key(op, backend)
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "pyengine" / "probes.json"
    known = json.loads(cache.read_text()) if cache.exists() else {}
    if key not in known:
        command = [sys.executable, "-m", f"{__package__}._probe", op, backend]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=PROBE_SECONDS)
            lines = done.stderr.strip().splitlines()
            known[key] = "" if done.returncode == 0 else (lines[-1] if lines else f"exit {done.returncode}")
        except subprocess.TimeoutExpired:
            known[key] = f"no answer within {PROBE_SECONDS} s"
        cache.parent.mkdir(parents=True, exist_ok=True)
        temporary = cache.with_suffix(f".{os.getpid()}.part")
        temporary.write_text(json.dumps(known, indent=1))
        temporary.replace(cache)
    return known[key]


def _probe_key(op: str, backend: str) -> str:
    source = hashlib.sha256()
    for path in sorted((HERE / op).glob("*.py")) + sorted(HERE.glob("_cuda*")):
        source.update(path.read_bytes())
    card = torch.cuda.get_device_name() + str(torch.cuda.get_device_capability())
    return "|".join([op, backend, card, torch.__version__, sys.version.split()[0], source.hexdigest()[:16]])
