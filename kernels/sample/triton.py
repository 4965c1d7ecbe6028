"""Sampling in Triton: the steps stated in reference.py, bit for bit.

One program a row finds the thresholds bit by bit (32 counts of the row, which stays in cache, for each) on the
logits' ordered bit patterns, then the id by running sums of whole-number weights. A second kernel takes one
tile of the log-sum-exp each program, a third merges the tiles in order. Fused multiply-adds are switched off,
and divisions are rounded correctly.
"""

import torch
import triton
import triton.language as tl

BLOCK = 1024
TILE, STRANDS = 1024, 16  # of the log-sum-exp's stated order
EXACT = {"enable_fp_fusion": False}


@triton.jit
def exp_stated(x):
    """simd::exp of csrc/cpu/simd.h."""
    clamped = tl.minimum(tl.maximum(x, -87.33), 88.72)
    n = (clamped * 1.44269504 + 12582912.0) - 12582912.0
    r = (clamped - n * 0.693145752) - n * 1.42860677e-6
    p = tl.full(x.shape, 0.001388888888888889, tl.float32)  # 1/720
    p = p * r + 0.008333333333333333
    p = p * r + 0.041666666666666664
    p = p * r + 0.16666666666666666
    p = p * r + 0.5
    p = p * r + 1.0
    p = p * r + 1.0
    whole = n.to(tl.int32)
    half = whole >> 1
    scaled = p * ((half + 127) << 23).to(tl.float32, bitcast=True)
    scaled = scaled * ((whole - half + 127) << 23).to(tl.float32, bitcast=True)
    scaled = tl.where(x < -87.33, 0.0, tl.where(x > 88.72, float("inf"), scaled))
    return tl.where(x != x, x, scaled)


@triton.jit
def key_of(y):
    """Bits whose unsigned order is the order of numbers; -0 and +0 are one key."""
    bits = (y + 0.0).to(tl.uint32, bitcast=True)
    return tl.where(bits >= 0x80000000, bits ^ 0xFFFFFFFF, bits | 0x80000000)


@triton.jit
def weight_of(y, peak):
    return (exp_stated(y - peak).to(tl.float64) * 1099511627776.0).to(tl.int64)  # 2^40, rounded down


@triton.jit
def is_heavy(y, peak, light):
    """Whether min_p keeps y: its weight reaches `light`."""
    return weight_of(y, peak) >= light


@triton.jit
def amount_at_least(logits, scale, peak, key, least, V, WEIGH: tl.constexpr, BLOCK: tl.constexpr):
    """How many, or how heavy together, the logits are whose key reaches both `key` and `least`."""
    total = tl.zeros((), tl.int64)
    for start in range(0, V, BLOCK):
        i = start + tl.arange(0, BLOCK)
        y = tl.load(logits + i, i < V, other=float("-inf")) * scale
        keys = key_of(y)
        counted = (i < V) & (keys >= key) & (keys >= least)
        if WEIGH:
            total += tl.sum(tl.where(counted, weight_of(y, peak), 0))
        else:
            total += tl.sum(counted.to(tl.int64))
    return total


@triton.jit
def sample_choose_kernel(logits, u, temperature, top_k, top_p, min_p, ids_given, ids, least_out, scale_out,
                         peak_out, light_out, V, SCORE: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    logits += row * V
    t = tl.load(temperature + row)
    greedy = t < 1e-5
    scale = tl.where(greedy, 1.0, (1.0 / t.to(tl.float64)).to(tl.float32))
    peak_key = tl.zeros((), tl.uint32)
    peak = float("-inf")
    largest = tl.zeros((), tl.int64)
    nans = tl.zeros((), tl.int32)
    for start in range(0, V, BLOCK):
        i = start + tl.arange(0, BLOCK)
        y = tl.load(logits + i, i < V, other=float("-inf")) * scale
        nans += tl.sum((y != y).to(tl.int32))
        keys = tl.where(i < V, key_of(y), 0)
        top = tl.max(keys)
        first = tl.min(tl.where(keys == top, i, V))
        better = top > peak_key
        largest = tl.where(better, first.to(tl.int64), largest)
        peak = tl.where(better, tl.max(tl.where(i < V, y, float("-inf"))), peak)
        peak_key = tl.where(better, top, peak_key)
    bad = (nans > 0) | (peak == float("inf")) | (peak == float("-inf"))
    if SCORE:
        bad = bad | (tl.load(ids_given + row) < 0)
    least = tl.zeros((), tl.uint32)
    k = tl.load(top_k + row)
    if (k > 0) & (k < V) & (not greedy) & (not bad):
        found = tl.zeros((), tl.uint32)
        for bit in range(32):
            trial = found | (tl.full((), 0x80000000, tl.uint32) >> bit)
            enough = amount_at_least(logits, scale, peak, trial, least, V, False, BLOCK) >= k
            found = tl.where(enough, trial, found)
        least = found
    p = tl.load(top_p + row)
    if (p < 1.0) & (not greedy) & (not bad):
        total = amount_at_least(logits, scale, peak, least, least, V, True, BLOCK)
        wanted = p.to(tl.float64) * total.to(tl.float64)
        found = tl.zeros((), tl.uint32)
        for bit in range(32):
            trial = found | (tl.full((), 0x80000000, tl.uint32) >> bit)
            weight = amount_at_least(logits, scale, peak, trial, least, V, True, BLOCK)
            found = tl.where(weight.to(tl.float64) >= wanted, trial, found)
        least = tl.maximum(least, tl.minimum(found, peak_key))  # top_p 0 still keeps the largest
    light = tl.ceil(tl.load(min_p + row).to(tl.float64) * 1099511627776.0).to(tl.int64)
    light = tl.where(greedy, 0, light)
    tl.store(light_out + row, light)
    tl.store(peak_out + row, peak)
    tl.store(least_out + row, least.to(tl.int64))
    tl.store(scale_out + row, tl.where(bad, float("nan"), scale))
    if not SCORE:
        chosen = largest
        if (not greedy) & (not bad):
            total = tl.zeros((), tl.int64)
            for start in range(0, V, BLOCK):
                i = start + tl.arange(0, BLOCK)
                y = tl.load(logits + i, i < V, other=float("-inf")) * scale
                weight = weight_of(y, peak)
                kept = (i < V) & (key_of(y) >= least) & (weight >= light)
                total += tl.sum(tl.where(kept, weight, 0))
            steps = (tl.load(u + row).to(tl.float64) * 16777216.0).to(tl.int64)
            target = steps * (total >> 24) + ((steps * (total & 0xFFFFFF)) >> 24)
            running = tl.zeros((), tl.int64)
            chosen = tl.full((), 1 << 62, tl.int64)
            for start in range(0, V, BLOCK):
                i = start + tl.arange(0, BLOCK)
                y = tl.load(logits + i, i < V, other=float("-inf")) * scale
                weight = weight_of(y, peak)
                kept = (i < V) & (key_of(y) >= least) & (weight >= light)
                sums = running + tl.cumsum(tl.where(kept, weight, 0), 0)
                chosen = tl.minimum(chosen, tl.min(tl.where(sums > target, i.to(tl.int64), 1 << 62)))
                running = tl.max(sums)
        tl.store(ids + row, tl.where(bad, -1, chosen))


@triton.jit
def sample_tiles_kernel(logits, least, scale, row_peak, light, peaks, sums, V, tiles,
                        TILE: tl.constexpr, STRANDS: tl.constexpr):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    tile = tl.program_id(1)
    lowest = tl.load(least + row).to(tl.uint32)
    factor = tl.load(scale + row)
    largest, lightest = tl.load(row_peak + row), tl.load(light + row)
    lanes = tile * TILE + tl.arange(0, STRANDS)
    top = tl.full((STRANDS,), float("-inf"), tl.float32)
    for step in range(TILE // STRANDS):
        i = lanes + step * STRANDS
        y = tl.load(logits + row * V + i, i < V, other=float("-inf")) * factor
        kept = (key_of(y) >= lowest) & is_heavy(y, largest, lightest)
        top = tl.maximum(top, tl.where(kept, y, float("-inf")))
    peak = tl.max(top)
    shift = tl.where(peak == float("-inf"), 0.0, peak)
    part = tl.zeros((STRANDS,), tl.float32)
    for step in range(TILE // STRANDS):
        i = lanes + step * STRANDS
        y = tl.load(logits + row * V + i, i < V, other=float("-inf")) * factor
        kept = (i < V) & (key_of(y) >= lowest) & is_heavy(y, largest, lightest)
        part += exp_stated(tl.where(kept, y - shift, float("-inf")))
    part = tl.sum(tl.reshape(part, (2, 8)), 0)  # by halves: each sum is of two, so its order is no question
    part = tl.sum(tl.reshape(part, (2, 4)), 0)
    part = tl.sum(tl.reshape(part, (2, 2)), 0)
    tl.store(peaks + row * tiles + tile, peak)
    tl.store(sums + row * tiles + tile, tl.sum(part))


@triton.jit
def sample_merge_kernel(logits, ids, least, scale, row_peak, light, peaks, sums, logprobs, V, tiles,
                        IDS: tl.constexpr):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    factor = tl.load(scale + row)
    peak = tl.load(peaks + row * tiles)
    total = tl.load(sums + row * tiles)
    for tile in range(1, tiles):
        top = tl.load(peaks + row * tiles + tile)
        part = tl.load(sums + row * tiles + tile)
        none = top == float("-inf")
        higher = tl.maximum(peak, top)
        safe = tl.where(higher == float("-inf"), 0.0, higher)
        faded = tl.where(top > peak, total * exp_stated(peak - safe), total)
        added = tl.where(top > peak, part, tl.where(none, part, part * exp_stated(top - safe)))
        total = faded + added
        peak = higher
    lse = (peak.to(tl.float64) + tl.log(total.to(tl.float64))).to(tl.float32)
    lowest = tl.load(least + row).to(tl.uint32)
    for j in range(IDS):
        id = tl.load(ids + row * IDS + j)
        y = tl.load(logits + row * V + tl.maximum(id, 0)) * factor
        kept = (key_of(y) >= lowest) & is_heavy(y, tl.load(row_peak + row), tl.load(light + row))
        logprob = tl.where(kept, y, float("-inf")) - lse
        bad = (id < 0) | (factor != factor)
        tl.store(logprobs + row * IDS + j, tl.where(bad, float("nan"), logprob))


@triton.jit
def top_ids_kernel(logits, ids, V, N: tl.constexpr, BLOCK: tl.constexpr):
    """The ids of the N largest logits of a row in turn, the lower first on ties; -1 for a bad row."""
    row = tl.program_id(0).to(tl.int64)
    logits += row * V
    before = tl.full((), 0x7FFFFFFFFFFFFFFF, tl.int64)
    bad = tl.full((), False, tl.int1)
    for j in range(N):
        best = tl.full((), -0x7FFFFFFFFFFFFFFF, tl.int64)
        nans = tl.zeros((), tl.int32)
        for start in range(0, V, BLOCK):
            i = start + tl.arange(0, BLOCK)
            y = tl.load(logits + i, i < V, other=float("-inf"))
            nans += tl.sum((y != y).to(tl.int32))
            # signed order: the key's upper half, then the id counted from the end
            place = ((key_of(y).to(tl.int64) - 0x80000000) << 32) | (0x7FFFFFFF - i).to(tl.int64)
            place = tl.where((i < V) & (place < before), place, -0x7FFFFFFFFFFFFFFF)
            best = tl.maximum(best, tl.max(place))
        id = 0x7FFFFFFF - (best & 0xFFFFFFFF)
        if j == 0:
            largest = tl.load(logits + id)
            bad = (nans > 0) | (largest == float("inf")) | (largest == float("-inf"))
        tl.store(ids + row * N + j, tl.where(bad, -1, id))
        before = best


@triton.jit
def adjust_mask_kernel(logits, allowed, out, V, words, MASKED: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    i = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(logits + row * V + i, i < V, other=0.0)
    if MASKED:
        word = tl.load(allowed + row * words + i // 32, i < V, other=0)
        x = tl.where(((word >> (i % 32)) & 1) != 0, x, float("-inf"))
    tl.store(out + row * V + i, x, i < V)


@triton.jit
def adjust_entries_kernel(logits, ids, starts, repetition, added, out, V, BLOCK: tl.constexpr):
    """After the mask: what it took out stays at -inf."""
    row = tl.program_id(0).to(tl.int64)
    first, last = tl.load(starts + row), tl.load(starts + row + 1)
    for start in range(first, last, BLOCK):
        e = start + tl.arange(0, BLOCK)
        here = e < last
        at = row * V + tl.load(ids + e, here, other=0)
        x = tl.load(logits + at, here, other=0.0)
        r = tl.load(repetition + e, here, other=1.0)
        y = tl.where(x > 0, x * tl.div_rn(tl.full(r.shape, 1.0, tl.float32), r), x * r)
        y += tl.load(added + e, here, other=0.0)
        out_of_reach = tl.load(out + at, here, other=0.0) == float("-inf")
        tl.store(out + at, tl.where(out_of_reach, float("-inf"), y), here)


@triton.jit
def mix(z):
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB
    return z ^ (z >> 31)


@triton.jit
def uniform_kernel(seeds, positions, u, rows, BLOCK: tl.constexpr):
    r = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    seed = tl.load(seeds + r, r < rows, other=0).to(tl.uint64, bitcast=True)
    position = tl.load(positions + r, r < rows, other=0).to(tl.uint64, bitcast=True)
    hashed = mix(mix(seed) + (position + 1) * 0x9E3779B97F4A7C15)
    tl.store(u + r, (hashed >> 40).to(tl.float32) * 5.9604644775390625e-8, r < rows)  # 2^-24


def sample(logits, u, temperature, top_k, top_p, min_p):
    ids = logits.new_empty(len(logits), dtype=torch.int64)
    kept = _choose(logits, u, temperature, top_k, top_p, min_p, ids, score=False)
    return ids, _logprobs(logits, ids, *kept)


def sample_ids(logits, u, temperature, top_k, top_p, min_p):
    ids = logits.new_empty(len(logits), dtype=torch.int64)
    _choose(logits, u, temperature, top_k, top_p, min_p, ids, score=False)
    return ids


def sampled_logprob(logits, ids, temperature, top_k, top_p, min_p):
    kept = _choose(logits, temperature, temperature, top_k, top_p, min_p, ids, score=True)
    return _logprobs(logits, ids, *kept)


def top_logprobs(logits, n):
    rows, vocabulary = logits.shape
    ids = logits.new_empty(rows, n, dtype=torch.int64)
    if rows:
        top_ids_kernel[(rows,)](logits, ids, vocabulary, N=n, BLOCK=BLOCK)
    least = ids.new_zeros(rows)
    nothing = logits.new_zeros(rows)
    return ids, _logprobs(logits, ids, least, nothing + 1, nothing, least)


def adjust_logits(logits, ids, starts, repetition, added, allowed):
    rows, vocabulary = logits.shape
    out = torch.empty_like(logits)
    if rows:
        grid = rows, triton.cdiv(vocabulary, BLOCK)
        words = triton.cdiv(vocabulary, 32)
        masked = allowed is not None
        adjust_mask_kernel[grid](
            logits, allowed if masked else ids, out, vocabulary, words, MASKED=masked, BLOCK=BLOCK
        )
        adjust_entries_kernel[(rows,)](
            logits, ids, starts, repetition, added, out, vocabulary, BLOCK=128, **EXACT
        )
    return out


def uniform(seeds, positions):
    rows = len(seeds)
    u = seeds.new_empty(rows, dtype=torch.float32)
    if rows:
        uniform_kernel[(triton.cdiv(rows, 128),)](seeds, positions, u, rows, BLOCK=128)
    return u


def _choose(logits, u, temperature, top_k, top_p, min_p, ids, score):
    """Fills `ids` unless they are to be scored; (least, scale, peak, light) of what each row keeps."""
    rows, vocabulary = logits.shape
    least = logits.new_empty(rows, dtype=torch.int64)
    scale, peak = logits.new_empty(rows), logits.new_empty(rows)
    light = torch.empty_like(least)
    if rows:
        sample_choose_kernel[(rows,)](
            logits, u, temperature, top_k, top_p, min_p, ids, ids, least, scale, peak, light, vocabulary,
            SCORE=score, BLOCK=BLOCK, **EXACT,
        )  # fmt: skip
    return least, scale, peak, light


def _logprobs(logits, ids, least, scale, peak, light):
    """Of ids (R,) or (R, N), in the distribution of what `least`, `scale` and `light` keep."""
    rows, vocabulary = logits.shape
    logprobs = torch.empty_like(ids, dtype=torch.float32)
    if not rows:
        return logprobs
    tiles = triton.cdiv(vocabulary, TILE)
    peaks, sums = (logits.new_empty(rows, tiles) for _ in range(2))
    sample_tiles_kernel[(rows, tiles)](
        logits, least, scale, peak, light, peaks, sums, vocabulary, tiles,
        TILE=TILE, STRANDS=STRANDS, num_warps=1, **EXACT,
    )  # fmt: skip
    sample_merge_kernel[(rows,)](
        logits, ids, least, scale, peak, light, peaks, sums, logprobs, vocabulary, tiles,
        IDS=ids.numel() // rows, num_warps=1, **EXACT,
    )  # fmt: skip
    return logprobs
