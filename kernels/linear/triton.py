"""The linear layer in Triton: a tile of outputs a program, K in steps of STEP along one chain.

The order of summation along K is the accumulator's: steps of the tensor cores' 16, first to last, in every
tile; tiles are chosen by the number of rows, but K is never split and STEP and the kind of instruction (tiles of
64 rows and more: wgmma on Hopper) are the same in all, so a row's bits do not depend on its company. Programs
walk down GROUP tiles of rows before they go on, so that the L2 cache serves both factors. The gradients need no
such order and are torch's products.

Decoding, where launches are what takes the time, the norm before a product and the SwiGLU behind it are part of its
kernel (forward_normed): the same functions in the same order, so the same bits.
"""

import torch
import triton
import triton.language as tl

from .._triton import dot_onto
from ..rmsnorm import triton as rmsnorm
from ..rmsnorm.triton import levels, normalise
from ..swiglu import triton as swiglu
from ..swiglu.triton import gated

STEP = {torch.bfloat16: 64, torch.float32: 32}  # of K; part of the order of summation
GROUP = 8
FEW = 64  # rows of a narrow tile
NORMED = 8192  # numbers that a program normalises: what its registers hold
AGAIN = (
    1 << 20
)  # numbers that all programs normalise together: some 2 us of an H100's L2 cache, less than a launch


@triton.jit
def product_tile(x, weight, bias, y, M, N, K, HAS_BIAS: tl.constexpr, GATED: tl.constexpr, ROWS: tl.constexpr,
                 COLUMNS: tl.constexpr, STEP: tl.constexpr, GROUP: tl.constexpr):  # fmt: skip
    """This program's tile of y (M, N).

    GATED: the weight has 2 N rows, gates and then what they let through. A tile takes those of COLUMNS / 2 outputs
    alternately, so that the two of an output end up in one thread.
    """
    OUTPUTS: tl.constexpr = COLUMNS // 2 if GATED else COLUMNS
    program = tl.program_id(0)
    across = tl.cdiv(N, OUTPUTS)
    first = program // (GROUP * across) * GROUP
    height = tl.minimum(tl.cdiv(M, ROWS) - first, GROUP)
    rows = (first + program % (GROUP * across) % height) * ROWS + tl.arange(0, ROWS)
    left = program % (GROUP * across) // height * OUTPUTS
    if GATED:
        columns = left + tl.arange(0, COLUMNS) // 2
        inside_n = columns < N
        columns += tl.arange(0, COLUMNS) % 2 * N
    else:
        columns = left + tl.arange(0, COLUMNS)
        inside_n = columns < N
    steps = tl.arange(0, STEP)
    a_place = x + rows.to(tl.int64)[:, None] * K + steps[None, :]
    b_place = weight + columns.to(tl.int64)[:, None] * K + steps[None, :]
    acc = tl.zeros((ROWS, COLUMNS), tl.float32)
    for start in range(0, K, STEP):
        inside = (start + steps < K)[None, :]
        a = tl.load(a_place + start, (rows < M)[:, None] & inside, other=0.0)
        b = tl.load(b_place + start, inside_n[:, None] & inside, other=0.0)
        acc = dot_onto(a, tl.trans(b), acc)
    if HAS_BIAS:
        acc += tl.load(bias + columns, inside_n, other=0.0).to(tl.float32)[None, :]
    outputs = left + tl.arange(0, OUTPUTS)
    if GATED:  # of what would have been written
        gate, up = tl.split(tl.reshape(acc.to(y.dtype.element_ty).to(tl.float32), (ROWS, OUTPUTS, 2)))
        acc = gated(gate, up)
    place = y + rows.to(tl.int64)[:, None] * N + outputs[None, :]
    tl.store(place, acc.to(y.dtype.element_ty), (rows < M)[:, None] & (outputs < N)[None, :])


@triton.jit
def linear_fwd_kernel(x, weight, bias, y, M, N, K, HAS_BIAS: tl.constexpr, GATED: tl.constexpr, ROWS: tl.constexpr,
                      COLUMNS: tl.constexpr, STEP: tl.constexpr, GROUP: tl.constexpr):  # fmt: skip
    product_tile(x, weight, bias, y, M, N, K, HAS_BIAS, GATED, ROWS, COLUMNS, STEP, GROUP)


@triton.jit
def linear_normed_kernel(x, residual, norm, h, summed, weight, bias, y, M, N, K, eps,
                         HAS_RESIDUAL: tl.constexpr, NORMED: tl.constexpr, LEVELS: tl.constexpr,
                         HAS_BIAS: tl.constexpr, GATED: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
                         STEP: tl.constexpr, GROUP: tl.constexpr):  # fmt: skip
    """The product of rmsnorm's rows, of which there are at most NORMED: every program makes all of them, in memory,
    where it then reads them as any product does. Others write there too, but the same bits."""
    normalise(
        x, residual, norm, h, summed, None, 0, M, K, eps, tl.program_id(0) == 0, HAS_RESIDUAL, NORMED, LEVELS
    )
    tl.debug_barrier()
    product_tile(h, weight, bias, y, M, N, K, HAS_BIAS, GATED, ROWS, COLUMNS, STEP, GROUP)


def forward(x, weight, bias, out_dtype, gated=False):
    """gated: swiglu of it, whose rows are half as long."""
    m, n = len(x), weight.shape[0] // (1 + gated)
    y = x.new_empty((m, n), dtype=out_dtype)
    if y.numel():
        grid, sizes = _launch(m, n, x.dtype, gated)
        linear_fwd_kernel[grid](x, weight, bias, y, m, n, x.shape[1], HAS_BIAS=bias is not None, **sizes)
    return y


def norms(x, weight, gated):
    """Whether forward_normed() takes it."""
    return isinstance(weight, torch.Tensor)


def forward_normed(x, norm, weight, bias, eps, residual, gated):
    """(y, x + residual): the product of rmsnorm(x, norm, eps, residual), with swiglu where gated.

    One launch for few rows, two for up to FEW, else three; the same bits.
    """
    (m, k), n = x.shape, weight.shape[0] // (1 + gated)
    if m and n and normalises(m, weight, gated):
        grid, sizes = _launch(m, n, norm.dtype, gated)
        y, h = norm.new_empty(m, n), norm.new_empty(m, k)
        summed = x.new_empty(0 if residual is None else x.shape, dtype=torch.float32)
        linear_normed_kernel[grid](
            x, residual, norm, h, summed, weight, bias, y, m, n, k, eps, HAS_RESIDUAL=residual is not None,
            NORMED=triton.next_power_of_2(m), LEVELS=levels(k), HAS_BIAS=bias is not None, **sizes,
        )  # fmt: skip
        return y, summed
    h, summed, _ = rmsnorm.forward(x, norm, eps, residual)
    if gated and m > FEW:
        return swiglu.forward(forward(h, weight, bias, norm.dtype)), summed
    return forward(h, weight, bias, norm.dtype, gated), summed


def backward(dy, x, weight, needs):
    nothing = x.new_empty(0)
    dx = dy @ weight if needs[0] else nothing
    dweight = dy.T @ x if needs[1] else nothing.clone()
    dbias = dy.sum(0, dtype=torch.float32).to(x.dtype) if needs[2] else nothing.clone()
    return dx, dweight, dbias


def pack(weight):
    """The weight as it is: rows of K are what the kernel reads."""
    return weight.clone()


def forward_packed(x, data, n, bias, out_dtype):
    return forward(x, data, bias, out_dtype)


def normalises(rows: int, weight: torch.Tensor, gated: bool) -> bool:
    """Whether a product's programs each normalise all of its rows, which then are no launch of their own."""
    n, k = weight.shape
    ((programs,), _) = _launch(rows, n // (1 + gated), weight.dtype, gated)
    return triton.next_power_of_2(rows) << levels(k) <= NORMED and programs * rows * k <= AGAIN


def _launch(m: int, n: int, dtype: torch.dtype, gated: bool) -> tuple[tuple[int], dict[str, int | bool]]:
    """(the grid for y (m, n), constants of the kernel and how it is launched)."""
    sizes, launch = tile(m, dtype)
    grid = triton.cdiv(m, sizes["ROWS"]) * triton.cdiv(n, sizes["COLUMNS"] // (1 + gated))
    return (grid,), {"GATED": gated, "STEP": STEP[dtype], "GROUP": GROUP, **sizes, **launch}


def tile(rows: int, dtype: torch.dtype) -> tuple[dict[str, int], dict[str, int]]:
    """(sides of a tile, warps and stages): few rows read the weight in narrow tiles, so that all SMs take part."""
    if dtype is torch.float32:
        return {"ROWS": 64, "COLUMNS": 64}, {"num_warps": 8, "num_stages": 3}
    if rows <= FEW:
        return {"ROWS": 64, "COLUMNS": 32}, {"num_warps": 4, "num_stages": 5}
    return {"ROWS": 128, "COLUMNS": 128}, {"num_warps": 8, "num_stages": 3}
