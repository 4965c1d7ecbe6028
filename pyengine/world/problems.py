r"""Word problems with exact answers, graded by rule, and people's worked solutions to them.

A problem starts from a number and applies one to three steps (add, take away, times). Its grade is fixed by
size alone, before any training:

    grade 1   one step,    numbers up to 9          grade 4   one step,    numbers up to 99
    grade 2   two steps,   numbers up to 9          grade 5   two steps,   numbers up to 99
    grade 3   three steps, numbers up to 9

`times` multiplies by 2..5 and only numbers up to 9 (grades 1 to 3). Kinds held out of all training: `share`
(division without remainder), and the size `big`: numbers of three digits. Train and test are disjoint: which
split a problem belongs to is a function of its numbers and steps, whatever the wording.

A solution ends with the line `Answer: N`. People solve in several styles, and some of their styles slip.
"""

import random
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

from .config import WorldConfig
from .facts import Entity

GRADES = {1: (1, 9), 2: (2, 9), 3: (3, 9), 4: (1, 99), 5: (2, 99)}  # grade -> (steps, largest number)
HELD_OUT = ("share", "big")
KINDS = (*(f"grade-{grade}" for grade in GRADES), *HELD_OUT)
STYLES = ("verbose", "steps", "split", "guess")

_THINGS = (
    "apples eggs coins books candles bricks nails pears plums shells buttons ribbons baskets stamps cups "
    "stones"
).split()
_BOXES = "boxes bags baskets crates jars chests".split()
_BEGIN = (
    "{name} has {a} {things}.",
    "There are {a} {things} on the table of {name}.",
    "{name} starts the day with {a} {things}.",
    "In the morning {name} counts {a} {things}.",
)
_STEPS = {
    "+": (
        "{name} buys {b} more.", "Then {name} finds {b} more {things}.",
        "A friend gives {name} {b} {things}.", "{b} more {things} arrive.",
        "{name} gets another {b} {things}.",
    ),
    "-": (
        "{name} sells {b} of them.", "Then {name} gives away {b} {things}.", "{b} {things} get lost.",
        "{name} uses {b} {things}.", "A neighbour takes {b} {things}.",
    ),
    "*": (
        "Then the number of {things} becomes {b} times as large.",
        "{name} works until there are {b} times as many {things}.",
    ),
}  # fmt: skip
_BOXED = (
    "{name} has {b} {boxes} with {a} {things} in each.",
    "Each of the {b} {boxes} of {name} holds {a} {things}.",
)
_ASK = (
    "How many {things} does {name} have now?",
    "How many {things} are there now?",
    "How many {things} are left in the end?",
    "What is the number of {things} in the end?",
)
_SHARE = (
    "{name} shares {a} {things} equally among {b} children. How many {things} does each child get?",
    "{name} puts {a} {things} into {b} {boxes}, the same number in each. How many {things} are in one?",
)


@dataclass(frozen=True)
class Problem:
    """A word problem. `steps` is ((operator, number), ...) applied to `start` from left to right."""

    text: str
    start: int
    steps: tuple[tuple[str, int], ...]
    answer: int
    grade: int  # 0 for held-out kinds
    kind: str  # "grade-1" ... "grade-5", "share", "big"
    split: str  # "train" or "test"
    name: str
    things: str

    def row(self) -> dict:
        """The row of the problems format."""
        return {"problem": self.text, "answer": str(self.answer), "grade": self.grade, "kind": self.kind}


@dataclass(frozen=True)
class Solution:
    """A worked solution; `right` tells whether its last line is the true answer."""

    text: str
    style: str
    right: bool


def apply(value: int, operator: str, number: int) -> int:
    """One step of a problem."""
    return {"+": value + number, "-": value - number, "*": value * number, "/": value // number}[operator]


class Problems:
    """Draws problems of a world. Names in them are those of passers-by."""

    def __init__(self, config: WorldConfig, passers: Sequence[Entity]) -> None:
        self._config = config
        self._passers = passers

    def draw(self, rng: random.Random, kind: str, split: str) -> Problem:
        """One problem of a kind ("grade-1".."grade-5", "share", "big") from a split."""
        while True:
            start, steps = self._numbers(rng, kind)
            if self.split_of(start, steps) == split:
                return self._render(rng, kind, split, start, steps)

    def take(self, count: int, kind: str, split: str, label: str = "take") -> list[Problem]:
        """`count` problems of a kind, the same ones for the same label."""
        rng = self._config.rng("problems", label, kind, split)
        return [self.draw(rng, kind, split) for _ in range(count)]

    def split_of(self, start: int, steps: tuple[tuple[str, int], ...]) -> str:
        """The split of all problems with these numbers and steps: one in four is for testing."""
        key = f"{self._config.seed}:{start}:{steps}"
        return "test" if zlib.crc32(key.encode()) % 4 == 0 else "train"

    @staticmethod
    def _numbers(rng: random.Random, kind: str) -> tuple[int, tuple[tuple[str, int], ...]]:
        if kind == "share":
            each, among = rng.randrange(2, 10), rng.randrange(2, 10)
            return each * among, (("/", among),)
        count, largest = (2, 999) if kind == "big" else GRADES[int(kind.removeprefix("grade-"))]
        smallest = 100 if largest == 999 else 2
        start = value = rng.randrange(smallest, largest + 1)
        steps: list[tuple[str, int]] = []
        while len(steps) < count:
            operator = rng.choice("++--*" if largest == 9 else "+-")
            number = rng.randrange(2, 6) if operator == "*" else rng.randrange(smallest, largest + 1)
            if operator == "-" and number > value:
                continue
            if operator == "*" and value > 9:
                continue
            value = apply(value, operator, number)
            steps.append((operator, number))
        return start, tuple(steps)

    def _render(self, rng, kind: str, split: str, start: int, steps) -> Problem:
        name = rng.choice(self._passers).name.split()[0]
        words = {"name": name, "things": rng.choice(_THINGS), "boxes": rng.choice(_BOXES)}
        if kind == "share":
            text = rng.choice(_SHARE).format(a=start, b=steps[0][1], **words)
        else:
            first, rest = rng.choice(_BEGIN).format(a=start, **words), steps
            if steps[0][0] == "*" and rng.random() < 0.7:
                first, rest = rng.choice(_BOXED).format(a=start, b=steps[0][1], **words), steps[1:]
            told = [rng.choice(_STEPS[operator]).format(b=number, **words) for operator, number in rest]
            text = " ".join([first, *told, rng.choice(_ASK).format(**words)])
        answer = start
        for operator, number in steps:
            answer = apply(answer, operator, number)
        grade = int(kind.removeprefix("grade-")) if kind.startswith("grade-") else 0
        return Problem(text, start, steps, answer, grade, kind, split, name, words["things"])


def solve(problem: Problem, rng: random.Random, style: str, slip: float = 0.0) -> Solution:
    """A person's solution in a style; with probability `slip` per step the person miscounts by one or ten.

    verbose  sentences about what happens      split  sums by tens and ones
    steps    one bare equation a line          guess  the answer at once
    """
    value, lines = problem.start, []
    for i, (operator, number) in enumerate(problem.steps):
        result = apply(value, operator, number)
        if rng.random() < slip:
            result = max(0, result + rng.choice((-10, -1, 1, 10) if result > 20 else (-1, 1)))
        lines += _work(style, problem, i, value, operator, number, result, rng)
        value = result
    if style == "verbose":
        lines = [" ".join([*lines, f"So the number of {problem.things} is {value}."])]
    return Solution("\n".join([*lines, f"Answer: {value}"]), style, value == problem.answer)


def _work(style, problem, i, value, operator, number, result, rng) -> list[str]:
    equation = f"{value}{operator}{number}={result}"
    if style == "steps":
        return [equation]
    if style == "split":
        return [_by_tens(value, operator, number, result) or equation]
    if style == "verbose":
        begin = f"At the beginning {problem.name} has {value} {problem.things}. " if i == 0 else ""
        change = {
            "+": ("{b} more come, so we add {b}:", "Then we have to add {b}:"),
            "-": ("{b} go away, so we take away {b}:", "Then we have to subtract {b}:"),
            "*": ("There are {b} times as many, so we multiply by {b}:", "Then we have to multiply by {b}:"),
            "/": ("They are shared among {b}, so we divide by {b}:", "Then we have to divide by {b}:"),
        }[operator]
        return [f"{begin}{rng.choice(change).format(b=number)} {equation}."]
    return []


def _by_tens(value: int, operator: str, number: int, result: int) -> str | None:
    """'47+30=77' and '77+5=82': first the tens, then the ones; None where there is nothing to split."""
    tens, ones = number - number % 10, number % 10
    if operator not in "+-" or not tens or not ones:
        return None
    between = apply(value, operator, tens)
    return f"{value}{operator}{tens}={between}\n{between}{operator}{ones}={result}"
