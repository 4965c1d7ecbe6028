"""What the Triton kernels share: matrix products and tables of addresses."""

import os
from collections.abc import Sequence

import torch
import triton
import triton.language as tl

from ._memory import to_device

INTERPRETED = tl.constexpr(os.environ.get("TRITON_INTERPRET") == "1")
KEPT = 64  # address tables remembered


@triton.jit
def dot(a, b):
    """a b in float32, without tf32. The interpreter of Triton 3.6 is wrong for bfloat16: it gets float32."""
    if INTERPRETED:
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, input_precision="ieee")


@triton.jit
def dot_onto(a, b, acc):
    """acc + a b, one chain along K: the tensor cores add onto the accumulator in place."""
    if INTERPRETED:
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, acc, input_precision="ieee")


@triton.jit
def dot_onto_split(a, b, acc):
    """acc + a b of float32 on tensor cores: each factor as two tf32 numbers, three products (error 2^-21)."""
    return tl.dot(a, b, acc, input_precision="tf32x3")


@triton.jit
def floats_at(addresses, index, ALIGNED: tl.constexpr):
    """The float32 tensor whose address is number `index`; ALIGNED promises 16 bytes, so that it is read in fours."""
    tensor = tl.load(addresses + index).to(tl.pointer_type(tl.float32))
    if ALIGNED:
        tensor = tl.multiple_of(tensor, 16)
    return tensor


def capturing(tensor: torch.Tensor) -> bool:
    """Whether launches on the tensor are being written down into a CUDA graph: then nothing may wait for the device."""
    return tensor.is_cuda and torch.cuda.is_current_stream_capturing()


_tables: dict[tuple, torch.Tensor] = {}


def table_of(numbers: Sequence[int], device: torch.device) -> torch.Tensor:
    """The numbers as int64 on the device, kept for the next call with the same ones: addresses, sizes."""
    key = (*numbers, device)
    found = _tables.get(key)
    if found is None:
        while len(_tables) >= KEPT:
            _tables.pop(next(iter(_tables)))
        found = _tables[key] = to_device(torch.tensor(numbers, dtype=torch.int64), device)
    return found
