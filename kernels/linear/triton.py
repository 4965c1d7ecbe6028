"""The linear layer in Triton: a tile of outputs a program, K in steps of STEP along one chain.

The order of summation along K is the accumulator's: steps of the tensor cores' 16, first to last, in every
tile; tiles are chosen by the number of rows, but K is never split and STEP and the kind of instruction (tiles of
64 rows and more: wgmma on Hopper) are the same in all, so a row's bits do not depend on its company. Programs
walk down GROUP tiles of rows before they go on, so that the L2 cache serves both factors. The gradients need no
such order and are torch's products.
"""

import torch
import triton
import triton.language as tl

from .._triton import dot_onto

STEP = {torch.bfloat16: 64, torch.float32: 32}  # of K; part of the order of summation
GROUP = 8


@triton.jit
def linear_fwd_kernel(x, weight, bias, y, M, N, K, HAS_BIAS: tl.constexpr, ROWS: tl.constexpr,
                      COLUMNS: tl.constexpr, STEP: tl.constexpr, GROUP: tl.constexpr):  # fmt: skip
    program = tl.program_id(0)
    across = tl.cdiv(N, COLUMNS)
    first = program // (GROUP * across) * GROUP
    height = tl.minimum(tl.cdiv(M, ROWS) - first, GROUP)
    rows = (first + program % (GROUP * across) % height) * ROWS + tl.arange(0, ROWS)
    columns = program % (GROUP * across) // height * COLUMNS + tl.arange(0, COLUMNS)
    steps = tl.arange(0, STEP)
    a_place = x + rows.to(tl.int64)[:, None] * K + steps[None, :]
    b_place = weight + columns.to(tl.int64)[:, None] * K + steps[None, :]
    acc = tl.zeros((ROWS, COLUMNS), tl.float32)
    for start in range(0, K, STEP):
        inside = (start + steps < K)[None, :]
        a = tl.load(a_place + start, (rows < M)[:, None] & inside, other=0.0)
        b = tl.load(b_place + start, (columns < N)[:, None] & inside, other=0.0)
        acc = dot_onto(a, tl.trans(b), acc)
    if HAS_BIAS:
        acc += tl.load(bias + columns, columns < N, other=0.0).to(tl.float32)[None, :]
    place = y + rows.to(tl.int64)[:, None] * N + columns[None, :]
    tl.store(place, acc.to(y.dtype.element_ty), (rows < M)[:, None] & (columns < N)[None, :])


def forward(x, weight, bias, out_dtype):
    (m, k), n = x.shape, weight.shape[0]
    y = x.new_empty((m, n), dtype=out_dtype)
    if y.numel():
        sizes, launch = tile(m, x.dtype)
        grid = (triton.cdiv(m, sizes["ROWS"]) * triton.cdiv(n, sizes["COLUMNS"]),)
        linear_fwd_kernel[grid](
            x, weight, bias, y, m, n, k, HAS_BIAS=bias is not None, STEP=STEP[x.dtype], GROUP=GROUP,
            **sizes, **launch,
        )  # fmt: skip
    return y


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


def tile(rows: int, dtype: torch.dtype) -> tuple[dict[str, int], dict[str, int]]:
    """(sides of a tile, warps and stages): few rows read the weight in narrow tiles, so that all SMs take part."""
    if dtype is torch.float32:
        return {"ROWS": 64, "COLUMNS": 64}, {"num_warps": 8, "num_stages": 3}
    if rows <= 64:
        return {"ROWS": 64, "COLUMNS": 32}, {"num_warps": 4, "num_stages": 5}
    return {"ROWS": 128, "COLUMNS": 128}, {"num_warps": 8, "num_stages": 3}
