"""RMSNorm in Triton: a row in registers, read once and written once.

Forward: one program a row. Backward: a fixed number of rows a program, which keeps its share of the weight's
gradient in registers and writes it once; torch sums the shares afterwards, without atomics, so the result does
not depend on how programs are scheduled.
"""

import torch
import triton
import triton.language as tl

MAX_CHANNELS = 65536  # a row must fit in the registers of one program
ROWS_A_PROGRAM = 64


@triton.jit
def rmsnorm_fwd_kernel(x, residual, weight, y, summed, rstd, channels, eps,
                       HAS_RESIDUAL: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < channels
    s = tl.load(x + row * channels + columns, inside, other=0.0).to(tl.float32)
    if HAS_RESIDUAL:
        s += tl.load(residual + row * channels + columns, inside, other=0.0)
        tl.store(summed + row * channels + columns, s, inside)
    r = 1.0 / tl.sqrt(tl.sum(s * s) / channels + eps)
    tl.store(rstd + row, r)
    w = tl.load(weight + columns, inside, other=0.0).to(tl.float32)
    tl.store(y + row * channels + columns, (s * r * w).to(y.dtype.element_ty), inside)


@triton.jit
def rmsnorm_bwd_kernel(dy, dsummed, s, weight, rstd, dx, dresidual, partial, rows, channels,
                       HAS_DSUMMED: tl.constexpr, HAS_DRESIDUAL: tl.constexpr, ROWS: tl.constexpr,
                       BLOCK: tl.constexpr):  # fmt: skip
    program = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < channels
    w = tl.load(weight + columns, inside, other=0.0).to(tl.float32)
    dw = tl.zeros((BLOCK,), tl.float32)
    for i in range(ROWS):
        row = program * ROWS + i
        here = inside & (row < rows)
        v = tl.load(s + row * channels + columns, here, other=0.0).to(tl.float32)
        g = tl.load(dy + row * channels + columns, here, other=0.0).to(tl.float32)
        r = tl.load(rstd + row, row < rows, other=0.0)
        d = r * (g * w - v * (r * r * tl.sum(g * w * v) / channels))
        if HAS_DSUMMED:
            d += tl.load(dsummed + row * channels + columns, here, other=0.0)
        if HAS_DRESIDUAL:
            tl.store(dresidual + row * channels + columns, d, here)
        tl.store(dx + row * channels + columns, d.to(dx.dtype.element_ty), here)
        dw += g * v * r
    tl.store(partial + program * channels + columns, dw, inside)


def forward(x, weight, eps, residual=None):
    rows, channels = x.shape
    _check(channels)
    y = torch.empty_like(x, dtype=weight.dtype)
    summed = x.new_empty(0 if residual is None else x.shape, dtype=torch.float32)
    rstd = x.new_empty(rows, dtype=torch.float32)
    if rows:
        block = triton.next_power_of_2(channels)
        rmsnorm_fwd_kernel[(rows,)](
            x, residual, weight, y, summed, rstd, channels, eps,
            HAS_RESIDUAL=residual is not None, BLOCK=block, num_warps=_warps(block),
        )  # fmt: skip
    return y, summed, rstd


def backward(dy, dsummed, s, weight, rstd, residual):
    rows, channels = s.shape
    _check(channels)
    dx = torch.empty_like(s, dtype=weight.dtype if residual else s.dtype)
    both = residual and weight.dtype != torch.float32
    dresidual = s.new_empty(s.shape if both else 0, dtype=torch.float32)
    programs = triton.cdiv(rows, ROWS_A_PROGRAM)
    partial = s.new_empty((programs, channels), dtype=torch.float32)
    if rows:
        block = triton.next_power_of_2(channels)
        rmsnorm_bwd_kernel[(programs,)](
            dy, dsummed, s, weight, rstd, dx, dresidual, partial, rows, channels,
            HAS_DSUMMED=dsummed is not None, HAS_DRESIDUAL=both, ROWS=ROWS_A_PROGRAM, BLOCK=block,
            num_warps=_warps(block),
        )  # fmt: skip
    return dx, dresidual, partial.sum(0).to(weight.dtype)


def _warps(block: int) -> int:
    return min(16, max(1, block // 512))


def _check(channels: int) -> None:
    if channels > MAX_CHANNELS:
        raise NotImplementedError(f"rmsnorm: triton handles at most {MAX_CHANNELS} channels, got {channels}")
