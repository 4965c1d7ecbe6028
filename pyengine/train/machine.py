"""The machine: what a stage ran on and by which command, for its marker and the page; and how memory is kept."""

import ctypes
import mmap
import os
import platform
import shlex
import subprocess
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from .. import __version__


@lru_cache(maxsize=1)
def describe() -> dict[str, Any]:
    """{"cpu", "cores", "memory_gb", "system", "python", "torch", "pyengine", "isa", "commit", "command"}."""
    from ..kernels import _native

    return {
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "system": platform.platform(terse=True),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "pyengine": __version__,
        "isa": _native.isa,
        "commit": _commit(),
        "command": _command(),
    }


def name_of(device: torch.device) -> str:
    """What the device is called, with the name of its card: "cpu", "cuda:0 (NVIDIA H100 80GB HBM3)"."""
    return f"{device} ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else str(device)


def keep_memory() -> None:
    """Let this process keep the memory it frees, in large pages, where its C library is glibc; elsewhere nothing
    changes.

    Every step of a training frees and asks for the same tensors. By default glibc gives the large ones back to
    the system, which hands them out again page by page, zeroed: a tenth of a step. And products that read a
    matrix down its columns meet a page a row: pages of 2 MiB save the processor the looking up.
    """
    trim_threshold, top_pad, mmap_max = -1, -2, -4  # numbers of malloc.h
    libc = ctypes.CDLL(None)
    if mallopt := getattr(libc, "mallopt", None):
        mallopt(mmap_max, 0)
        mallopt(trim_threshold, 2**31 - 1)
        mallopt(top_pad, 1 << 26)
        _use_large_pages(libc)


def _use_large_pages(libc: ctypes.CDLL, room: int = 1 << 30) -> None:
    """Ask for pages of 2 MiB under the next `room` bytes of the heap (the system gives them when written to)."""
    advice, page = getattr(mmap, "MADV_HUGEPAGE", None), 2 << 20  # Linux
    libc.malloc.argtypes, libc.malloc.restype = [ctypes.c_size_t], ctypes.c_void_p
    libc.free.argtypes = [ctypes.c_void_p]
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    block = libc.malloc(room) if advice is not None else None
    if block is None:
        return
    first, end = -(-block // page) * page, (block + room) // page * page
    libc.madvise(first, end - first, advice)
    libc.free(block)


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _commit() -> str:
    """The commit of the source tree this runs from, with a + where files differ from it; "" outside of one."""
    folder = Path(__file__).parents[2]
    if not (folder / ".git").exists():
        return ""
    try:
        told = ["git", "-C", str(folder), "describe", "--always", "--dirty=+", "--abbrev=10"]
        return subprocess.run(told, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def _command() -> str:
    """The command line as a person would type it."""
    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    name = (spec.name or "").removesuffix(".__main__") if spec else ""
    program = ["python", "-m", name] if name else ["python", sys.argv[0]]
    return shlex.join([*program, *sys.argv[1:]])
