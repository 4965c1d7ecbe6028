"""Shared fixtures: every backend that exists and can run here, and fresh memory poisoned with NaN.

`TRITON_INTERPRET=1 pytest tests/kernels` adds the Triton backends, run by Triton's interpreter on CPU tensors
(in a process of its own: the variable must be set before Triton is imported). PYENGINE_CUDA_SHIM does the same
for the CUDA kernels, run by tests/cuda_shim (test_*_hopper.py hold what Hopper alone has). With a GPU the
same tests run on it, with the backends it has.
"""

import os
from contextlib import contextmanager

import pytest
import torch
from pyengine.kernels import _native, _select

from pyengine.files import atomic_write
from tests.numerics import ERRORS

# torch.empty then returns NaN (or the largest integer): an output that a kernel leaves unwritten fails.
torch.use_deterministic_algorithms(True, warn_only=True)
torch.utils.deterministic.fill_uninitialized_memory = True
torch.set_num_threads(min(2, len(os.sched_getaffinity(0))))

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
SHIMMED = _native.CUDA_SHIM is not None


ON_HOPPER = torch.cuda.is_available() and torch.cuda.get_device_capability() == (9, 0)


def runnable(op: str) -> list[tuple[str, str]]:
    """(backend, variant) of an op for this process; a variant is an instruction set, or the device."""
    found = []
    for backend in _select.backends(op):
        if INTERPRETED or SHIMMED:
            if backend == "triton" and INTERPRETED:
                found.append((backend, "interpreter"))
            if backend == "cuda" and SHIMMED:
                found.append((backend, "shim"))
        elif backend == "cpu":
            found += [("cpu", isa) for isa in _native.runnable()]
        elif backend == "reference":
            found.append(("reference", "cpu"))
        elif torch.cuda.is_available() and (backend != "hopper" or ON_HOPPER):
            found.append((backend, "cuda"))
    return found


class Backend:
    """One backend of the op under test: `device` for its tensors, and `with backend:` to run on it."""

    def __init__(self, name: str, variant: str):
        self.name, self.variant = name, variant
        self.device = "cuda" if variant == "cuda" else "cpu"
        # Numbers of threads that could make a difference: only the CPU kernels have threads of their own.
        self.threads = (1, 2) if name == "cpu" else (1,)

    def __repr__(self):
        return f"{self.name}-{self.variant}"

    @contextmanager
    def active(self):
        before = _native.isa
        if self.name == "cpu":
            _native.use_isa(self.variant)
        try:
            with _select.use_backend(self.name):
                yield self
        finally:
            _native.use_isa(before)


# What the tests of Hopper's kernels run on, by the fixture `hopper`; without either they are skipped.
HOPPER = [Backend("hopper", "shim" if SHIMMED else "cuda")] if SHIMMED or ON_HOPPER else []


def pytest_generate_tests(metafunc):
    """Tests that ask for `backend` run on every backend of the op their module names in OP."""
    if "backend" in metafunc.fixturenames:
        cases = [Backend(*pair) for pair in runnable(metafunc.module.OP)]
        metafunc.parametrize("backend", cases, ids=repr, indirect=True)


@pytest.fixture
def hopper(request):
    with request.param.active() as backend:
        yield backend


@pytest.fixture
def backend(request):
    with request.param.active() as backend:
        yield backend


def pytest_sessionfinish(session):
    """Write the table of measured errors where PYENGINE_ERROR_TABLE names a file (docs/numerics.md shows it)."""
    if (path := os.environ.get("PYENGINE_ERROR_TABLE")) and ERRORS:
        with atomic_write(path) as file:
            file.write("| op | what | backend | type | largest error | plain torch | ratio |\n")
            file.write("|---|---|---|---|---|---|---|\n")
            for key, (ours, torchs) in sorted(ERRORS.items()):
                ratio = f"{ours / torchs:.2f}" if torchs else "-"
                file.write("| " + " | ".join(key) + f" | {ours:.2e} | {torchs:.2e} | {ratio} |\n")
