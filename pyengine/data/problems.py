"""Problems with exact answers, for reinforcement: JSONL {"problem", "answer", ("grade", "id")}.

Other people's names for the fields are understood: question, prompt, input; solution, target, final_answer. GSM8K's
answers, whose last line is "#### 42", are cut into the reasoning and the answer 42. An answer is a number: a reply is
judged by the number it ends in, so a problem whose answer is anything else could never be solved.
"""

import os
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from ..errors import UserError
from .rows import Skipped, field, read_rows

PROBLEM = ("problem", "question", "prompt", "input", "instruction")
ANSWER = ("answer", "final_answer", "target", "output", "solution", "response")


@dataclass(frozen=True)
class Problem:
    """A problem whose answer is a number."""

    problem: str
    answer: str
    grade: int | None = None  # how hard, if the file says
    id: str = ""  # the file's, or "file:line"
    solution: str = ""  # a worked solution, if the file has one


def read_problems(path: str | os.PathLike) -> tuple[list[Problem], list[Skipped]]:
    """(problems, rows that could not be used)."""
    return read_rows(path, problem_of)


def problem_of(row: dict[str, Any], where: str) -> Problem:
    """The problem in a row; UserError, which names `where` it stands, if there is none."""
    answer, solution = field(row, ANSWER, where), row.get("solution")
    if "####" in answer:
        solution, answer = answer.rsplit("####", 1)
    answer = answer.strip().removeprefix("$")
    if _is_grouped(answer):
        answer = answer.replace(",", "")
    if "," in answer or number(answer) is None:
        raise UserError(
            f"{where}: the answer {answer[:40]!r} is no number; expected one like 42, -3, 1,250, 0.5 or 3/4"
        )
    grade = row.get("grade", row.get("level"))
    return Problem(
        problem=field(row, PROBLEM, where).strip(),
        answer=answer,
        grade=grade if isinstance(grade, int) else None,
        id=str(row.get("id", where)),
        solution=solution.strip() if isinstance(solution, str) else "",
    )


def number(text: str) -> Fraction | None:
    """A number as written by people ("1,250", "-3", "0.5", "3/4"), or None."""
    try:
        return Fraction(text.strip().rstrip(".").replace(",", ""))
    except (ValueError, ZeroDivisionError):
        return None


def _is_grouped(answer: str) -> bool:
    """1,234 and the like: the commas of a number are no part of it."""
    head, *groups = answer.lstrip("-").split(".")[0].split(",")
    return (
        bool(groups)
        and head.isdigit()
        and len(head) <= 3
        and all(len(g) == 3 and g.isdigit() for g in groups)
    )
