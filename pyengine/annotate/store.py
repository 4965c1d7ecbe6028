"""What people decided about prompts: kept in a journal, told as conversations and rankings.

    store = Store(journal, prompts)
    item = store.next("ada")              what she sees now
    store.decide("ada", item.key, guideline, ranks=[2, 1, 1])
    store.undo("ada")                     takes it back

The journal has three kinds of lines: the answers to a prompt, a decision, and the undoing of one. What was decided
last about a prompt by a person is in force. A decision holds all that the files for training need, so these can be
written again from the journal alone.
"""

import hashlib
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from itertools import combinations
from pathlib import Path
from typing import Any

from ..data import Prompt, Ranking
from ..errors import UserError
from ..files import Journal, atomic_write
from ..text.chat import text_of

Row = dict[str, Any]
NAME_CHARS = 100  # of an annotator's name at most
HELD = 1800.0  # seconds that a prompt which is not shared is kept for who has it before them


@dataclass(frozen=True)
class Item:
    """A prompt to be decided about; its key tells it apart, wherever it stands in whatever file."""

    key: str
    prompt: Prompt


@dataclass(frozen=True)
class Agreement:
    """Of people who ranked the same answers: of all two answers ranked by two people, the share about which both said
    the same (better, worse or alike), and how far that is above chance (kappa: 0 is chance, 1 is always)."""

    comparisons: int
    share: float
    kappa: float


class Store:
    """Decisions about prompts. ranks: whether there are answers to be ranked. overlap: the share of prompts that
    everybody sees; each of the others goes to one person, and to another HELD seconds after who had it last asked for
    it and left it undecided. clock: tells seconds."""

    def __init__(
        self, journal: Journal, prompts: Sequence[Prompt] = (), ranks: bool = True, overlap: float = 1.0,
        clock: Callable[[], float] = time.monotonic,
    ):  # fmt: skip
        self._journal, self._ranks, self._overlap, self._clock = journal, ranks, overlap, clock
        self.items = {key: Item(key, prompt) for prompt in prompts for key in [key_of(prompt)]}
        self.answers: dict[str, list[str]] = {}  # to each prompt, in the order in which they were sampled
        self._models: dict[str, Row] = {}  # which wrote them
        # by person and key, in the order in which they were made
        self._decided: dict[str, dict[str, Row]] = {}
        # the prompt each person has before them, and since when
        self._open: dict[str, tuple[str, float]] = {}
        for _, row in journal.rows():
            self._follow(row)

    def _follow(self, row: Row) -> None:
        if "undo" in row:
            self._decided[row["by"]].pop(row["undo"], None)
        elif "decision" in row:
            mine = self._decided.setdefault(row["by"], {})
            mine.pop(row["decision"], None)  # the last decision comes last
            mine[row["decision"]] = row
        else:
            self.answers[row["prompt"]], self._models[row["prompt"]] = row["answers"], row["model"]

    def _keep(self, row: Row) -> None:
        self._journal.append(row)
        self._follow(row)

    def add_answers(self, key: str, answers: Sequence[str], model: Row) -> None:
        """Keep what a model answered to a prompt; two answers or more can be ranked."""
        self._keep({"answers": list(answers), "prompt": key, "model": model})

    def next(self, by: str) -> Item | None:
        """What a person sees now; None if nothing is left for them."""
        mine = self._decided.get(by, {})
        now = self._clock()
        taken = {key for who, (key, since) in self._open.items() if who != by and now - since < HELD}
        taken.update(key for who, theirs in self._decided.items() if who != by for key in theirs)
        for key, item in self.items.items():
            if key not in mine and self._usable(key) and (key not in taken or self._is_shared(key)):
                self._open[by] = key, now
                return item
        self._open.pop(by, None)
        return None

    def ahead(self, count: int) -> list[str]:
        """The keys of the first prompts that wait for answers."""
        waiting = (key for key in self.items if key not in self.answers)
        return [key for key, _ in zip(waiting, range(count), strict=False)]

    def progress(self, by: str) -> tuple[int, int]:
        """(decided by this person, left for them as far as it is known)."""
        mine = self._decided.get(by, {})
        others = {key for who, theirs in self._decided.items() if who != by for key in theirs}
        left = sum(
            key not in mine and self._usable(key) and (key not in others or self._is_shared(key))
            for key in self.items
        )
        return sum(key in self.items for key in mine), left

    def order(self, by: str, key: str) -> list[int]:
        """In which order a person sees the answers: another for each, so that no place favours an answer."""
        return sorted(
            range(len(self.answers.get(key, ()))),
            key=lambda i: hashlib.sha256(f"{by}\0{key}\0{i}".encode()).digest(),
        )

    def decide(
        self,
        by: str,
        key: str,
        guideline: Row,
        *,
        ranks: Sequence[int] | None = None,
        ideal: Sequence[str] = (),
        began: int | None = None,
        skip: bool = False,
        seconds: float = 0.0,
    ) -> None:
        """Keep a decision, on the disk when this returns.

        ranks: one for each answer, in the order in which they were sampled, 1 the best, equal for a tie. ideal: the
        answer as it should be, perhaps what the user says then, an answer, and so on. began: the answer that the
        ideal one was made of. UserError: what was decided makes no sense.
        """
        if key not in self.items:
            raise UserError("this prompt is not among those to be decided about")
        if not 0 < len(by) <= NAME_CHARS:
            raise UserError(f"expected a name of 1 to {NAME_CHARS} characters")
        answers = self.answers.get(key, [])
        if ranks is not None and (
            len(ranks) != len(answers) or not all(1 <= r <= len(answers) for r in ranks)
        ):
            raise UserError(f"expected {len(answers)} ranks from 1 to {len(answers)}")
        if (ideal and len(ideal) % 2 == 0) or not all(text.strip() for text in ideal):
            raise UserError("expected texts, first and last one of the assistant")
        if began is not None and not 0 <= began < len(answers):
            raise UserError(f"expected one of {len(answers)} answers as what the ideal one was made of")
        if not (skip or ranks or ideal):
            raise UserError("nothing was decided")
        prompt = self.items[key].prompt
        self._keep({
            "decision": key, "by": by, "skip": skip, "ranks": None if ranks is None else dense(ranks),
            "ideal": [text.strip() for text in ideal], "began": began, "messages": list(prompt.messages),
            "answers": answers, "model": self._models.get(key), "guideline": guideline, "prompt": prompt.where,
            "seconds": round(seconds, 1), "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        })  # fmt: skip

    def undo(self, by: str) -> tuple[Item, Row] | None:
        """Take back a person's last decision; the prompt and what was decided, or None if there is none."""
        mine = [key for key in self._decided.get(by, {}) if key in self.items]
        if not mine:
            return None
        row = self._decided[by][mine[-1]]
        self._keep({"undo": mine[-1], "by": by})
        self._open[by] = mine[-1], self._clock()
        return self.items[mine[-1]], row

    @property
    def decisions(self) -> list[Row]:
        """Those in force, oldest first of each person."""
        return [row for theirs in self._decided.values() for row in theirs.values()]

    def conversations(self) -> Iterator[Row]:
        """The ideal answers as rows to be trained on."""
        for row in self.decisions:
            if row["ideal"]:
                roles = ["assistant", "user"] * len(row["ideal"])
                written = [
                    {"role": role, "content": text} for role, text in zip(roles, row["ideal"], strict=False)
                ]
                # nobody vouched for earlier answers
                before = [{**m, "weight": 0} if m["role"] == "assistant" else m for m in row["messages"]]
                kept = {name: row[name] for name in ("by", "guideline", "prompt", "time")}
                began = row["began"] is not None
                model = {"model": row["model"], "began": row["answers"][row["began"]]} if began else {}
                yield {"messages": before + written, "provenance": kept | model}

    def rankings(self) -> Iterator[Ranking]:
        """The rankings, as a reward model learns from them."""
        for row in self.decisions:
            if row["ranks"]:
                more = {name: row[name] for name in ("by", "guideline", "time", "model", "prompt")}
                yield Ranking(row["messages"], tuple(row["answers"]), tuple(row["ranks"]), more)

    def export(self, folder: Path) -> tuple[int, int]:
        """Write conversations.jsonl and rankings.jsonl; how many rows each has."""
        files = {
            "conversations.jsonl": list(self.conversations()),
            "rankings.jsonl": [ranking.row() for ranking in self.rankings()],
        }
        for name, rows in files.items():
            with atomic_write(folder / name) as file:
                file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        written, ranked = map(len, files.values())
        return written, ranked

    def agreement(self) -> Agreement | None:
        """How far people who ranked the same answers agree; None if nobody did."""
        by_key: dict[str, list[Row]] = {}
        for row in self.decisions:
            if row["ranks"]:
                by_key.setdefault(row["decision"], []).append(row)
        same = count = 0
        said: Counter[bool] = Counter()  # whether two answers were called alike
        for rows in by_key.values():
            for one, other in combinations(rows, 2):
                if one["answers"] != other["answers"]:
                    continue
                for i, j in combinations(range(len(one["ranks"])), 2):
                    signs = [_sign(row["ranks"][i] - row["ranks"][j]) for row in (one, other)]
                    said.update(sign == 0 for sign in signs)
                    same, count = same + (signs[0] == signs[1]), count + 1
        if not count:
            return None
        ties = said[True] / said.total()
        chance = (
            ties**2 + (1 - ties) ** 2 / 2
        )  # which answer is called the first is chance, so both signs are alike
        share = same / count
        return Agreement(count, share, (share - chance) / (1 - chance) if chance < 1 else 1.0)

    def _usable(self, key: str) -> bool:
        return not self._ranks or key not in self.answers or len(self.answers[key]) > 1

    def _is_shared(self, key: str) -> bool:
        return int(key, 16) / 16 ** len(key) < self._overlap


def key_of(prompt: Prompt) -> str:
    """The same for the same messages."""
    said = [[message["role"], text_of(message, prompt.where)] for message in prompt.messages]
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()[:16]


def dense(ranks: Sequence[int]) -> list[int]:
    """Ranks without gaps: [3, 1, 3] -> [2, 1, 2]"""
    places = sorted(set(ranks))
    return [places.index(rank) + 1 for rank in ranks]


def _sign(number: int) -> int:
    return (number > 0) - (number < 0)
