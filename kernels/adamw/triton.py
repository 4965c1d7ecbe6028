"""AdamW in Triton: all tensors in one launch, and the global norm in another.

The kernel finds its tensors by their addresses, in a table that stays on the device while the addresses do: a
launch a tensor would cost a model of 124M as much as the step itself (150 launches of 4 us beside 28 bytes a
number at 3 TB/s, 1.2 ms).
"""

from functools import lru_cache

import torch
import triton
import triton.language as tl

from .._memory import to_device
from .._triton import floats_at, table_of

BLOCK = 1024  # numbers a program takes


@triton.jit
def places_of(sizes, blocks, ALIGNED: tl.constexpr, BLOCK: tl.constexpr):
    """(tensor, places in it, inside) of this program's block."""
    which = tl.load(blocks + tl.program_id(0) * 2)
    places = tl.load(blocks + tl.program_id(0) * 2 + 1).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    size = tl.load(sizes + which)
    if ALIGNED:
        size = tl.multiple_of(size, 4)
    return which, places, places < size


@triton.jit
def adamw_kernel(addresses, sizes, blocks, tensors, beta1, rest1, beta2, rest2, keep, rate, scale2, eps,
                 grad_scale, ALIGNED: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    which, places, inside = places_of(sizes, blocks, ALIGNED, BLOCK)
    p_at = floats_at(addresses, which, ALIGNED) + places
    m_at = floats_at(addresses, which + 2 * tensors, ALIGNED) + places
    v_at = floats_at(addresses, which + 3 * tensors, ALIGNED) + places
    g = tl.load(floats_at(addresses, which + tensors, ALIGNED) + places, inside, other=0.0) * grad_scale
    m = tl.load(m_at, inside, other=0.0) * beta1 + g * rest1
    v = tl.load(v_at, inside, other=0.0) * beta2 + g * g * rest2
    p = tl.load(p_at, inside, other=0.0) * keep - rate * m / (tl.sqrt(v * scale2) + eps)
    tl.store(m_at, m, inside)
    tl.store(v_at, v, inside)
    tl.store(p_at, p, inside)


@triton.jit
def squares_kernel(addresses, sizes, blocks, sums, ALIGNED: tl.constexpr, BLOCK: tl.constexpr):
    which, places, inside = places_of(sizes, blocks, ALIGNED, BLOCK)
    g = tl.load(floats_at(addresses, which, ALIGNED) + places, inside, other=0.0).to(tl.float64)
    tl.store(sums + tl.program_id(0), tl.sum(g * g))


def step(
    params, grads, exp_avgs, exp_avg_sqs, lr, beta1, beta2, eps, weight_decay, step, grad_scale, copies=()
):
    wide = [grad.float() for grad in grads]
    addresses, sizes, blocks, aligned = _tables(params, wide, exp_avgs, exp_avg_sqs)
    if len(blocks):
        adamw_kernel[(len(blocks),)](
            addresses, sizes, blocks, len(params), beta1, 1.0 - beta1, beta2, 1.0 - beta2,
            1.0 - lr * weight_decay, lr / (1.0 - beta1**step), 1.0 / (1.0 - beta2**step), float(eps),
            float(grad_scale), ALIGNED=aligned, BLOCK=BLOCK,
        )  # fmt: skip
    if copies:
        torch._foreach_copy_(list(copies), list(params))


def grad_norm(grads):
    grads = [grad.float() for grad in grads]
    addresses, sizes, blocks, aligned = _tables(grads)
    sums = grads[0].new_empty(len(blocks), dtype=torch.float64)
    if len(sums):
        squares_kernel[(len(sums),)](addresses, sizes, blocks, sums, ALIGNED=aligned, BLOCK=BLOCK)
    return sums.sum().item() ** 0.5


def _tables(*lists):
    """Addresses, list after list; sizes; (tensor, block) for each program; can all be read in fours?"""
    addresses = [t.data_ptr() for tensors in lists for t in tensors]
    sizes = tuple(t.numel() for t in lists[0])
    device = lists[0][0].device
    aligned = all(address % 16 == 0 for address in addresses) and all(size % 4 == 0 for size in sizes)
    return table_of(addresses, device), table_of(sizes, device), _blocks(sizes, device), aligned


@lru_cache(maxsize=8)
def _blocks(sizes: tuple[int, ...], device: torch.device) -> torch.Tensor:
    """(programs, 2) int32: which tensor, and which block of it."""
    counts = torch.tensor([triton.cdiv(n, BLOCK) for n in sizes])
    which = torch.repeat_interleave(torch.arange(len(sizes)), counts)
    first = torch.repeat_interleave(counts.cumsum(0) - counts, counts)
    return to_device(torch.stack([which, torch.arange(len(which)) - first], 1).int(), device)
