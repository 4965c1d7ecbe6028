"""Memory: large pages for what is read from end to end once a step, and the way from the host to a device.

The processor looks addresses up page by page, and remembers some thousand pages: 12 MB in pages of 4 KiB. Where
a virtual machine doubles the price of a look-up, a weight streams 10 to 50 % faster from pages of 2 MiB.
"""

import ctypes
import math
import mmap
import threading
from collections.abc import Sequence

import torch

LARGE = 2 << 20
ROOM = 8 * LARGE  # asked of the system at once for weights; it gives pages when they are first written
KEPT = 32 << 20  # bytes: blocks up to these stay with glibc's malloc, paged in, for whoever asks next
ALIGN = 64
CHUNK = 16  # bytes that kernels on a GPU move at once, from a multiple of it
EIGHT = 8  # numbers of any type that whole chunks come to
GIVEN = hasattr(mmap, "MADV_HUGEPAGE")  # Linux has large pages


def large_empty(shape: Sequence[int], dtype: torch.dtype, device: torch.device | str = "cpu") -> torch.Tensor:
    """torch.empty, on the CPU from large pages where the system gives them and the tensor fills some."""
    size = math.prod(shape) * dtype.itemsize
    if torch.device(device).type != "cpu" or size < LARGE or not GIVEN:
        return torch.empty(*shape, dtype=dtype, device=device)
    return _mapped(size)[:size].view(dtype).view(*shape)


def scratch_empty(size: int, dtype: torch.dtype) -> torch.Tensor:
    """torch.empty on the CPU for `size` numbers that one call needs: large pages where new ones would come anyway."""
    return (torch.empty if size * dtype.itemsize <= KEPT else large_empty)([size], dtype=dtype)


def weight_empty(shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
    """torch.empty on the CPU for what lives long: large pages, which small tensors share with their neighbours.

    A page goes back to the system once all tensors of its mapping are gone.
    """
    size = math.prod(shape) * dtype.itemsize
    if size == 0 or not GIVEN:
        return torch.empty(*shape, dtype=dtype)
    return _shared.take(size).view(dtype).view(*shape)


class _Shared:
    """What is left of the last mapping made for weights."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._left = torch.empty(0, dtype=torch.uint8)

    def take(self, size: int) -> torch.Tensor:
        with self._lock:
            room = self._left if size <= len(self._left) else _mapped(max(size, ROOM))
            left = room[-(-size // ALIGN) * ALIGN :]
            if len(left) > len(self._left) or room is self._left:
                self._left = left
            return room[:size]


def _mapped(size: int) -> torch.Tensor:
    """Whole large pages of bytes, `size` of them at least, from a page's beginning on."""
    size = -(-size // LARGE) * LARGE
    memory = mmap.mmap(-1, size + LARGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_HUGEPAGE)
    data = torch.frombuffer(memory, dtype=torch.uint8)
    start = -data.data_ptr() % LARGE
    return data[start : start + size]


_shared = _Shared()


def trim() -> None:
    """Give the system back what the C library's allocator holds free, where it can: what loading a model leaves."""
    give = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's
    if give:
        give(0)


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """The tensor on `device`: itself if it is there. From the host it is sent through pinned memory, behind what the
    device still has to do, and nobody waits for it."""
    if tensor.device == device:
        return tensor
    if tensor.device.type == "cpu" and device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=tensor.device.type == "cpu")


def wide(columns: int) -> int:
    """Columns of a row in whole eights of numbers."""
    return -(-columns // EIGHT) * EIGHT


def narrow(tensor: torch.Tensor, columns: int) -> torch.Tensor:
    """A matrix without what lies behind `columns`, or an empty tensor as it is."""
    return tensor if tensor.dim() == 1 or tensor.shape[1] == columns else tensor[:, :columns].contiguous()


def in_chunks(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor with rows of whole eights of numbers from a multiple of 16 bytes on: itself, or a copy with zeros
    behind each row."""
    if tensor.shape[-1] % EIGHT:
        return torch.nn.functional.pad(tensor, (0, -tensor.shape[-1] % EIGHT))
    return tensor if tensor.data_ptr() % CHUNK == 0 else tensor.clone()
