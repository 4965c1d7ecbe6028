"""Rankings of answers by people: JSONL {"messages": [...], "answers": ["...", ...], "ranks": [1, 2, 2]}.

The messages end with a user's turn, to which each answer would be the assistant's next one. There is one rank for each
answer: 1 is the best, equal ranks are a tie. Other keys are kept as they are; who ranked ("by"), under which version
of the guidelines ("guideline") and when ("time") are the usual ones. Rows {"prompt", "chosen", "rejected"}, as public
preference data have them, are understood too: two answers, as texts or as whole conversations.
"""

import json
import os
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..errors import UserError
from ..text.chat import check, text_of
from .rows import Skipped, read_rows

OWN = ("messages", "answers", "ranks")
PAIR = ("prompt", "chosen", "rejected")


@dataclass(frozen=True)
class Ranking:
    """Answers to one conversation, and how good each was found."""

    messages: Sequence[Mapping[str, Any]]  # ending with a user's turn
    answers: tuple[str, ...]
    ranks: tuple[int, ...]  # one for each answer: 1 the best, equal for a tie
    more: Mapping[str, Any] = field(default_factory=dict)  # the row's other keys
    where: str = field(default="ranking", compare=False)

    def pairs(self) -> list[tuple[int, int]]:
        """(better, worse) for every two answers of different ranks, as indices; a tie makes none."""
        numbered = range(len(self.ranks))
        return [(i, j) for i in numbered for j in numbered if self.ranks[i] < self.ranks[j]]

    def row(self) -> dict[str, Any]:
        """The row of the file."""
        return {
            "messages": list(self.messages), "answers": list(self.answers), "ranks": list(self.ranks), **self.more,
        }  # fmt: skip

    @property
    def prompt(self) -> str:
        """What was asked, as one text: rankings of the same conversation have the same."""
        return json.dumps([[m["role"], text_of(m, self.where)] for m in self.messages], ensure_ascii=False)


def read_rankings(path: str | os.PathLike) -> tuple[list[Ranking], list[Skipped]]:
    """(rankings, rows that could not be used, each with file, line and reason)."""
    return read_rows(path, ranking_of)


def ranking_of(row: dict[str, Any], where: str) -> Ranking:
    """The ranking of one row in either of the forms above; UserError if it is none."""
    pair = "chosen" in row and "rejected" in row
    if pair:
        messages, answers, ranks = *_preference(row, where), [1, 2]
    elif missing := [name for name in OWN if name not in row]:
        raise UserError(
            f"{where}: expected the fields messages, answers and ranks; {missing[0]!r} is missing"
        )
    else:
        messages, answers, ranks = row["messages"], row["answers"], row["ranks"]
    check(messages, where)
    if messages[-1]["role"] != "user":
        raise UserError(
            f"{where}: the last message is of the {messages[-1]['role']}; expected the user's turn"
        )
    if not isinstance(answers, list) or len(answers) < 2 or not all(isinstance(a, str) for a in answers):
        raise UserError(f"{where}: expected 'answers' to be a list of two or more texts")
    if not isinstance(ranks, list) or not all(type(rank) is int and rank >= 1 for rank in ranks):
        raise UserError(
            f"{where}: expected 'ranks' to be a list of whole numbers from 1, 1 for the best answer"
        )
    if len(ranks) != len(answers):
        raise UserError(f"{where}: {len(ranks)} ranks for {len(answers)} answers; expected one for each")
    more = {name: value for name, value in row.items() if name not in (PAIR if pair else OWN)}
    return Ranking(messages, tuple(answers), tuple(ranks), more, where)


def _preference(row: dict[str, Any], where: str) -> tuple[Any, list[Any]]:
    """(messages, [chosen, rejected]) of a pair; where the answers are conversations, they part at the last turn."""
    prompt, ends = row.get("prompt"), [row["chosen"], row["rejected"]]
    if not all(isinstance(end, str) for end in ends):
        for end in ends:
            check(end, where)
        heads = [end[:-1] for end in ends]
        if heads[0] != heads[1] or any(end[-1]["role"] != "assistant" for end in ends):
            raise UserError(
                f"{where}: expected 'chosen' and 'rejected' to differ in the assistant's last turn alone"
            )
        ends, prompt = [text_of(end[-1], where) for end in ends], heads[0] or prompt
    if isinstance(prompt, str):
        prompt = [{"role": "user", "content": prompt}]
    return prompt, ends


def split_by_prompt(
    rankings: Sequence[Ranking], held_out: float = 0.25
) -> tuple[list[Ranking], list[Ranking]]:
    """(to train on, held out): by the hash of the prompt, so that no prompt is on both sides, whatever else the file
    holds. held_out: the share of prompts kept from training."""
    train: list[Ranking] = []
    apart: list[Ranking] = []
    for ranking in rankings:
        at = zlib.crc32(ranking.prompt.encode("utf-8", "surrogatepass")) / 2**32
        (apart if at < held_out else train).append(ranking)
    return train, apart
