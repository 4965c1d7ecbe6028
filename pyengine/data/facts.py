"""Facts to probe and teach: JSONL {"question", "answer", "passage", ("aliases", "id")}.

`answers` are all texts that count as right. The fields' other usual names are understood.
"""

import os
from dataclasses import dataclass
from typing import Any

from ..errors import UserError
from .rows import Skipped, field, read_rows

QUESTION = ("question", "query", "prompt", "input")
ANSWER = ("answer", "target", "output", "response")
PASSAGE = ("passage", "context", "text", "document", "evidence")


@dataclass(frozen=True)
class Fact:
    """A question, and all that is known of its answer."""

    question: str
    answer: str
    passage: str = ""  # where the answer stands, if the file says
    aliases: tuple[str, ...] = ()  # other right answers
    id: str = ""  # the file's, or "file:line"

    @property
    def answers(self) -> tuple[str, ...]:
        """All texts that count as right, the one to teach first."""
        return (self.answer, *self.aliases)


def read_facts(path: str | os.PathLike) -> tuple[list[Fact], list[Skipped]]:
    """(facts, rows that could not be used)."""
    return read_rows(path, fact_of)


def fact_of(row: dict[str, Any], where: str) -> Fact:
    """The fact in a row; UserError, which names `where` it stands, if there is none."""
    aliases = row.get("aliases", row.get("answers", []))
    if not isinstance(aliases, list) or not all(isinstance(alias, str) for alias in aliases):
        raise UserError(f"{where}: expected 'aliases' to be a list of texts")
    if not any(name in row for name in ANSWER) and aliases:
        row = {**row, "answer": aliases[0]}
    answer = field(row, ANSWER, where).strip()
    passage = next((row[name] for name in PASSAGE if isinstance(row.get(name), str)), "")
    return Fact(
        question=field(row, QUESTION, where).strip(),
        answer=answer,
        passage=passage,
        aliases=tuple(alias.strip() for alias in aliases if alias.strip() != answer),
        id=str(row.get("id", where)),
    )
