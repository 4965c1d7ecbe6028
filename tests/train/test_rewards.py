"""Rewards: no wrong reply ever beats a right one, and form alone is what the control pays for."""

import math

import numpy as np
import pytest

from pyengine.train.rewards import (
    format_reward,
    given_answer,
    group_advantages,
    is_right,
    pass_at_k,
    right_and_short,
)


@pytest.mark.parametrize(
    ("reply", "answer", "right"),
    [
        ("47+35=82\nAnswer: 82", "82", True),
        ("Answer: 82", "82", True),
        ("Answer: 1,250", "1250", True),
        ("Answer: 82.", "82", True),
        ("Answer: 0.5", "1/2", True),
        ("Answer: 820", "82", False),
        ("Answer: 82\nAnswer: 81", "82", False),  # only the last line counts
        ("82", "82", False),
        ("Answer: 82 or so", "82", False),
        ("The Answer: 82", "82", False),
        ("Answer: ", "82", False),
        ("", "82", False),
    ],
)
def test_only_the_number_on_the_last_line_counts(reply, answer, right):
    assert is_right(reply, answer) is right


def test_shorter_is_better_among_right_replies_and_never_helps_a_wrong_one():
    short, long = (right_and_short("Answer: 5", "5", used) for used in (0.1, 0.9))
    assert 1 > short > long > 0
    assert right_and_short("Answer: 5", "5", 7.0) > right_and_short("Answer: 6", "5", 0.0) == 0


def test_the_control_is_blind_to_number_and_length():
    for used in (0.0, 0.4, 1.0):
        assert format_reward("Answer: 5", "6", used) == format_reward("Answer: 6", "6", 0.0) == 1
    assert format_reward("five", "5", 0.1) == 0
    assert given_answer("Answer: x") is None


def test_a_group_is_compared_with_itself_alone():
    rewards = np.array([[1.0, 0.0, 1.0, 0.0], [0.7, 0.7, 0.7, 0.7], [0.0, 0.0, 0.0, 0.9]])
    advantages, says = group_advantages(rewards)
    assert says.tolist() == [True, False, True]
    np.testing.assert_allclose(advantages.sum(1), 0, atol=1e-12)
    assert (advantages[0] > 0).tolist() == [True, False, True, False]
    np.testing.assert_array_equal(group_advantages(rewards[2:])[0], advantages[2:])


def test_pass_at_k_equals_the_count_over_all_subsets():
    from itertools import combinations

    outcomes = [1, 0, 0, 1, 0, 0]
    for k in range(1, 7):
        subsets = list(combinations(outcomes, k))
        want = sum(any(subset) for subset in subsets) / len(subsets)
        assert pass_at_k([2], 6, k) == pytest.approx(want)
    assert pass_at_k([0, 6], 6, 1) == 0.5
    assert math.isnan(pass_at_k([], 6, 1))
    with pytest.raises(ValueError, match="got k = 7"):
        pass_at_k([1], 6, 7)
