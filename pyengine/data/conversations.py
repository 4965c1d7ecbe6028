"""Conversations as packed batches for supervised fine-tuning.

Files are JSONL {"messages": [...]} (see pyengine.text.chat); ShareGPT's {"conversations": [{"from", "value"}]}
and pairs such as {"prompt", "response"} are understood too. A conversation is rendered once to ids and a loss
mask; a batch is one row of whole conversations, each attending to itself alone, best fit first: the epoch's
conversations, longest first, each go into the fullest row that still has room. Rows then are shuffled by seed
and epoch. What is left free in a row is filled with <|pad|>, a sequence of its own without targets.
"""

import bisect
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..errors import UserError
from ..text import Tokenizer, render
from ..text.chat import check, check_mask
from .loader import IGNORE, Batch, make_batch
from .rows import Skipped, read_rows
from .rows import field as text_field

SHAREGPT_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
}
PROMPT = ("prompt", "question", "instruction", "input", "user")
RESPONSE = ("response", "answer", "output", "completion", "assistant")


@dataclass(frozen=True)
class Conversation:
    """Messages, and where they come from."""

    messages: Sequence[Mapping[str, Any]]
    where: str = "conversation"


@dataclass(frozen=True)
class Encoded:
    """One conversation as ids and loss mask, each (T,)."""

    ids: np.ndarray
    mask: np.ndarray
    where: str = field(default="", compare=False)


def read_conversations(path: str | os.PathLike) -> tuple[list[Conversation], list[Skipped]]:
    """(conversations, rows that could not be used, each with file, line and reason)."""
    return read_rows(path, conversation_of)


def conversation_of(row: dict[str, Any], where: str) -> Conversation:
    """The conversation of one row in any of the forms above; UserError if it is none."""
    if "messages" in row:
        messages = row["messages"]
    elif "conversations" in row:
        messages = _sharegpt(row["conversations"], where)
    elif any(name in row for name in PROMPT):
        system = row.get("system")
        messages = [{"role": "system", "content": system}] if isinstance(system, str) and system else []
        messages.append({"role": "user", "content": prompt_text(row, where)})
        messages.append({"role": "assistant", "content": text_field(row, RESPONSE, where)})
    else:
        raise UserError(
            f"{where}: expected a field 'messages' (also looked for conversations, {', '.join(PROMPT)})"
        )
    check(messages, where)
    return Conversation(messages, where)


def prompt_text(row: Mapping[str, Any], where: str) -> str:
    """What the user says in a row that names it as one of PROMPT; UserError if that is no text."""
    prompt = text_field(row, PROMPT, where)
    if isinstance(row.get("instruction"), str) and isinstance(row.get("input"), str) and row["input"].strip():
        prompt = f"{row['instruction']}\n\n{row['input']}"  # Alpaca's two halves of a prompt
    return prompt


def _sharegpt(turns: Any, where: str) -> list[dict[str, str]]:
    try:
        return [{"role": SHAREGPT_ROLES[turn["from"]], "content": turn["value"]} for turn in turns]
    except (KeyError, TypeError) as error:
        raise UserError(
            f"{where}: expected 'conversations' of {{from: {' | '.join(SHAREGPT_ROLES)}, value: text}} ({error!r})"
        ) from None


def encode_conversations(
    conversations: Iterable[Conversation | Sequence[Mapping[str, Any]]], tokenizer: Tokenizer, max_tokens: int
) -> tuple[list[Encoded], list[Skipped]]:
    """(encoded, skipped): conversations as ids and masks; those longer than max_tokens, or with nothing (or
    everything) to train on, are kept aside with the reason."""
    encoded, skipped = [], []
    for number, item in enumerate(conversations, 1):
        conversation = (
            item if isinstance(item, Conversation) else Conversation(item, f"conversation {number}")
        )
        where = conversation.where
        try:
            ids, mask = render(conversation.messages, tokenizer, where=where)
            check_mask(mask, where)
            if len(ids) > max_tokens:
                raise UserError(f"{where}: {len(ids)} tokens are more than the {max_tokens} of a batch")
        except UserError as error:
            reason = str(error).removeprefix(where).removeprefix(": ").removeprefix(", ")
            skipped.append(Skipped(where, reason, repr(conversation.messages)[:1000]))
        else:
            encoded.append(Encoded(np.array(ids, np.int32), np.array(mask, bool), where))
    return encoded, skipped


def best_fit(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Groups of indices whose lengths sum to at most `capacity`; each item, in the order given, joins the fullest
    group that still has room. Sorting by length first would fill groups better, but put all the short items
    together: a batch of refusals here, one of long solutions there, and the gradients of neither to be trusted."""
    groups: list[list[int]] = []
    rooms: list[tuple[int, int]] = []  # (free, group), sorted
    for i in range(len(lengths)):
        if lengths[i] > capacity:
            raise ValueError(f"an item of {lengths[i]} does not fit into {capacity}")
        at = bisect.bisect_left(rooms, (lengths[i], 0))
        if at == len(rooms):
            free, group = capacity, len(groups)
            groups.append([])
        else:
            free, group = rooms.pop(at)
        groups[group].append(i)
        bisect.insort(rooms, (free - lengths[i], group))
    return groups


class PackedConversations:
    """Batches of whole conversations, at most `tokens` tokens each; without end, resumable."""

    def __init__(self, encoded: Sequence[Encoded], tokens: int, seed: int = 0, *, pad: int | None = None):
        """pad: the id that fills a batch up to exactly `tokens`; None leaves batches as short as they are."""
        if not encoded:
            raise UserError("no conversations to train on")
        self.encoded, self.tokens, self.seed, self.pad = encoded, tokens, seed, pad
        self.epoch = self.batch = 0
        self._rows = self._rows_of(0)

    def _rows_of(self, epoch: int) -> list[list[int]]:
        make = np.random.default_rng([self.seed, epoch])
        order = make.permutation(len(self.encoded))
        groups = best_fit([len(self.encoded[i].ids) for i in order], self.tokens)
        return [[int(order[i]) for i in groups[g]] for g in make.permutation(len(groups))]

    @property
    def batches_per_epoch(self) -> int:
        """Of this epoch (the number may differ by one or so between epochs)."""
        return len(self._rows)

    @property
    def fill(self) -> float:
        """The part of this epoch's batch tokens that conversations fill."""
        return math.fsum(len(e.ids) for e in self.encoded) / (len(self._rows) * self.tokens)

    def __iter__(self) -> Iterator[Batch]:
        while True:
            yield self.next()

    def next(self) -> Batch:
        """The next batch."""
        row = [self.encoded[i] for i in self._rows[self.batch]]
        self.batch += 1
        if self.batch == len(self._rows):
            self.epoch, self.batch = self.epoch + 1, 0
            self._rows = self._rows_of(self.epoch)
        return pack(row, self.tokens, self.pad)

    def state_dict(self) -> dict[str, int]:
        """Where the loader is; `load_state_dict` goes on from there with the same batches."""
        return {"seed": self.seed, "epoch": self.epoch, "batch": self.batch}

    def load_state_dict(self, state: dict[str, int]) -> None:
        if state["seed"] != self.seed:
            raise ValueError(f"the state is of a loader with seed {state['seed']}, this one has {self.seed}")
        self.epoch, self.batch = state["epoch"], state["batch"]
        self._rows = self._rows_of(self.epoch)


def pack(row: Sequence[Encoded], tokens: int, pad: int | None = None) -> Batch:
    """One batch of these conversations. A token's target is the next one of its conversation where the mask is
    1 there, else IGNORE: so the last token of each, and <|assistant|>'s forced followers, have none."""
    sequences, targets = [], []
    for item in row:
        target = np.full(len(item.ids), IGNORE, np.int64)
        target[:-1][item.mask[1:]] = item.ids[1:][item.mask[1:]]
        sequences.append(item.ids)
        targets.append(target)
    if pad is not None and (left := tokens - sum(len(s) for s in sequences)):
        sequences.append(np.full(left, pad, np.int32))
        targets.append(np.full(left, IGNORE, np.int64))
    return make_batch(sequences, targets)
