"""Linear layer and cross-entropy in plain torch: the meaning of the op. Logits are whole here.

    z = x W^T     lse = log(sum e^z)     nll = lse - z[target]
    dz = dnll (e^(z - lse) - onehot(target))     dx = dz W     dW = dz^T x

Computed in float32 (float64 inputs stay float64). The lse kept for the backward pass is float64: rounded to
float32, one of 100 would be off by 4e-6, and so would every probability.
"""

import torch


def _wide(tensor):
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def forward(x, weight, targets, ignore_index):
    """(nll, lse): nll (T,) float32, lse (T,) float64; x (T, C), weight (V, C), targets (T,) int64."""
    logits = _wide(x) @ _wide(weight).T
    lse = torch.logsumexp(logits.double(), dim=-1)
    counted = targets != ignore_index
    target_logit = logits.gather(1, torch.where(counted, targets, 0)[:, None])[:, 0]
    return torch.where(counted, lse.to(logits.dtype) - target_logit, 0.0), lse


def backward(dnll, x, weight, targets, lse, ignore_index, needs):
    """(dx, dweight), each empty where `needs` says no: dnll (T,) float."""
    counted = targets != ignore_index
    grad = torch.where(counted, dnll, 0.0)
    logits = _wide(x) @ _wide(weight).T
    dlogits = torch.exp(logits - lse[:, None]).to(logits.dtype) * grad[:, None]
    dlogits.scatter_add_(1, torch.where(counted, targets, 0)[:, None], -grad[:, None])
    dx = (dlogits @ _wide(weight)).to(x.dtype) if needs[0] else x.new_empty(0)
    dweight = (dlogits.T @ _wide(x)).to(x.dtype) if needs[1] else x.new_empty(0)
    return dx, dweight
