"""A person's own files, read before the road begins: what cannot be used is told then, not hours later."""

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from ..data import Conversation, read_conversations, read_facts, read_problems, read_rankings
from ..data.rows import Skipped
from ..errors import UserError
from .config import Config
from .progress import note


def conversations_to_learn(path: Path) -> tuple[list[Conversation], list[Skipped]]:
    """read_conversations(), less those in which the assistant says nothing that counts."""
    used: list[Conversation] = []
    read, skipped = read_conversations(path)
    for conversation in read:
        if any(m["role"] == "assistant" and m.get("weight", 1) for m in conversation.messages):
            used.append(conversation)
        else:
            reason = "nothing to train on; expected at least one assistant message (of weight 1)"
            skipped.append(Skipped(conversation.where, reason, repr(conversation.messages)[:1000]))
    return used, skipped


READERS: dict[str, tuple[str, Callable[..., tuple[list[Any], list[Skipped]]]]] = {
    "sft": ("conversations", conversations_to_learn),
    "know": ("facts", read_facts),
    "rl": ("problems", read_problems),
    "rlhf": ("rankings", read_rankings),
}
SHOWN = 3  # rows told one by one


def look(config: Config, stages: Collection[str]) -> None:
    """Tell the rows that these stages will leave out; UserError for a file of which hardly a row can be used."""
    for stage, (key, read) in READERS.items():
        path = getattr(getattr(config, stage), key)
        if path is None or stage not in stages:
            continue
        rows, left_out = read(path)
        for row in left_out[:SHOWN]:
            note(f"left out: {row.where}: {row.reason}")
        if len(left_out) > SHOWN:
            note(f"left out: {len(left_out) - SHOWN} more rows of {path}; {len(rows)} are used")
        if len(rows) < 2:
            raise UserError(
                f"{stage}.{key} = {path}: expected at least two rows that can be used, found {len(rows)}"
            )
