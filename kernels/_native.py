"""The compiled modules, and the only way to hand a tensor to them.

The CPU kernels are compiled three times from the same sources (`_cpu_base`, `_cpu_avx2`, `_cpu_avx512`); the
base module tells what processor and operating system support, and the best one is imported as `cpu`.
`PYENGINE_ISA` overrides the choice. Kernels take plain addresses: a wrong one is a crash, so every tensor
passes through `address()`, which checks device, type, layout and size.
"""

import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from types import ModuleType

import torch

INSTRUCTION_SETS = ("avx512", "avx2", "base")
SUFFIX = {torch.float32: "f32", torch.bfloat16: "bf16", torch.uint8: "u8"}


def load_isa(isa: str, family: str = "cpu") -> ModuleType:
    """The module of the "cpu" or the "text" kernels compiled for `isa`.

    ImportError, in one sentence, if there is no such instruction set, it was not built, or this machine cannot run it.
    """
    if isa not in INSTRUCTION_SETS:
        raise ImportError(f"{isa!r} is no instruction set: expected one of {', '.join(INSTRUCTION_SETS)}")
    try:
        base = import_module(f"pyengine.kernels._{family}_base")
    except ImportError:
        base = None  # left out of this build: only one instruction set was asked for
    unsupported = ImportError(
        f"this processor does not support the {isa} kernels; unset PYENGINE_ISA to choose"
    )
    if base and not base.supported(isa):
        raise unsupported
    try:
        module = import_module(f"pyengine.kernels._{family}_{isa}")
    except ImportError as error:
        raise ImportError(
            f"pyengine's kernels for {isa} are not built; run `make build` in the checkout, or `pip install .`"
        ) from error
    if not module.supported(isa):
        raise unsupported
    return module


def runnable() -> list[str]:
    """The instruction sets that are built and that this machine runs, best first."""
    found = []
    for isa in INSTRUCTION_SETS:
        try:
            load_isa(isa)
        except ImportError:
            continue
        found.append(isa)
    return found


def preferred() -> str:
    """The instruction set that PYENGINE_ISA names, else the best; ImportError for another name, or if nothing is
    built."""
    if wish := os.environ.get("PYENGINE_ISA"):
        if wish not in INSTRUCTION_SETS:
            raise ImportError(f"PYENGINE_ISA={wish!r}: expected one of {', '.join(INSTRUCTION_SETS)}")
        return wish
    if built := runnable():
        return built[0]
    raise ImportError(
        "pyengine's kernels are not built; run `make build` in the checkout, or `pip install .`"
    )


isa: str
cpu: ModuleType
keep: Callable[[torch.Tensor], None] | None = None  # while a step is captured: told of each tensor it uses
_threads: int | None = None
# The CUDA kernels compiled for the CPU by tests/cuda_shim: a file name, for tests only.
CUDA_SHIM = os.environ.get("PYENGINE_CUDA_SHIM")

_this = sys.modules[__name__]
_choosing = threading.Lock()


def __getattr__(name: str) -> object:
    """`isa` and `cpu`, chosen when they are first asked for: a wrong choice is told by the work, not by an import."""
    if name not in ("isa", "cpu"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    with _choosing:
        if name not in globals():
            use_isa(preferred())
    return globals()[name]


def use_isa(name: str) -> None:
    """Switch the CPU kernels to another instruction set (tests compare them)."""
    global isa, cpu
    isa, cpu = name, load_isa(name)


def set_threads(count: int | None) -> None:
    """Threads of the CPU kernels; None follows torch.get_num_threads()."""
    global _threads
    if count is not None and count < 1:
        raise ValueError(f"set_threads: expected at least 1, got {count}")
    _threads = count


def threads() -> int:
    """How many threads a CPU kernel called now would use."""
    return _threads or torch.get_num_threads()


@contextmanager
def one_torch_thread() -> Iterator[None]:
    """Torch's own operators on one thread inside, so that its pool does not compete with the kernels'."""
    global _threads
    wish, outside = _threads, torch.get_num_threads()
    _threads = threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(outside)
        _threads = wish


@contextmanager
def one_thread() -> Iterator[None]:
    """Kernels called inside run on the caller's thread alone."""
    global _threads
    wish, _threads = _threads, 1
    try:
        yield
    finally:
        _threads = wish


def kernel(name: str, *dtypes: torch.dtype):
    """The CPU entry point `name` for these types, as in kernel("linear_forward", torch.float32)."""
    return getattr(_this.cpu, _entry(name, dtypes))


@cache
def _entry(name: str, dtypes: tuple[torch.dtype, ...]) -> str:
    return "_".join([name, *(SUFFIX[dtype] for dtype in dtypes)])


@cache
def cuda() -> ModuleType:
    """The module of CUDA kernels (or their host shim); ImportError if it was not built."""
    if CUDA_SHIM:
        spec = spec_from_file_location("_cuda", CUDA_SHIM)
        if not (spec and spec.loader):
            raise ImportError(f"PYENGINE_CUDA_SHIM={CUDA_SHIM!r} is not a module")
        module = module_from_spec(spec)
        spec.loader.exec_module(module)
        return module
    return import_module("pyengine.kernels._cuda")


def launch(
    name: str, dtypes: Sequence[torch.dtype] | None, device: torch.device, *arguments: int | float
) -> None:
    """Call a CUDA entry point, of these types where it has several, on the device's current stream.

    Raises RuntimeError if the launch failed.
    """
    stream = 0 if CUDA_SHIM else torch.cuda.current_stream(device).cuda_stream
    if error := getattr(cuda(), _entry(name, tuple(dtypes or ())))(*arguments, stream):
        raise RuntimeError(f"{name}: CUDA refused the launch with error {error}")


def address(tensor: torch.Tensor | None, dtype: torch.dtype, numel: int, device: str = "cpu") -> int:
    """The address of a contiguous tensor after checking what the kernel will rely on; 0 for None."""
    if tensor is None:
        return 0
    if not (
        _lies_on(tensor, device)
        and tensor.dtype is dtype
        and tensor.is_contiguous()
        and tensor.numel() == numel
    ):
        raise ValueError(
            f"a kernel expected {numel} contiguous numbers of {dtype} on {device}, got {tuple(tensor.shape)} of "
            f"{tensor.dtype} with strides {tensor.stride()} on {tensor.device}"
        )
    if keep is not None:
        keep(tensor)
    return tensor.data_ptr()


def _lies_on(tensor: torch.Tensor, device: str) -> bool:
    if device == "cpu":
        return tensor.is_cpu
    return tensor.is_cuda or CUDA_SHIM is not None


def rows(tensor: torch.Tensor, dtype: torch.dtype, device: str = "cpu") -> tuple[int, int]:
    """(address, numbers from one row to the next) of a tensor whose rows are contiguous but may lie apart."""
    if not (_lies_on(tensor, device) and tensor.dtype is dtype and has_rows(tensor)):
        raise ValueError(
            f"a kernel expected contiguous rows of {dtype} on {device}, got {tuple(tensor.shape)} of "
            f"{tensor.dtype} with strides {tensor.stride()} on {tensor.device}"
        )
    if keep is not None:
        keep(tensor)
    return tensor.data_ptr(), tensor.stride(0)


def has_rows(tensor: torch.Tensor) -> bool:
    """Whether rows() takes it: so parts of one matrix, such as values beside keys, need not be copied."""
    return tensor[:1].is_contiguous() and (len(tensor) < 2 or tensor.stride(0) >= tensor[0].numel())
