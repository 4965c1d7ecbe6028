"""The quantised linear layer on the CPU: the layout of csrc/cpu/quantized.cpp, allocation and calls."""

import torch

from .. import _native
from .._memory import weight_empty
from . import BLOCK

PANEL = 32  # outputs side by side, as in the C++


def pack(codes, bits, zero, scale, minimum):
    """One-dimensional bytes: a record for each panel of 32 outputs and each 32 of k; the C++ says what is in it."""
    n, k = codes.shape
    blocks, missing = k // BLOCK, -n % PANEL
    codes = torch.nn.functional.pad(codes, (0, 0, 0, missing)).view(-1, PANEL, blocks, BLOCK)
    if bits == 4:
        codes = codes[..., : BLOCK // 2] | codes[..., BLOCK // 2 :] << 4
    codes = codes.view(*codes.shape[:3], -1, 4).permute(0, 2, 3, 1, 4)  # panel, block, four, output, of four
    parts = [_by_record(part, blocks, missing) for part in (scale, minimum) if part is not None]
    parts.append(codes.reshape(len(codes), blocks, -1))
    data = weight_empty([len(codes), blocks, sum(part.shape[2] for part in parts)], torch.uint8)
    return torch.cat(parts, dim=2, out=data).view(-1)


def _by_record(part, blocks, missing):
    """Scales or minima (N, K / G) as bytes (panels, blocks, bytes in a record)."""
    part = torch.nn.functional.pad(part, (0, 0, 0, missing)).view(-1, PANEL, blocks, part.shape[1] // blocks)
    part = part.permute(0, 2, 3, 1).contiguous()
    return part.view(torch.uint8).view(len(part), blocks, -1)


def format_of(part):
    """What names a part's layout to the C++: bits, scales a block, whether these are floats, minima, code of zero."""
    return part.bits, BLOCK // part.group, part.scale_dtype is torch.float32, part.has_minimum, part.zero


def forward(x, part, bias, y, column):
    (m, k), dtype = x.shape, y.dtype
    unknown = _native.kernel("linear_quantized", x.dtype)(
        _native.address(x, x.dtype, m * k),
        _native.address(part.data, torch.uint8, part.data.numel()),
        *format_of(part),
        _native.address(bias, x.dtype, part.rows),
        _native.address(y, dtype, y.numel()) + column * y.itemsize,
        dtype is torch.float32, y.shape[1],
        m, part.rows, k, _native.threads(),
    )  # fmt: skip
    if unknown >= 0:
        raise NotImplementedError(f"quantized cpu: no kernel for {format_of(part)}, x {x.dtype} {(m, k)}")


def rows(part, k, ids):
    out = torch.empty(ids.numel(), k)
    wrong = _native.cpu.quantized_rows(
        _native.address(part.data, torch.uint8, part.data.numel()),
        *format_of(part),
        _native.address(ids, torch.int64, ids.numel()),
        _native.address(out, torch.float32, out.numel()),
        ids.numel(), part.rows, k, _native.threads(),
    )  # fmt: skip
    if wrong >= 0:
        raise IndexError(f"quantized: id {int(ids[wrong])} is not a row of {part.rows}")
    return out
