"""SwiGLU in Triton: a stretch of one row a program; 2 numbers read and 1 written forward, 3 and 2 backward."""

import torch
import triton
import triton.language as tl

MOST = 1024  # numbers of a row a program takes


@triton.jit
def gated(gate, up):
    """silu(gate) * up of float32 numbers."""
    return gate / (1.0 + tl.exp(-gate)) * up


@triton.jit
def swiglu_fwd_kernel(gate_up, y, width, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < width
    gate = tl.load(gate_up + row * 2 * width + columns, inside, other=0.0).to(tl.float32)
    up = tl.load(gate_up + row * 2 * width + width + columns, inside, other=0.0).to(tl.float32)
    tl.store(y + row * width + columns, gated(gate, up).to(y.dtype.element_ty), inside)


@triton.jit
def swiglu_bwd_kernel(dy, gate_up, dgate_up, width, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < width
    place = row * 2 * width + columns
    gate = tl.load(gate_up + place, inside, other=0.0).to(tl.float32)
    up = tl.load(gate_up + place + width, inside, other=0.0).to(tl.float32)
    grad = tl.load(dy + row * width + columns, inside, other=0.0).to(tl.float32)
    s = 1.0 / (1.0 + tl.exp(-gate))
    dgate = grad * up * s * (1.0 + gate * (1.0 - s))
    tl.store(dgate_up + place, dgate.to(dgate_up.dtype.element_ty), inside)
    tl.store(dgate_up + place + width, (grad * gate * s).to(dgate_up.dtype.element_ty), inside)


def forward(gate_up):
    rows, width = gate_up.shape[0], gate_up.shape[1] // 2
    y = gate_up.new_empty(rows, width)
    if y.numel():
        block = _block(width)
        swiglu_fwd_kernel[(rows, triton.cdiv(width, block))](gate_up, y, width, BLOCK=block)
    return y


def backward(dy, gate_up):
    rows, width = dy.shape
    dgate_up = torch.empty_like(gate_up)
    if dy.numel():
        block = _block(width)
        swiglu_bwd_kernel[(rows, triton.cdiv(width, block))](dy, gate_up, dgate_up, width, BLOCK=block)
    return dgate_up


def _block(width: int) -> int:
    return min(MOST, triton.next_power_of_2(width))
