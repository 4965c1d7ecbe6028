"""Linear layer and cross-entropy in Triton: logits live in registers, a tile at a time.

Forward: a program keeps a running maximum and sum for its tokens while the vocabulary passes by in tiles, each
a small matrix product; nothing but nll and lse is written. Backward recomputes a chunk of tokens' logits and
writes their gradient in x's type (CHUNK x V numbers at most, whatever T is); two matrix products turn that
into dx and into a share of dweight, added up in float32.
"""

import torch
import triton
import triton.language as tl

from .._triton import dot

TOKENS, WORDS, CHANNELS = 64, 64, 32  # a tile's sides; powers of two
CHUNK = 1024  # tokens whose logit gradients exist at one time


@triton.jit
def logits_tile(x, weight, rows, words, T, V, C, CHANNELS: tl.constexpr):
    """(tokens, words) float32: x[rows] . weight[words]."""
    acc = tl.zeros((rows.shape[0], words.shape[0]), tl.float32)
    for start in range(0, C, CHANNELS):
        c = start + tl.arange(0, CHANNELS)
        inside = c < C
        a = tl.load(
            x + rows.to(tl.int64)[:, None] * C + c[None, :], (rows < T)[:, None] & inside[None, :], other=0.0
        )
        b = tl.load(
            weight + words.to(tl.int64)[:, None] * C + c[None, :],
            (words < V)[:, None] & inside[None, :],
            other=0.0,
        )
        acc += dot(a, tl.trans(b))
    return acc


@triton.jit
def cross_entropy_fwd_kernel(x, weight, targets, nll, lse, T, V, C, ignore_index,
                             TOKENS: tl.constexpr, WORDS: tl.constexpr, CHANNELS: tl.constexpr):  # fmt: skip
    rows = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    target = tl.load(targets + rows, rows < T, other=0)
    peak = tl.full((TOKENS,), float("-inf"), tl.float32)
    total = tl.zeros((TOKENS,), tl.float32)
    chosen = tl.zeros((TOKENS,), tl.float32)
    for start in range(0, V, WORDS):
        words = start + tl.arange(0, WORDS)
        z = logits_tile(x, weight, rows, words, T, V, C, CHANNELS)
        chosen += tl.sum(tl.where(words[None, :] == target[:, None], z, 0.0), 1)
        z = tl.where((words < V)[None, :], z, float("-inf"))
        higher = tl.maximum(peak, tl.max(z, 1))
        total = total * tl.exp(peak - higher) + tl.sum(tl.exp(z - higher[:, None]), 1)
        peak = higher
    row_lse = peak + tl.log(total)
    tl.store(lse + rows, peak.to(tl.float64) + tl.log(total).to(tl.float64), rows < T)
    tl.store(nll + rows, tl.where(target == ignore_index, 0.0, row_lse - chosen), rows < T)


@triton.jit
def cross_entropy_bwd_kernel(x, weight, targets, lse, dnll, dlogits, first, T, V, C, ignore_index,
                             TOKENS: tl.constexpr, WORDS: tl.constexpr, CHANNELS: tl.constexpr):  # fmt: skip
    local = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    rows = first + local
    words = tl.program_id(1) * WORDS + tl.arange(0, WORDS)
    target = tl.load(targets + rows, rows < T, other=0)
    grad = tl.load(dnll + rows, rows < T, other=0.0)
    grad = tl.where(target == ignore_index, 0.0, grad)
    row_lse = tl.load(lse + rows, rows < T, other=0.0)
    high = row_lse.to(tl.float32)
    low = (row_lse - high).to(tl.float32)
    z = logits_tile(x, weight, rows, words, T, V, C, CHANNELS)
    hit = tl.where(words[None, :] == target[:, None], 1.0, 0.0)
    d = (tl.exp(z - high[:, None] - low[:, None]) - hit) * grad[:, None]
    d = tl.where(grad[:, None] == 0.0, 0.0, d)  # an ignored token adds nothing, whatever its logits
    inside = (rows < T)[:, None] & (words < V)[None, :]
    tl.store(
        dlogits + local.to(tl.int64)[:, None] * V + words[None, :], d.to(dlogits.dtype.element_ty), inside
    )


def forward(x, weight, targets, ignore_index):
    (tokens, channels), vocabulary = x.shape, len(weight)
    nll, lse = (x.new_empty(tokens, dtype=kind) for kind in (torch.float32, torch.float64))
    if tokens:
        cross_entropy_fwd_kernel[(triton.cdiv(tokens, TOKENS),)](
            x, weight, targets, nll, lse, tokens, vocabulary, channels, ignore_index,
            TOKENS=TOKENS, WORDS=WORDS, CHANNELS=CHANNELS,
        )  # fmt: skip
    return nll, lse


def backward(dnll, x, weight, targets, lse, ignore_index, needs):
    (tokens, channels), vocabulary = x.shape, len(weight)
    dx = torch.empty_like(x) if needs[0] else x.new_empty(0)
    dweight = x.new_zeros(weight.shape, dtype=torch.float32) if needs[1] else x.new_empty(0)
    dlogits = x.new_empty((min(CHUNK, tokens), vocabulary))
    for first in range(0, tokens, CHUNK):
        last = min(first + CHUNK, tokens)
        grid = (triton.cdiv(last - first, TOKENS), triton.cdiv(vocabulary, WORDS))
        cross_entropy_bwd_kernel[grid](
            x, weight, targets, lse, dnll, dlogits, first, last, vocabulary, channels, ignore_index,
            TOKENS=TOKENS, WORDS=WORDS, CHANNELS=CHANNELS,
        )  # fmt: skip
        share = dlogits[: last - first]
        if needs[0]:
            torch.mm(share, weight, out=dx[first:last])
        if needs[1]:
            dweight += share.T @ x[first:last]
    return dx, dweight.to(x.dtype)
