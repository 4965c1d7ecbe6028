"""A person's own files, read before the road begins: what cannot be used is told then, not hours later."""

from collections.abc import Callable, Collection
from typing import Any

from ..data import read_conversations, read_facts, read_problems, read_rankings
from ..data.rows import Skipped
from ..errors import UserError
from .config import Config
from .progress import note

READERS: dict[str, tuple[str, Callable[..., tuple[list[Any], list[Skipped]]]]] = {
    "sft": ("conversations", read_conversations),
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
