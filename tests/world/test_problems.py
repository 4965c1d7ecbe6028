"""Problems' answers, checked by reading the text of the solution with another evaluator."""

import re
from fractions import Fraction

import pytest

from pyengine.world import World, WorldConfig
from pyengine.world.problems import GRADES, KINDS, STYLES, solve


@pytest.fixture(scope="module")
def problems():
    return World(WorldConfig.tiny()).problems


def evaluate(start: int, steps: tuple[tuple[str, int], ...]) -> Fraction:
    """An independent reading of the steps: Python's own arithmetic on a bracketed expression."""
    expression = f"Fraction({start})"
    for operator, number in steps:
        expression = f"({expression} {operator} Fraction({number}))"
    return eval(expression)


@pytest.mark.parametrize("kind", KINDS)
def test_answers_and_sizes(problems, kind):
    for problem in problems.take(300, kind, "train"):
        assert evaluate(problem.start, problem.steps) == problem.answer
        numbers = sorted([problem.start, *(number for _, number in problem.steps)])
        assert numbers == sorted(map(int, re.findall(r"\d+", problem.text)))
        if problem.grade:
            steps, largest = GRADES[problem.grade]
            assert len(problem.steps) == steps and numbers[-1] <= largest
        assert problem.answer >= 0


@pytest.mark.parametrize("kind", KINDS)
def test_splits_share_no_numbers(problems, kind):
    train, test = (
        {(p.start, p.steps) for p in problems.take(800, kind, split)} for split in ("train", "test")
    )
    assert train and test and not train & test


@pytest.mark.parametrize("style", STYLES)
def test_solutions_without_slips_are_right_in_every_line(problems, style):
    rng = WorldConfig().rng("test")
    for problem in problems.take(200, "grade-5", "train"):
        solution = solve(problem, rng, style)
        assert solution.right and solution.text.endswith(f"\nAnswer: {problem.answer}") or style == "guess"
        for line in re.findall(r"\d+ [-+*] \d+(?: = [\d +*-]+)+", solution.text):
            assert len({eval(side) for side in line.split("=")}) == 1, line


def test_slips_are_marked_wrong(problems):
    rng = WorldConfig().rng("test")
    solutions = [(p, solve(p, rng, "steps", slip=0.5)) for p in problems.take(300, "grade-4", "train")]
    assert 50 < sum(not s.right for _, s in solutions) < 290
    for problem, solution in solutions:
        assert solution.right == (int(solution.text.rsplit("Answer: ", 1)[1]) == problem.answer)
