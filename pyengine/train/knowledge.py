"""Questions of which the right answers are known, and the table of what a model does with them.

    items = questions_of(run, "test")          [Item], of the file of the settings or of the world
    table = measure(dialogue, items)           group -> {questions, answer, search, refuse, right, ...}

Groups of the world: known (told in the crawl), later (only on pages after the cut-off), invented (nowhere). A
person's own facts are one group, "given". Splits are by entity in the world, by the hash of the question in a
file; what is measured on "test" was in no conversation of any stage.
"""

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ..data import read_facts
from .dialogue import Dialogue, Reply
from .run import Run
from .scores import calibration_error, holds_answer, refuses, reliability

GROUPS = ("known", "later", "invented")


@dataclass(frozen=True)
class Item:
    """A question, its right answers, and how a person would answer and look it up."""

    question: str
    answers: tuple[str, ...]
    response: str = ""  # an answer in a sentence
    query: str = ""  # what to search for
    group: str = "given"
    id: str = field(default="", compare=False)

    def is_right(self, reply: Reply) -> bool:
        """Whether the reply answers, and rightly."""
        return not refuses(reply.text) and holds_answer(reply.text, self.answers)


def questions_of(run: Run, split: str, wordings: int = 1) -> list[Item]:
    """The questions of a split ("train", "test"); the world asks each in `wordings` ways. None where another
    source was read and no facts were given: nobody knows what could be asked of it.

    The world's train questions hold some about passers-by too: many names, of whom the crawl told little.
    """
    path = run.config.know.facts
    if path is None and not run.config.closed:
        return []
    if path is None:
        asking, rng = run.world.asking, run.world.config.rng("items", split)
        asked = [q for group in GROUPS for q in run.world.questions(group, split, wordings)]
        if split == "train":
            asked += asking.passing(split, run.config.know.passing)
        return [
            Item(
                question=q.question,
                answers=(q.answer, *q.aliases),
                response=asking.sentence(q.fact, rng),
                query=q.fact.entity.name,
                group=q.group,
                id=q.id,
            )
            for q in asked
        ]
    facts, _ = read_facts(path)
    return [
        Item(f.question, f.answers, response=f.answer, query=f.question, id=f.id)
        for f in facts
        if (zlib.crc32(f.question.encode()) % 2 == 0) == (split == "train")
    ]


def spread(items: Sequence[Item], count: int) -> list[Item]:
    """At most `count` of the items, at even distances: neighbours are about the same entity."""
    count = min(count, len(items))
    return [items[i * len(items) // count] for i in range(count)]


def measure(dialogue: Dialogue, items: Sequence[Item], max_tokens: int = 48) -> dict[str, Any]:
    """What the model does, greedily, with each group's questions.

    Counts for each group: questions; answer, search, refuse (what it did first; they sum to questions); right
    (in the end), right_by_search, refused (in the end). "ece": calibration of what it answered at once, its
    confidence being the geometric mean of its tokens' probabilities; "reliability": the same by bin.
    """
    table: dict[str, dict[str, int]] = {}
    confidence, hits = [], []
    replies = [group[0] for group in dialogue.ask([i.question for i in items], max_tokens=max_tokens)]
    for item, reply in zip(items, replies, strict=True):
        names = ("questions", "answer", "search", "refuse", "right", "right_by_search", "refused")
        row = table.setdefault(item.group, dict.fromkeys(names, 0))
        right, action = item.is_right(reply), reply.action
        row["questions"] += 1
        row[action] += 1
        row["right"] += right
        row["right_by_search"] += right and action == "search"
        row["refused"] += refuses(reply.text)
        if action == "answer":
            logprobs = reply.completion.logprobs
            confidence.append(math.exp(math.fsum(logprobs) / max(1, len(logprobs))))
            hits.append(right)
    return {
        "groups": table,
        "ece": calibration_error(confidence, hits),
        "answered_at_once": len(hits),
        "reliability": reliability(confidence, hits),
    }


def share(table: dict[str, Any], group: str, what: str) -> float:
    """A share of a group's questions, from a table of `measure`."""
    row = table["groups"].get(group)
    return row[what] / row["questions"] if row else math.nan


def labels(
    dialogue: Dialogue,
    items: Sequence[Item],
    samples: int,
    temperature: float,
    seed: int,
    bounds: tuple[float, float],
) -> list[dict[str, Any]]:
    """Ask each question `samples` times and label it by the share of right replies.

    bounds: (unknown at most, known at least); between them it is "unsure". Each row holds label, share, the
    replies, and `own`: the model's most frequent right reply.
    """
    asked = dialogue.ask([i.question for i in items], samples, temperature, 48, seed)
    rows = []
    for item, replies in zip(items, asked, strict=True):
        right = [reply.text for reply in replies if item.is_right(reply)]
        part = len(right) / samples
        label = "known" if part >= bounds[1] else "unknown" if part <= bounds[0] else "unsure"
        rows.append({
            "id": item.id, "question": item.question, "answers": list(item.answers), "group": item.group,
            "label": label, "share_right": part, "own": max(right, key=right.count) if right else "",
            "replies": [reply.text for reply in replies],
        })  # fmt: skip
    return rows
