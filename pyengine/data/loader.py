"""Packed batches for pre-training: exactly N tokens each, no padding, documents kept apart.

A batch is one row of N tokens made of whole and cut documents. `cu_seqlens` tells attention where each begins,
and positions restart there, so a token never sees another document. What a batch cuts off of a document begins
the next batch. Every token has a target: the next id of its document, and after the last one <|endoftext|>
(the id documents begin with), from which a model learns to end.

The order is a permutation of the documents by seed and epoch, and where a loader is in it fits in four
numbers, so that a run resumes at the very token.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from .shards import TokenShards

IGNORE = -100  # target of a token that is not trained on


@dataclass(frozen=True)
class Batch:
    """N packed tokens of B sequences, on the CPU."""

    ids: torch.Tensor  # (N,) int64
    targets: torch.Tensor  # (N,) int64; IGNORE where nothing is trained
    cu_seqlens: torch.Tensor  # (B + 1,) int32: 0, the sequences' ends, N
    positions: torch.Tensor  # (N,) int32: from 0 in each sequence

    @property
    def trained(self) -> int:
        """How many tokens have a target."""
        return int((self.targets != IGNORE).sum())


def make_batch(sequences: Sequence[np.ndarray], targets: Sequence[np.ndarray]) -> Batch:
    """Pack sequences of ids and their targets, each of the sequence's length."""
    lengths = [len(sequence) for sequence in sequences]
    return Batch(
        ids=torch.from_numpy(np.concatenate(sequences).astype(np.int64)),
        targets=torch.from_numpy(np.concatenate(targets).astype(np.int64)),
        cu_seqlens=torch.from_numpy(np.cumsum([0, *lengths]).astype(np.int32)),
        positions=torch.from_numpy(np.concatenate([np.arange(n, dtype=np.int32) for n in lengths])),
    )


class PackedLoader:
    """Batches of `tokens` tokens from shards, without end; each epoch in an order of its own."""

    def __init__(
        self,
        shards: TokenShards | Sequence[np.ndarray],
        tokens: int,
        seed: int = 0,
        *,
        context: int | None = None,
        rank: int = 0,
        world_size: int = 1,
        start: int | None = None,
    ):
        """context: longest sequence; longer documents are cut to pieces of it. Process `rank` of `world_size`
        takes every world_size-th document. start: the id that documents begin with, and the target of a
        document's last token (taken from the shards where they say it; None: no target there)."""
        if len(shards) < world_size:
            raise ValueError(f"{len(shards)} documents cannot feed {world_size} processes")
        self.shards, self.tokens, self.seed = shards, tokens, seed
        self.context = min(context or tokens, tokens)
        self.rank, self.world_size = rank, world_size
        self.start = shards.manifest["start"] if isinstance(shards, TokenShards) else start
        self.epoch = self.document = self.offset = 0  # epoch, place in its order, token in that document
        self._order = self._order_of(0)

    def _order_of(self, epoch: int) -> np.ndarray:
        order = np.random.default_rng([self.seed, epoch]).permutation(len(self.shards))
        return order[self.rank :: self.world_size]

    def __iter__(self) -> Iterator[Batch]:
        while True:
            yield self.next()

    def next(self) -> Batch:
        """The next batch."""
        sequences, targets, room = [], [], self.tokens
        while room:
            document = self.shards[int(self._order[self.document])]
            end = min(self.offset + min(room, self.context), len(document))
            piece = np.asarray(document[self.offset : end])
            if len(piece):
                after = document[end] if end < len(document) else IGNORE if self.start is None else self.start
                sequences.append(piece)
                targets.append(np.append(piece[1:].astype(np.int64), np.int64(after)))
                room -= len(piece)
            self.offset = end
            if end == len(document):
                self._next_document()
        return make_batch(sequences, targets)

    def _next_document(self) -> None:
        self.document, self.offset = self.document + 1, 0
        if self.document == len(self._order):
            self.epoch, self.document = self.epoch + 1, 0
            self._order = self._order_of(self.epoch)

    def state_dict(self) -> dict[str, int]:
        """Where the loader is; `load_state_dict` goes on from there with the same batches."""
        return {"seed": self.seed, "epoch": self.epoch, "document": self.document, "offset": self.offset}

    def load_state_dict(self, state: dict[str, int]) -> None:
        if state["seed"] != self.seed:
            raise ValueError(f"the state is of a loader with seed {state['seed']}, this one has {self.seed}")
        self.epoch, self.document, self.offset = state["epoch"], state["document"], state["offset"]
        self._order = self._order_of(self.epoch)
