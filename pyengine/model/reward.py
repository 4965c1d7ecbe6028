"""A reward model: the transformer with one number in place of the next token's logits, read at a text's last token.

    model = RewardModel.of(trunk)                     a language model's trunk, and a head of zeros
    model.scores(ids, cu_seqlens, positions)          (B,): how good each of the packed documents is

On disk it is what transformers calls ...ForSequenceClassification with one label. It is trained by the same loop as
any model: its `loss` is minus the score at each document's last token, and the weights of the batch say what the loss
that is meant (of pairs, of rankings) gains by each score. So a ranking may be cut into pieces and dealt out to
processes like any other batch, though its loss looks at all answers together (pyengine.train.reward).
"""

from dataclasses import replace

import torch
from torch import nn

from .. import kernels
from ..kernels._memory import to_device
from .config import ModelConfig
from .transformer import Transformer, Weights, over_documents


class RewardModel(Transformer):
    """A transformer whose head is (1, C); its config says that embedding and head are two."""

    def __init__(
        self,
        config: ModelConfig,
        seed: int | None = 0,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ):
        super().__init__(replace(config, tie_embeddings=False), seed, dtype, device)
        self.head = nn.Parameter(torch.zeros(1, config.hidden_size, dtype=dtype, device=device))

    @classmethod
    @torch.no_grad()
    def of(cls, trunk: Transformer) -> "RewardModel":
        """A copy of a language model with a head that finds everything equally good: 0."""
        model = cls(trunk.config, None, trunk.dtype, trunk.device)
        theirs = dict(trunk.named_parameters())
        for name, parameter in model.named_parameters():
            if name != "head":
                parameter.copy_(theirs[name])
        return model

    def scores(
        self,
        ids: torch.Tensor,
        cu_seqlens: torch.Tensor,
        positions: torch.Tensor,
        using: Weights | None = None,
    ) -> torch.Tensor:
        """Float32 scores (B,) of packed documents: ids (T,) int64, bounded by cu_seqlens (B + 1,) int32, positions
        (T,) int32 counting inside each. using: the model's weights, where they are not its parameters."""
        w = using or self.weights()
        hidden = self(to_device(ids, w.norm.device), positions, over_documents(cu_seqlens), w)
        last = to_device(cu_seqlens[1:].long() - 1, hidden.device)
        return kernels.linear(hidden[last], w.head, out_dtype=torch.float32).squeeze(-1)

    def loss(
        self,
        ids: torch.Tensor,
        targets: torch.Tensor,
        cu_seqlens: torch.Tensor,
        positions: torch.Tensor,
        weights: torch.Tensor | None = None,
        using: Weights | None = None,
    ) -> torch.Tensor:
        """Minus the score at each document's last token, 0 elsewhere: (T,) float32. There are no targets to look at,
        and weights are the caller's to apply."""
        scores = self.scores(ids, cu_seqlens, positions, using)
        last = to_device(cu_seqlens[1:].long() - 1, scores.device)
        return torch.zeros(len(ids), device=scores.device).index_put((last,), -scores)

    def train_flops(self, context: float) -> float:
        """As of a language model, less its output layer: one row, read once a document, costs next to nothing."""
        return super().train_flops(context) - 6 * self.config.vocab_size * self.config.hidden_size
