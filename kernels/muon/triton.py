"""Muon in Triton: matrices of one shape together, one launch for each product of all of them.

An iteration is G = x x^T, P = b G + c G G^T, x = a x + P x. G and P are symmetric: only the tiles on and below the
diagonal are computed, and mirrored, so an iteration on n x m (n <= m) costs 3 n^2 m + n^3 flops for 4 n^2 m + 2 n^3.
Products of float32 run on tensor cores as three of tf32. Tall matrices are turned on the way in and out.
"""

from itertools import chain

import torch
import triton
import triton.language as tl

from .._triton import dot_onto_split, floats_at, table_of
from .reference import NEWTON_SCHULZ

ITERATIONS = 5
TILE = 64
STEP = 32
MOST = 1 << 27  # numbers of one shape worked on at one time: 0.5 GB a buffer


@triton.jit
def places_of(tile, rows, columns, TALL: tl.constexpr, TILE: tl.constexpr):
    """(places in a matrix, places in its turned copy, inside) of one square tile."""
    across = tl.cdiv(columns, TILE)
    r = tile // across * TILE + tl.arange(0, TILE)
    c = tile % across * TILE + tl.arange(0, TILE)
    own = r.to(tl.int64)[:, None] * columns + c[None, :]
    turned = c.to(tl.int64)[None, :] * rows + r[:, None] if TALL else own
    return own, turned, (r < rows)[:, None] & (c < columns)[None, :]


@triton.jit
def muon_momentum_kernel(grads, momenta, x, sums, momentum, grad_scale, rows, columns, TALL: tl.constexpr,
                         ALIGNED: tl.constexpr, TILE: tl.constexpr):  # fmt: skip
    tile = tl.program_id(0)
    which = tl.program_id(1)
    own, turned, inside = places_of(tile, rows, columns, TALL, TILE)
    grad, velocity = floats_at(grads, which, ALIGNED), floats_at(momenta, which, ALIGNED)
    g = tl.load(grad + own, inside, other=0.0) * grad_scale
    m = tl.load(velocity + own, inside, other=0.0)
    m += (1.0 - momentum) * (g - m)
    tl.store(velocity + own, m, inside)
    u = g + momentum * (m - g)
    tl.store(x + which.to(tl.int64) * rows * columns + turned, u, inside)
    tl.store(sums + which * tl.num_programs(0) + tile, tl.sum(u * u))


@triton.jit
def muon_symmetric_kernel(a, base, out, n, k, of_base, of_product, HAS_BASE: tl.constexpr, TILE: tl.constexpr,
                          STEP: tl.constexpr):  # fmt: skip
    """out (n, n) = of_base base + of_product a a^T, for a (n, k), the tiles below the diagonal and their mirrors."""
    t = tl.program_id(0)
    i = ((tl.sqrt(8.0 * t.to(tl.float32) + 1.0) - 1.0) * 0.5).to(tl.int32)
    i += tl.where((i + 1) * (i + 2) // 2 <= t, 1, 0)  # a root may be rounded to the wrong side
    i -= tl.where(i * (i + 1) // 2 > t, 1, 0)
    rows = i * TILE + tl.arange(0, TILE)
    columns = (t - i * (i + 1) // 2) * TILE + tl.arange(0, TILE)
    which = tl.program_id(1).to(tl.int64)
    a += which * n * k
    acc = tl.zeros((TILE, TILE), tl.float32)
    for start in range(0, k, STEP):
        steps = start + tl.arange(0, STEP)
        inside = (steps < k)[None, :]
        left = tl.load(
            a + rows.to(tl.int64)[:, None] * k + steps[None, :], (rows < n)[:, None] & inside, other=0.0
        )
        right = tl.load(
            a + columns.to(tl.int64)[:, None] * k + steps[None, :], (columns < n)[:, None] & inside, other=0.0
        )
        acc = dot_onto_split(left, tl.trans(right), acc)
    acc *= of_product
    here = (rows < n)[:, None] & (columns < n)[None, :]
    place = which * n * n + rows.to(tl.int64)[:, None] * n + columns[None, :]
    if HAS_BASE:
        acc += of_base * tl.load(base + place, here, other=0.0)
    tl.store(out + place, acc, here)
    tl.store(out + which * n * n + columns.to(tl.int64)[None, :] * n + rows[:, None], acc, here)


@triton.jit
def muon_product_kernel(p, x, out, n, m, of_x, TILE: tl.constexpr, STEP: tl.constexpr):
    """out (n, m) = of_x x + p x."""
    across = tl.cdiv(m, TILE)
    rows = tl.program_id(0) // across * TILE + tl.arange(0, TILE)
    columns = tl.program_id(0) % across * TILE + tl.arange(0, TILE)
    which = tl.program_id(1).to(tl.int64)
    p += which * n * n
    x += which * n * m
    acc = tl.zeros((TILE, TILE), tl.float32)
    for start in range(0, n, STEP):
        steps = start + tl.arange(0, STEP)
        left = tl.load(
            p + rows.to(tl.int64)[:, None] * n + steps[None, :],
            (rows < n)[:, None] & (steps < n)[None, :],
            other=0.0,
        )
        right = tl.load(
            x + steps.to(tl.int64)[:, None] * m + columns[None, :], (steps < n)[:, None] & (columns < m)[None, :],
            other=0.0,
        )  # fmt: skip
        acc = dot_onto_split(left, right, acc)
    here = (rows < n)[:, None] & (columns < m)[None, :]
    place = rows.to(tl.int64)[:, None] * m + columns[None, :]
    acc += of_x * tl.load(x + place, here, other=0.0)
    tl.store(out + which * n * m + place, acc, here)


@triton.jit
def muon_apply_kernel(params, x, keep, rate, rows, columns, TALL: tl.constexpr, ALIGNED: tl.constexpr,
                      TILE: tl.constexpr):  # fmt: skip
    which = tl.program_id(1)
    own, turned, inside = places_of(tl.program_id(0), rows, columns, TALL, TILE)
    param = floats_at(params, which, ALIGNED)
    update = tl.load(x + which.to(tl.int64) * rows * columns + turned, inside, other=0.0)
    tl.store(param + own, tl.load(param + own, inside, other=0.0) * keep - rate * update, inside)


def step(params, grads, momenta, lr, momentum, weight_decay, grad_scale, copies=()):
    grads = [grad.float() for grad in grads]
    shapes: dict[tuple[int, int], list] = {}
    for group in zip(params, grads, momenta, strict=True):
        if group[0].numel():
            shapes.setdefault(tuple(group[0].shape), []).append(group)
    for (rows, columns), groups in shapes.items():
        at_once = max(1, MOST // (rows * columns))
        for first in range(0, len(groups), at_once):
            some = zip(*groups[first : first + at_once], strict=True)
            _step(rows, columns, some, lr, momentum, weight_decay, grad_scale)
    if copies:
        torch._foreach_copy_(list(copies), list(params))


def _step(rows, columns, groups, lr, momentum, weight_decay, grad_scale):
    """One step of matrices of one shape: groups gives params, grads and momenta."""
    params, grads, momenta = groups
    count, device = len(params), params[0].device
    addresses = [[tensor.data_ptr() for tensor in tensors] for tensors in (params, grads, momenta)]
    p_at, g_at, m_at = (table_of(numbers, device) for numbers in addresses)
    turn = {
        "TALL": rows > columns,
        "ALIGNED": not any(address % 16 for address in chain(*addresses)),
        "TILE": TILE,
    }
    grid = (triton.cdiv(rows, TILE) * triton.cdiv(columns, TILE), count)
    n, m = min(rows, columns), max(rows, columns)
    x, new = (params[0].new_empty((count, n, m)) for _ in range(2))
    gram, poly = (params[0].new_empty((count, n, n)) for _ in range(2))
    sums = x.new_empty((count, grid[0]))
    muon_momentum_kernel[grid](g_at, m_at, x, sums, float(momentum), float(grad_scale), rows, columns, **turn)
    x /= sums.sum(1).sqrt_().add_(1e-7)[:, None, None]
    a, b, c = NEWTON_SCHULZ
    side = triton.cdiv(n, TILE)
    for _ in range(ITERATIONS):
        for source, base, target, k, weights in ((x, x, gram, m, (0.0, 1.0)), (gram, gram, poly, n, (b, c))):
            muon_symmetric_kernel[(side * (side + 1) // 2, count)](
                source, base, target, n, k, *weights, HAS_BASE=source is gram, TILE=TILE, STEP=STEP
            )
        muon_product_kernel[grid](poly, x, new, n, m, a, TILE=TILE, STEP=STEP)
        x, new = new, x
    rate = lr * max(1.0, rows / columns) ** 0.5
    muon_apply_kernel[grid](p_at, x, 1.0 - lr * weight_decay, rate, rows, columns, **turn)
