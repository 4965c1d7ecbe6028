"""A model whose matrices stay quantised in memory, for inference: Transformer's forward pass on other weights.

The matrices are handles that `linear` knows (kernels/quantized); the rest are bfloat16 tensors, for what is rounded to
8 bits on its way into every product needs no more on its way there, and attention then runs at twice float32's rate
over half its bytes. There are no parameters, so there is nothing to train, and the engine never looks for changed
ones.
"""

import torch
from torch import nn

from .config import ModelConfig
from .transformer import Transformer, Weights

COMPUTED = (
    torch.bfloat16
)  # all that is not quantised, and what layers hand on; the residual stream is float32


class QuantizedTransformer(Transformer):
    """`weights` under the sizes of `config`; made by gguf.load."""

    def __init__(self, config: ModelConfig, weights: Weights):
        nn.Module.__init__(self)
        self.config = config
        self._weights = weights

    @property
    def dtype(self) -> torch.dtype:
        return self._weights.norm.dtype

    @property
    def device(self) -> torch.device:
        return self._weights.norm.device

    def weights(self) -> Weights:
        return self._weights

    def packed(self) -> Weights:
        return self._weights

    def loss(self, *_: object, **__: object) -> torch.Tensor:
        raise NotImplementedError("a quantised model is not trained; load it with dtype=torch.float32")
