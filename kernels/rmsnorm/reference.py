"""RMSNorm in plain torch: the meaning of the op (Zhang and Sennrich, 2019, arXiv:1910.07467).

    y = s / sqrt(mean(s^2) + eps) * weight,   s = x + residual

Sums are in float32 (float64 inputs stay float64); differentiable by torch's own autograd.
"""

import torch


def forward(x, weight, eps, residual=None):
    """(y, summed, rstd): x (rows, C), weight (C,); summed is empty without a residual; rstd (rows,) float."""
    summed = x if residual is None else x + residual
    wide = summed if summed.dtype == torch.float64 else summed.float()
    rstd = torch.rsqrt(wide.square().mean(-1) + eps)
    y = (wide * rstd[:, None] * weight.to(wide.dtype)).to(x.dtype)
    return y, x.new_empty(0) if residual is None else summed, rstd


def backward(dy, dsummed, x, weight, rstd):
    """(dx, dweight): x is the summed input; dsummed is added to dx where given."""
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    g = dy.to(wide) * weight.to(wide)
    normed = x.to(wide) * rstd[:, None]
    dx = rstd[:, None] * (g - normed * (g * normed).mean(-1, keepdim=True))
    if dsummed is not None:
        dx = dx + dsummed.to(wide)
    return dx.to(x.dtype), (dy.to(wide) * normed).sum(0).to(weight.dtype)
