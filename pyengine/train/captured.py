"""Forward and backward of a batch as one call: captured for its number of tokens, then replayed.

A step of a small model is some hundred kernel calls, and what Python and torch do between two of them, from cold
caches, is a tenth of its time, during which all but one core wait. Where batches are of about one size, the calls are
recorded once (kernels/_capture.py) and repeated by the compiled module: the same calls, so the same bits.

Conversations fill a batch but for a few tokens. Sizes are rounded up, and what is left is filled by a document without
targets: no token's loss depends on what it is packed with, the output layer leaves the document out, and everywhere
else its gradients are zeros, added last. So the bits are those of the batch without it; only a gradient whose terms
are all too small for float32 may be 0 in place of -0.

Document bounds differ from batch to batch. They are read from a tensor with room for more documents than there are;
those that are left have no tokens.
"""

from typing import NamedTuple

import torch

from ..data.loader import IGNORE, Batch
from ..kernels import _native, _select
from ..kernels._capture import Arena, Step, capture
from ..kernels.rope.table import table
from ..model import Transformer

OPS = ("embedding", "rmsnorm", "linear", "rope", "attention", "swiglu", "cross_entropy")
FEWEST = 64  # documents that there is room for
MOST = 4  # sizes of batch that are captured
ROUND = 32  # tokens: sizes are multiples of it
BYTES = 1 << 30  # of memory for a step; a larger one has no gaps to speak of


class _Captured(NamedTuple):
    """A step, what it reads, and what it writes."""

    step: Step
    batch: Batch
    slope: torch.Tensor  # (T,) float32: the gradient of each token's loss
    nll: torch.Tensor  # (T,) float32
    gradients: dict[torch.nn.Parameter, torch.Tensor]


class CapturedLoss:
    """The loss of a model's batches and its gradients, captured where that is possible."""

    def __init__(self, model: Transformer):
        self.replays = 0
        self._model = model
        self._arena: Arena | None = None
        self._setting: object = None
        self._native = False  # whether every op runs on the compiled kernels
        self._seen: set[tuple[int, int]] = set()
        self._captured: dict[tuple[int, int], _Captured | None] = {}  # None: larger than the arena

    def __call__(self, batch: Batch, slope: torch.Tensor) -> torch.Tensor | None:
        """Each token's loss (T,), and the gradients of their sum times `slope`, a scalar, in the parameters.

        None where the batch has to be computed call by call: the first of its size, one whose gradients are added to
        others, or another backend's. What is returned is overwritten by the next call.
        """
        if not self._possible(batch):
            return None
        documents = len(batch.cu_seqlens)  # with the one that fills the batch up
        key = -(-len(batch.ids) // ROUND) * ROUND, max(FEWEST, 1 << (documents - 1).bit_length())
        if key not in self._seen:
            self._seen.add(key)
            return None
        if key not in self._captured:
            return self._capture(key, batch, slope) if len(self._captured) < MOST else None
        found = self._captured[key]
        if found is None:
            return None
        _write(found, batch, slope)
        found.step.replay()
        self.replays += 1
        for parameter, gradient in found.gradients.items():
            parameter.grad = gradient
        return found.nll[: len(batch.ids)]

    def steps(self) -> list[Step]:
        """The steps captured so far, one a size of batch."""
        return [captured.step for captured in self._captured.values() if captured]

    def _possible(self, batch: Batch) -> bool:
        setting = _native.isa, _native.threads(), _select.epoch
        if setting != self._setting:
            self._setting = setting
            self._seen.clear()
            self._captured.clear()
            modules = [_select.select(op, self._model.device) for op in OPS]
            self._native = all(module.__name__.endswith(".cpu") for module in modules)
        if not self._native or any(p.grad is not None for p in self._model.parameters()):
            return False
        bounds = batch.cu_seqlens.numpy()
        return bounds[0] == 0 and bounds[-1] == len(batch.ids) > 0 and bool((bounds[1:] >= bounds[:-1]).all())

    def _capture(self, key: tuple[int, int], batch: Batch, slope: torch.Tensor) -> torch.Tensor:
        self._arena = self._arena or Arena(BYTES)
        self._arena.overflowed = False
        tokens, documents = key
        config = self._model.config
        # Made now, for any position that a batch of this size can have.
        table(config.rope_theta, config.head_dim, tokens, divisors=config.rope_divisors)
        read = Batch(
            torch.empty(tokens, dtype=torch.int64),
            torch.empty(tokens, dtype=torch.int64),
            torch.empty(documents + 1, dtype=torch.int32),
            torch.empty(tokens, dtype=torch.int32),
        )
        made = _Captured(Step(), read, torch.empty(tokens), torch.empty(0), {})
        _write(made, batch, slope)
        with capture(self._arena, gradients=True) as step:
            nll = self._model.loss(read.ids, read.targets, read.cu_seqlens, read.positions)
            nll.backward(made.slope)
        gradients = {p: p.grad for p in self._model.parameters() if p.grad is not None}
        made = made._replace(step=step, nll=nll.detach(), gradients=gradients)
        self._captured[key] = None if self._arena.overflowed else made
        return made.nll[: len(batch.ids)]


def _write(captured: _Captured, batch: Batch, slope: torch.Tensor) -> None:
    read, tokens, documents = captured.batch, len(batch.ids), len(batch.cu_seqlens)
    read.ids[:tokens] = batch.ids
    read.ids[tokens:] = batch.ids[0]  # no row of the embedding but those that the batch reads anyway
    read.targets[:tokens] = batch.targets
    read.targets[tokens:] = IGNORE
    read.positions[:tokens] = batch.positions
    read.positions[tokens:] = torch.arange(len(read.ids) - tokens)
    read.cu_seqlens[:documents] = batch.cu_seqlens
    read.cu_seqlens[documents:] = len(read.ids)
    captured.slope.copy_(slope.expand_as(captured.slope))
