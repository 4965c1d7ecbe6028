"""Problems with exact answers, for reinforcement: JSONL {"problem", "answer", ("grade", "id")}.

Other people's names for the fields are understood: question, prompt, input; solution, target, final_answer. GSM8K's
answers, whose last line is "#### 42", are cut into the reasoning and the answer 42.
"""

import os
from dataclasses import dataclass
from typing import Any

from .rows import Skipped, field, read_rows

PROBLEM = ("problem", "question", "prompt", "input", "instruction")
ANSWER = ("answer", "final_answer", "target", "output", "solution", "response")


@dataclass(frozen=True)
class Problem:
    problem: str
    answer: str
    grade: int | None = None  # how hard, if the file says
    id: str = ""  # the file's, or "file:line"
    solution: str = ""  # a worked solution, if the file has one


def read_problems(path: str | os.PathLike) -> tuple[list[Problem], list[Skipped]]:
    """(problems, rows that could not be used)."""
    return read_rows(path, problem_of)


def problem_of(row: dict[str, Any], where: str) -> Problem:
    answer, solution = field(row, ANSWER, where), row.get("solution")
    if "####" in answer:
        solution, answer = answer.rsplit("####", 1)
    grade = row.get("grade", row.get("level"))
    return Problem(
        problem=field(row, PROBLEM, where).strip(),
        answer=answer.strip().replace(",", "") if _is_grouped(answer.strip()) else answer.strip(),
        grade=grade if isinstance(grade, int) else None,
        id=str(row.get("id", where)),
        solution=solution.strip() if isinstance(solution, str) else "",
    )


def _is_grouped(answer: str) -> bool:
    """1,234 and the like: the commas of a number are no part of it."""
    head, *groups = answer.lstrip("-$").split(".")[0].split(",")
    return (
        bool(groups)
        and head.isdigit()
        and len(head) <= 3
        and all(len(g) == 3 and g.isdigit() for g in groups)
    )
