"""Training on conversations, as the stages sft, know, search and the imitation ceiling do it.

    model = start_from(run, "base")
    summary = finetune(run, model, conversations, run.config.sft, "sft", evaluate)

Loss falls on what the assistant itself writes, its stop token included; conversations packed into one batch
do not see each other. A part is held out, and its loss is told with every evaluation.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch

from ..data import Conversation, PackedConversations, TokenShards, encode_conversations
from ..data.conversations import Encoded, pack
from ..errors import UserError
from ..model import Transformer, load, save
from .config import OptimizerConfig
from .loop import Trainer
from .progress import note, note_left_out
from .run import Run

Messages = Sequence[Mapping[str, Any]]


class FinetuneSettings(Protocol):
    """What the settings of a stage that trains on conversations hold."""

    @property
    def epochs(self) -> float: ...
    @property
    def batch_tokens(self) -> int: ...
    @property
    def evaluations(self) -> int: ...
    @property
    def rehearsal(self) -> float: ...
    @property
    def optimizer(self) -> OptimizerConfig: ...


def start_from(run: Run, stage: str) -> Transformer:
    """The model that a stage left behind."""
    return load(run.path(stage), device=run.device)


def passed_on(run: Run, before: str, stage: str) -> dict[str, Any]:
    """The model of the stage before as this stage's own, where there are no facts to ask about."""
    note(
        f"{stage} has nothing to ask about {run.config.web.source}: give --know.facts; the model stays as it is"
    )
    save(start_from(run, before), run.path(stage), run.path("tokenizer"))
    return {"left_out": "no facts given"}


def finetune(
    run: Run,
    model: Transformer,
    conversations: Sequence[Messages | Conversation],
    settings: FinetuneSettings,
    folder: str,
    evaluate: Callable[[int], dict[str, Any]] | None = None,
    held_out: float = 0.02,
    tokens: float | None = None,
) -> dict[str, Any]:
    """Train `model` in place; checkpoints below runs/<name>/<folder>, and the result there too.

    tokens: how long to train, in place of the epochs of the settings. Returns a summary: conversations used and
    left out, tokens, the loss of the held-out part before and after.
    """
    tokenizer = run.tokenizer
    encoded, skipped = encode_conversations(conversations, tokenizer, settings.batch_tokens)
    note_left_out(skipped)
    if len(encoded) < 2:
        raise UserError(f"{run.stage}: no usable conversation; {len(skipped)} were left out, see above")
    order = np.random.default_rng([run.config.seed, 1]).permutation(len(encoded))
    kept = max(1, int(len(encoded) * held_out))
    apart, train = [encoded[i] for i in order[:kept]], [encoded[i] for i in order[kept:]]
    trained_tokens = sum(int(item.mask.sum()) for item in train)
    if settings.rehearsal:
        wanted = settings.rehearsal * sum(len(item.ids) for item in train)
        train += rehearsed(run, wanted)

    loader = PackedConversations(train, settings.batch_tokens, run.config.seed, pad=None)
    batches = settings.epochs * loader.batches_per_epoch
    steps = max(1, math.ceil(batches if tokens is None else tokens / settings.batch_tokens))
    trainer = Trainer(run, model, settings.optimizer, steps, run.path(folder, "checkpoints"))
    loss = math.nan

    def measure(step: int) -> dict[str, Any]:
        nonlocal loss
        loss = assistant_loss(model, apart, settings.batch_tokens)
        return {"assistant_loss": loss, **(evaluate(step) if evaluate else {})}

    every = max(1, steps // settings.evaluations) if settings.evaluations else 0
    summary = trainer.fit(lambda _: loader.next(), measure, every, loader)
    save(model, run.path(folder), run.path("tokenizer"))
    return summary | {
        "conversations": len(encoded),
        "left_out": len(skipped),
        "assistant_tokens": trained_tokens,
        "loss_before": trainer.first["assistant_loss"],
        "loss_after": loss,
    }


def rehearsed(run: Run, tokens: float) -> list[Encoded]:
    """Pieces of the pre-training documents, `tokens` tokens in all (or all there are), to be trained along."""
    shards = TokenShards(run.path("shards", "train"))
    context = run.config.pretrain.context
    pieces: list[Encoded] = []
    for i in np.random.default_rng([run.config.seed, 5]).permutation(len(shards)):
        for start in range(0, len(shards[int(i)]), context):
            ids = np.asarray(shards[int(i)][start : start + context], np.int32)
            if tokens <= 0:
                return pieces
            if len(ids) > 1:
                pieces.append(Encoded(ids, np.arange(len(ids)) > 0))
                tokens -= len(ids)
    return pieces


@torch.no_grad()
def assistant_loss(model: Transformer, conversations: Sequence[Encoded], tokens: int) -> float:
    """Mean loss, in nats, of the tokens the assistant writes."""
    row: list[Encoded] = []
    total, count, size = 0.0, 0, 0
    for item in [*conversations, None]:
        if item is None or size + len(item.ids) > tokens:
            batch = pack(row, tokens)
            weights = (batch.targets >= 0).float()
            nll = model.loss(
                batch.ids, batch.targets.clamp(min=0), batch.cu_seqlens, batch.positions, weights
            )
            total, count = total + float(nll.double().sum()), count + int(weights.sum())
            row, size = [], 0
        if item is not None:
            row.append(item)
            size += len(item.ids)
    return total / max(1, count)
