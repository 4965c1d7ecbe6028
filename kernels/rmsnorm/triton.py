"""RMSNorm in Triton: a row in registers, read once and written once.

Forward: one program a row, whose squares are added up in an order that is written, so that a product which normalises
its own rows (kernels/linear) has the same bits. Backward: a fixed number of rows a program, which keeps its share of
the weight's gradient in registers and writes it once; torch sums the shares afterwards, without atomics, so the result
does not depend on how programs are scheduled.
"""

import torch
import triton
import triton.language as tl

MAX_CHANNELS = 65536  # a row must fit in the registers of one program
ROWS_A_PROGRAM = 64


@triton.jit
def squares(x, LEVELS: tl.constexpr):
    """The sum of x^2 over each row of x (ROWS, 2^LEVELS), added up in pairs of neighbours, then pairs of pairs.

    That order is written here; tl.sum's over a whole row follows from the number of warps and from what else a kernel
    does.
    """
    if LEVELS == 0:
        return tl.reshape(x * x, (x.shape[0],))
    even, odd = tl.split(tl.reshape(x, (x.shape[0], x.shape[1] // 2, 2)))
    x = tl.fma(even, even, odd * odd)
    for _ in tl.static_range(LEVELS - 1):
        x = tl.sum(tl.reshape(x, (x.shape[0], x.shape[1] // 2, 2)), 2)
    return tl.reshape(x, (x.shape[0],))


@triton.jit
def normalise(x, residual, weight, y, summed, rstd, row, rows, channels, eps, first,
              HAS_RESIDUAL: tl.constexpr, ROWS: tl.constexpr, LEVELS: tl.constexpr):  # fmt: skip
    """y of the ROWS rows from `row` on; the sum and the factor of each too, where this is the `first` to come by."""
    members = row + tl.arange(0, ROWS).to(tl.int64)
    columns = tl.arange(0, 1 << LEVELS)
    inside = (members < rows)[:, None] & (columns < channels)[None, :]
    place = members[:, None] * channels + columns[None, :]
    s = tl.load(x + place, inside, other=0.0).to(tl.float32)
    if HAS_RESIDUAL:
        s += tl.load(residual + place, inside, other=0.0)
        tl.store(summed + place, s, inside & first)
    r = 1.0 / tl.sqrt(squares(s, LEVELS) / channels + eps)
    if rstd is not None:
        tl.store(rstd + members, r, (members < rows) & first)
    w = tl.load(weight + columns, columns < channels, other=0.0).to(tl.float32)
    tl.store(y + place, (s * r[:, None] * w[None, :]).to(y.dtype.element_ty), inside)


@triton.jit
def rmsnorm_fwd_kernel(x, residual, weight, y, summed, rstd, rows, channels, eps,
                       HAS_RESIDUAL: tl.constexpr, LEVELS: tl.constexpr):  # fmt: skip
    normalise(x, residual, weight, y, summed, rstd, tl.program_id(0), rows, channels, eps, True, HAS_RESIDUAL, 1,
              LEVELS)  # fmt: skip


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
        rmsnorm_fwd_kernel[(rows,)](
            x, residual, weight, y, summed, rstd, rows, channels, eps,
            HAS_RESIDUAL=residual is not None, LEVELS=levels(channels), num_warps=_warps(1 << levels(channels)),
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


def levels(channels: int) -> int:
    """Of pairs, in a row."""
    return (channels - 1).bit_length()


def _warps(block: int) -> int:
    return min(16, max(1, block // 512))


def _check(channels: int) -> None:
    if channels > MAX_CHANNELS:
        raise NotImplementedError(f"rmsnorm: triton handles at most {MAX_CHANNELS} channels, got {channels}")
