"""What is kept of the conversations that were written, in the order of their numbers, and why the rest is not.

A conversation is removed for the first of these reasons that holds: failed, empty, cut off, too long, phrase, held
out, exact duplicate, near duplicate. Of duplicates the lowest number is kept. The journal is read twice, so that memory
holds signatures and not texts.
"""

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from ..data import read_prompts
from ..files import Journal, atomic_write
from ..ranges import AT_LEAST_0, Range
from ..text.chat import text_of
from ..web.dedup import DedupConfig, duplicates, exact_key, signature

Row = dict[str, Any]
Runs = set[tuple[str, ...]]
HELD_OUT_WORDS = 13  # in a row, as GPT-3 had it; a shorter question counts as a whole


@dataclass(frozen=True)
class Filters:
    """What is removed beside what is empty, cut off or failed."""

    max_chars: Annotated[int, AT_LEAST_0] = 0
    """remove conversations with an answer longer than this; 0: none"""
    phrases: tuple[str, ...] = ()
    """remove conversations with an answer that holds one of these, in whatever case ("as an AI language model")"""
    held_out: tuple[Path, ...] = ()
    """files of prompts or conversations to be tested with: remove what has 13 words in a row of one's question"""
    exact: bool = True
    """remove exact duplicates (but for case and white space)"""
    near: bool = True
    """remove near duplicates, by MinHash of five words each"""
    similarity: Annotated[float, Range(gt=0, le=1)] = 0.7
    """how much two conversations may share before the later one is a near duplicate"""


@dataclass
class Summary:
    """What became of a file's conversations. removed: by reason. distinct: how many different words, pairs and triples
    of words the answers have, over how many there are in all (distinct-n)."""

    kept: int = 0
    removed: Counter[str] = field(default_factory=Counter)
    distinct: list[float] = field(default_factory=list)


def finish(
    journal: Journal, failed: Mapping[int, Row], out: Path, aside: Path, filters: Filters, stamp: Row
) -> Summary:
    """Write `out` and `aside` from a journal's rows and from those that failed; both appear whole.

    A row has "number", "prompt", "messages", "cut", "time", a failed one "error" too. stamp: the provenance that all
    share.
    """
    index = {row["number"]: at for at, row in journal.rows() if "number" in row}
    numbers = sorted({*index, *failed})
    summary = Summary()
    with open(journal.path, "rb") as file:

        def rows() -> Iterator[Row]:
            for number in numbers:
                if number in index:
                    file.seek(index[number])
                    yield json.loads(file.readline())
                else:
                    yield failed[number]

        verdicts = _verdicts(rows(), filters)
        seen: list[tuple[int, set[int]]] = [(0, set()) for _ in range(3)]
        with atomic_write(out) as kept, atomic_write(aside) as removed:
            for row, (reason, detail) in zip(rows(), verdicts, strict=True):
                made = _whole(row, stamp)
                if reason:
                    summary.removed[reason] += 1
                    made = {"reason": reason, "detail": detail, **made}
                else:
                    summary.kept += 1
                    seen = _counted(seen, answers_of(row["messages"]))
                print(json.dumps(made, ensure_ascii=False), file=removed if reason else kept)
    summary.distinct = [len(different) / total if total else 0.0 for total, different in seen]
    return summary


def answers_of(messages: Sequence[Mapping[str, Any]]) -> list[str]:
    """The texts of the assistant, without its searches."""
    return [
        text_of(message, "an answer")
        for message in messages
        if message["role"] == "assistant" and not message.get("tool_calls")
    ]


def _verdicts(rows: Iterator[Row], filters: Filters) -> list[tuple[str, str]]:
    """(reason, detail) of each row; of those that are kept, the reason is empty."""
    found: list[tuple[str, str]] = []
    passed: list[int] = []  # rows that only duplicates may still remove
    numbers: list[int] = []
    keys: list[str] = []
    signatures: list[list[int]] = []
    tested = _tested(filters.held_out)
    config = DedupConfig(filters.exact, filters.near, similarity=filters.similarity)
    for row in rows:
        found.append(_fault(row, filters))
        if not found[-1][0]:
            texts = [text_of(m, "a message") for m in row["messages"] if m["role"] in ("user", "assistant")]
            if any(tested[n].intersection(_runs(text, n)) for text in texts for n in tested):
                found[-1] = "held out", "a question to be tested with"
                continue
            text = "\n".join(texts)
            passed.append(len(found) - 1)
            numbers.append(row["number"])
            keys.append(exact_key(text))
            signatures.append(signature(text, config) if filters.near else [])
    for at, same in zip(passed, duplicates(keys, signatures, config), strict=True):
        if same:
            found[at] = f"{same[1]} duplicate", f"of number {numbers[same[0]]}"
    return found


def _tested(files: Sequence[Path]) -> dict[int, Runs]:
    """The runs of words of the last question of each prompt, by their lengths."""
    found: dict[int, Runs] = {}
    for prompt in (prompt for file in files for prompt in read_prompts(file)[0] if prompt.messages):
        question = text_of(prompt.messages[-1], prompt.where)
        if n := min(HELD_OUT_WORDS, len(_words(question))):
            found.setdefault(n, set()).update(_runs(question, n))
    return found


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def _runs(text: str, n: int) -> list[tuple[str, ...]]:
    """All n words in a row of a text."""
    words = _words(text)
    return list(zip(*(words[i:] for i in range(n)), strict=False))


def _fault(row: Row, filters: Filters) -> tuple[str, str]:
    """Why a conversation cannot be kept, whatever the others are: (reason, detail)."""
    if row.get("error"):
        return "failed", row["error"]
    last = row["messages"][-1]
    if not text_of(last, "the last message").strip():
        return "empty", f"{last['role']} said nothing"
    if row["cut"]:
        return "cut off", f"{last['role']} had not ended"
    for text in answers_of(row["messages"]):
        if filters.max_chars and len(text) > filters.max_chars:
            return "too long", f"{len(text)} characters"
        for phrase in filters.phrases:
            if phrase.lower() in text.lower():
                return "phrase", phrase
    return "", ""


def _whole(row: Row, stamp: Row) -> Row:
    return {
        "messages": row["messages"],
        "provenance": {**stamp, "number": row["number"], "prompt": row["prompt"], "time": row["time"]},
    }


def _counted(seen: list[tuple[int, set[int]]], texts: Sequence[str]) -> list[tuple[int, set[int]]]:
    """(how many there are, hashes of the different ones) of runs of 1, 2 and 3 words, with these texts' too."""
    for text in texts:
        for n, (total, different) in enumerate(seen, 1):
            runs = _runs(text, n)
            different.update(map(hash, runs))
            seen[n - 1] = total + len(runs), different
    return seen
