"""The transformer, written once on the ops, for training and for the engine alike.

    x = embedding(ids)                                                (T, C): documents packed, no padding
    each layer:  x += out(attend(rope(qkv(rmsnorm(x)))));  x += down(swiglu(gate_up(rmsnorm(x))))
    hidden = rmsnorm(x);  logits = hidden head^T

The caller brings `attend`: rope, and attention over packed documents in training, over pages of a cache in the engine.
All other ops treat rows alone, and both kinds of attention give a row the same bits, so the engine's
log-probabilities are the trainer's. Queries, keys and values are one matrix, gate and up another: fewer,
larger products; each residual addition is done by the norm that follows it. The residual stream is float32,
whatever the type of the weights. On disk the parts have Hugging Face's names (hf.py).
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import nn

from .. import kernels
from ..kernels._memory import to_device
from .config import ModelConfig


class Rotation(NamedTuple):
    """What kernels.rope() takes, in its order: queries, keys and values as their projection made them."""

    qkv: torch.Tensor  # (T, H + 2K, D)
    heads: int
    positions: torch.Tensor  # (T,) int32
    q_norm: torch.Tensor | None  # (D,)
    k_norm: torch.Tensor | None  # (D,)
    theta: float
    eps: float
    divisors: Sequence[float]


Attend = Callable[[int, Rotation], torch.Tensor]  # (layer, what to turn) -> (T, H, D)


def over_documents(cu_seqlens: torch.Tensor) -> Attend:
    """Attention over packed documents, bounded by cu_seqlens (B + 1,) int32."""
    return lambda _, turn: kernels.attention(*kernels.rope(*turn), cu_seqlens)


IGNORE = -100  # target of a token that is not trained on
EMBEDDING_STD, HEAD_STD = 0.2, 0.02  # of the first weights
Matrix: TypeAlias = torch.Tensor | kernels.PackedWeight | kernels.QuantizedWeight


class LayerWeights(NamedTuple):
    """One layer's weights; matrices are (out, in), as tensors, packed for decoding, or quantised."""

    attention_norm: torch.Tensor  # (C,)
    qkv: Matrix  # ((H + 2K) D, C)
    qkv_bias: torch.Tensor | None  # ((H + 2K) D,)
    q_norm: torch.Tensor | None  # (D,)
    k_norm: torch.Tensor | None  # (D,)
    out: Matrix  # (C, H D)
    mlp_norm: torch.Tensor  # (C,)
    gate_up: Matrix  # (2F, C)
    down: Matrix  # (C, F)


class Weights(NamedTuple):
    """All weights of a model, in the form the forward pass reads."""

    embedding: torch.Tensor | kernels.QuantizedWeight  # (V, C)
    layers: Sequence[LayerWeights]
    norm: torch.Tensor  # (C,)
    head: Matrix  # (V, C); the embedding itself where they are tied


class Layer(nn.Module):
    """The parameters of one layer, under the names of LayerWeights."""

    def __init__(self, config: ModelConfig, dtype: torch.dtype, device: torch.device | str):
        super().__init__()
        c, d = config, config.head_dim
        qkv = (c.heads + 2 * c.kv_heads) * d

        def new(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.ones(*shape, dtype=dtype, device=device))

        self.attention_norm = new(c.hidden_size)
        self.qkv = new(qkv, c.hidden_size)
        self.qkv_bias = new(qkv) if c.qkv_bias else None
        self.q_norm = new(d) if c.qk_norm else None
        self.k_norm = new(d) if c.qk_norm else None
        self.out = new(c.hidden_size, c.heads * d)
        self.mlp_norm = new(c.hidden_size)
        self.gate_up = new(2 * c.intermediate_size, c.hidden_size)
        self.down = new(c.hidden_size, c.intermediate_size)

    def weights(self) -> LayerWeights:
        return LayerWeights(*(getattr(self, name) for name in LayerWeights._fields))


class Transformer(nn.Module):
    """A model with random weights drawn from `seed`; `load` in hf.py fills one made without (None)."""

    def __init__(
        self,
        config: ModelConfig,
        seed: int | None = 0,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ):
        super().__init__()
        self.config = config
        shape = config.vocab_size, config.hidden_size
        self.embedding = nn.Parameter(torch.empty(shape, dtype=dtype, device=device))
        self.layers = nn.ModuleList(Layer(config, dtype, device) for _ in range(config.layers))
        self.norm = nn.Parameter(torch.ones(config.hidden_size, dtype=dtype, device=device))
        self.head = None if config.tie_embeddings else nn.Parameter(torch.empty_like(self.embedding))
        if seed is not None:
            self._initialise(seed)

    @torch.no_grad()
    def _initialise(self, seed: int) -> None:
        """Normal weights of 0.6 / sqrt(fan in), those that write to the residual stream at 0.3 of that, and first
        logits near 0. Rows of the embedding start far apart, and a tied head's scale is in the last norm's gain:
        the loss pushes all rows that no text names the same way, and near 0 they would end as one row, which the
        model can neither tell from the others nor copy."""
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in self.named_parameters():
            kind = name.rsplit(".", 1)[-1]
            if kind.endswith("bias"):
                parameter.zero_()
            elif parameter.dim() == 2:
                std = 0.6 / math.sqrt(parameter.shape[1]) * (0.3 if kind in ("out", "down") else 1.0)
                std = {"embedding": EMBEDDING_STD, "head": HEAD_STD}.get(kind, std)
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * std)
        if self.head is None:
            self.norm.fill_(HEAD_STD / EMBEDDING_STD)

    @property
    def dtype(self) -> torch.dtype:
        return self.embedding.dtype

    @property
    def device(self) -> torch.device:
        return self.embedding.device

    def weights(self) -> Weights:
        """The parameters themselves, differentiable, following every update."""
        head = self.embedding if self.head is None else self.head
        layers = [layer.weights() for layer in self._layers()]
        return Weights(self.embedding, layers, self.norm, head)

    def packed(self) -> Weights:
        """A copy with matrices laid out for decoding; same bits in every result, blind to later updates."""
        weights = self.weights()
        matrices = ("qkv", "out", "gate_up", "down")
        layers = [
            layer._replace(**{name: kernels.pack_weight(getattr(layer, name)) for name in matrices})
            for layer in weights.layers
        ]
        return weights._replace(layers=layers, head=kernels.pack_weight(weights.head))

    def forward(
        self, ids: torch.Tensor, positions: torch.Tensor, attend: Attend, weights: Weights | None = None
    ) -> torch.Tensor:
        """Hidden states (T, C) of ids (T,) at positions (T,) int32; weights default to the parameters."""
        c, w = self.config, weights or self.weights()
        x, update = kernels.embedding(w.embedding, ids), None
        for i, layer in enumerate(w.layers):
            qkv, x = _add(
                x, update, kernels.norm_linear, layer.attention_norm, layer.qkv, layer.qkv_bias, eps=c.eps
            )
            qkv = qkv.view(len(ids), c.heads + 2 * c.kv_heads, c.head_dim)
            attended = attend(
                i,
                Rotation(
                    qkv, c.heads, positions, layer.q_norm, layer.k_norm, c.rope_theta, c.eps, c.rope_divisors
                ),
            )
            update = kernels.linear(attended.reshape(len(ids), c.heads * c.head_dim), layer.out)
            h, x = _add(x, update, kernels.norm_linear, layer.mlp_norm, layer.gate_up, eps=c.eps, gated=True)
            update = kernels.linear(h, layer.down)
        return _add(x, update, kernels.rmsnorm, w.norm, eps=c.eps)[0]

    def logits(self, hidden: torch.Tensor, weights: Weights | None = None) -> torch.Tensor:
        """Float32 logits (..., V) of hidden states (..., C)."""
        return kernels.linear(hidden, (weights or self.weights()).head, out_dtype=torch.float32)

    def loss(
        self,
        ids: torch.Tensor,
        targets: torch.Tensor,
        cu_seqlens: torch.Tensor,
        positions: torch.Tensor,
        weights: torch.Tensor | None = None,
        using: Weights | None = None,
    ) -> torch.Tensor:
        """Negative log-likelihood (T,) float32, in nats, of targets (T,) int64 after ids (T,) int64.

        cu_seqlens (B + 1,) int32 bounds the packed documents, positions (T,) int32 count inside each. Tokens
        whose target is -100, or whose weight is 0 where weights (T,) are given, cost nothing in the output
        layer and have loss 0. Other weights do not change the value: they are the caller's to apply. All may be on
        the host, whatever the device: what is needed there is sent, and nothing waits for it. using: the model's
        weights, where they are not its parameters.
        """
        w = using or self.weights()
        ids = to_device(ids, w.norm.device)
        hidden = self(ids, positions, over_documents(cu_seqlens), w)
        if weights is not None:
            targets = targets.masked_fill(weights == 0, IGNORE)
        return kernels.linear_cross_entropy(hidden, w.head, targets, IGNORE)

    def train_flops(self, context: float) -> float:
        """Floating-point operations a token of training, at a mean context length; see ModelConfig.train_flops."""
        return self.config.train_flops(context)

    def _layers(self) -> Iterator[Layer]:
        for layer in self.layers:
            assert isinstance(layer, Layer)
            yield layer


def _add(
    x: torch.Tensor, update: torch.Tensor | None, op: Callable, *arguments: Any, **keywords: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """(op, which begins with a norm, of x + update; x + update); the first norm has no update to add."""
    if update is None:
        return op(x, *arguments, **keywords), x
    return op(update, *arguments, residual=x, **keywords)
