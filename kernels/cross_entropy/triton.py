"""Linear layer and cross-entropy in Triton: logits live in registers, a tile at a time.

Forward: a program a tile of logits, one matrix product along C, of which it keeps each token's maximum and sum;
a second kernel merges a token's tiles in order. Backward recomputes a chunk of tokens' logits and writes their
gradient in x's type (CHUNK x V numbers at most, whatever T is); two matrix products turn that into dx and into
a share of dweight, added up in float32. 8 T C V flops in all; bound by the tensor cores.
"""

import torch
import triton
import triton.language as tl

from .._triton import dot_onto

MERGED = {"ROWS": 8, "TILES": 128}  # rows of a program that merges tiles, and how many it reads at one time
FORWARD_CHUNK = 4096  # tokens whose tiles' maxima and sums exist at one time: 8 bytes for 128 logits
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
        acc = dot_onto(a, tl.trans(b), acc)
    return acc


@triton.jit
def cross_entropy_tiles_kernel(x, weight, targets, peaks, sums, chosen, T, V, C, tiles,
                               TOKENS: tl.constexpr, WORDS: tl.constexpr, CHANNELS: tl.constexpr):  # fmt: skip
    """Of one tile of logits each token's maximum and sum of exponentials, and the target's logit if it is here."""
    rows = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    tile = tl.program_id(1)
    words = tile * WORDS + tl.arange(0, WORDS)
    z = logits_tile(x, weight, rows, words, T, V, C, CHANNELS)
    target = tl.load(targets + rows, rows < T, other=-1)
    hit = (words[None, :] == target[:, None]) & (words < V)[None, :]
    here = (target // WORDS == tile) & (target >= 0) & (target < V)
    tl.store(chosen + rows, tl.sum(tl.where(hit, z, 0.0), 1), here & (rows < T))
    z = tl.where((words < V)[None, :], z, float("-inf"))
    peak = tl.max(z, 1)
    place = rows.to(tl.int64) * tiles + tile
    tl.store(peaks + place, peak, rows < T)
    tl.store(sums + place, tl.sum(tl.exp(z - peak[:, None]), 1), rows < T)


@triton.jit
def cross_entropy_merge_kernel(targets, peaks, sums, chosen, nll, lse, T, V, tiles, ignore_index,
                               ROWS: tl.constexpr, TILES: tl.constexpr):  # fmt: skip
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    peak = tl.full((ROWS,), float("-inf"), tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    for start in range(0, tiles, TILES):
        t = start + tl.arange(0, TILES)
        place = rows.to(tl.int64)[:, None] * tiles + t[None, :]
        inside = (rows < T)[:, None] & (t < tiles)[None, :]
        tile_peak = tl.load(peaks + place, inside, other=float("-inf"))
        higher = tl.maximum(peak, tl.max(tile_peak, 1))
        share = tl.load(sums + place, inside, other=0.0) * tl.exp(tile_peak - higher[:, None])
        total = total * tl.exp(peak - higher) + tl.sum(tl.where(inside, share, 0.0), 1)
        peak = higher
    target = tl.load(targets + rows, rows < T, other=0)
    known = (rows < T) & (target >= 0) & (target < V)
    loss = peak + tl.log(total) - tl.load(chosen + rows, known, other=float("nan"))
    tl.store(lse + rows, peak.to(tl.float64) + tl.log(total).to(tl.float64), rows < T)
    tl.store(nll + rows, tl.where(target == ignore_index, 0.0, loss), rows < T)


@triton.jit
def cross_entropy_bwd_kernel(x, weight, targets, lse, dnll, dlogits, T, V, C, ignore_index,
                             TOKENS: tl.constexpr, WORDS: tl.constexpr, CHANNELS: tl.constexpr):  # fmt: skip
    rows = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
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
    place = rows.to(tl.int64)[:, None] * V + words[None, :]
    tl.store(dlogits + place, d.to(dlogits.dtype.element_ty), inside)


def forward(x, weight, targets, ignore_index):
    (tokens, channels), vocabulary = x.shape, len(weight)
    nll, lse = (x.new_empty(tokens, dtype=kind) for kind in (torch.float32, torch.float64))
    sides, launch = tile(x.dtype)
    tiles = triton.cdiv(vocabulary, sides["WORDS"])
    for first in range(0, tokens, FORWARD_CHUNK):
        part = slice(first, min(first + FORWARD_CHUNK, tokens))
        rows = part.stop - first
        peaks, sums = (x.new_empty((rows, tiles), dtype=torch.float32) for _ in range(2))
        chosen = x.new_empty(rows, dtype=torch.float32)
        cross_entropy_tiles_kernel[(triton.cdiv(rows, sides["TOKENS"]), tiles)](
            x[part], weight, targets[part], peaks, sums, chosen, rows, vocabulary, channels, tiles,
            **sides, **launch,
        )  # fmt: skip
        cross_entropy_merge_kernel[(triton.cdiv(rows, MERGED["ROWS"]),)](
            targets[part], peaks, sums, chosen, nll[part], lse[part], rows, vocabulary, tiles, ignore_index,
            **MERGED,
        )  # fmt: skip
    return nll, lse


def backward(dnll, x, weight, targets, lse, ignore_index, needs):
    (tokens, channels), vocabulary = x.shape, len(weight)
    dx = torch.empty_like(x) if needs[0] else x.new_empty(0)
    dweight = x.new_zeros(weight.shape, dtype=torch.float32) if needs[1] else x.new_empty(0)
    dlogits = x.new_empty((min(CHUNK, tokens), vocabulary))
    sides, launch = tile(x.dtype)
    for first in range(0, tokens, CHUNK):
        part = slice(first, min(first + CHUNK, tokens))
        rows = part.stop - first
        grid = (triton.cdiv(rows, sides["TOKENS"]), triton.cdiv(vocabulary, sides["WORDS"]))
        cross_entropy_bwd_kernel[grid](
            x[part], weight, targets[part], lse[part], dnll[part], dlogits, rows, vocabulary, channels,
            ignore_index, **sides, **launch,
        )  # fmt: skip
        share = dlogits[:rows]
        if needs[0]:
            torch.mm(share, weight, out=dx[part])
        if needs[1]:
            dweight += share.T @ x[part]
    return dx, dweight.to(x.dtype)


def tile(dtype: torch.dtype) -> tuple[dict[str, int], dict[str, int]]:
    """(sides of a tile of logits, warps and stages)."""
    if dtype is torch.float32:
        return {"TOKENS": 64, "WORDS": 64, "CHANNELS": 32}, {"num_warps": 8, "num_stages": 3}
    return {"TOKENS": 128, "WORDS": 128, "CHANNELS": 64}, {"num_warps": 8, "num_stages": 3}
