"""The measures shared by the stages, on cases with known results."""

import pytest

from pyengine.train.scores import calibration_error, holds_answer, interval, refuses, reliability


def test_an_answer_is_held_as_whole_words_only():
    assert holds_answer("Mara Tel works as a cook.", ["cook"])
    assert holds_answer("She likes Plum  Cake, best!", ["plum cake"])
    assert not holds_answer("Mara Cookson sings.", ["cook"])
    assert not holds_answer("anything", [""])
    assert holds_answer("It is an oboe", ["the oboe", "oboe"])


@pytest.mark.parametrize("reply", ["I don't know.", "I'm sorry, I do not know that.", "So I cannot say."])
def test_refusals(reply):
    assert refuses(reply)


def test_an_answer_is_no_refusal():
    assert not refuses("Everybody knows that Mara plays the lute.")


def test_wilson_interval():
    low, high = interval(8, 10)
    assert (low, high) == (pytest.approx(0.490, abs=1e-3), pytest.approx(0.943, abs=1e-3))
    assert interval(0, 0) == (0, 1)
    assert interval(0, 50)[0] == 0 and 0 < interval(0, 50)[1] < 0.1


def test_calibration_error():
    assert calibration_error([1.0] * 4, [True] * 4) == 0
    assert calibration_error([1.0] * 4, [False] * 4) == 1
    assert calibration_error([0.75] * 4, [True, True, True, False]) == pytest.approx(0)
    assert calibration_error([0.95, 0.95, 0.15], [True, False, False]) == pytest.approx((0.9 + 0.15) / 3)
    assert calibration_error([], []) == 0


def test_reliability_tells_each_bin_that_holds_answers():
    bins = reliability([0.05, 0.91, 0.99, 1.0], [False, True, False, True])
    assert [b["count"] for b in bins] == [1, 3]
    assert bins[1]["right"] == pytest.approx(2 / 3) and bins[1]["confidence"] == pytest.approx(2.9 / 3)
    assert reliability([], []) == []
