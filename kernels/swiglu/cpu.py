"""SwiGLU on the CPU: allocation and the calls into csrc/cpu/swiglu.cpp."""

import torch

from .. import _native


def forward(gate_up):
    rows, features = gate_up.shape[0], gate_up.shape[1] // 2
    y = gate_up.new_empty(rows, features)
    _native.kernel("swiglu_forward", gate_up.dtype)(
        _native.address(gate_up, gate_up.dtype, rows * 2 * features),
        _native.address(y, gate_up.dtype, rows * features),
        rows, features, _native.threads(),
    )  # fmt: skip
    return y


def backward(dy, gate_up):
    rows, features = dy.shape
    dgate_up = torch.empty_like(gate_up)
    _native.kernel("swiglu_backward", gate_up.dtype)(
        _native.address(dy, gate_up.dtype, rows * features),
        _native.address(gate_up, gate_up.dtype, rows * 2 * features),
        _native.address(dgate_up, gate_up.dtype, rows * 2 * features),
        rows, features, _native.threads(),
    )  # fmt: skip
    return dgate_up
