"""A person's own files, read before the road begins: what cannot be used is told then, not hours later."""

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from ..data import Conversation, read_conversations, read_facts, read_problems, read_rankings
from ..data.rows import Skipped
from ..errors import UserError
from ..text.chat import UNTRAINED, is_trained
from .config import Config
from .progress import note_left_out


def conversations_to_learn(path: Path) -> tuple[list[Conversation], list[Skipped]]:
    """read_conversations(), less those in which the assistant says nothing that counts."""
    used: list[Conversation] = []
    read, skipped = read_conversations(path)
    for conversation in read:
        if any(map(is_trained, conversation.messages)):
            used.append(conversation)
        else:
            skipped.append(Skipped(conversation.where, UNTRAINED, repr(conversation.messages)[:1000]))
    return used, skipped


READERS: dict[str, tuple[str, Callable[..., tuple[list[Any], list[Skipped]]]]] = {
    "sft": ("conversations", conversations_to_learn),
    "know": ("facts", read_facts),
    "rl": ("problems", read_problems),
    "rlhf": ("rankings", read_rankings),
}


def look(config: Config, stages: Collection[str]) -> None:
    """Tell the rows that these stages will leave out; UserError for a file of which hardly a row can be used."""
    for stage, (key, read) in READERS.items():
        path = getattr(getattr(config, stage), key)
        if path is None or stage not in stages:
            continue
        rows, left_out = read(path)
        note_left_out(left_out, f"more rows of {path}; {len(rows)} are used")
        if len(rows) < 2:
            raise UserError(
                f"{stage}.{key} = {path}: expected at least two rows that can be used, found {len(rows)}"
            )
