"""Attempts at problems: the problems of a run, replies to them with their rewards, and the exam on held-out ones.

Problems are a person's file (a quarter held out, by the hash of each text) or the world's, whose splits are
disjoint by construction. The exam samples at temperature 1, the distribution that RL trains, one reply a
problem for pass@1 and its interval, and several to a part of them for pass@k.
"""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..data import Problem, read_problems
from ..engine import Completion
from ..errors import UserError
from .dialogue import Dialogue
from .rewards import is_right, pass_at_k
from .run import Run
from .scores import interval


@dataclass(frozen=True)
class Attempt:
    """One reply to one problem."""

    problem: Problem
    reply: str
    completion: Completion
    right: bool

    @property
    def tokens(self) -> int:
        """Tokens sampled."""
        return len(self.completion.ids)

    @property
    def truncated(self) -> bool:
        """Whether it was cut off before it ended by itself."""
        return self.completion.finish_reason != "stop"


def problems_of(run: Run, split: str, count: int, label: str = "take") -> list[Problem]:
    """`count` problems of a split ("train", "test"), spread evenly over the grades trained.

    From a person's file each problem once: at most `count`, or all there are.
    """
    path = run.config.rl.problems
    if path is not None:
        found, _ = read_problems(path)
        distinct = {p.problem: p for p in found}.values()
        part = [p for p in distinct if (zlib.crc32(p.problem.encode()) % 4 == 0) == (split == "test")]
        if not part:
            raise UserError(f"{path}: no problem for the {split} split among {len(found)}; add more problems")
        return part[:count]
    grades = run.config.rl.grades
    each = -(-count // len(grades))
    drawn = [run.world.problems.take(each, f"grade-{grade}", split, label) for grade in grades]
    mixed = [problem for row in zip(*drawn, strict=True) for problem in row]
    return [Problem(p.text, str(p.answer), p.grade) for p in mixed[:count]]


def attempt(
    dialogue: Dialogue,
    problems: Sequence[Problem],
    samples: int,
    seed: int,
    max_tokens: int,
    temperature: float = 1.0,
) -> list[list[Attempt]]:
    """`samples` attempts at each problem."""
    replies = dialogue.ask([p.problem for p in problems], samples, temperature, max_tokens, seed)
    return [
        [Attempt(p, r.text, r.completion, _counts(r.text, r.completion, p)) for r in group]
        for p, group in zip(problems, replies, strict=True)
    ]


def _counts(text: str, completion: Completion, problem: Problem) -> bool:
    """A right answer counts only if the reply ended by itself."""
    return completion.finish_reason == "stop" and is_right(text, problem.answer)


@dataclass(frozen=True)
class Exam:
    """Held-out problems, and how many tokens a reply to them may have."""

    problems: Sequence[Problem]
    max_tokens: int
    seed: int = 7

    @classmethod
    def of(cls, run: Run) -> "Exam":
        """The run's exam: rl.exam different held-out problems of the grades trained, fewer where a file has no more."""
        problems = problems_of(run, "test", run.config.rl.exam, "exam")
        return cls(problems, run.config.rl.max_tokens, run.config.seed)

    def sit(self, dialogue: Dialogue, count: int | None = None, temperature: float = 1.0) -> list[Attempt]:
        """One attempt at each of the first `count` problems."""
        groups = attempt(dialogue, self.problems[:count], 1, self.seed, self.max_tokens, temperature)
        return [group[0] for group in groups]

    def quick(self, dialogue: Dialogue, count: int = 200) -> dict[str, Any]:
        """Share right and length on the first `count` problems, for the curve along a training."""
        return _summary(self.sit(dialogue, count))

    def full(
        self, dialogue: Dialogue, first: Sequence[Attempt], several: int = 64, samples: int = 16
    ) -> dict[str, Any]:
        """pass@1 of the `first` attempts at all problems, with interval and by grade, greedily too; pass@k on
        `several` problems, if any."""
        result = _summary(first)
        right = sum(a.right for a in first)
        result["interval"] = interval(right, len(first))
        result["problems"] = len(first)
        sure = self.sit(dialogue, temperature=0.0)
        result["greedy"] = sum(a.right for a in sure) / len(sure)
        grades = sorted({a.problem.grade for a in first if a.problem.grade is not None})
        result["by_grade"] = {
            str(grade): _summary([a for a in first if a.problem.grade == grade]) for grade in grades
        }
        if part := self.problems[:several]:
            groups = attempt(dialogue, part, samples, self.seed + 1, self.max_tokens)
            counts = [sum(a.right for a in group) for group in groups]
            ks = [k for k in (1, 2, 4, 8, 16, 32, 64) if k <= samples]
            result["pass_at_k"] = {str(k): pass_at_k(counts, samples, k) for k in ks}
        return result


def _summary(attempts: Sequence[Attempt]) -> dict[str, Any]:
    right = sum(a.right for a in attempts)
    tokens = sum(a.tokens for a in attempts)
    return {
        "pass_at_1": right / len(attempts),
        "tokens": tokens / len(attempts),
        "tokens_per_right": tokens / right if right else float("inf"),
        "truncated": sum(a.truncated for a in attempts) / len(attempts),
    }
