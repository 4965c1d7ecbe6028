"""Causal attention over packed documents in plain torch: the meaning of the op.

Inside each document, for query head h of the group of kv head h // (H / K):

    lse_i = log sum_{j <= i} exp(scale q_i . k_j)        out_i = sum_{j <= i} exp(scale q_i . k_j - lse_i) v_j

Sums are in float32 (float64 inputs stay float64). One document at a time: memory grows with its square.
The page layout that the other backends share is described at `new_pages` in the op's package. Pages of codes
hold k and v as

    code = round(x * (127 / most)), `most` the largest magnitude of a token's numbers in a head; x ~ code most / 127
"""

import torch

PAGE_SIZE = 64
CODES = torch.uint8  # the type of pages of codes
SCALE_BYTES = PAGE_SIZE * 4  # of a head, behind its codes


def forward(q, k, v, cu_seqlens, scale):
    """(out, lse): q (T, H, D), k and v (T, K, D), cu_seqlens (B + 1,); out like q, lse (T, H) float."""
    out = torch.empty_like(q)
    lse = q.new_empty(q.shape[:2], dtype=_wide(q))
    for a, b in _documents(cu_seqlens):
        out[a:b], lse[a:b] = _rows(q[a:b], k[a:b], v[a:b], scale)
    return out, lse


def backward(dout, q, k, v, out, lse, cu_seqlens, scale):
    """(dq, dk, dv) from the upstream gradient of out."""
    dq, dk, dv = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
    group, wide = q.shape[1] // k.shape[1], _wide(q)
    for a, b in _documents(cu_seqlens):
        qh, oh, doh = (t[a:b].transpose(0, 1).to(wide) for t in (q, out, dout))
        kh, vh = (_per_query_head(t[a:b], group, wide) for t in (k, v))
        p = (_scores(qh, kh, scale) - lse[a:b].to(wide).t()[:, :, None]).exp()
        ds = p * (doh @ vh.mT - (doh * oh).sum(-1, keepdim=True)) * scale
        dq[a:b] = (ds @ kh).transpose(0, 1).to(q.dtype)
        dk[a:b] = _sum_groups(ds.mT @ qh, group).to(k.dtype)
        dv[a:b] = _sum_groups(p.mT @ doh, group).to(v.dtype)
    return dq, dk, dv


def forward_paged(q, k_pages, v_pages, block_table, q_start, context_lens, scale):
    """out like q: the last rows of each request's attention, keys and values read from pages."""
    out = torch.empty_like(q)
    starts = q_start.tolist()
    for r, length in enumerate(context_lens.tolist()):
        a, b = starts[r], starts[r + 1]
        pages = block_table[r, : -(-length // PAGE_SIZE)].long()
        k, v = read_pages(k_pages[pages], v_pages[pages], length, q.shape[2])
        out[a:b] = _rows(q[a:b], k, v, scale)[0]
    return out


def write_pages(k, v, k_pages, v_pages, slots):
    """Store k and v (T, K, D) at slots (T,) = page * 64 + place in the page; in place."""
    page, place = slots.long() // PAGE_SIZE, slots.long() % PAGE_SIZE
    tokens, heads, dim = k.shape
    if k_pages.dtype == CODES:
        (k_bytes, k_scales), (v_bytes, v_scales) = _views(k_pages, v_pages)
        (k, k_scale), (v, v_scale) = (_to_codes(t) for t in (k, v))
        lost = (k_scale + v_scale) * 0  # NaN where either is
        padded = torch.nn.functional.pad(k, (0, -dim % 4), value=128)
        k_bytes[page, :, :, place] = padded.view(tokens, heads, -1, 4)
        v_bytes[page, :, place // 4, :dim, place % 4] = v
        k_scales[page, :, place], v_scales[page, :, place] = k_scale + lost, v_scale + lost
    elif k.dtype == torch.bfloat16:
        padded = torch.nn.functional.pad(k, (0, dim % 2)).view(tokens, heads, -1, 2)
        k_pages[page, :, :, place] = padded
        v_pages[page, :, place // 2, :dim, place % 2] = v
    else:
        k_pages[page, :, :, place] = k
        v_pages[page, :, place, :dim] = v


def append_paged(q, k, v, k_pages, v_pages, slots, block_table, q_start, context_lens, scale):
    """write_pages, then forward_paged."""
    write_pages(k, v, k_pages, v_pages, slots)
    return forward_paged(q, k_pages, v_pages, block_table, q_start, context_lens, scale)


def read_pages(k_pages, v_pages, length, dim):
    """k and v (length, K, D) of one request from its pages, in order."""
    if k_pages.dtype == CODES:
        (k_bytes, k_scales), (v_bytes, v_scales) = _views(k_pages, v_pages)
        k = (k_bytes.permute(0, 3, 1, 2, 4).flatten(3).float() - 128) * k_scales.mT[..., None]
        v = v_bytes.permute(0, 2, 4, 1, 3).flatten(1, 2).float() - 128
        v = v * v_scales.mT[..., None]
    elif k_pages.dtype == torch.bfloat16:
        k = k_pages.permute(0, 3, 1, 2, 4).flatten(3)
        v = v_pages.permute(0, 2, 4, 1, 3)
    else:
        k = k_pages.permute(0, 3, 1, 2)
        v = v_pages.permute(0, 2, 1, 3)
    heads = k_pages.shape[1]
    return tuple(t.reshape(-1, heads, t.shape[-1])[:length, :, :dim] for t in (k, v))


def _views(k_pages, v_pages):
    """(bytes, scales) of pages of codes: keys (pages, K, D / 4, 64, 4), values (pages, K, 16, D, 4)."""
    k_bytes, v_bytes = (t[..., :-SCALE_BYTES] for t in (k_pages, v_pages))
    scales = [t[..., -SCALE_BYTES:].view(torch.float32) for t in (k_pages, v_pages)]
    k_bytes = k_bytes.unflatten(-1, (-1, PAGE_SIZE, 4))
    v_bytes = v_bytes.unflatten(-1, (PAGE_SIZE // 4, -1, 4))
    return (k_bytes, scales[0]), (v_bytes, scales[1])


def _to_codes(x):
    """(bytes like x, scale of each row) of x (T, K, D)."""
    x = x.float()
    most = x.abs().amax(-1)
    finite = most.isfinite()
    inverse = torch.tensor(127.0) / most  # a division: 127 / most would multiply by the reciprocal
    inverse = torch.where(finite & (most > 0), inverse.clamp(max=torch.finfo(torch.float32).max), 0)
    whole = torch.where(finite[..., None], x * inverse[..., None], 0).clamp(-127, 127).round()
    scale = torch.where(finite, most * torch.tensor(1 / 127), torch.nan)
    return (whole + 128).to(CODES), scale


def _rows(q, k, v, scale):
    """(out, lse) of the last len(q) queries of a document whose keys and values are k and v."""
    group, wide = q.shape[1] // k.shape[1], _wide(q)
    scores = _scores(q.transpose(0, 1).to(wide), _per_query_head(k, group, wide), scale)
    lse = scores.logsumexp(-1)
    out = (scores - lse[:, :, None]).exp() @ _per_query_head(v, group, wide)
    return out.transpose(0, 1).to(q.dtype), lse.t()


def _scores(q, k, scale):
    """(H, queries, keys), -inf where the key lies after the query; the last query sees all keys."""
    later = torch.ones(q.shape[1], k.shape[1], dtype=torch.bool, device=q.device)
    return (q @ k.mT * scale).masked_fill(later.triu(1 + k.shape[1] - q.shape[1]), float("-inf"))


def _per_query_head(t, group, wide):
    return t.transpose(0, 1).to(wide).repeat_interleave(group, 0)


def _sum_groups(t, group):
    """(H, T, D) -> (T, K, D): the gradients of a group's query heads add up."""
    return t.unflatten(0, (-1, group)).sum(1).transpose(0, 1)


def _documents(cu_seqlens):
    bounds = cu_seqlens.tolist()
    return [(a, b) for a, b in zip(bounds, bounds[1:], strict=False) if b > a]


def _wide(t):
    return torch.float64 if t.dtype == torch.float64 else torch.float32
