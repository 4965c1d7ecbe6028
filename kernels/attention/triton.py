"""Attention in Triton: packed causal forward and backward in tiles, and paged rows for the engine.

Forward: a tile of queries stays in registers while the tiles of keys and values of its own document pass by,
with a running maximum and sum (online softmax), so T x T is never stored. Backward recomputes the
probabilities from the saved log-sum-exp: one kernel walks over queries for a tile of keys (dk, dv), one over keys
for a tile of queries (dq); no atomics, so the result is the same every time. exp2 with log2(e) folded into the
scale. Only the tiles that a document has are launched: work follows the documents' own squares.
"""

import torch
import triton
import triton.language as tl

from .._triton import dot, remembered
from .reference import PAGE_SIZE

WARPS = 8
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
def attention_paged_kernel(q, k_pages, v_pages, out, pages, positions, scale_log2, width, H, K, D, padded,
                           k_page, v_page, PAIR: tl.constexpr, PAGE: tl.constexpr, GROUP: tl.constexpr,
                           DIM: tl.constexpr):  # fmt: skip
    """One query row, all heads of one kv head's group: each key and value is read once a group."""
    row = tl.program_id(0).to(tl.int64)
    kv_head = tl.program_id(1)
    group = H // K
    dims = tl.arange(0, DIM)
    members = tl.arange(0, GROUP)
    here = (members < group)[:, None] & (dims < D)[None, :]
    place = (row * H + kv_head * group + members)[:, None] * D + dims[None, :]
    queries = tl.load(q + place, here, other=0.0)
    length = tl.load(positions + row) + 1
    slots = tl.arange(0, PAGE)
    # the layouts of new_pages(): PAIR numbers that a dot product takes together lie side by side
    k_place = (dims // PAIR)[:, None] * (PAGE * PAIR) + slots[None, :] * PAIR + (dims % PAIR)[:, None]
    v_place = (slots // PAIR)[:, None] * (padded * PAIR) + dims[None, :] * PAIR + (slots % PAIR)[:, None]
    peak = tl.full((GROUP,), float("-inf"), tl.float32)
    total = tl.zeros((GROUP,), tl.float32)
    acc = tl.zeros((GROUP, DIM), tl.float32)
    for start in range(0, length, PAGE):
        page = tl.load(pages + row * width + start // PAGE).to(tl.int64) * K + kv_head
        seen = start + slots < length
        keys = tl.load(k_pages + page * k_page + k_place, (dims < D)[:, None] & seen[None, :], other=0.0)
        values = tl.load(v_pages + page * v_page + v_place, seen[:, None] & (dims < D)[None, :], other=0.0)
        scores = dot(queries, keys) * scale_log2
        scores = tl.where(seen[None, :], scores, float("-inf"))
        higher = tl.maximum(peak, tl.max(scores, 1))
        fade = tl.exp2(peak - higher)
        p = tl.exp2(scores - higher[:, None])
        total = total * fade + tl.sum(p, 1)
        acc = acc * fade[:, None] + dot(p.to(values.dtype), values)
        peak = higher
    tl.store(out + place, (acc / total[:, None]).to(out.dtype.element_ty), here)


@triton.jit
def write_pages_kernel(k, v, k_pages, v_pages, slots, K, D, padded, k_page, v_page,
                       PAIR: tl.constexpr, PAGE: tl.constexpr, DIM: tl.constexpr):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    dims = tl.arange(0, DIM)
    slot = tl.load(slots + token)
    page = (slot // PAGE).to(tl.int64) * K + head
    place = slot % PAGE
    source = (token * K + head) * D + dims
    k_place = (dims // PAIR) * (PAGE * PAIR) + place * PAIR + dims % PAIR
    v_place = (place // PAIR) * (padded * PAIR) + dims * PAIR + place % PAIR
    tl.store(k_pages + page * k_page + k_place, tl.load(k + source, dims < D), dims < D)
    tl.store(v_pages + page * v_page + v_place, tl.load(v + source, dims < D), dims < D)


def forward(q, k, v, cu_seqlens, scale):
    tokens, heads, dim = q.shape
    out = torch.empty_like(q)
    lse = q.new_empty((tokens, heads), dtype=torch.float32)
    sizes = tile(dim, q.dtype)
    tiles = _tiles(cu_seqlens, sizes["QUERIES"])
    if len(tiles):
        attention_fwd_kernel[(len(tiles), heads)](
            q, k, v, out, lse, tiles, scale * LOG2E, heads, k.shape[1], dim, **sizes, num_warps=WARPS
        )
    return out, lse


def backward(dout, q, k, v, out, lse, cu_seqlens, scale):
    heads, kv_heads, dim = q.shape[1], k.shape[1], q.shape[2]
    dq, dk, dv = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
    delta = (dout.float() * out.float()).sum(-1)
    for_queries, for_keys = tile_for_queries(dim, q.dtype), tile_for_keys(dim, q.dtype)
    by_query, by_key = _tiles(cu_seqlens, for_queries["QUERIES"]), _tiles(cu_seqlens, for_keys["KEYS"])
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
    tokens, heads, dim = q.shape
    out = torch.empty_like(q)
    if tokens:
        counts = (q_start[1:] - q_start[:-1]).long()
        request = torch.repeat_interleave(torch.arange(len(counts), device=q.device), counts)
        last = q_start[1:].long()[request] - 1
        back = last - torch.arange(tokens, device=q.device)  # rows before the request's newest
        positions = (context_lens[request].long() - 1 - back).int()
        pages = block_table[request].contiguous()
        kv_heads = k_pages.shape[1]
        attention_paged_kernel[(tokens, kv_heads)](
            q, k_pages, v_pages, out, pages, positions, scale * LOG2E, pages.shape[1], heads, kv_heads, dim,
            *_strides(k_pages, v_pages, dim), PAIR=_pair(q), PAGE=PAGE_SIZE,
            GROUP=max(16, triton.next_power_of_2(heads // kv_heads)), DIM=_dim(dim),
        )  # fmt: skip
    return out


def write_pages(k, v, k_pages, v_pages, slots):
    tokens, kv_heads, dim = k.shape
    if tokens:
        write_pages_kernel[(tokens, kv_heads)](
            k.contiguous(), v.contiguous(), k_pages, v_pages, slots, kv_heads, dim, *_strides(k_pages, v_pages, dim),
            PAIR=_pair(k), PAGE=PAGE_SIZE, DIM=_dim(dim),
        )  # fmt: skip


def append_paged(q, k, v, k_pages, v_pages, slots, block_table, q_start, context_lens, scale):
    write_pages(k, v, k_pages, v_pages, slots)
    return forward_paged(q, k_pages, v_pages, block_table, q_start, context_lens, scale)


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


@remembered
def _tiles(cu_seqlens, rows: int) -> torch.Tensor:
    """(n, 3) int32: first row, document's first row, document's end, for each tile of `rows` rows."""
    bounds = cu_seqlens.tolist()
    spans = zip(bounds, bounds[1:], strict=False)
    tiles = [(row, a, b) for a, b in spans for row in range(a, b, rows)]
    return torch.tensor(tiles, dtype=torch.int32).reshape(-1, 3).to(cu_seqlens.device)


def _strides(k_pages, v_pages, dim: int) -> tuple[int, int, int]:
    """D rounded up as the values have it, and the sizes of one head's share of a page."""
    return -(-dim // 16) * 16, k_pages[0, 0].numel(), v_pages[0, 0].numel()


def _pair(t) -> int:
    return 2 if t.dtype == torch.bfloat16 else 1


def _dim(dim: int) -> int:
    if dim > 256:
        raise NotImplementedError(f"attention: triton handles heads of at most 256, got {dim}")
    return max(16, triton.next_power_of_2(dim))
