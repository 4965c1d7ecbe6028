"""The quantised linear layer in Triton: rows of x rounded once, then tiles of outputs on the tensor cores' integers.

A block of 32 products of whole numbers is one step of the tensor cores, exact, so it has no order. Blocks are added in
float32 as on the CPU, each a product and a fused multiply-add, but in spans of K that are summed up by themselves and
then added first to last: where rows are few, several programs share a tile of outputs, with the same bits. So a row's
result depends on no tile, warp or row beside it. Codes stay packed on their way to the registers: decoding reads 4.5
to 8.5 bits a weight once, and even one row goes through a tile of 16, for the arithmetic of the rows that are not
there is free where memory is waited for.

Layout: panels of 32 outputs; of each panel, for each 32 of k, an output's 16 or 32 bytes side by side: the codes in
order of k, two to a byte where they have 4 bits (the lower half first), else less `zero` already. Behind the codes
the scales (panel, block, group, output), behind these the minima.
"""

import torch
import triton
import triton.language as tl

from . import BLOCK

PANEL = 32
EXACT = {"enable_fp_fusion": False}  # products and sums round as they are written
MAGIC = 0x4B400000  # the bits of 1.5 * 2^23: plus a whole number below 2^22 they are the bits of that sum
MOST = 32  # blocks of a row that a program rounds
FEW = 64  # rows up to which programs share a tile of outputs
PROGRAMS = 512  # that few rows aim at: about four an SM of the largest cards


@triton.jit
def quantize_rows_kernel(x, codes, scales, sums, M, blocks, GROUPS: tl.constexpr, BLOCKS: tl.constexpr):
    """Whole numbers (M, K) int8; scales (blocks, M); sums (blocks, GROUPS, M) of a group's numbers, scaled."""
    row = tl.program_id(0).to(tl.int64)
    b = tl.program_id(1) * BLOCKS + tl.arange(0, BLOCKS)
    place = row * blocks * 32 + b[:, None] * 32 + tl.arange(0, 32)[None, :]
    v = tl.load(x + place, (b < blocks)[:, None], other=0.0).to(tl.float32)
    size = tl.where(v == v, tl.abs(v), float("inf"))
    most = tl.max(size, 1)
    finite = most < float("inf")
    inverse = tl.minimum(
        tl.div_rn(tl.full(most.shape, 127.0, tl.float32), tl.where(most > 0, most, 1.0)), 3.4028234e38
    )
    inverse = tl.where(finite & (most > 0), inverse, 0.0)
    turned = tl.where(finite[:, None], v, 0.0) * inverse[:, None]
    whole = (
        tl.minimum(tl.maximum(turned, -127.0), 127.0) + 12582912.0
    ) - 12582912.0  # to the nearest, ties to even
    tl.store(codes + place, whole.to(tl.int8), (b < blocks)[:, None])
    scale = tl.where(finite, most * 0.007874015748031496, float("nan"))  # 1 / 127
    tl.store(scales + b * M + row, scale, b < blocks)
    totals = tl.sum(tl.reshape(whole, (BLOCKS, GROUPS, 32 // GROUPS)), 2) * scale[:, None]
    groups = b[:, None] * GROUPS + tl.arange(0, GROUPS)[None, :]
    tl.store(sums + groups * M + row, totals, (b < blocks)[:, None])


@triton.jit
def codes_of(weight, panel_block, lanes, BITS: tl.constexpr, ZERO: tl.constexpr):
    """(outputs, 32) int8: the codes less zero of a block, for the `lanes` of the panels that panel_block counts."""
    if BITS == 8:
        place = (panel_block * 32 + lanes)[:, None] * 32 + tl.arange(0, 32)[None, :]
        return tl.load(weight + place)
    place = (panel_block * 32 + lanes)[:, None] * 16 + tl.arange(0, 16)[None, :]
    both = tl.load(weight + place)
    pair = tl.join(both & 15, (both >> 4) & 15)
    return (tl.reshape(pair, (both.shape[0], 32)) - ZERO).to(tl.int8)


@triton.jit
def add_block(acc, x, w, scale, x_scale):
    """acc + (x w^T) scale x_scale, the product of whole numbers exact."""
    magic = tl.full(acc.shape, 0x4B400000, tl.int32)
    whole = tl.dot(x, tl.trans(w), magic, out_dtype=tl.int32).to(tl.float32, bitcast=True) - 12582912.0
    return tl.fma(whole * scale[None, :], tl.broadcast_to(x_scale[:, None], acc.shape), acc)


@triton.jit
def linear_quantized_kernel(x, x_scales, x_sums, weight, scales, minima, bias, y, parts, M, N, blocks, stride,
                            BITS: tl.constexpr, GROUPS: tl.constexpr, ZERO: tl.constexpr, MINIMUM: tl.constexpr,
                            HAS_BIAS: tl.constexpr, ALONE: tl.constexpr, TURNS: tl.constexpr, ROWS: tl.constexpr,
                            COLUMNS: tl.constexpr, UNROLL: tl.constexpr):  # fmt: skip
    """A tile of outputs, and every so manieth span of TURNS turns of UNROLL blocks.

    ALONE, a program takes all spans and adds them as it goes; else each span's sum is left for the addition to come.
    """
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    lanes = columns % 32
    # panels are whole; a tile may reach past the last one
    panel = tl.where(columns < (N + 31) // 32 * 32, (columns // 32).to(tl.int64) * blocks, 0)
    here = rows < M
    inside = here[:, None] & (columns < N)[None, :]
    steps = tl.arange(0, 32)
    x_place = x + rows.to(tl.int64)[:, None] * (blocks * 32) + steps[None, :]
    acc = tl.zeros((ROWS, COLUMNS), tl.float32)
    total = acc
    share, shares = tl.program_id(2), tl.num_programs(2)
    turns = tl.cdiv(blocks, UNROLL)
    cut = tl.where((tl.cdiv(turns, TURNS) - 1) % shares == share, tl.cdiv(turns, TURNS) * TURNS - turns, 0)
    count = tl.cdiv(tl.cdiv(turns, TURNS) - share, shares) * TURNS - cut
    for turn in range(0, count):
        span = share + turn // TURNS * shares
        acc = tl.where(turn % TURNS == 0, 0.0, acc)
        for i in tl.static_range(UNROLL):
            at = (span * TURNS + turn % TURNS) * UNROLL + i
            seen = here & (at < blocks)
            b = tl.minimum(at, blocks - 1)
            w = codes_of(weight, panel + b, lanes, BITS, ZERO)
            x_scale = tl.load(x_scales + b * M + rows, seen, other=0.0)
            for g in tl.static_range(GROUPS):
                scale = tl.load(scales + ((panel + b) * GROUPS + g) * 32 + lanes).to(tl.float32)
                part = (
                    seen[:, None] & (steps // (32 // GROUPS) == g)[None, :]
                )  # a dot takes 32 numbers: others are 0
                acc = add_block(acc, tl.load(x_place + b * 32, part, other=0), w, scale, x_scale)
            if MINIMUM:
                least = tl.load(minima + (panel + b) * 32 + lanes).to(tl.float32)[None, :]
                sums = tl.load(x_sums + b * M + rows, seen, other=0.0)[:, None]
                acc = tl.fma(tl.broadcast_to(least, acc.shape), tl.broadcast_to(sums, acc.shape), acc)
        ends = (turn % TURNS == TURNS - 1) | (turn == count - 1)
        if ALONE:
            total = tl.where(ends, total + acc, total)
        else:
            place = (span.to(tl.int64) * M + rows)[:, None] * N + columns[None, :]
            tl.store(parts + place, acc, inside & ends)
    if ALONE:
        if HAS_BIAS:
            total += tl.load(bias + columns, columns < N, other=0.0).to(tl.float32)[None, :]
        place = y + rows.to(tl.int64)[:, None] * stride + columns[None, :]
        tl.store(place, total.to(y.dtype.element_ty), inside)


@triton.jit
def add_spans_kernel(parts, bias, y, M, N, spans, stride, HAS_BIAS: tl.constexpr, COLUMNS: tl.constexpr):
    """The sums of the spans (spans, M, N), first to last."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    total = tl.zeros((COLUMNS,), tl.float32)
    for span in range(0, spans):
        total += tl.load(parts + (span * M + row) * N + columns, columns < N, other=0.0)
    if HAS_BIAS:
        total += tl.load(bias + columns, columns < N, other=0.0).to(tl.float32)
    tl.store(y + row * stride + columns, total.to(y.dtype.element_ty), columns < N)


@triton.jit
def quantized_rows_kernel(weight, scales, minima, ids, out, N, blocks, BITS: tl.constexpr, GROUPS: tl.constexpr,
                          ZERO: tl.constexpr, MINIMUM: tl.constexpr):  # fmt: skip
    """One block of one row as float32; NaN for an id that is not a row."""
    at = tl.program_id(0).to(tl.int64)
    b = tl.program_id(1)
    id = tl.load(ids + at)
    known = (id >= 0) & (id < N)
    id = tl.where(known, id, 0)
    lanes = (id % 32) + tl.zeros((1,), tl.int64)
    block = id // 32 * blocks + b
    k = tl.arange(0, 32)
    code = tl.reshape(codes_of(weight, block, lanes, BITS, ZERO), (32,)).to(tl.float32)
    group = (block * GROUPS + k // (32 // GROUPS)) * 32 + id % 32
    value = tl.load(scales + group).to(tl.float32) * code
    if MINIMUM:
        value += tl.load(minima + group).to(tl.float32)
    tl.store(out + (at * blocks + b) * 32 + k, tl.where(known, value, float("nan")))


def pack(codes, bits, zero, scale, minimum):
    n, k = codes.shape
    blocks, missing = k // BLOCK, -n % PANEL
    if bits == 8:
        whole = codes.short() - zero
        if n and not -128 <= int(whole.min()) <= int(whole.max()) <= 127:
            raise NotImplementedError(f"quantized triton: codes less zero ({zero}) do not fit 8 bits")
        codes = whole.to(torch.int8).view(torch.uint8)
    else:
        codes = codes[:, 0::2] | codes[:, 1::2] << 4
    parts = [_by_panel(part, blocks, missing) for part in (codes, scale, minimum) if part is not None]
    groups = scale.shape[1] // blocks
    # of the scales, the outputs lie side by side
    parts[1:] = [part.view(-1, blocks, PANEL, groups).transpose(2, 3) for part in parts[1:]]
    return torch.cat([part.contiguous().view(-1).view(torch.uint8) for part in parts])


def _by_panel(part, blocks, missing):
    """(N, blocks * W) as (panels, blocks, PANEL, W)."""
    part = torch.nn.functional.pad(part, (0, 0, 0, missing))
    return part.view(-1, PANEL, blocks, part.shape[1] // blocks).transpose(1, 2).contiguous()


def forward(x, part, bias, y, column):
    (m, k), n = x.shape, part.rows
    if not (m and n):
        return
    blocks, groups = k // BLOCK, BLOCK // part.group
    codes = x.new_empty((m, k), dtype=torch.int8)
    x_scales = x.new_empty((blocks, m), dtype=torch.float32)
    sums = x.new_empty((blocks, groups, m), dtype=torch.float32)
    width = min(MOST, triton.next_power_of_2(blocks))
    quantize_rows_kernel[(m, triton.cdiv(blocks, width))](
        x, codes, x_scales, sums, m, blocks, GROUPS=groups, BLOCKS=width, **EXACT
    )
    sizes, launch = tile(m)
    turns = span_turns(blocks, sizes["UNROLL"])
    spans = triton.cdiv(blocks, turns * sizes["UNROLL"])
    high, wide = triton.cdiv(m, sizes["ROWS"]), triton.cdiv(n, sizes["COLUMNS"])
    # of a tile; no result depends on it, and with many rows the sums of spans would outweigh the weights
    shares = min(spans, triton.cdiv(PROGRAMS, high * wide)) if m <= FEW else 1
    parts = x.new_empty((spans, m, n), dtype=torch.float32) if shares > 1 else None
    to, has_bias = y[:, column:], bias is not None
    linear_quantized_kernel[(high, wide, shares)](
        codes, x_scales, sums, *_views(part, k), bias, to, parts, m, n, blocks, y.shape[1], **_format(part),
        HAS_BIAS=has_bias, ALONE=shares == 1, TURNS=turns, **sizes, **launch, **EXACT,
    )  # fmt: skip
    if shares > 1:
        add_spans_kernel[(m, triton.cdiv(n, 256))](
            parts, bias, to, m, n, spans, y.shape[1], HAS_BIAS=has_bias, COLUMNS=256, **EXACT
        )


def rows(part, k, ids):
    blocks = k // BLOCK
    out = torch.empty(ids.numel(), k, device=ids.device)
    if ids.numel():
        quantized_rows_kernel[(ids.numel(), blocks)](
            *_views(part, k), ids, out, part.rows, blocks, **_format(part), num_warps=1, **EXACT
        )
    return out


def tile(rows: int) -> tuple[dict[str, int], dict[str, int]]:
    """(sides of a tile and blocks a turn, warps and stages)."""
    if rows <= 16:
        return {"ROWS": 16, "COLUMNS": 64, "UNROLL": 4}, {"num_warps": 2, "num_stages": 3}
    if rows <= 32:
        return {"ROWS": 32, "COLUMNS": 64, "UNROLL": 4}, {"num_warps": 2, "num_stages": 3}
    return {"ROWS": 64, "COLUMNS": 128, "UNROLL": 4}, {"num_warps": 8, "num_stages": 2}


def span_turns(blocks: int, unroll: int) -> int:
    """Turns whose sum is one chain: of 8 blocks at least, and of so many that a row has at most 16 spans."""
    return triton.next_power_of_2(triton.cdiv(max(8, triton.cdiv(blocks, 16)), unroll))


def _format(part):
    return {
        "BITS": part.bits, "GROUPS": BLOCK // part.group, "ZERO": part.zero if part.bits == 4 else 0,
        "MINIMUM": part.has_minimum,
    }  # fmt: skip


def _views(part, k):
    """(codes int8, scales, minima or None) of a part's bytes."""
    panels = -(-part.rows // PANEL)
    sizes = [
        panels * PANEL * k * part.bits // 8,
        panels * PANEL * (k // part.group) * part.scale_dtype.itemsize,
    ]
    codes, scales, minima = part.data.tensor_split([sizes[0], sum(sizes)])
    return (
        codes.view(torch.int8),
        scales.view(part.scale_dtype),
        minima.view(part.scale_dtype) if len(minima) else None,
    )
