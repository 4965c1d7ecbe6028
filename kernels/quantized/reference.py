"""The quantised linear layer in plain torch: the meaning of the op.

    whole = round(x * (127 / most)) for each 32 numbers of a row, `most` their largest magnitude; x ~ whole most / 127
    y = x_rounded W^T + bias,  W = scale (code - zero) + minimum

Here W is kept as the float32 numbers it stands for.
"""

import torch

BLOCK = 32


def pack(codes, bits, zero, scale, minimum):
    """W (N, K) float32."""
    n, k = codes.shape
    groups = scale.shape[1]
    w = (codes.int() - zero).float().view(n, groups, -1) * scale.float()[..., None]
    return (w if minimum is None else w + minimum.float()[..., None]).view(n, k)


def rounded(x):
    """x (M, K) as the kernels see it, in float64: whole numbers times their block's scale."""
    blocks = x.float().view(len(x), x.shape[1] // BLOCK, BLOCK)
    most = blocks.abs().amax(-1, keepdim=True)
    finite = most.isfinite()
    inverse = torch.tensor(127.0) / most  # a division: 127 / most would multiply by the reciprocal
    inverse = torch.where(finite & (most > 0), inverse.clamp(max=torch.finfo(torch.float32).max), 0)
    whole = (blocks * inverse).clamp(-127, 127).round()
    scale = torch.where(finite, most * torch.tensor(1 / 127), torch.nan)
    return (whole.double() * scale.double()).view(x.shape)


def forward(x, part, bias, y, column):
    """Fills y (M, ...) from `column` on: x (M, K), bias (N,) or None."""
    out = (rounded(x) @ part.data.double().T).float()
    y[:, column : column + part.rows] = out if bias is None else out + bias.float()


def rows(part, k, ids):
    return part.data[ids]
