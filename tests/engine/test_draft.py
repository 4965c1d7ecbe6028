"""Prompt look-up: what it proposes, and that guessing changes no bit of an answer."""

import pytest
import torch

from pyengine.engine import Engine, SamplingParams
from pyengine.engine.draft import PromptLookup

from .test_exact import FILTERED, PLAIN, each, make


def test_it_proposes_what_followed_last_time():
    lookup = PromptLookup(4)
    assert lookup.propose([1, 2, 3], 9) == []
    assert lookup.propose([1, 2, 3, 9, 1, 2], 9) == [3, 9]  # the pair; at first two ids
    lookup.learn(2)
    assert lookup.propose([1, 2, 3, 9, 1, 2, 3, 9, 5, 2, 3], 9) == [9, 5, 2, 3]
    lookup.learn(0)
    assert lookup.propose([1, 2, 3, 9, 1, 2, 3, 9, 5, 2, 3, 7, 1, 2, 3], 9) == [9]  # the triple, not the pair


def test_the_reach_follows_what_came_true():
    ids = [1, 2, 3, 4, 5, 6, 7, 8, 9] * 4
    lookup, reaches = PromptLookup(7), []
    for accepted in (2, 4, 7, 1, 0, 1):
        reaches.append(len(lookup.propose(ids, 100)))
        lookup.learn(accepted)
    assert reaches == [2, 4, 7, 7, 2, 1]
    assert lookup.propose(ids, 1) != [] and lookup.propose(ids, 0) == [] == lookup.propose(ids, -3)


def prompts(count: int) -> list[list[int]]:
    return [[(11 * j + i) % 13 + 20 * (i % 3) for j in range(20 + 30 * i)] for i in range(count)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
def test_guessing_changes_no_bit(dtype):
    model, confirmed = make(dtype), []
    for params in (PLAIN, FILTERED[0], FILTERED[4]):
        params = [*each(params, 5)]
        truth = Engine(model, max_batch=5, pages=64).generate(prompts(5), params)
        for options in (dict(max_batch=1), dict(max_batch=5), dict(max_batch=5, step_tokens=7, pages=9)):
            engine = Engine(model, draft=6, **{"pages": 64, **options})
            answers = engine.generate(prompts(5), params)
            assert [a.ids for a in answers] == [a.ids for a in truth]
            assert [a.logprobs for a in answers] == [a.logprobs for a in truth]
            confirmed.append(engine.stats.confirmed)
    assert any(confirmed)


def test_a_guess_past_the_end_is_not_kept():
    model = make()
    for stop in (4, 9):
        params = SamplingParams(max_tokens=stop, temperature=0)
        truth = Engine(model, pages=64).generate(prompts(1), params)[0]
        answer = Engine(model, pages=64, draft=6).generate(prompts(1), params)[0]
        assert answer.ids == truth.ids and len(answer.ids) == stop
