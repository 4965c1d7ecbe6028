"""Embedding on the CPU: allocation and the calls into csrc/cpu/embedding.cpp."""

import torch

from .. import _native


def forward(table, ids):
    (vocabulary, channels), tokens = table.shape, len(ids)
    y = torch.empty(tokens, channels, dtype=torch.float32)
    wrong = _native.kernel("embedding_forward", table.dtype)(
        _native.address(table, table.dtype, vocabulary * channels),
        _native.address(ids, torch.int64, tokens),
        _native.address(y, torch.float32, tokens * channels),
        tokens, channels, vocabulary, _native.threads(),
    )  # fmt: skip
    if wrong >= 0:
        raise ValueError(f"embedding: ids[{wrong}] = {ids[wrong].item()} is outside 0..{vocabulary - 1}")
    return y


def backward(dy, ids, table):
    (vocabulary, channels), tokens = table.shape, len(ids)
    dtable = torch.empty_like(table)
    _native.kernel("embedding_backward", table.dtype)(
        _native.address(dy, torch.float32, tokens * channels),
        _native.address(ids, torch.int64, tokens),
        _native.address(dtable, table.dtype, vocabulary * channels),
        tokens, channels, vocabulary, _native.threads(),
    )  # fmt: skip
    return dtable
