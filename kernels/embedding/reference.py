"""Embedding in plain torch: the meaning of the op.

    y[t] = table[ids[t]]        dtable[v] = sum of dy[t] over the tokens t with ids[t] = v

In float32 (float64 stays float64), rounded to the table's type at the end.
"""

import torch


def forward(table, ids):
    """y (T, C): table (V, C), ids (T,)."""
    rows = torch.index_select(table, 0, ids)
    return rows if table.dtype == torch.float64 else rows.float()


def backward(dy, ids, table):
    """dtable, like table, which is not read."""
    return torch.zeros_like(table, dtype=dy.dtype).index_add_(0, ids, dy).to(table.dtype)
