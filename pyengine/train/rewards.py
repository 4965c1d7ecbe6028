"""Rewards that a program can verify, and what a group of attempts at one problem says about each of them.

A reply is right when its last line is `Answer: N` and N is the problem's number. The reward of a right reply
falls a little with its length, so that among right replies the short ones win and no wrong one ever does; a
wrong reply gets nothing, however short. `format_reward` is the control: it pays for the form of the last line
alone and never looks at the number, so it can teach no arithmetic.

Groups: G replies to one problem are compared with each other, nothing else is learnt (no value network). A
group whose replies all earn the same says nothing and is skipped; how many were is part of the metrics.
"""

import math
import re
from collections.abc import Callable, Sequence
from fractions import Fraction

import numpy as np

from ..data import number

_LAST_LINE = re.compile(r"(?:^|\n)Answer: *(\S+)\s*$")
# (reply, answer, length / limit, weight of shortness) -> reward in [0, 1]
Reward = Callable[[str, str, float, float], float]


def given_answer(reply: str) -> Fraction | None:
    """The number on the last line, `Answer: N`; None where the reply does not end that way."""
    found = _LAST_LINE.search(reply)
    return number(found[1]) if found else None


def is_right(reply: str, answer: str) -> bool:
    """Whether the reply ends in the right number."""
    given = given_answer(reply)
    return given is not None and given == number(answer)


def right_and_short(reply: str, answer: str, used: float, weight: float = 0.3) -> float:
    """1 for a right reply, less up to `weight` as the share of its length limit that it used grows to 1."""
    return (1.0 - weight * min(1.0, used)) if is_right(reply, answer) else 0.0


def format_reward(reply: str, answer: str, used: float, weight: float = 0.3) -> float:
    """The control: any number on the last line will do, whatever the length."""
    return float(given_answer(reply) is not None)


def group_advantages(rewards: np.ndarray, spread: float = 0.05) -> tuple[np.ndarray, np.ndarray]:
    """rewards (N, G) -> advantages (N, G), and which of the N groups say anything.

    An advantage is the reward less its group's mean, over the group's standard deviation plus `spread`, which
    keeps a group whose replies differ by length alone from shouting as loud as one of right and wrong.
    """
    mean, deviation = rewards.mean(1, keepdims=True), rewards.std(1, keepdims=True)
    return (rewards - mean) / (deviation + spread), deviation[:, 0] > 1e-6


def pass_at_k(right: Sequence[int], samples: int, k: int) -> float:
    """Mean chance that k of a problem's samples hold a right one; right[i] of `samples` were right (unbiased:
    1 - C(n - c, k) / C(n, k), Chen et al. 2021). Raises ValueError for k above samples."""
    if not 1 <= k <= samples:
        raise ValueError(f"pass@k needs 1 <= k <= {samples} samples, got k = {k}")
    if not right:
        return math.nan
    return float(np.mean([1.0 - math.comb(samples - c, k) / math.comb(samples, k) for c in right]))
