"""What a stage ran on and by which command, kept in its marker: the page shows it beside the numbers."""

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
