"""RMSNorm in plain torch: the meaning of the op (Zhang and Sennrich, 2019, arXiv:1910.07467).

    y = s / sqrt(mean(s^2) + eps) * weight,   s = x + residual

Sums are in float32 (float64 inputs stay float64); differentiable by torch's own autograd.
"""

import torch


def forward(x, weight, eps, residual=None):
    """(y, summed, rstd): x (rows, C), weight (C,); summed is empty without a residual; rstd (rows,) float."""
    summed = x if residual is None else x + residual  # the wider type of the two
    wide = summed if summed.dtype == torch.float64 else summed.float()
    rstd = torch.rsqrt(wide.square().mean(-1) + eps)
    y = (wide * rstd[:, None] * weight.to(wide.dtype)).to(weight.dtype)
    return y, wide.new_empty(0) if residual is None else summed, rstd


def backward(dy, dsummed, s, weight, rstd, residual):
    """(dx, dresidual, dweight): s is what was normalised, dsummed is added to its gradient where given.

    Without a residual dx is like s and dresidual empty. With one, dx has the weight's type and dresidual is
    float32; it is empty where dx is float32 too, and serves for both.
    """
    wide = torch.float64 if s.dtype == torch.float64 else torch.float32
    g = dy.to(wide) * weight.to(wide)
    normed = s.to(wide) * rstd[:, None]
    ds = rstd[:, None] * (g - normed * (g * normed).mean(-1, keepdim=True))
    if dsummed is not None:
        ds = ds + dsummed.to(wide)
    dweight = (dy.to(wide) * normed).sum(0).to(weight.dtype)
    if residual and weight.dtype != wide:
        return ds.to(weight.dtype), ds, dweight
    return ds.to(s.dtype), ds.new_empty(0), dweight
