"""Capturing a step: run it once as Python, and from then on as one call of the compiled module.

    with capture() as step:
        y = model_step()        # runs, and notes each kernel call with its pointers
    step.replay()               # the same calls on the same memory, without Python

As with a CUDA graph, every address and size is frozen: inputs are written into the tensors that the step read,
outputs are read from the tensors that it returned, and a step is captured for each size of batch. All memory
that the calls touch is kept alive by the step. Only kernel calls are noted: any torch operator that would
compute something is refused, because the replay would miss it.
"""

import struct
from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from . import _native

# Operators that make or view memory and compute nothing.
_HARMLESS = frozenset(
    "empty empty_like new_empty empty_strided view _unsafe_view reshape _reshape_alias slice select split "
    "split_with_sizes narrow unbind detach alias t transpose permute unsqueeze squeeze expand as_strided".split()
)


class Step:
    """A recorded list of kernel calls; made by capture()."""

    def __init__(self):
        self.kept: list[torch.Tensor] = []
        self.calls = 0
        self._words = array("Q")
        self._module = _native.cpu

    def replay(self) -> None:
        """Run the recorded calls again."""
        address, count = self._words.buffer_info()
        self._module.replay(address, count)

    def note(self, name: str, arguments: tuple) -> None:
        caller, function, kinds = self._module.entry(name)
        self._words.extend((caller, function, len(arguments)))
        self._words.frombytes(struct.pack(f"={kinds}", *arguments))
        self.calls += 1


class _Recorder:
    """Stands in for the compiled module: runs each call and notes it."""

    def __init__(self, module, step: Step):
        self._module, self._step = module, step

    def __getattr__(self, name: str) -> Callable:
        function = getattr(self._module, name)

        def run(*arguments):
            result = function(*arguments)
            self._step.note(name, arguments)
            return result

        return run


class _Guard(TorchDispatchMode):
    """Keeps what the step allocates, and refuses what it would compute outside of kernels."""

    def __init__(self, step: Step):
        super().__init__()
        self._step = step

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        if name not in _HARMLESS:
            raise RuntimeError(f"capture: the step runs torch's {name}, which a replay would miss")
        result = function(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self._step.kept.append(result)
        return result


@contextmanager
def capture() -> Iterator[Step]:
    """Record the CPU kernel calls made inside the block; RuntimeError for what cannot be replayed."""
    step, module = Step(), _native.cpu
    _native.cpu = _Recorder(module, step)
    try:
        with torch.no_grad(), _Guard(step):
            yield step
    finally:
        _native.cpu = module
