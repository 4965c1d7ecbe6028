"""The same model and optimiser in plain PyTorch: what tests compare with and benches race against.

It computes from the parameters of a `Transformer`, in any floating type (float64 is the truth of the gradient
tests), on rows (B, T) with one attention mask for packed documents. Written as one tunes plain PyTorch: fused
projections, scaled_dot_product_attention, the fused AdamW.
"""

import torch
import torch.nn.functional as F
from torch import nn

from pyengine.model import Transformer


class PlainTransformer(nn.Module):
    """A copy of `model`'s parameters, run by torch's own ops."""

    def __init__(self, model: Transformer, dtype: torch.dtype = torch.float32, max_tokens: int = 4096):
        super().__init__()
        self.config = c = model.config
        self.names = [name for name, _ in model.named_parameters()]
        self.weights = nn.ParameterList(p.detach().to(dtype).clone() for _, p in model.named_parameters())
        inverse = c.rope_theta ** (-torch.arange(0, c.head_dim, 2, dtype=torch.float64) / c.head_dim)
        angles = torch.arange(max_tokens, dtype=torch.float64)[:, None] * inverse
        self.cos, self.sin = angles.cos().to(dtype), angles.sin().to(dtype)

    def hidden(self, ids, positions, mask):
        """Hidden states (B, T, C) of ids and positions (B, T); mask (B, 1, T, T) bool, or None for causal."""
        c, w = self.config, dict(zip(self.names, self.weights, strict=True))
        cos, sin = self.cos[positions][:, :, None], self.sin[positions][:, :, None]
        x = F.embedding(ids, w["embedding"])
        for i in range(c.layers):
            layer = {name.split(".")[-1]: t for name, t in w.items() if name.startswith(f"layers.{i}.")}
            h = F.rms_norm(x, (c.hidden_size,), layer["attention_norm"], c.eps)
            qkv = F.linear(h, layer["qkv"], layer.get("qkv_bias"))
            qkv = qkv.view(*ids.shape, -1, c.head_dim)
            q, k, v = qkv.split([c.heads, c.kv_heads, c.kv_heads], dim=2)
            if c.qk_norm:
                q = F.rms_norm(q, (c.head_dim,), layer["q_norm"], c.eps)
                k = F.rms_norm(k, (c.head_dim,), layer["k_norm"], c.eps)
            q, k, v = (t.transpose(1, 2) for t in (_rotate(q, cos, sin), _rotate(k, cos, sin), v))
            attended = F.scaled_dot_product_attention(
                q, k, v, attn_mask=mask, is_causal=mask is None, enable_gqa=c.heads != c.kv_heads
            )
            x = x + F.linear(attended.transpose(1, 2).reshape(*ids.shape, -1), layer["out"])
            h = F.rms_norm(x, (c.hidden_size,), layer["mlp_norm"], c.eps)
            gate, up = F.linear(h, layer["gate_up"]).chunk(2, dim=-1)
            x = x + F.linear(F.silu(gate) * up, layer["down"])
        return F.rms_norm(x, (c.hidden_size,), w["norm"], c.eps)

    def loss(self, ids, targets, positions, mask):
        """Negative log-likelihood (B, T)."""
        w = dict(zip(self.names, self.weights, strict=True))
        logits = F.linear(self.hidden(ids, positions, mask), w.get("head", w["embedding"]))
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view(targets.shape)


def document_mask(cu_seqlens: torch.Tensor) -> torch.Tensor:
    """(1, 1, T, T) bool: which tokens of the packed documents each may attend to."""
    lengths = cu_seqlens.diff().long()
    document = torch.repeat_interleave(torch.arange(len(lengths)), lengths)
    return (document[:, None] == document[None, :]).tril()[None, None]


def _rotate(x, cos, sin):
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)
