"""What this installation consists of and what its ops run on: `python -m pyengine.info`."""

import argparse
import os
import platform
import sys
from importlib import metadata

import torch
from rich.console import Console
from rich.table import Table

from . import __version__
from .command import run
from .kernels import _native, _select

PACKAGES = ("torch", "triton", "numpy", "safetensors", "transformers")


def versions() -> dict[str, str]:
    """Name and version of what the results depend on; "-" for what is not installed."""
    found = {"pyengine": __version__, "python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "-"
    return found


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    about = "Print versions, processor, devices, and the backend of each op with the reason for it."
    argparse.ArgumentParser(prog="pyengine.info", description=about).parse_args(arguments)
    return run(tell)


def tell() -> None:
    """Print versions, processor, devices, and the backend of each op with the reason for it."""
    console = Console(soft_wrap=True)
    console.print(", ".join(f"{name} {version}" for name, version in versions().items()))
    runnable = ", ".join(_native.runnable())
    console.print(f"cpu: {os.cpu_count()} threads, kernels for {_native.isa} (of {runnable})", markup=False)
    devices = ["cpu"]
    if torch.cuda.is_available():
        devices.append("cuda")
        console.print(f"cuda: {torch.cuda.get_device_name()}", markup=False)
    for device in devices:
        table = Table("op", "backend", "why", "others", title=f"ops on {device}")
        for op, backend, why in _select.table(device):
            table.add_row(op, backend, why, ", ".join(b for b in _select.backends(op) if b != backend))
        console.print(table)


if __name__ == "__main__":
    sys.exit(main())
