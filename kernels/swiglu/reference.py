"""SwiGLU in plain torch: the meaning of the op (Shazeer, 2020, arXiv:2002.05202).

    y = g s u,   s = 1 / (1 + e^-g)        dg = dy u s (1 + g (1 - s)),   du = dy g s

Computed in float32 (float64 inputs stay float64); differentiable by torch's own autograd.
"""

import torch


def _wide(tensor):
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def forward(gate_up):
    """y (rows, F): gate_up (rows, 2F), the gate first."""
    gate, up = _wide(gate_up).chunk(2, dim=-1)
    return (gate * torch.sigmoid(gate) * up).to(gate_up.dtype)


def backward(dy, gate_up):
    """dgate_up (rows, 2F)."""
    gate, up = _wide(gate_up).chunk(2, dim=-1)
    grad, s = _wide(dy), torch.sigmoid(gate)
    dgate = grad * up * s * (1 + gate * (1 - s))
    return torch.cat([dgate, grad * gate * s], dim=-1).to(gate_up.dtype)
