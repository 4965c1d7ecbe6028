"""Sampling from logits in plain torch: the meaning of the op, to the bit.

For one row of logits x with temperature t, top_k, top_p and min_p, and a number u in [0, 1):

1. y = x (1 / t). A row with a NaN, a +inf or nothing above -inf gives id -1 and log-probability NaN.
2. top_k (0: off) keeps y >= the k-th largest y. Equal logits are kept or dropped together.
3. Weights are whole numbers, floor(2^40 exp(y - max y)) of the kept and 0 of the others, so that their sums
   are exact in any order, on any machine.
4. top_p (1: off) keeps y >= the largest threshold whose kept weight is at least top_p of all.
   min_p (0: off) then drops weights below min_p 2^40, which is that of the largest times min_p.
5. The id is the first whose running sum of kept weights exceeds floor(u * all).
6. Its log-probability is y - logsumexp(kept y). At t = 1 unfiltered it is minus the cross entropy, bit for bit.

Before all this, adjust_logits changes single logits and takes out what a mask does not allow; top_logprobs
gives the n largest x, the lower id first on ties, each less logsumexp(x).

A temperature below 1e-5 is greedy: the largest logit, lowest id on ties, log-probability at t = 1 unfiltered.
exp is the polynomial of csrc/cpu/simd.h; logsumexp has the order of csrc/cpu/logsumexp.h.
"""

import torch
import torch.nn.functional as F

GREEDY = 1e-5  # temperatures below it
TILE, LANES = 1024, 16  # columns, and lanes, of logsumexp's stated order
GOLDEN = -0x61C8864680B583EB  # 0x9E3779B97F4A7C15 as int64


def sample(logits, u, temperature, top_k, top_p, min_p):
    """(ids (R,) int64, logprobs (R,) float32) for logits (R, V) float32 and one number of each kind a row."""
    y, kept, weights, greedy, bad = _prepare(logits, temperature, top_k, top_p, min_p)
    total = weights.sum(1)
    steps = (u.double() * 2**24).long()
    target = steps * (total >> 24) + (steps * (total & 0xFFFFFF) >> 24)  # floor(u * total), in 64 bits
    ids = (weights.cumsum(1) > target[:, None]).int().argmax(1)
    ids = torch.where(greedy, y.nan_to_num(float("-inf")).argmax(1), ids)
    return torch.where(bad, -1, ids), _logprob(y, kept, ids, bad)


def sample_ids(logits, u, temperature, top_k, top_p, min_p):
    """The ids alone."""
    return sample(logits, u, temperature, top_k, top_p, min_p)[0]


def sampled_logprob(logits, ids, temperature, top_k, top_p, min_p):
    """The log-probability (R,) that sample() returns with these ids; -inf for an id filtered out."""
    y, kept, _, _, bad = _prepare(logits, temperature, top_k, top_p, min_p)
    return _logprob(y, kept, ids.clamp(min=0), bad | (ids < 0))


def top_logprobs(logits, n):
    """(ids (R, n) int64, logprobs (R, n) float32) of the n largest logits of each row."""
    ids = logits.sort(dim=1, descending=True, stable=True).indices[:, :n]
    bad = logits.isnan().any(1) | logits.amax(1).isinf()
    logprobs = logits.gather(1, ids) - logsumexp(logits)[:, None]
    return torch.where(bad[:, None], -1, ids), torch.where(bad[:, None], float("nan"), logprobs)


def adjust_logits(logits, ids, starts, repetition, added, allowed):
    """Logits with entries x changed to (x / repetition if x > 0 else x repetition) + added, then masked."""
    out, columns = logits.clone(), torch.arange(logits.shape[1], device=logits.device)
    rows = torch.repeat_interleave(torch.arange(len(logits), device=logits.device), starts.diff().long())
    x = logits[rows, ids.long()]
    out[rows, ids.long()] = torch.where(x > 0, x * (1.0 / repetition), x * repetition) + added
    if allowed is not None:
        bits = allowed[:, columns // 32] >> (columns % 32) & 1
        out.masked_fill_(bits == 0, float("-inf"))
    return out


def uniform(seeds, positions):
    """u (R,) float32 in [0, 1): the top 24 bits of mix(mix(seed) + (position + 1) 0x9E3779B97F4A7C15).

    mix is the finaliser of SplitMix64 (Steele, Lea and Flood, 2014).
    """
    hashed = _mix(_mix(seeds.long()) + (positions.long() + 1) * GOLDEN)
    return _shift(hashed, 40).float() * 2.0**-24


def logsumexp(y):
    """log sum exp of each row (R, V), in the order stated in csrc/cpu/logsumexp.h."""
    rows = len(y)
    padded = F.pad(y, (0, -y.shape[1] % TILE), value=float("-inf"))
    tiles = padded.view(rows, padded.shape[1] // TILE, TILE // LANES, LANES)
    peaks = tiles.amax((2, 3)).clamp(min=torch.finfo(torch.float32).min)
    terms = exp(tiles - peaks[:, :, None, None])
    lanes = torch.zeros_like(terms[:, :, 0])
    for step in range(TILE // LANES):
        lanes = lanes + terms[:, :, step]
    while lanes.shape[-1] > 1:
        half = lanes.shape[-1] // 2
        lanes = lanes[..., :half] + lanes[..., half:]
    peak, total = peaks[:, 0], lanes[:, 0, 0]
    for tile in range(1, tiles.shape[1]):
        higher = torch.maximum(peak, peaks[:, tile])
        total = total * exp(peak - higher) + lanes[:, tile, 0] * exp(peaks[:, tile] - higher)
        peak = higher
    return (peak + total.double().log()).float()


def exp(x):
    """simd::exp: below -87.33 it is 0, above 88.72 inf."""
    clamped = x.clamp(-87.33, 88.72)
    n = (clamped * 1.44269504 + 12582912.0) - 12582912.0
    r = (clamped - n * 0.693145752) - n * 1.42860677e-6
    p = torch.full_like(x, 1 / 720)
    for coefficient in (1 / 120, 1 / 24, 1 / 6, 0.5, 1.0, 1.0):
        p = p * r + coefficient
    whole = n.nan_to_num(0.0).int()
    half = whole >> 1
    scaled = p * _power_of_two(half) * _power_of_two(whole - half)
    scaled = torch.where(x < -87.33, 0.0, torch.where(x > 88.72, float("inf"), scaled))
    return torch.where(x.isnan(), x, scaled)


def _prepare(logits, temperature, top_k, top_p, min_p):
    """(y, kept, weights, greedy, bad): steps 1 to 4."""
    vocabulary = logits.shape[1]
    greedy = temperature < GREEDY
    y = logits * torch.where(greedy, 1.0, 1.0 / temperature)[:, None]
    top_k = torch.where(greedy | (top_k <= 0), vocabulary, top_k).clamp(max=vocabulary).long()
    top_p = torch.where(greedy, 1.0, top_p)
    descending = y.sort(1, descending=True).values
    peak = descending[:, :1]
    bad = y.isnan().any(1) | peak[:, 0].isinf()
    kept = y >= descending.gather(1, top_k[:, None] - 1)
    weight = exp(descending - peak).nan_to_num().double().mul(2.0**40).long()
    in_k = descending >= descending.gather(1, top_k[:, None] - 1)
    running = torch.where(in_k, weight, 0).cumsum(1)
    enough = running.double() >= top_p.double()[:, None] * running[:, -1:].double()
    threshold = descending.gather(1, enough.int().argmax(1)[:, None])
    kept &= (y >= threshold) | (top_p >= 1)[:, None]
    weights = exp(y - peak).nan_to_num().double().mul(2.0**40).long()
    kept &= weights.double() >= torch.where(greedy, 0.0, min_p).double()[:, None] * 2.0**40
    weights = torch.where(kept, weights, 0)
    return y, kept, weights, greedy, bad


def _logprob(y, kept, ids, bad):
    lse = logsumexp(torch.where(kept, y, float("-inf")))
    chosen = torch.where(kept, y, float("-inf")).gather(1, ids.clamp(min=0)[:, None])[:, 0]
    return torch.where(bad, float("nan"), chosen - lse)


def _power_of_two(n):
    return ((n + 127) << 23).view(torch.float32)


def _mix(z):
    z = (z ^ _shift(z, 30)) * -0x40A7B892E31B1A47  # 0xBF58476D1CE4E5B9
    z = (z ^ _shift(z, 27)) * -0x6B2FB644ECCEEE15  # 0x94D049BB133111EB
    return z ^ _shift(z, 31)


def _shift(z, count):
    """Logical shift right of int64."""
    return (z >> count) & ((1 << (64 - count)) - 1)
