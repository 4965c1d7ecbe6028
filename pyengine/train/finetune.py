"""Training on conversations, as the stages sft, know, search and the imitation ceiling do it.

    model = start_from(run, "base")
    summary = finetune(run, model, conversations, run.config.sft, "sft", evaluate)

Loss falls on what the assistant itself writes, its stop token included; conversations packed into one batch
do not see each other. A part is held out, and its loss is told with every evaluation.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import torch

from ..data import Conversation, PackedConversations, encode_conversations
from ..data.conversations import Encoded, pack
from ..errors import UserError
from ..model import Transformer, load, save
from .config import OptimizerConfig
from .loop import Trainer
from .progress import note
from .run import Run

Messages = Sequence[dict[str, Any]]


class FinetuneSettings(Protocol):
    """What the settings of a stage that trains on conversations hold."""

    @property
    def epochs(self) -> float: ...
    @property
    def batch_tokens(self) -> int: ...
    @property
    def evaluations(self) -> int: ...
    @property
    def optimizer(self) -> OptimizerConfig: ...


def start_from(run: Run, stage: str) -> Transformer:
    """The model that a stage left behind."""
    return load(run.path(stage))


def finetune(
    run: Run,
    model: Transformer,
    conversations: Sequence[Messages | Conversation],
    settings: FinetuneSettings,
    folder: str,
    evaluate: Callable[[int], dict[str, Any]] | None = None,
    held_out: float = 0.02,
    save_to: str | None = None,
) -> dict[str, Any]:
    """Train `model` in place; checkpoints below runs/<name>/<folder>, the result there too (or in save_to).

    Returns a summary: conversations used and skipped, tokens, the loss of the held-out part before and after.
    """
    tokenizer = run.tokenizer
    encoded, skipped = encode_conversations(conversations, tokenizer, settings.batch_tokens)
    for row in skipped[:3]:
        note(f"left out: {row.where}: {row.reason}")
    if len(encoded) < 2:
        raise UserError(f"{run.stage}: no usable conversation; {len(skipped)} were left out, see above")
    order = np.random.default_rng([run.config.seed, 1]).permutation(len(encoded))
    kept = max(1, int(len(encoded) * held_out))
    apart, train = [encoded[i] for i in order[:kept]], [encoded[i] for i in order[kept:]]

    loader = PackedConversations(train, settings.batch_tokens, run.config.seed, pad=None)
    steps = max(1, math.ceil(settings.epochs * loader.batches_per_epoch))
    trainer = Trainer(run, model, settings.optimizer, steps, run.path(folder, "checkpoints"))
    losses: list[float] = []

    def measure(step: int) -> dict[str, Any]:
        losses.append(assistant_loss(model, apart, settings.batch_tokens))
        return {"assistant_loss": losses[-1], **(evaluate(step) if evaluate else {})}

    every = max(1, steps // settings.evaluations) if settings.evaluations else 0
    summary = trainer.fit(lambda _: loader.next(), measure, every, loader)
    save(model, run.path(save_to or folder), run.path("tokenizer"))
    return summary | {
        "conversations": len(encoded),
        "left_out": len(skipped),
        "trained_tokens": int(sum(item.mask.sum() for item in train) * settings.epochs),
        "loss_before": losses[0],
        "loss_after": losses[-1],
    }


@torch.no_grad()
def assistant_loss(model: Transformer, conversations: Sequence[Encoded], tokens: int) -> float:
    """Mean loss, in nats, of the tokens the assistant writes."""
    total, count, row, size = 0.0, 0, [], 0
    for item in [*conversations, None]:
        if item is None or size + len(item.ids) > tokens:
            batch = pack(row, tokens)
            weights = (batch.targets >= 0).float()
            nll = model.loss(batch.ids, batch.targets.clamp(min=0), batch.cu_seqlens, batch.positions, weights)
            total, count = total + float(nll.double().sum()), count + int(weights.sum())
            row, size = [], 0
        if item is not None:
            row.append(item)
            size += len(item.ids)
    return total / max(1, count)
