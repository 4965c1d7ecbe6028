"""Rotary embedding with optional q/k norm in Triton: some heads of one token a program, q, k and v in one launch.

Forward reads each number where the projection left it and writes it once, values too; for the engine (forward_pages)
keys and values go to their places in pages. Backward turns the gradient
back and takes it through the norm; a program keeps the weight's gradient of its TOKENS tokens in registers and
writes it once, and the shares are added in order. Without weights nothing but the gradient is read.
"""

import torch
import triton
import triton.language as tl

from .._remember import remembered, sent
from .._triton import capturing
from ..attention.reference import CODES, PAGE_SIZE
from ..attention.triton import coding, largest, pack, places_in_page, store_scales, strides, to_codes
from .table import table

TOKENS = 16  # per partial sum of the weights' gradients
MOST = 2048  # pairs of numbers a program holds


@triton.jit
def turned(x, weight, angles, token, position, first, row, heads, D, length, eps,
           NORM: tl.constexpr, HEADS: tl.constexpr, HALF: tl.constexpr):  # fmt: skip
    """The two halves (HEADS, HALF) of heads first to first + HEADS of x (T, `row` numbers), normed if asked, turned to
    the position; float32, zeros where there is nothing."""
    members = first + tl.arange(0, HEADS)
    pairs = tl.arange(0, HALF)
    half = D // 2
    inside = (members < heads)[:, None] & (pairs < half)[None, :]
    source = x + token * row + members[:, None] * D + pairs[None, :]
    a = tl.load(source, inside, other=0.0).to(tl.float32)
    b = tl.load(source + half, inside, other=0.0).to(tl.float32)
    if NORM:
        rstd = 1.0 / tl.sqrt((tl.sum(a * a, 1) + tl.sum(b * b, 1)) / D + eps)
        a *= rstd[:, None] * tl.load(weight + pairs, pairs < half, other=0.0).to(tl.float32)[None, :]
        b *= rstd[:, None] * tl.load(weight + half + pairs, pairs < half, other=0.0).to(tl.float32)[None, :]
    cos, sin = angle(angles, position, pairs, half, length)
    return tl.where(inside, a * cos - b * sin, 0.0), tl.where(inside, b * cos + a * sin, 0.0)


@triton.jit
def turn_heads(x, out, weight, angles, token, position, first, row, heads, D, length, eps,
               NORM: tl.constexpr, HEADS: tl.constexpr, HALF: tl.constexpr):  # fmt: skip
    """Heads first to first + HEADS of turned() into out (T, heads, D)."""
    a, b = turned(x, weight, angles, token, position, first, row, heads, D, length, eps, NORM, HEADS, HALF)
    members = first + tl.arange(0, HEADS)
    pairs = tl.arange(0, HALF)
    inside = (members < heads)[:, None] & (pairs < D // 2)[None, :]
    place = out + (token * heads + members)[:, None] * D + pairs[None, :]
    tl.store(place, a.to(out.dtype.element_ty), inside)
    tl.store(place + D // 2, b.to(out.dtype.element_ty), inside)


@triton.jit
def copy_heads(x, out, token, first, row, heads, D, HEADS: tl.constexpr, HALF: tl.constexpr):
    """Heads first to first + HEADS of x (T, `row` numbers) as they are."""
    members = first + tl.arange(0, HEADS)
    dims = tl.arange(0, 2 * HALF)
    inside = (members < heads)[:, None] & (dims < D)[None, :]
    part = members[:, None] * D + dims[None, :]
    tl.store(out + token * heads * D + part, tl.load(x + token * row + part, inside), inside)


@triton.jit
def angle(angles, position, pairs, half, length):
    """(1, HALF) cosines and sines; NaN for a position that the table does not have."""
    known = (pairs < half) & (position >= 0) & (position < length)
    row = angles + position.to(tl.int64) * half + pairs
    cos = tl.load(row, known, other=float("nan"))
    return cos[None, :], tl.load(row + length.to(tl.int64) * half, known, other=float("nan"))[None, :]


@triton.jit
def rope_fwd_kernel(qkv, positions, q_weight, k_weight, angles, q_out, k_out, v_out, H, K, D, length, eps,
                    NORM: tl.constexpr, HEADS: tl.constexpr, HALF: tl.constexpr):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    position = tl.load(positions + token)
    row = (H + 2 * K) * D
    of_q, of_k = tl.cdiv(H, HEADS), tl.cdiv(K, HEADS)
    group = tl.program_id(1)
    if group < of_q:
        turn_heads(qkv, q_out, q_weight, angles, token, position, group * HEADS, row, H, D, length, eps,
                   NORM, HEADS, HALF)  # fmt: skip
    elif group < of_q + of_k:
        turn_heads(qkv + H * D, k_out, k_weight, angles, token, position, (group - of_q) * HEADS, row, K, D, length,
                   eps, NORM, HEADS, HALF)  # fmt: skip
    else:
        first = (group - of_q - of_k) * HEADS
        copy_heads(qkv + (H + K) * D, v_out, token, first, row, K, D, HEADS, HALF)


@triton.jit
def rope_pages_kernel(qkv, positions, q_weight, k_weight, angles, q_out, k_pages, v_pages, k_scales, v_scales, slots,
                      H, K, D, length, eps, padded, k_page, v_page, NORM: tl.constexpr, PACK: tl.constexpr,
                      PAGE: tl.constexpr, HEADS: tl.constexpr, HALF: tl.constexpr):  # fmt: skip
    """rope_fwd_kernel, with keys and values to their places in pages; as codes where PACK is 4 (then k_scales and
    v_scales are the pages in floats)."""
    token = tl.program_id(0).to(tl.int64)
    position = tl.load(positions + token)
    row = (H + 2 * K) * D
    of_q = tl.cdiv(H, HEADS)
    if tl.program_id(1) < of_q:
        turn_heads(qkv, q_out, q_weight, angles, token, position, tl.program_id(1) * HEADS, row, H, D, length, eps,
                   NORM, HEADS, HALF)  # fmt: skip
    else:
        first = (tl.program_id(1) - of_q) * HEADS
        a, b = turned(qkv + H * D, k_weight, angles, token, position, first, row, K, D, length, eps, NORM, HEADS,
                      HALF)  # fmt: skip
        half, members, pairs = D // 2, first + tl.arange(0, HEADS), tl.arange(0, HALF)
        inside = (members < K)[:, None] & (pairs < half)[None, :]
        source = qkv + (H + K) * D + token * row + members[:, None] * D + pairs[None, :]
        c, d = tl.load(source, inside, other=0.0), tl.load(source + half, inside, other=0.0)
        a, b = a.to(c.dtype), b.to(c.dtype)
        slot = tl.load(slots + token)
        place = slot % PAGE
        page = (slot // PAGE).to(tl.int64) * K + members
        k_head, v_head = k_pages + page[:, None] * k_page, v_pages + page[:, None] * v_page
        k_first, v_first = places_in_page(pairs, place, padded, PACK, PAGE)
        k_second, v_second = places_in_page(pairs + half, place, padded, PACK, PAGE)
        if PACK == 4:
            a, b, c, d = a.to(tl.float32), b.to(tl.float32), c.to(tl.float32), d.to(tl.float32)
            k_inverse, k_scale = coding(tl.maximum(largest(a), largest(b)))
            v_inverse, v_scale = coding(tl.maximum(largest(c), largest(d)))
            store_scales(k_scale, v_scale, k_scales, v_scales, page, place, members < K, D, padded, k_page, v_page,
                         PAGE)  # fmt: skip
            left = D + tl.arange(0, 2)  # of a word: those that stand for zero
            k_left, _ = places_in_page(left, place, padded, PACK, PAGE)
            rest = (members < K)[:, None] & (left < (D + 3) // 4 * 4)[None, :]
            tl.store(k_head + k_left[None, :], tl.full((HEADS, 2), 128, tl.uint8), rest)
            a, b = to_codes(a, k_inverse, k_scale), to_codes(b, k_inverse, k_scale)
            c, d = to_codes(c, v_inverse, v_scale), to_codes(d, v_inverse, v_scale)
        tl.store(k_head + k_first[None, :], a, inside)
        tl.store(k_head + k_second[None, :], b, inside)
        tl.store(v_head + v_first[None, :], c, inside)
        tl.store(v_head + v_second[None, :], d, inside)


@triton.jit
def turn_back(dy, x, dx, weight, partial, positions, angles, block, tokens, heads, D, length, eps,
              NORM: tl.constexpr, TOKENS: tl.constexpr, HEADS: tl.constexpr, HALF: tl.constexpr):  # fmt: skip
    """The gradient of turn_heads for all heads of TOKENS tokens; partial (D,) is their share of the weight's."""
    pairs = tl.arange(0, HALF)
    half = D // 2
    members = tl.arange(0, HEADS)
    if NORM:
        weight_a = tl.load(weight + pairs, pairs < half, other=0.0).to(tl.float32)[None, :]
        weight_b = tl.load(weight + half + pairs, pairs < half, other=0.0).to(tl.float32)[None, :]
    sum_a = tl.zeros((HEADS, HALF), tl.float32)
    sum_b = tl.zeros((HEADS, HALF), tl.float32)
    for i in range(TOKENS):
        token = block * TOKENS + i
        position = tl.load(positions + token, token < tokens, other=0)
        cos, sin = angle(angles, position, pairs, half, length)
        for first in range(0, heads, HEADS):
            inside = ((first + members < heads) & (token < tokens))[:, None] & (pairs < half)[None, :]
            place = (token * heads + first + members)[:, None] * D + pairs[None, :]
            grad_a = tl.load(dy + place, inside, other=0.0).to(tl.float32)
            grad_b = tl.load(dy + place + half, inside, other=0.0).to(tl.float32)
            ga = grad_a * cos + grad_b * sin
            gb = grad_b * cos - grad_a * sin
            if NORM:
                a = tl.load(x + place, inside, other=0.0).to(tl.float32)
                b = tl.load(x + place + half, inside, other=0.0).to(tl.float32)
                rstd = (1.0 / tl.sqrt((tl.sum(a * a, 1) + tl.sum(b * b, 1)) / D + eps))[:, None]
                a *= rstd
                b *= rstd
                ga = tl.where(inside, ga, 0.0)
                gb = tl.where(inside, gb, 0.0)
                sum_a += ga * a
                sum_b += gb * b
                ga *= weight_a
                gb *= weight_b
                pull = ((tl.sum(ga * a, 1) + tl.sum(gb * b, 1)) / D)[:, None]
                ga = rstd * (ga - a * pull)
                gb = rstd * (gb - b * pull)
            tl.store(dx + place, ga.to(dx.dtype.element_ty), inside)
            tl.store(dx + place + half, gb.to(dx.dtype.element_ty), inside)
    if NORM:
        tl.store(partial + pairs, tl.sum(sum_a, 0), pairs < half)
        tl.store(partial + half + pairs, tl.sum(sum_b, 0), pairs < half)


@triton.jit
def rope_bwd_kernel(dq, dk, q, k, positions, q_weight, k_weight, angles, dq_out, dk_out, partial,
                    T, H, K, D, length, eps, NORM: tl.constexpr, TOKENS: tl.constexpr, HEADS: tl.constexpr,
                    HALF: tl.constexpr):  # fmt: skip
    block = tl.program_id(0).to(tl.int64)
    if tl.program_id(1) == 0:
        turn_back(dq, q, dq_out, q_weight, partial + block * 2 * D, positions, angles, block, T, H, D, length,
                  eps, NORM, TOKENS, HEADS, HALF)  # fmt: skip
    else:
        turn_back(dk, k, dk_out, k_weight, partial + (block * 2 + 1) * D, positions, angles, block, T, K, D,
                  length, eps, NORM, TOKENS, HEADS, HALF)  # fmt: skip


def forward(qkv, heads, positions, q_weight, k_weight, theta, eps, divisors=()):
    (tokens, columns, dim) = qkv.shape
    kv_heads = (columns - heads) // 2
    q_out = qkv.new_empty(tokens, heads, dim)
    k_out, v_out = (qkv.new_empty(tokens, kv_heads, dim) for _ in range(2))
    if tokens:
        angles = _angles(positions, theta, dim, qkv.device, divisors)
        tile = _tile(dim, heads)
        groups = sum(triton.cdiv(h, tile["HEADS"]) for h in (heads, kv_heads, kv_heads))
        rope_fwd_kernel[(tokens, groups)](
            qkv, sent(positions, qkv.device), q_weight, k_weight, angles, q_out, k_out, v_out,
            heads, kv_heads, dim, angles.shape[1], eps, NORM=q_weight is not None, **tile,
        )  # fmt: skip
    return q_out, k_out, v_out


def forward_pages(qkv, heads, positions, q_weight, k_weight, theta, eps, divisors, k_pages, v_pages, slots):
    (tokens, columns, dim) = qkv.shape
    kv_heads = (columns - heads) // 2
    q_out = qkv.new_empty(tokens, heads, dim)
    if tokens:
        angles = _angles(positions, theta, dim, qkv.device, divisors)
        tile = _tile(dim, heads)
        groups = sum(triton.cdiv(h, tile["HEADS"]) for h in (heads, kv_heads))
        coded = k_pages.dtype is CODES
        scales = [part.view(torch.float32) if coded else None for part in (k_pages, v_pages)]
        rope_pages_kernel[(tokens, groups)](
            qkv, sent(positions, qkv.device), q_weight, k_weight, angles, q_out, k_pages, v_pages, *scales, slots,
            heads, kv_heads, dim, angles.shape[1], eps, *strides(k_pages, v_pages, dim), NORM=q_weight is not None,
            PACK=pack(k_pages), PAGE=PAGE_SIZE, **tile,
        )  # fmt: skip
    return q_out


def backward(dq, dk, dv, positions, qkv, q_weight, k_weight, theta, eps, divisors=()):
    (tokens, heads, dim), kv_heads = dq.shape, dk.shape[1]
    q = k = None
    if qkv is not None:
        q, k, _ = (part.contiguous() for part in qkv.split([heads, kv_heads, kv_heads], dim=1))
    dq_out, dk_out = torch.empty_like(dq), torch.empty_like(dk)
    norm = q_weight is not None
    blocks = triton.cdiv(tokens, TOKENS)
    partial = dq.new_empty((blocks if norm else 0, 2, dim), dtype=torch.float32)
    if tokens:
        angles = _angles(positions, theta, dim, dq.device, divisors)
        rope_bwd_kernel[(blocks, 2)](
            dq, dk, q, k, sent(positions, dq.device), q_weight, k_weight, angles, dq_out, dk_out, partial,
            tokens, heads, dk.shape[1], dim, angles.shape[1], eps,
            NORM=norm, TOKENS=TOKENS, **_tile(dim, heads),
        )  # fmt: skip
    dqkv = torch.cat([dq_out, dk_out, dv], dim=1)
    if not norm:
        return dqkv, dq.new_empty(0), dq.new_empty(0)
    dq_weight, dk_weight = partial.sum(0).to(dq.dtype)
    return dqkv, dq_weight, dk_weight


def _tile(dim: int, heads: int) -> dict[str, int]:
    half = triton.next_power_of_2(dim // 2)
    if half > MOST:
        raise NotImplementedError(f"rope: triton handles heads of at most {2 * MOST}, got {dim}")
    return {"HEADS": min(triton.next_power_of_2(heads), max(1, MOST // half)), "HALF": half}


def _angles(positions, theta, dim, device, divisors):
    """The table, long enough for the positions; while a CUDA graph is captured, as long as it is."""
    return table(theta, dim, 1 if capturing(positions) else _furthest(positions) + 1, device, divisors)


@remembered
def _furthest(positions) -> int:
    return int(positions.max())
