"""A decode step as the references of its ops, one after another: the meaning of the op."""

import torch

from ..attention import reference as attention
from ..embedding import reference as embedding_
from ..linear import reference as linear
from ..rmsnorm import reference as rmsnorm
from ..rope import reference as rope
from ..swiglu import reference as swiglu


def refuses(*sizes) -> str:
    """Nothing."""
    return ""


def step(ids, positions, slots, block_table, embedding, layers, norm, head, pages, angles, eps):
    """Logits (R, V) float32; `angles` is rope's table (2, N, D / 2)."""
    starts = torch.arange(len(ids) + 1, dtype=torch.int32, device=ids.device)
    dim = 2 * angles.shape[2]
    turns = angles[:, positions.long(), None]
    x = embedding_.forward(embedding, ids)
    for layer, (k_pages, v_pages) in zip(layers, pages, strict=True):
        attention_norm, qkv, bias, q_norm, k_norm, out, mlp_norm, gate_up, down = layer
        h = rmsnorm.forward(x, attention_norm, eps)[0]
        heads = out.shape[1] // dim
        q, k, v = rope.turned(
            linear.forward(h, qkv, bias, h.dtype).view(len(ids), -1, dim), heads, turns, q_norm, k_norm, eps
        )
        attended = attention.append_paged(
            q, k, v, k_pages, v_pages, slots, block_table, starts, positions + 1, dim**-0.5
        )
        x = x + linear.forward(attended.flatten(1), out, None, h.dtype)
        h = rmsnorm.forward(x, mlp_norm, eps)[0]
        x = x + linear.forward(swiglu.forward(linear.forward(h, gate_up, None, h.dtype)), down, None, h.dtype)
    return linear.forward(rmsnorm.forward(x, norm, eps)[0], head, None, torch.float32)
