"""Attention in Triton: packed causal forward and backward in tiles, and paged rows for the engine.

Forward: a tile of queries stays in registers while the tiles of keys and values of its own document pass by,
with a running maximum and sum (online softmax), so T x T is never stored. Backward recomputes the
probabilities from the saved log-sum-exp: one kernel walks over queries for a tile of keys (dk, dv), one over keys
for a tile of queries (dq); no atomics, so the result is the same every time. exp2 with log2(e) folded into the
scale. Only the tiles that a document has are launched: work follows the documents' own squares.

Paged: a row's context is cut into spans of pages; each is summed up by itself, the heads of a kv head's group as one
tile, and the spans are folded first to last. Where rows are few, the spans of a row are dealt to several programs and
folded by a second kernel, with the same bits (split-KV: Dao et al., Flash-Decoding, 2023).
"""

import torch
import triton
import triton.language as tl

from .._triton import dot, dot_onto
from ._tiles import tiles
from .reference import CODES, PAGE_SIZE

WARPS = 8
PROGRAMS = 512  # that decoding aims at: about four an SM of the largest cards
EXACT = {"enable_fp_fusion": False}  # the two ways to fold spans must round alike
LOG2E = 1.4426950408889634


@triton.jit
def attention_fwd_kernel(q, k, v, out, lse, tiles, scale_log2, H, K, D,
                         QUERIES: tl.constexpr, KEYS: tl.constexpr, DIM: tl.constexpr):  # fmt: skip
    first = tl.load(tiles + tl.program_id(0) * 3)  # of this tile's queries
    begin = tl.load(tiles + tl.program_id(0) * 3 + 1)  # of their document
    end = tl.load(tiles + tl.program_id(0) * 3 + 2)
    head = tl.program_id(1)
    kv_head = head // (H // K)
    dims = tl.arange(0, DIM)
    rows = first + tl.arange(0, QUERIES)
    here = (rows < end)[:, None] & (dims < D)[None, :]
    place = (rows.to(tl.int64) * H + head)[:, None] * D + dims[None, :]
    queries = tl.load(q + place, here, other=0.0)
    peak = tl.full((QUERIES,), float("-inf"), tl.float32)
    total = tl.zeros((QUERIES,), tl.float32)
    acc = tl.zeros((QUERIES, DIM), tl.float32)
    for start in range(begin, tl.minimum(first + QUERIES, end), KEYS):
        cols = start + tl.arange(0, KEYS)
        there = (cols < end)[:, None] & (dims < D)[None, :]
        other = (cols.to(tl.int64) * K + kv_head)[:, None] * D + dims[None, :]
        keys = tl.load(k + other, there, other=0.0)
        values = tl.load(v + other, there, other=0.0)
        scores = dot(queries, tl.trans(keys)) * scale_log2
        scores = tl.where((cols[None, :] <= rows[:, None]) & (cols < end)[None, :], scores, float("-inf"))
        higher = tl.maximum(peak, tl.max(scores, 1))
        fade = tl.exp2(peak - higher)
        p = tl.exp2(scores - higher[:, None])
        total = total * fade + tl.sum(p, 1)
        acc = acc * fade[:, None] + dot(p.to(values.dtype), values)
        peak = higher
    tl.store(out + place, (acc / total[:, None]).to(out.dtype.element_ty), here)
    tl.store(lse + rows.to(tl.int64) * H + head, (peak + tl.log2(total)) / 1.4426950408889634, rows < end)


@triton.jit
def attention_bwd_dkdv_kernel(q, k, v, dout, lse, delta, dk, dv, tiles, scale, H, K, D,
                              QUERIES: tl.constexpr, KEYS: tl.constexpr, DIM: tl.constexpr):  # fmt: skip
    first = tl.load(tiles + tl.program_id(0) * 3)  # of this tile's keys
    end = tl.load(tiles + tl.program_id(0) * 3 + 2)
    kv_head = tl.program_id(1)
    dims = tl.arange(0, DIM)
    cols = first + tl.arange(0, KEYS)
    there = (cols < end)[:, None] & (dims < D)[None, :]
    place = (cols.to(tl.int64) * K + kv_head)[:, None] * D + dims[None, :]
    keys = tl.load(k + place, there, other=0.0)
    values = tl.load(v + place, there, other=0.0)
    dkeys = tl.zeros((KEYS, DIM), tl.float32)
    dvalues = tl.zeros((KEYS, DIM), tl.float32)
    for head in range(kv_head * (H // K), (kv_head + 1) * (H // K)):
        for start in range(first, end, QUERIES):
            rows = start + tl.arange(0, QUERIES)
            inside = rows < end
            here = inside[:, None] & (dims < D)[None, :]
            other = (rows.to(tl.int64) * H + head)[:, None] * D + dims[None, :]
            queries = tl.load(q + other, here, other=0.0)
            douts = tl.load(dout + other, here, other=0.0)
            row_lse = tl.load(lse + rows.to(tl.int64) * H + head, inside, other=0.0)
            row_delta = tl.load(delta + rows.to(tl.int64) * H + head, inside, other=0.0)
            scores = dot(queries, tl.trans(keys)) * scale
            seen = (cols[None, :] <= rows[:, None]) & inside[:, None] & (cols < end)[None, :]
            p = tl.where(seen, tl.exp2((scores - row_lse[:, None]) * 1.4426950408889634), 0.0)
            dp = dot(douts, tl.trans(values))
            ds = p * (dp - row_delta[:, None]) * scale
            dvalues += dot(tl.trans(p.to(douts.dtype)), douts)
            dkeys += dot(tl.trans(ds.to(queries.dtype)), queries)
    tl.store(dk + place, dkeys.to(dk.dtype.element_ty), there)
    tl.store(dv + place, dvalues.to(dv.dtype.element_ty), there)


@triton.jit
def attention_bwd_dq_kernel(q, k, v, dout, lse, delta, dq, tiles, scale, H, K, D,
                            QUERIES: tl.constexpr, KEYS: tl.constexpr, DIM: tl.constexpr):  # fmt: skip
    first = tl.load(tiles + tl.program_id(0) * 3)
    begin = tl.load(tiles + tl.program_id(0) * 3 + 1)
    end = tl.load(tiles + tl.program_id(0) * 3 + 2)
    head = tl.program_id(1)
    kv_head = head // (H // K)
    dims = tl.arange(0, DIM)
    rows = first + tl.arange(0, QUERIES)
    here = (rows < end)[:, None] & (dims < D)[None, :]
    place = (rows.to(tl.int64) * H + head)[:, None] * D + dims[None, :]
    queries = tl.load(q + place, here, other=0.0)
    douts = tl.load(dout + place, here, other=0.0)
    row_lse = tl.load(lse + rows.to(tl.int64) * H + head, rows < end, other=0.0)
    row_delta = tl.load(delta + rows.to(tl.int64) * H + head, rows < end, other=0.0)
    dqueries = tl.zeros((QUERIES, DIM), tl.float32)
    for start in range(begin, tl.minimum(first + QUERIES, end), KEYS):
        cols = start + tl.arange(0, KEYS)
        there = (cols < end)[:, None] & (dims < D)[None, :]
        other = (cols.to(tl.int64) * K + kv_head)[:, None] * D + dims[None, :]
        keys = tl.load(k + other, there, other=0.0)
        values = tl.load(v + other, there, other=0.0)
        scores = dot(queries, tl.trans(keys)) * scale
        seen = (cols[None, :] <= rows[:, None]) & (cols < end)[None, :]
        p = tl.where(seen, tl.exp2((scores - row_lse[:, None]) * 1.4426950408889634), 0.0)
        dp = dot(douts, tl.trans(values))
        ds = p * (dp - row_delta[:, None]) * scale
        dqueries += dot(ds.to(keys.dtype), keys)
    tl.store(dq + place, dqueries.to(dq.dtype.element_ty), here)


@triton.jit
def halves(words):
    """The two bfloat16 numbers in each 32-bit word, the first in memory first."""
    low = words.to(tl.int16).to(tl.bfloat16, bitcast=True)
    return low, (words >> 16).to(tl.int16).to(tl.bfloat16, bitcast=True)


@triton.jit
def page_scores(queries, others, keys, D, PACK: tl.constexpr, PAGE: tl.constexpr, DIM: tl.constexpr):
    """q k^T (GROUP, PAGE) with one page of a head's keys, whatever lies in slots that nobody wrote.

    bfloat16 keys lie in pairs of neighbouring dimensions: read as words, 16 bytes a thread, the first of each pair
    meets the even dimensions of the queries and the second the odd ones.
    """
    rows = tl.arange(0, DIM // PACK)
    place = rows[:, None] * PAGE + tl.arange(0, PAGE)[None, :]
    found = tl.load(keys + place, (rows * PACK < D)[:, None], other=0)
    if PACK == 1:
        return dot(queries, found)
    even, odd = halves(found)
    odd = tl.where((rows * 2 + 1 < D)[:, None], odd, 0.0)
    return dot_onto(others, odd, dot(queries, even))


@triton.jit
def page_values(p, acc, values, seen, padded, PACK: tl.constexpr, PAGE: tl.constexpr, DIM: tl.constexpr):
    """acc + p v (GROUP, DIM) with one page of a head's values; those of slots not `seen` count for nothing.

    bfloat16 values lie in pairs of neighbouring slots.
    """
    rows, dims = tl.arange(0, PAGE // PACK), tl.arange(0, DIM)
    place = rows[:, None] * padded + dims[None, :]
    found = tl.load(values + place, (dims < padded)[None, :], other=0)
    if PACK == 1:
        return dot_onto(p.to(found.dtype), tl.where((rows < seen)[:, None], found, 0.0), acc)
    first, second = tl.split(tl.reshape(p.to(tl.bfloat16), (p.shape[0], PAGE // 2, 2)))
    even, odd = halves(found)
    acc = dot_onto(first, tl.where((rows * 2 < seen)[:, None], even, 0.0), acc)
    return dot_onto(second, tl.where((rows * 2 + 1 < seen)[:, None], odd, 0.0), acc)


@triton.jit
def codes_of(words, place: tl.constexpr, dtype: tl.constexpr):
    """The numbers that byte `place` of each word stands for, without their scale: -127 to 127, exact in any type."""
    whole = ((words >> (8 * place)) & 0xFF) - 128
    return whole.to(tl.float32).to(dtype)  # the interpreter of Triton 3.6 makes no bfloat16 of a whole number


@triton.jit
def code_scores(first, second, third, fourth, keys, D, PAGE: tl.constexpr, DIM: tl.constexpr):
    """page_scores() with keys as codes, four neighbouring dimensions a word, each of which meets every fourth dimension
    of the queries: `first` to `fourth`."""
    rows, slots = tl.arange(0, DIM // 4), tl.arange(0, PAGE)
    found = tl.load(keys + rows[:, None] * PAGE + slots[None, :], (rows * 4 < D)[:, None], other=0)
    scores = dot(first, codes_of(found, 0, first.dtype))
    scores = dot_onto(second, codes_of(found, 1, first.dtype), scores)
    scores = dot_onto(third, codes_of(found, 2, first.dtype), scores)
    scores = dot_onto(fourth, codes_of(found, 3, first.dtype), scores)
    return scores * tl.load(keys + tl.cdiv(D, 4) * PAGE + slots).to(tl.float32, bitcast=True)[None, :]


@triton.jit
def alternate(t):
    """The even and the odd columns of t (N, M)."""
    return tl.split(tl.reshape(t, (t.shape[0], t.shape[1] // 2, 2)))


@triton.jit
def code_values(p, acc, values, seen, padded, dtype: tl.constexpr, PAGE: tl.constexpr, DIM: tl.constexpr):
    """page_values() with values as codes, four neighbouring slots a word; products are of numbers of `dtype`."""
    rows, dims, slots = tl.arange(0, PAGE // 4), tl.arange(0, DIM), tl.arange(0, PAGE)
    found = tl.load(values + rows[:, None] * padded + dims[None, :], (dims < padded)[None, :], other=0)
    scales = tl.load(values + PAGE // 4 * padded + slots).to(tl.float32, bitcast=True)
    even, odd = alternate((p * tl.where(slots < seen, scales, 0.0)[None, :]).to(dtype))
    first, third = alternate(even)
    second, fourth = alternate(odd)
    acc = dot_onto(first, codes_of(found, 0, dtype), acc)
    acc = dot_onto(second, codes_of(found, 1, dtype), acc)
    acc = dot_onto(third, codes_of(found, 2, dtype), acc)
    return dot_onto(fourth, codes_of(found, 3, dtype), acc)


@triton.jit
def fold_span(peak, total, acc, span_peak, span_total, span_acc):
    """The running maximum, sum and output of some spans, and those of the next, as one."""
    higher = tl.maximum(peak, span_peak)
    fade, share = tl.exp2(peak - higher), tl.exp2(span_peak - higher)
    return higher, total * fade + span_total * share, acc * fade[:, None] + span_acc * share[:, None]


@triton.jit
def request_of(row, q_start, requests, BLOCK: tl.constexpr):
    """The request whose queries `row` is one of."""
    found = tl.zeros((), tl.int32)
    for start in range(0, requests, BLOCK):
        r = start + tl.arange(0, BLOCK)
        found += tl.sum((tl.load(q_start + 1 + r, r < requests, other=2147483647) <= row).to(tl.int32))
    return found


@triton.jit
def attention_paged_kernel(q, k_pages, v_pages, out, peaks, totals, parts, block_table, q_start, context_lens,
                           scale_log2, requests, width, spans, H, K, D, padded, k_page, v_page,
                           SPAN: tl.constexpr, ALONE: tl.constexpr, PACK: tl.constexpr, PAGE: tl.constexpr,
                           GROUP: tl.constexpr, DIM: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    """One query row, all heads of one kv head's group, and every so manieth span of SPAN pages of its context.

    ALONE, a program takes all spans and folds them as it goes; else each span's share is left for the fold to come.
    """
    row = tl.program_id(0)
    kv_head = tl.program_id(1)
    group = H // K
    members, dims = tl.arange(0, GROUP), tl.arange(0, DIM)
    request = request_of(row, q_start, requests, BLOCK)
    newer = tl.load(q_start + request + 1) - 1 - row  # rows of the request after this one
    length = tl.load(context_lens + request) - newer
    table = block_table + request.to(tl.int64) * width
    mine = members < group
    first = (row.to(tl.int64) * H + kv_head * group + members)[:, None] * D
    words = tl.arange(0, DIM // PACK)[None, :] * PACK
    queries = tl.load(q + first + words, mine[:, None] & (words < D), other=0.0)
    second, third, fourth = queries, queries, queries  # of those that there are, the numbers of each word
    if PACK >= 2:
        second = tl.load(q + first + words + 1, mine[:, None] & (words + 1 < D), other=0.0)
    if PACK == 4:
        third = tl.load(q + first + words + 2, mine[:, None] & (words + 2 < D), other=0.0)
        fourth = tl.load(q + first + words + 3, mine[:, None] & (words + 3 < D), other=0.0)
    peak = tl.full((GROUP,), float("-inf"), tl.float32)
    total = tl.zeros((GROUP,), tl.float32)
    acc = tl.zeros((GROUP, DIM), tl.float32)
    span_peak, span_total, span_acc = peak, total, acc
    slots = tl.arange(0, PAGE)
    pages = tl.cdiv(length, PAGE)
    share, shares = tl.program_id(2), tl.num_programs(2)
    whole = tl.cdiv(
        tl.cdiv(pages, SPAN) - share, shares
    )  # spans of this program, the row's last one maybe cut
    cut = tl.where((tl.cdiv(pages, SPAN) - 1) % shares == share, tl.cdiv(pages, SPAN) * SPAN - pages, 0)
    count = whole * SPAN - cut
    for step in range(
        0, count
    ):  # one loop over all pages, so that those to come are on their way across spans
        span = share + step // SPAN * shares
        index = span * SPAN + step % SPAN
        page = tl.load(table + index).to(tl.int64) * K + kv_head
        seen = length - index * PAGE
        begins = step % SPAN == 0
        span_peak = tl.where(begins, float("-inf"), span_peak)
        span_total = tl.where(begins, 0.0, span_total)
        span_acc = tl.where(begins, 0.0, span_acc)
        if PACK == 4:
            keys = k_pages + page * k_page
            scores = code_scores(queries, second, third, fourth, keys, D, PAGE, DIM) * scale_log2
        else:
            scores = page_scores(queries, second, k_pages + page * k_page, D, PACK, PAGE, DIM) * scale_log2
        scores = tl.where((slots < seen)[None, :], scores, float("-inf"))
        higher = tl.maximum(span_peak, tl.max(scores, 1))
        fade = tl.exp2(span_peak - higher)
        p = tl.exp2(scores - higher[:, None])
        span_total = span_total * fade + tl.sum(p, 1)
        if PACK == 4:
            values = v_pages + page * v_page
            span_acc = code_values(
                p, span_acc * fade[:, None], values, seen, padded, queries.dtype, PAGE, DIM
            )
        else:
            span_acc = page_values(
                p, span_acc * fade[:, None], v_pages + page * v_page, seen, padded, PACK, PAGE, DIM
            )
        span_peak = higher
        ends = (step % SPAN == SPAN - 1) | (step == count - 1)
        if ALONE:
            folded = fold_span(peak, total, acc, span_peak, span_total, span_acc)
            peak = tl.where(ends, folded[0], peak)
            total = tl.where(ends, folded[1], total)
            acc = tl.where(ends, folded[2], acc)
        else:
            at = ((row.to(tl.int64) * K + kv_head) * spans + span) * group + members
            tl.store(peaks + at, span_peak, mine & ends)
            tl.store(totals + at, span_total, mine & ends)
            inside = mine[:, None] & (dims < D)[None, :]
            tl.store(parts + at[:, None] * D + dims[None, :], span_acc, inside & ends)
    if ALONE:
        result = (acc / total[:, None]).to(out.dtype.element_ty)
        tl.store(out + first + dims[None, :], result, mine[:, None] & (dims < D)[None, :])


@triton.jit
def fold_spans_kernel(peaks, totals, parts, out, q_start, context_lens, requests, spans, H, K, D,
                          SPAN: tl.constexpr, PAGE: tl.constexpr, GROUP: tl.constexpr, DIM: tl.constexpr,
                          BLOCK: tl.constexpr):  # fmt: skip
    """The spans' shares of one query row and kv head, first to last."""
    row = tl.program_id(0)
    kv_head = tl.program_id(1)
    group = H // K
    members, dims = tl.arange(0, GROUP), tl.arange(0, DIM)
    request = request_of(row, q_start, requests, BLOCK)
    length = tl.load(context_lens + request) - (tl.load(q_start + request + 1) - 1 - row)
    mine = members < group
    inside = mine[:, None] & (dims < D)[None, :]
    peak = tl.full((GROUP,), float("-inf"), tl.float32)
    total = tl.zeros((GROUP,), tl.float32)
    acc = tl.zeros((GROUP, DIM), tl.float32)
    for span in range(0, tl.cdiv(length, SPAN * PAGE)):
        at = ((row.to(tl.int64) * K + kv_head) * spans + span) * group + members
        span_acc = tl.load(parts + at[:, None] * D + dims[None, :], inside, other=0.0)
        span_peak, span_total = tl.load(peaks + at, mine, other=0.0), tl.load(totals + at, mine, other=1.0)
        peak, total, acc = fold_span(peak, total, acc, span_peak, span_total, span_acc)
    place = (row.to(tl.int64) * H + kv_head * group + members)[:, None] * D + dims[None, :]
    tl.store(out + place, (acc / total[:, None]).to(out.dtype.element_ty), inside)


@triton.jit
def places_in_page(dims, place, padded, PACK: tl.constexpr, PAGE: tl.constexpr):
    """Where a token's keys and values lie, as new_pages() says: PACK numbers that a dot product takes together lie
    side by side."""
    keys = (dims // PACK) * (PAGE * PACK) + place * PACK + dims % PACK
    return keys, (place // PACK) * (padded * PACK) + dims * PACK + place % PACK


@triton.jit
def largest(x):
    """The largest magnitude of each row of x; infinity where one is no number."""
    return tl.max(tl.where(x == x, tl.abs(x), float("inf")), 1)


@triton.jit
def coding(most):
    """(what numbers are multiplied with to become codes, scale of these) of rows whose largest is `most`, as the
    reference has it; the scale is NaN where one is no number."""
    usable = (most > 0) & (most < float("inf"))
    inverse = tl.div_rn(tl.full(most.shape, 127.0, tl.float32), tl.where(usable, most, 1.0))
    inverse = tl.where(usable, tl.minimum(inverse, 3.4028234663852886e38), 0.0)
    return inverse, tl.where(most < float("inf"), most * 0.007874015748031496, float("nan"))


@triton.jit
def to_codes(x, inverse, scale):
    """The bytes of the rows of x."""
    scaled = tl.where((scale == scale)[:, None], x, 0.0) * inverse[:, None]
    whole = (
        tl.minimum(tl.maximum(scaled, -127.0), 127.0) + 12582912.0
    ) - 12582912.0  # to the nearest, ties to even
    return (whole.to(tl.int32) + 128).to(tl.uint8)


@triton.jit
def store_scales(k_scale, v_scale, k_scales, v_scales, page, place, there, D, padded, k_page, v_page,
                 PAGE: tl.constexpr):  # fmt: skip
    """Of a token's heads, behind the codes of each; both are NaN where either is. k_page and v_page are in bytes."""
    lost = (k_scale + v_scale) * 0.0
    tl.store(k_scales + page * (k_page // 4) + (D + 3) // 4 * PAGE + place, k_scale + lost, there)
    tl.store(v_scales + page * (v_page // 4) + padded * (PAGE // 4) + place, v_scale + lost, there)


@triton.jit
def write_codes_kernel(k, v, k_pages, v_pages, k_scales, v_scales, slots, k_row, v_row, K, D, padded, k_page, v_page,
                       PAGE: tl.constexpr, DIM: tl.constexpr):  # fmt: skip
    """write_pages_kernel for pages of codes: k_pages and v_pages in bytes, k_scales and v_scales the same memory in
    floats; k_page and v_page are the bytes of a head's share of a page."""
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) + tl.arange(0, 1)
    dims = tl.arange(0, DIM)
    slot = tl.load(slots + token)
    page = (slot // PAGE).to(tl.int64) * K + head
    place = slot % PAGE
    k_place, v_place = places_in_page(dims, place, padded, 4, PAGE)
    source = head[:, None] * D + dims[None, :]
    key = tl.load(k + token * k_row + source, (dims < D)[None, :], other=0.0).to(tl.float32)
    value = tl.load(v + token * v_row + source, (dims < D)[None, :], other=0.0).to(tl.float32)
    k_inverse, k_scale = coding(largest(key))
    v_inverse, v_scale = coding(largest(value))
    k_at, v_at = page[:, None] * k_page + k_place[None, :], page[:, None] * v_page + v_place[None, :]
    tl.store(k_pages + k_at, to_codes(key, k_inverse, k_scale), (dims < (D + 3) // 4 * 4)[None, :])
    tl.store(v_pages + v_at, to_codes(value, v_inverse, v_scale), (dims < D)[None, :])
    store_scales(k_scale, v_scale, k_scales, v_scales, page, place, head < K, D, padded, k_page, v_page, PAGE)


@triton.jit
def write_pages_kernel(k, v, k_pages, v_pages, slots, k_row, v_row, K, D, padded, k_page, v_page,
                       PACK: tl.constexpr, PAGE: tl.constexpr, DIM: tl.constexpr):  # fmt: skip
    """The key and value of one token and head; k_row and v_row are the numbers from one token to the next."""
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    dims = tl.arange(0, DIM)
    slot = tl.load(slots + token)
    page = (slot // PAGE).to(tl.int64) * K + head
    place = slot % PAGE
    k_place, v_place = places_in_page(dims, place, padded, PACK, PAGE)
    key = tl.load(k + token * k_row + head * D + dims, dims < D)
    tl.store(k_pages + page * k_page + k_place, key, dims < D)
    value = tl.load(v + token * v_row + head * D + dims, dims < D)
    tl.store(v_pages + page * v_page + v_place, value, dims < D)


def forward(q, k, v, cu_seqlens, scale):
    tokens, heads, dim = q.shape
    out = torch.empty_like(q)
    lse = q.new_empty((tokens, heads), dtype=torch.float32)
    sizes = tile(dim, q.dtype)
    work = tiles(cu_seqlens, sizes["QUERIES"], q.device)
    if len(work):
        attention_fwd_kernel[(len(work), heads)](
            q, k, v, out, lse, work, scale * LOG2E, heads, k.shape[1], dim, **sizes, num_warps=WARPS
        )
    return out, lse


def backward(dout, q, k, v, out, lse, cu_seqlens, scale):
    heads, kv_heads, dim = q.shape[1], k.shape[1], q.shape[2]
    dq, dk, dv = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
    delta = (dout.float() * out.float()).sum(-1)
    for_queries, for_keys = tile_for_queries(dim, q.dtype), tile_for_keys(dim, q.dtype)
    by_query = tiles(cu_seqlens, for_queries["QUERIES"], q.device)
    by_key = tiles(cu_seqlens, for_keys["KEYS"], q.device, True)
    if len(by_query):
        attention_bwd_dkdv_kernel[(len(by_key), kv_heads)](
            q,
            k,
            v,
            dout,
            lse,
            delta,
            dk,
            dv,
            by_key,
            scale,
            heads,
            kv_heads,
            dim,
            **for_keys,
            num_warps=WARPS,
        )
        attention_bwd_dq_kernel[(len(by_query), heads)](
            q, k, v, dout, lse, delta, dq, by_query, scale, heads, kv_heads, dim, **for_queries,
            num_warps=WARPS,
        )  # fmt: skip
    return dq, dk, dv


def forward_paged(q, k_pages, v_pages, block_table, q_start, context_lens, scale):
    (tokens, heads, dim), kv_heads = q.shape, k_pages.shape[1]
    out = torch.empty_like(q)
    if not tokens:
        return out
    requests, width = block_table.shape
    packed = pack(k_pages)
    span = span_pages(width)
    spans = triton.cdiv(width, span)
    shares = min(spans, triton.cdiv(PROGRAMS, tokens * kv_heads))  # of a row: no result depends on it
    sizes = {
        "SPAN": span, "PAGE": PAGE_SIZE, "BLOCK": min(256, triton.next_power_of_2(requests)),
        "GROUP": max(16, triton.next_power_of_2(heads // kv_heads)), "DIM": max(32, 16 * packed, _dim(dim)),
    }  # fmt: skip
    peaks = totals = parts = None
    if shares > 1:
        each = tokens, kv_heads, spans, heads // kv_heads
        peaks, totals = (q.new_empty(each, dtype=torch.float32) for _ in range(2))
        parts = q.new_empty((*each, dim), dtype=torch.float32)
    if packed > 1:
        k_words, v_words = k_pages.view(torch.int32), v_pages.view(torch.int32)
    else:
        k_words, v_words = k_pages, v_pages
    attention_paged_kernel[(tokens, kv_heads, shares)](
        q, k_words, v_words, out, peaks, totals, parts, block_table, q_start, context_lens, scale * LOG2E,
        requests, width, spans, heads, kv_heads, dim, *strides(k_words, v_words, dim), ALONE=shares == 1,
        PACK=packed, **sizes, num_stages=3, **EXACT,
    )  # fmt: skip
    if shares > 1:
        fold_spans_kernel[(tokens, kv_heads)](
            peaks, totals, parts, out, q_start, context_lens, requests, spans, heads, kv_heads, dim,
            **sizes, num_warps=max(4, _dim(dim) // 16), **EXACT,  # 8 numbers of the sum a thread: 16 spill
        )  # fmt: skip
    return out


def write_pages(k, v, k_pages, v_pages, slots):
    tokens, kv_heads, dim = k.shape
    if not tokens:
        return
    numbers = k.stride(0), v.stride(0), kv_heads, dim, *strides(k_pages, v_pages, dim)
    if k_pages.dtype is CODES:
        scales = (part.view(torch.float32) for part in (k_pages, v_pages))
        write_codes_kernel[(tokens, kv_heads)](
            k,
            v,
            k_pages,
            v_pages,
            *scales,
            slots,
            *numbers,
            PAGE=PAGE_SIZE,
            DIM=_dim(dim),
            num_warps=1,
            **EXACT,
        )
    else:
        write_pages_kernel[(tokens, kv_heads)](
            k, v, k_pages, v_pages, slots, *numbers,
            PACK=pack(k_pages), PAGE=PAGE_SIZE, DIM=_dim(dim), num_warps=1,
        )  # fmt: skip


def append_paged(q, k, v, k_pages, v_pages, slots, block_table, q_start, context_lens, scale):
    write_pages(k, v, k_pages, v_pages, slots)
    return forward_paged(q, k_pages, v_pages, block_table, q_start, context_lens, scale)


def span_pages(width: int) -> int:
    """Pages that are summed up before they join those before them: for block tables of `width` pages.

    4 up to 16,384 tokens, so that one request keeps many SMs busy; then so many that no row has over 64 shares.
    """
    return max(4, triton.next_power_of_2(triton.cdiv(width, 64)))


def tile(dim: int, dtype: torch.dtype) -> dict[str, int]:
    """Sides of a tile of the forward pass: what the registers of WARPS warps on sm_90 hold unspilled.

    Two stages: at D = 128 that is 96 KiB of shared memory, which every card has. Keys pass by in pages, as in the
    paged kernel, where the heads are not too wide for it.
    """
    padded = _dim(dim)
    if dtype is torch.bfloat16 and padded <= 128:
        return {"QUERIES": 128, "KEYS": PAGE_SIZE, "DIM": padded, "num_stages": 2}
    return {"QUERIES": 64, "KEYS": 64 if padded <= 64 else 32, "DIM": padded}


def tile_for_queries(dim: int, dtype: torch.dtype) -> dict[str, int]:
    """The same for the gradient of queries, which keeps two tiles of them."""
    return tile(dim, dtype) | {"QUERIES": 64}


def tile_for_keys(dim: int, dtype: torch.dtype) -> dict[str, int]:
    """The same for the kernel that holds two gradients, of keys and of values, in registers."""
    padded = _dim(dim)
    if dtype is torch.bfloat16 and padded == 128:
        return {"QUERIES": 64, "KEYS": 64, "DIM": padded, "num_stages": 1}
    side = 64 if padded <= 64 else 32
    return {"QUERIES": side, "KEYS": side, "DIM": padded}


def strides(k_pages, v_pages, dim: int) -> tuple[int, int, int]:
    """D rounded up as the values have it, and the sizes of one head's share of a page."""
    return -(-dim // 16) * 16, k_pages[0, 0].numel(), v_pages[0, 0].numel()


def pack(pages) -> int:
    """Numbers in a word of a page."""
    return 4 // pages.dtype.itemsize


def _dim(dim: int) -> int:
    if dim > 256:
        raise NotImplementedError(f"attention: triton handles heads of at most 256, got {dim}")
    return max(16, triton.next_power_of_2(dim))
