"""Where a model computes: the device that a person names, found or refused in one sentence.

    device = device_of("cuda")                       # the first GPU; under torchrun that of this process

A GPU that is found becomes this thread's current one, on which kernels are launched.
"""

import os
import re

import torch

from .errors import UserError


def available_cpus() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def device_of(name: str) -> torch.device:
    """The device called `name`: "cpu", "cuda" or "cuda:N"; of the processes of one machine each has a GPU of its own.

    Raises UserError for another name, and for a GPU that is not there.
    """
    if name == "cpu":
        return torch.device("cpu")
    if not re.fullmatch(r"cuda(:\d+)?", name):
        raise UserError(f"device = {name!r}: expected cpu, cuda or cuda:N")
    rank, processes = int(os.environ.get("LOCAL_RANK", 0)), processes_here()
    _, _, number = name.partition(":")
    if number and processes > 1:
        raise UserError(
            f"device = {name!r} names one GPU for {processes} processes; say cuda: each takes its own"
        )
    index, found = int(number or rank), torch.cuda.device_count()
    if not found:
        built = "" if torch.version.cuda else f", and torch {torch.__version__} is built without CUDA"
        raise UserError(f"device = {name!r}: there is no GPU that torch can use{built}; say cpu")
    if index >= found:
        why = f"and this is process {index} of {processes}" if processes > 1 else "numbered from 0"
        raise UserError(f"device = {name!r}: {found} GPU{'s' * (found > 1)} found, {why}")
    torch.cuda.set_device(index)
    return torch.device("cuda", index)


def processes_here() -> int:
    """How many processes torchrun started on this machine: they share its cores and GPUs."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", 1))
