"""Causal attention with grouped queries: packed documents for training, pages of keys and values for the engine.

Both are one kernel. Keys and values lie in pages of 64, counted from the document's first token; a query meets
its pages in that order and updates a running maximum, sum and output (online softmax, Milakov and Gimelshein,
2018; Dao et al., 2022), so nothing of size T x T is stored, documents cost their own squares only, and a row's
result depends on nothing but its own document: computed in a batch, in chunks, or one token at a time over a
cache, it has the same bits. 4 D flops a pair of query and key forward, 10 D backward, one exp each.
"""

import torch

from .. import _native
from .._library import Example, needs_grad, register
from .._memory import large_empty
from .._remember import remembered
from .._select import select
from .reference import CODES, PAGE_SIZE, SCALE_BYTES

__all__ = ["attention", "attention_append", "attention_paged", "new_pages", "write_pages", "PAGE_SIZE"]


def attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, cu_seqlens: torch.Tensor, scale: float | None = None
) -> torch.Tensor:
    """softmax(scale q k^T) v inside each packed document, causal; the result is like q.

    q (T, H, D), k and v (T, K, D) with K dividing H, all float32 or all bfloat16; query head h reads kv head
    h // (H / K). cu_seqlens (B + 1,) int32: document b is rows cu_seqlens[b] to cu_seqlens[b + 1], from 0 to T; it may
    be on the host, whatever q's device: read from there, nothing waits for the device. scale defaults to 1 / sqrt(D).
    Non-contiguous inputs are copied. Sums are in float32.

    Raises ValueError for shapes, types or document bounds that do not fit together.
    """
    _check(q, k, v)
    if cu_seqlens.dim() != 1 or cu_seqlens.numel() < 1 or cu_seqlens.dtype != torch.int32:
        raise ValueError(f"attention: cu_seqlens must be (B + 1,) int32, got {_describe(cu_seqlens)}")
    scale = q.shape[-1] ** -0.5 if scale is None else float(scale)
    arguments = q.contiguous(), k.contiguous(), v.contiguous(), cu_seqlens.contiguous(), scale
    if torch.compiler.is_compiling() or needs_grad(q, k, v):
        return _Attention.apply(*arguments)
    return _forward(*arguments)[0]


def attention_paged(
    q: torch.Tensor,
    k_pages: torch.Tensor,
    v_pages: torch.Tensor,
    block_table: torch.Tensor,
    q_start: torch.Tensor,
    context_lens: torch.Tensor,
    scale: float | None = None,
) -> torch.Tensor:
    """The newest rows of R requests, their keys and values read from pages; bit-equal to attention()'s rows.

    Pages of codes are read as the numbers that the codes stand for, on the CPU with one more rounding: queries of
    15 bits, weights of a page of 14 (docs/numerics.md). The bits are then independent of batch, chunks and
    paging too, but they are not attention()'s.

    q (T, H, D): request r has the queries q_start[r] to q_start[r + 1] (one when decoding, more when
    prefilling), the last of them at position context_lens[r] - 1 of the request. k_pages and v_pages come from
    new_pages() and were filled by write_pages(), the queries' own tokens included. block_table (R, N) int32
    names the pages of each request in order, 64 tokens a page; entries past its context are not read.
    q_start (R + 1,) and context_lens (R,) int32. Not differentiable. What lies in pages at or after a request's
    context length never matters, not even NaN.

    Raises ValueError for shapes, types or numbers that do not fit together.
    """
    check_paged(q, k_pages, v_pages, block_table, q_start, context_lens)
    scale = q.shape[-1] ** -0.5 if scale is None else float(scale)
    call = _paged_op if torch.compiler.is_compiling() else _paged
    return call(q.contiguous(), k_pages, v_pages, block_table.contiguous(), q_start, context_lens, scale)


def attention_append(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    k_pages: torch.Tensor,
    v_pages: torch.Tensor,
    slots: torch.Tensor,
    block_table: torch.Tensor,
    q_start: torch.Tensor,
    context_lens: torch.Tensor,
    scale: float | None = None,
) -> torch.Tensor:
    """write_pages(k, v, k_pages, v_pages, slots), then attention_paged(q, ...), as one op.

    With pages of codes the queries meet their own tokens as codes too.

    A decoded token's keys and values are written by the task that reads their page next. No request may read a
    slot that another writes. Raises ValueError as both do; pages are then as they were.
    """
    check_write(k, v, k_pages, v_pages, slots)
    check_paged(q, k_pages, v_pages, block_table, q_start, context_lens)
    if len(q) != len(k):
        raise ValueError(f"attention_append: q {_describe(q)} and k {_describe(k)} differ in tokens")
    scale = q.shape[-1] ** -0.5 if scale is None else float(scale)
    call = _append_op if torch.compiler.is_compiling() else _append
    k, v, slots = _with_rows(k), _with_rows(v), slots.contiguous()
    table = block_table.contiguous()
    return call(q.contiguous(), k, v, k_pages, v_pages, slots, table, q_start, context_lens, scale)


def new_pages(
    pages: int, kv_heads: int, head_dim: int, dtype: torch.dtype, device: torch.device | str = "cpu"
) -> tuple[torch.Tensor, torch.Tensor]:
    """Unwritten (k_pages, v_pages) for `pages` pages of 64 tokens; the first dimension is the page.

    dtype: the keys' and values' own, float32 or bfloat16; or int8, for pages of codes: each token's numbers of a
    head as whole ones of -127 to 127 and a scale, their largest magnitude / 127 (NaN for both key and value
    where one is no number). Heads are then of at most 1,024.

    Inside a page the layout is the kernels': keys of a head lie side by side (D, 64), since scores are computed
    for many keys at once; values lie (64, D rounded up to 16). In bfloat16 the numbers that a dot product pairs
    are adjacent: keys (D / 2, 64, 2), values (32, D, 2). Codes are bytes, plus 128: keys (D / 4, 64, 4), values
    (16, D, 4), and behind the codes of a head the 64 tokens' scales, float32.
    """
    shapes = _page_shapes(pages, kv_heads, head_dim, dtype)
    stored = CODES if dtype == torch.int8 else dtype
    k_pages, v_pages = (large_empty(shape, stored, device) for shape in shapes)
    return k_pages, v_pages


def write_pages(
    k: torch.Tensor, v: torch.Tensor, k_pages: torch.Tensor, v_pages: torch.Tensor, slots: torch.Tensor
) -> None:
    """Store k and v (T, K, D) into pages, in place: token t at slots[t] = page * 64 + place in the page, int32.

    In pages of codes they are rounded; every backend makes the same codes and scales.

    Raises ValueError for shapes or types that do not fit, or a slot outside the pages.
    """
    check_write(k, v, k_pages, v_pages, slots)
    call = _write_op if torch.compiler.is_compiling() else _write
    call(_with_rows(k), _with_rows(v), k_pages, v_pages, slots.contiguous())


def examples(device: str) -> list[Example]:
    """Small, odd-sized calls for the probe launch."""
    made: list[Example] = []

    def tensors(tokens, heads, dtype, dim):
        make = torch.Generator(device=device).manual_seed(1)
        return (
            torch.randn(tokens, h, dim, generator=make, device=device).to(dtype).requires_grad_()
            for h in (heads, 2, 2)
        )

    bounds = torch.tensor([0, 5, 5, 75], dtype=torch.int32, device=device)
    widths = (torch.float32, 33), (torch.bfloat16, 32), (torch.bfloat16, 64), (torch.bfloat16, 128)
    for dtype, dim in widths:
        q, k, v = tensors(75, 4, dtype, dim)
        made.append((attention, (q, k, v, bounds), {}))
        table = torch.tensor([[3, 0], [1, 2]], dtype=torch.int32, device=device)
        q_start, lengths = (torch.tensor(n, dtype=torch.int32, device=device) for n in ([0, 2, 5], [5, 70]))
        requests = q[:5].detach(), k.detach(), v.detach(), table, q_start, lengths
        made += [(_through_pages, (*requests, kept), {}) for kept in (dtype, torch.int8)]
    # Several tiles a document, and more of them than a card has SMs, for kernels whose blocks take one after another.
    bounds = torch.tensor([0, 130, 135, 395], dtype=torch.int32, device=device)
    for heads, dim in ((24, 64), (4, 128)):
        made.append((attention, (*tensors(395, heads, torch.bfloat16, dim), bounds), {}))
    return made


def _through_pages(q, k, v, block_table, q_start, context_lens, kept):
    """Requests whose tokens are the rows of k and v: all written into pages first, and the queries' own as read."""
    pages = new_pages(block_table.numel(), k.shape[1], k.shape[2], kept, k.device)
    places = [
        page * PAGE_SIZE + i
        for row, length in zip(block_table.tolist(), context_lens.tolist(), strict=True)
        for at, page in enumerate(row)
        for i in range(max(0, min(PAGE_SIZE, length - at * PAGE_SIZE)))
    ]
    slots = torch.tensor(places, dtype=torch.int32, device=k.device)
    write_pages(k, v, *pages, slots)
    paged = attention_paged(q, *pages, block_table, q_start, context_lens)
    ends, counts = context_lens.cumsum(0).tolist(), q_start.diff().tolist()
    own = [i for end, count in zip(ends, counts, strict=True) for i in range(end - count, end)]
    write_pages(torch.zeros_like(k[own]), torch.zeros_like(v[own]), *pages, slots[own])
    requests = block_table, q_start, context_lens
    return paged, attention_append(q, k[own], v[own], *pages, slots[own], *requests)


def _page_shapes(pages, kv_heads, dim, dtype):
    padded = -(-dim // 16) * 16
    if dtype in (torch.int8, CODES):
        if dim > 1024:
            raise ValueError(f"attention: int8 pages hold heads of at most 1,024, got {dim}")
        sizes = (-(-dim // 4) * 4 * PAGE_SIZE, padded * PAGE_SIZE)
        return tuple((pages, kv_heads, size + SCALE_BYTES) for size in sizes)
    if dtype == torch.bfloat16:
        return (
            (pages, kv_heads, -(-dim // 2), PAGE_SIZE, 2),
            (pages, kv_heads, PAGE_SIZE // 2, padded, 2),
        )
    if dtype != torch.float32:
        raise ValueError(f"attention: expected pages of float32, bfloat16 or int8, got {dtype}")
    return (pages, kv_heads, dim, PAGE_SIZE), (pages, kv_heads, PAGE_SIZE, padded)


def _check(q, k, v) -> None:
    fits = q.dim() == k.dim() == 3 and k.shape == v.shape and q.shape[0] == k.shape[0]
    if not fits or q.shape[2] != k.shape[2] or 0 in (*q.shape[1:], k.shape[1]) or q.shape[1] % k.shape[1]:
        raise ValueError(
            f"attention: expected q (T, H, D), k and v (T, K, D) with K dividing H, got {_describe(q)}, "
            f"{_describe(k)}, {_describe(v)}"
        )
    if q.dtype not in (torch.float32, torch.bfloat16) or {k.dtype, v.dtype} != {q.dtype}:
        raise ValueError(f"attention: expected float32 or bfloat16, got {q.dtype}, {k.dtype}, {v.dtype}")


def check_paged(q, k_pages, v_pages, block_table, q_start, context_lens) -> None:
    """Raise ValueError for what attention_paged does not take."""
    shape, dtype = k_pages.shape, k_pages.dtype
    if q.dim() != 3 or not _stores(k_pages, q.dtype) or q.shape[1] % shape[1]:
        raise ValueError(f"attention_paged: q {_describe(q)} does not fit k_pages {_describe(k_pages)}")
    expected = _page_shapes(shape[0], shape[1], q.shape[2], dtype)
    if (shape, v_pages.shape) != expected or v_pages.dtype is not dtype:
        raise ValueError(
            f"attention_paged: expected k_pages {expected[0]} and v_pages {expected[1]}, both {dtype}, got "
            f"{_describe(k_pages)}, {_describe(v_pages)}"
        )
    requests, table = context_lens.numel(), block_table.shape
    fits = len(table) == 2 and table[0] == requests and q_start.shape == (requests + 1,)
    if not fits or not block_table.dtype is q_start.dtype is context_lens.dtype is torch.int32:
        raise ValueError(
            "attention_paged: expected int32 block_table (R, N), q_start (R + 1,), context_lens (R,), got "
            f"{_describe(block_table)}, {_describe(q_start)}, {_describe(context_lens)}"
        )


def check_write(k, v, k_pages, v_pages, slots) -> None:
    """Raise ValueError for shapes and types that write_pages() does not take."""
    expected = _page_shapes(len(k_pages), k.shape[1], k.shape[2], k_pages.dtype)
    fits = (k_pages.shape, v_pages.shape) == expected and _stores(k_pages, k.dtype)
    if v.shape != k.shape or v.dtype != k.dtype or v_pages.dtype != k_pages.dtype or not fits:
        raise ValueError(
            f"write_pages: k {_describe(k)}, v {_describe(v)} do not fit the pages {_describe(k_pages)}, "
            f"{_describe(v_pages)}"
        )
    if slots.shape != k.shape[:1] or slots.dtype != torch.int32:
        raise ValueError(f"write_pages: slots must be ({len(k)},) int32, got {_describe(slots)}")


def _stores(pages, dtype) -> bool:
    """Whether pages of this type hold numbers of that."""
    return dtype in (torch.float32, torch.bfloat16) and pages.dtype in (dtype, CODES)


def _with_rows(t: torch.Tensor) -> torch.Tensor:
    return t if _native.has_rows(t) else t.contiguous()


def _describe(t: torch.Tensor) -> str:
    return f"{tuple(t.shape)} {str(t.dtype).removeprefix('torch.')}"


_bounds = remembered(torch.Tensor.tolist)


def _check_bounds(cu_seqlens, tokens) -> None:
    bounds = _bounds(cu_seqlens)
    if bounds[0] != 0 or bounds[-1] != tokens or any(a > b for a, b in zip(bounds, bounds[1:], strict=False)):
        raise ValueError(f"attention: cu_seqlens must rise from 0 to {tokens}, got {bounds}")


def _forward(q, k, v, cu_seqlens, scale):
    _check_bounds(cu_seqlens, len(q))
    return select("attention", q.device).forward(q, k, v, cu_seqlens, scale)


def _forward_fake(q, k, v, cu_seqlens, scale):
    return torch.empty_like(q), q.new_empty(q.shape[:2], dtype=torch.float32)


def _backward(dout, q, k, v, out, lse, cu_seqlens, scale):
    return select("attention", q.device).backward(dout, q, k, v, out, lse, cu_seqlens, scale)


def _backward_fake(dout, q, k, v, out, lse, cu_seqlens, scale):
    return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)


def _paged(q, k_pages, v_pages, block_table, q_start, context_lens, scale):
    backend = select("attention", q.device)
    return backend.forward_paged(q, k_pages, v_pages, block_table, q_start, context_lens, scale)


def _paged_fake(q, k_pages, v_pages, block_table, q_start, context_lens, scale):
    return torch.empty_like(q)


def _append(q, k, v, k_pages, v_pages, slots, block_table, q_start, context_lens, scale):
    backend = select("attention", q.device)
    return backend.append_paged(q, k, v, k_pages, v_pages, slots, block_table, q_start, context_lens, scale)


def _append_fake(q, k, v, k_pages, v_pages, slots, block_table, q_start, context_lens, scale):
    return torch.empty_like(q)


def _write(k, v, k_pages, v_pages, slots):
    select("attention", k.device).write_pages(k, v, k_pages, v_pages, slots)


def _write_fake(k, v, k_pages, v_pages, slots):
    return None


_forward_op = register(
    "attention(Tensor q, Tensor k, Tensor v, Tensor cu_seqlens, float scale) -> (Tensor, Tensor)",
    _forward,
    _forward_fake,
)
_backward_op = register(
    "attention_backward(Tensor dout, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse, Tensor cu_seqlens, "
    "float scale) -> (Tensor, Tensor, Tensor)",
    _backward,
    _backward_fake,
)
_paged_op = register(
    "attention_paged(Tensor q, Tensor k_pages, Tensor v_pages, Tensor block_table, Tensor q_start, "
    "Tensor context_lens, float scale) -> Tensor",
    _paged,
    _paged_fake,
)
_append_op = register(
    "attention_append(Tensor q, Tensor k, Tensor v, Tensor(a!) k_pages, Tensor(b!) v_pages, Tensor slots, "
    "Tensor block_table, Tensor q_start, Tensor context_lens, float scale) -> Tensor",
    _append,
    _append_fake,
)
_write_op = register(
    "write_pages(Tensor k, Tensor v, Tensor(a!) k_pages, Tensor(b!) v_pages, Tensor slots) -> ()",
    _write,
    _write_fake,
)


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, v, cu_seqlens, scale):
        out, lse = _forward_op(q, k, v, cu_seqlens, scale)
        ctx.save_for_backward(q, k, v, out, lse, cu_seqlens)
        ctx.scale = scale
        return out

    @staticmethod
    def backward(ctx, dout):
        q, k, v, out, lse, cu_seqlens = ctx.saved_tensors
        return *_backward_op(dout.contiguous(), q, k, v, out, lse, cu_seqlens, ctx.scale), None, None
