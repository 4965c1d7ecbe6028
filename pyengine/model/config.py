"""Sizes of a model of the Llama / Qwen3 family, and the one dial that derives them all.

C hidden_size, H heads, K kv_heads, D head_dim, F intermediate_size, V vocab_size.
"""

import math
from dataclasses import dataclass, fields


@dataclass(frozen=True)
class Llama3Scaling:
    """Rotary frequencies stretched for a longer context, as in Llama 3.1 and later.

    Waves longer than original_context / low_frequency are slowed down by `factor`, those shorter than
    original_context / high_frequency stay, and between the two the speed is interpolated.
    """

    factor: float
    low_frequency: float
    high_frequency: float
    original_context: int

    def __post_init__(self) -> None:
        if not (
            self.factor > 0 and 0 <= self.low_frequency < self.high_frequency and self.original_context > 0
        ):
            raise ValueError(
                f"scaled rotary frequencies {self}: expected a factor and a context above 0, and 0 <= low < high"
            )

    def divisors(self, theta: float, head_dim: int) -> tuple[float, ...]:
        """What divides each of the head_dim / 2 frequencies."""
        found = []
        for i in range(head_dim // 2):
            turns = self.original_context * theta ** (-2 * i / head_dim) / (2 * math.pi)
            kept = (turns - self.low_frequency) / (self.high_frequency - self.low_frequency)
            kept = min(1.0, max(0.0, kept))
            found.append(1 / ((1 - kept) / self.factor + kept))
        return tuple(found)


@dataclass(frozen=True)
class ModelConfig:
    """What config.json of a checkpoint says, under our names."""

    vocab_size: int
    hidden_size: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate_size: int
    rope_theta: float = 10_000.0
    rope_scaling: Llama3Scaling | tuple[float, ...] | None = None  # or the divisors themselves
    eps: float = 1e-6
    qk_norm: bool = True  # RMS norm of each query and key head: Qwen3
    qkv_bias: bool = False  # biases of the query, key and value projections: Qwen2
    tie_embeddings: bool = True  # the output layer is the input embedding
    max_position_embeddings: int = 1024

    def __post_init__(self) -> None:
        for f in fields(self):
            if f.type is int and getattr(self, f.name) < 1:
                raise ValueError(f"{f.name} = {getattr(self, f.name)}: expected at least 1")
        if self.heads % self.kv_heads:
            raise ValueError(f"kv_heads = {self.kv_heads} does not divide heads = {self.heads}")
        if self.head_dim % 2:
            raise ValueError(f"head_dim = {self.head_dim}: rotary embedding needs an even number")
        if not 0 < self.rope_theta < math.inf:
            raise ValueError(f"rope_theta = {self.rope_theta}: expected a number above 0")
        if not 0 <= self.eps < math.inf:
            raise ValueError(f"eps = {self.eps}: expected a number of at least 0")

    @classmethod
    def from_depth(
        cls,
        depth: int,
        vocab_size: int,
        hidden_size: int | None = None,
        head_dim: int | None = None,
        kv_heads: int | None = None,
        intermediate_size: int | None = None,
        **more: object,
    ) -> "ModelConfig":
        """The model `depth` layers deep: 32 channels a layer, and the rest from the channels.

        Heads have 32 channels below 512 hidden channels, 64 below 2048, then 128; the feed-forward layer has
        8/3 of the hidden size in multiples of 8, so that its three matrices weigh as much as the usual two.
        Anything given overrides its rule; `more` are other fields of ModelConfig.
        """
        hidden = hidden_size or 32 * depth
        head_dim = head_dim or (32 if hidden < 512 else 64 if hidden < 2048 else 128)
        if hidden % head_dim:
            raise ValueError(f"hidden_size = {hidden} is not a multiple of head_dim = {head_dim}")
        heads = hidden // head_dim
        return cls(
            vocab_size=vocab_size,
            hidden_size=hidden,
            layers=depth,
            heads=heads,
            kv_heads=kv_heads or heads,
            head_dim=head_dim,
            intermediate_size=intermediate_size or -(-hidden * 8 // 3 // 8) * 8,
            **more,  # type: ignore[arg-type]
        )

    @property
    def rope_divisors(self) -> tuple[float, ...]:
        """What divides the rotary frequencies; nothing where they are not scaled."""
        if isinstance(self.rope_scaling, Llama3Scaling):
            return self.rope_scaling.divisors(self.rope_theta, self.head_dim)
        return self.rope_scaling or ()

    @property
    def matrix_parameters(self) -> int:
        """Weights that multiply each token: the layers' matrices and the output layer."""
        attention = self.hidden_size * self.head_dim * 2 * (self.heads + self.kv_heads)
        return self.layers * (attention + 3 * self.hidden_size * self.intermediate_size) + (
            self.vocab_size * self.hidden_size
        )

    @property
    def parameters(self) -> int:
        """All weights, norms and embeddings included."""
        norms = self.layers * (2 * self.hidden_size + 2 * self.head_dim * self.qk_norm) + self.hidden_size
        biases = self.layers * self.qkv_bias * (self.heads + 2 * self.kv_heads) * self.head_dim
        embedding = 0 if self.tie_embeddings else self.vocab_size * self.hidden_size
        return self.matrix_parameters + norms + biases + embedding

    def train_flops(self, context: float) -> float:
        """Floating-point operations a token of training, forward and backward, at a mean context length.

        6 a matrix weight; causal attention sees half of the context: 12 H D T/2 a layer (PaLM, appendix B).
        """
        return 6 * self.matrix_parameters + 6 * self.layers * self.heads * self.head_dim * context
