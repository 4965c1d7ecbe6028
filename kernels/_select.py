"""The one place that decides which backend runs an op.

A backend of an op exists exactly when its file `kernels/<op>/<backend>.py` exists. The choice is made once for each op
and device, and kept. What decides is, in this order: `with use_backend("triton")`; the environment variable
PYENGINE_BACKEND; the first backend in ORDER for the device's type that exists and works.

On a GPU, a backend works if a probe says so: small launches of all of the op's functions, forward and backward, on that
very card, whose results agree with the reference. The launches happen in a subprocess with a time limit, since a kernel
that does not fit a card may hang or poison the process. The verdict is kept in a file, for this card, these versions
and this source.

Backends in ON_REQUEST have never run on a card, so they are in no order. Where one is asked for by name, the ops that
have it use it (on a card after a probe), and the others use what they use anyway.

What an op cannot do raises; nothing is caught and tried again elsewhere.
"""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType

import torch

from . import _native

ORDER = {"cpu": ("cpu", "reference"), "cuda": ("cuda", "triton", "reference")}
DEVICES = {
    "cpu": ("cpu",),
    "cuda": ("cuda",),
    "triton": ("cuda",),
    "hopper": ("cuda",),
    "reference": ("cpu", "cuda"),
}
ON_REQUEST = ("hopper",)  # used only where asked for by name
HERE = Path(__file__).parent
PROBE_SECONDS = 120
DISAGREES = 3  # how a probe exits whose results are not the reference's

_chosen: dict[tuple[str, torch.device], tuple[ModuleType, str]] = {}
_unfinished: dict[str, str] = {}  # probes of this process that came to no verdict
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
    return (_chosen.get((op, device)) or _choose(op, device))[0]


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Run every op inside the block on backend `name` ("reference", "cpu", "triton" or "cuda").

    "hopper" means the ops that have it; the others run on what they run on anyway.
    """
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
            module, why = _choose(op, device)
            rows.append((op, module.__name__.rsplit(".", 1)[-1], why))
        except NotImplementedError as error:
            rows.append((op, "-", str(error)))
    return rows


def _choose(op: str, device: torch.device) -> tuple[ModuleType, str]:
    """(backend module, why) for `op` on `device`; cards of one machine may differ."""
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", torch.cuda.current_device())
    if (op, device) not in _chosen:
        _chosen[op, device] = _decide(op, device)
    return _chosen[op, device]


def _decide(op: str, device: torch.device) -> tuple[ModuleType, str]:
    wish = _forced[-1] if _forced else os.environ.get("PYENGINE_BACKEND")
    if wish:
        if wish not in DEVICES:
            raise ImportError(f"PYENGINE_BACKEND={wish!r}: expected one of {', '.join(DEVICES)}")
    if wish and (wish in backends(op) or wish not in ON_REQUEST):
        shim = bool(_native.CUDA_SHIM)
        emulated = {"triton": os.environ.get("TRITON_INTERPRET") == "1", "cuda": shim, "hopper": shim}
        if wish not in backends(op) or not (device.type in DEVICES[wish] or emulated.get(wish)):
            raise NotImplementedError(f"{op}: there is no {wish} backend for {device.type} tensors")
        if wish in ON_REQUEST and device.type == "cuda" and (problem := _probe(op, wish, device)):
            raise NotImplementedError(f"{op}: the {wish} backend does not run on this card: {problem}")
        return _load(op, wish), "asked for"
    refused = []
    for name in ORDER.get(device.type, ("reference",)):
        if name not in backends(op):
            continue
        if device.type == "cuda" and name != "reference" and (problem := _probe(op, name, device)):
            refused.append(f"{name}: {problem}")
            continue
        return _load(op, name), "; ".join(refused) or f"first of {device.type}'s order"
    raise NotImplementedError(f"{op}: no backend for {device.type} tensors ({'; '.join(refused)})")


def presume(op: str, backend: str, device: torch.device) -> None:
    """Take the backend as sound in this process: it is the probe, which is to find out."""
    _unfinished[_probe_key(op, backend, device)] = ""


def _load(op: str, backend: str) -> ModuleType:
    return import_module(f"{__package__}.{op}.{backend}")


def _probe(op: str, backend: str, device: torch.device) -> str:
    """Empty if small launches in a subprocess agreed with the reference, else what went wrong.

    Agreement and disagreement are kept in a file. A launch that came to no end (a busy card, memory that others
    held, a crash) says little about the kernel: this process remembers it, the next one tries again.
    """
    key = _probe_key(op, backend, device)
    verdict = _unfinished.get(key, _read_probes().get(key))
    if verdict is not None:
        return verdict
    command = [sys.executable, "-m", f"{__package__}._probe", op, backend, str(device)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PROBE_SECONDS)
    except subprocess.TimeoutExpired:
        return _unfinished.setdefault(key, f"no answer within {PROBE_SECONDS} s")
    lines = done.stderr.strip().splitlines()
    verdict = "" if done.returncode == 0 else (lines[-1] if lines else f"exit {done.returncode}")
    if done.returncode not in (0, DISAGREES):
        return _unfinished.setdefault(key, verdict)
    _write_probes(_read_probes() | {key: verdict})
    return verdict


def _probes() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "pyengine" / "probes.json"


def _read_probes() -> dict[str, str]:
    """The verdicts kept; none where the file is missing or damaged."""
    try:
        known = json.loads(_probes().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    sound = isinstance(known, dict) and all(isinstance(verdict, str) for verdict in known.values())
    return known if sound else {}


def _write_probes(known: dict[str, str]) -> None:
    """Keep the verdicts, if the place for it can be written; if not, the next process launches again."""
    file = _probes()
    temporary = file.with_suffix(f".{os.getpid()}.part")
    with suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps(known, indent=1), encoding="utf-8")
        temporary.replace(file)


@cache
def _source() -> str:
    """A digest of all kernels: an op's may be built of another's, so all are asked again when one changes."""
    found = hashlib.sha256()
    for path in [*sorted(HERE.rglob("*.py")), *sorted(HERE.glob("_cuda*.so"))]:
        found.update(path.read_bytes())
    return found.hexdigest()[:16]


def _probe_key(op: str, backend: str, device: torch.device) -> str:
    """What a verdict depends on: the card, versions, and the source of the kernels."""
    card = torch.cuda.get_device_name(device) + str(torch.cuda.get_device_capability(device))
    versions = [torch.__version__, sys.version.split()[0]]
    with suppress(PackageNotFoundError):
        versions.append(version("triton"))
    return "|".join([op, backend, card, *versions, _source()])
