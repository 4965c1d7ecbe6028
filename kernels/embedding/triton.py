"""Embedding in Triton: rows copied forward; backward each row of the table adds up its own tokens' gradients.

Backward sorts the ids once, stably, so that a row's tokens lie side by side in their order; a program owns a
stretch of one row, adds its tokens in tiles of TOKENS and writes the sum once: no atomics, the same bits every
time, and no pass that fills with zeros. Bound by memory: T x C read, V x C written.
"""

import torch
import triton
import triton.language as tl

TOKENS = 16  # a tile of gradients read at one time, so that a frequent token does not wait for each
MOST = 1024  # columns a program takes


@triton.jit
def embedding_fwd_kernel(table, ids, y, V, C, BLOCK: tl.constexpr):
    token = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    row = tl.load(ids + token)
    known = (row >= 0) & (row < V)
    value = tl.load(table + row * C + columns, (columns < C) & known, other=float("nan"))
    tl.store(y + token * C + columns, value.to(tl.float32), columns < C)


@triton.jit
def embedding_bwd_kernel(dy, order, starts, dtable, C, TOKENS: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float32)
    last = tl.load(starts + row + 1)
    for first in range(tl.load(starts + row), last, TOKENS):
        places = first + tl.arange(0, TOKENS)
        tokens = tl.load(order + places, places < last, other=0)
        inside = (places < last)[:, None] & (columns < C)[None, :]
        total += tl.sum(tl.load(dy + tokens[:, None] * C + columns[None, :], inside, other=0.0), 0)
    tl.store(dtable + row * C + columns, total.to(dtable.dtype.element_ty), columns < C)


def forward(table, ids):
    (vocabulary, channels), tokens = table.shape, len(ids)
    y = table.new_empty((tokens, channels), dtype=torch.float32)
    if y.numel():
        block = min(MOST, triton.next_power_of_2(channels))
        grid = (tokens, triton.cdiv(channels, block))
        embedding_fwd_kernel[grid](table, ids, y, vocabulary, channels, BLOCK=block)
    return y


def backward(dy, ids, table):
    vocabulary, channels = table.shape
    dtable = torch.empty_like(table)
    if dtable.numel():
        named, order = torch.sort(ids, stable=True)
        starts = torch.searchsorted(named, torch.arange(vocabulary + 1, device=ids.device), out_int32=True)
        block = min(MOST // 4, triton.next_power_of_2(channels))  # TOKENS rows of it in registers
        grid = (vocabulary, triton.cdiv(channels, block))
        embedding_bwd_kernel[grid](dy, order, starts, dtable, channels, TOKENS=TOKENS, BLOCK=block)
    return dtable
