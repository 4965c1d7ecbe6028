"""What conversations begin with: JSONL rows, or a text file with a prompt in each line.

    {"prompt": "Who founded Tavor?"}            also question, instruction, input, user
    {"messages": [...]}                         a conversation; what follows its last user message is left out
    {"topic": "the history of glass"}           somebody has yet to ask about it
    {"text": "Tavor was founded by ..."}        a document or passage, likewise; also passage, document, context

`pyengine.web`'s documents.jsonl is such a file, and one of conversations as well.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..text.chat import check
from .conversations import PROMPT, conversation_of, prompt_text
from .rows import Skipped, field, read_rows

PASSAGE = ("text", "passage", "document", "context")


@dataclass(frozen=True)
class Prompt:
    """Messages that end with a user's, or what a user shall ask about: a topic, or a passage."""

    where: str
    messages: Sequence[Mapping[str, Any]] = ()
    topic: str = ""
    passage: str = ""

    def cut(self, chars: int) -> "Prompt":
        """The prompt with at most so many characters of its passage, whole words of them."""
        if len(self.passage) <= chars:
            return self
        head = self.passage[: chars + 1]
        return replace(self, passage=(head[: head.rfind(" ")] if " " in head else head[:chars]).rstrip())


def read_prompts(path: str | os.PathLike) -> tuple[list[Prompt], list[Skipped]]:
    """(prompts, rows that could not be used, each with file, line and reason)."""
    if Path(path).suffix != ".txt":
        return read_rows(path, prompt_of)
    try:
        lines = Path(path).read_text("utf-8-sig").splitlines()
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; expected JSONL, or text with a prompt in each line") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: not UTF-8 text; save the file as UTF-8") from None
    prompts = [
        Prompt(f"{path}:{number}", _asked(line)) for number, line in enumerate(lines, 1) if line.strip()
    ]
    if not prompts:
        raise UserError(f"{path}: expected a prompt in each line, the file is empty")
    return prompts, []


def prompt_of(row: dict[str, Any], where: str) -> Prompt:
    """The prompt of one row in any of the forms above; UserError if it is none."""
    if "conversations" in row:
        row = {"messages": conversation_of(row, where).messages}
    if "messages" in row:
        check(row["messages"], where)
        asked = [n for n, message in enumerate(row["messages"], 1) if message["role"] == "user"]
        if not asked:
            raise UserError(f"{where}: expected a message of the user")
        return Prompt(where, row["messages"][: asked[-1]])
    if any(name in row for name in PROMPT):
        return Prompt(where, _asked(prompt_text(row, where)))
    if "topic" in row:
        return Prompt(where, topic=field(row, ("topic",), where).strip())
    if any(name in row for name in PASSAGE):
        return Prompt(where, passage=field(row, PASSAGE, where).strip())
    raise UserError(
        f"{where}: expected a prompt, messages, a topic or a text "
        f"(looked for messages, conversations, {', '.join(PROMPT)}, topic, {', '.join(PASSAGE)})"
    )


def _asked(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text.strip()}]
