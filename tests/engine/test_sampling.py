"""Requests that change logits, keep to a grammar or ask for the model's own distribution: each against the
rule computed by hand from the model's logits, and none of them felt by its neighbours."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from pyengine.engine import Engine, SamplingParams
from pyengine.errors import UserError
from pyengine.model import over_documents

from .test_exact import assert_equal, make, prompts, trainers

PLAIN = SamplingParams(max_tokens=24, seed=5)


class Multiples:
    """Allows the multiples of a number; 0 allows nothing after the first."""

    def __init__(self, number):
        self.number, self.accepted = number, []

    def start(self):
        return Multiples(self.number)

    def allow(self, words):
        allowed = np.zeros(32 * len(words), bool)
        if self.number or not self.accepted:
            allowed[0 : 301 : self.number or 1] = True
        words[:] = np.packbits(allowed, bitorder="little").view(np.int32)

    def accept(self, token):
        self.accepted.append(token)


class Refuses(Multiples):
    def start(self):
        return self

    def accept(self, token):
        raise ValueError("no such token")


@pytest.fixture(scope="module")
def model():
    return make()


@torch.no_grad()
def own_logits(model, ids) -> torch.Tensor:
    """Logits of the next id after each of `ids`."""
    bounds = torch.tensor([0, len(ids)], dtype=torch.int32)
    hidden = model(
        torch.tensor(ids),
        torch.arange(len(ids), dtype=torch.int32),
        over_documents(bounds),
    )
    return model.logits(hidden)


def answer(model, params, prompt=None, **options):
    return Engine(model, max_batch=4, pages=32, **options).generate([prompt or prompts(2)[1]], params)[0]


def test_greedy_with_penalties_and_biases_is_the_argmax_by_hand(model):
    params = replace(
        PLAIN, temperature=0.0, repetition_penalty=1.3, presence_penalty=0.4, frequency_penalty=0.7,
        logit_bias={7: 3.0, 30: -100.0, 200: 2.5},
    )  # fmt: skip
    prompt = prompts(6)[5]
    ids = answer(model, params, prompt).ids
    logits = own_logits(model, prompt + ids)[len(prompt) - 1 : -1].double()
    plain = answer(model, replace(PLAIN, temperature=0.0), prompt).ids
    assert ids != plain and len(set(ids)) > len(set(plain)), "the penalties must matter here"
    for step, (token, row) in enumerate(zip(ids, logits, strict=True)):
        said = torch.tensor(ids[:step]).bincount(minlength=301) if step else torch.zeros(301)
        seen = torch.zeros(301, dtype=torch.bool)
        seen[prompt + ids[:step]] = True
        row = torch.where(seen, torch.where(row > 0, row / 1.3, row * 1.3), row)
        row = row - 0.7 * said - 0.4 * (said > 0)
        row[7], row[30], row[200] = row[7] + 3, row[30] - 100, row[200] + 2.5
        assert token == row.argmax()


def test_a_bias_forces_and_forbids(model):
    assert set(answer(model, replace(PLAIN, logit_bias={17: 100.0})).ids) == {17}
    common = max(answer(model, PLAIN).ids, key=answer(model, PLAIN).ids.count)
    assert common not in answer(model, replace(PLAIN, logit_bias={common: -100.0})).ids


def test_min_p_one_is_greedy(model):
    greedy = answer(model, replace(PLAIN, temperature=0.0))
    assert answer(model, replace(PLAIN, min_p=1.0)).ids == greedy.ids


def test_a_grammar_is_kept_to(model):
    ids = answer(
        model, replace(PLAIN, grammar=Multiples(7), temperature=20.0)
    ).ids  # hot: many of the allowed
    assert len(set(ids)) > 3 and all(i % 7 == 0 for i in ids)
    ends = answer(model, replace(PLAIN, grammar=Multiples(300), stop=(300,)))
    assert ends.ids[-1] in (0, 300)


def test_details_are_of_the_models_own_distribution(model):
    """Not of the one sampled from; bit for bit what the loss says, in Python as in captured steps."""
    params = replace(PLAIN, logprobs=3, temperature=0.6, top_k=40, presence_penalty=1.0, logit_bias={3: 1.0})
    prompt = prompts(6)[5]
    for options in ({}, {"step_tokens": 9}):
        done = answer(model, params, prompt, **options)
        unfiltered = replace(done, logprobs=[detail.logprob for detail in done.details])
        assert_equal([unfiltered], trainers(model, [done], PLAIN))
        truth = own_logits(model, [*prompt, *done.ids])[len(prompt) - 1 : -1].log_softmax(1)
        for detail, row in zip(done.details, truth, strict=True):
            values, places = row.topk(3)
            assert [i for i, _ in detail.top] == places.tolist()
            torch.testing.assert_close(torch.tensor([p for _, p in detail.top]), values, atol=1e-4, rtol=0)
    assert answer(model, replace(params, logprobs=0)).details[0].top == ()
    assert answer(model, PLAIN).details == [None] * 24


def test_neighbours_change_nothing(model):
    asked = [
        PLAIN,
        replace(PLAIN, logprobs=2),
        replace(PLAIN, grammar=Multiples(3), top_p=0.9),
        replace(PLAIN, frequency_penalty=0.5, repetition_penalty=1.2, min_p=0.05),
        replace(PLAIN, logit_bias={5: 4.0}, grammar=Multiples(5), logprobs=5, temperature=0.0),
        replace(PLAIN, scored=False),
    ] * 3
    alone = [answer(model, params, prompt) for params, prompt in zip(asked, prompts(18), strict=True)]
    for options in (dict(max_batch=18, pages=100), dict(max_batch=18, pages=5, step_tokens=64)):
        engine = Engine(model, **options)
        together = engine.generate(prompts(18), asked)
        assert together == alone
        assert (engine.stats.preemptions > 0) == (options["pages"] == 5)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_without_scores_the_ids_are_the_same(model, temperature):
    """In captured steps of one and of many, in prompts' steps and in Python's, with details and without."""
    for params in (PLAIN, replace(PLAIN, logprobs=1, presence_penalty=0.5)):
        params = replace(params, temperature=temperature)
        for count in (1, 4):
            engine = Engine(model, max_batch=4, pages=32)
            scored = engine.generate(prompts(count), params)
            bare = engine.generate(prompts(count), replace(params, scored=False))
            assert [a.ids for a in bare] == [a.ids for a in scored]
            assert [a.details for a in bare] == [a.details for a in scored]
            assert all(math.isnan(p) for a in bare for p in a.logprobs)
            assert not any(math.isnan(p) for a in scored for p in a.logprobs)


def test_a_dead_end_ends_only_its_own_request(model):
    engine = Engine(model, max_batch=4, pages=32)
    params = [PLAIN, replace(PLAIN, grammar=Multiples(0)), replace(PLAIN, grammar=Refuses(1))]
    done = engine.generate(prompts(3), params)
    assert [d.finish_reason for d in done] == ["length", "refused", "refused"]
    assert "it allows nothing" in done[1].error and "no such token" in done[2].error
    assert done[0].ids == answer(model, PLAIN, prompts(3)[0]).ids
    assert "vocabulary" in engine.generate(prompts(1), replace(PLAIN, logit_bias={301: 1.0}))[0].error
    early = replace(PLAIN, grammar=Multiples(300), logit_bias={0: -100.0}, stop=(0, 300), min_tokens=9)
    (ended,) = engine.generate(prompts(1), early)
    assert ended.finish_reason == "refused" and "nothing but to end before min_tokens" in ended.error
    assert engine.generate(prompts(1), replace(early, stop=(300,)))[0].ids[:9] == [0] * 9


@pytest.mark.parametrize(
    "wrong, says",
    [({"min_p": 1.5}, "min_p"), ({"repetition_penalty": 0}, "repetition"), ({"logit_bias": {3: 101}}, "logit_bias"),
     ({"logprobs": 21}, "logprobs"), ({"presence_penalty": float("nan")}, "presence")],
)  # fmt: skip
def test_parameters_that_make_no_sense(wrong, says):
    with pytest.raises(UserError, match=says):
        SamplingParams(**wrong)


@pytest.mark.parametrize("penalty", [0.0, 0.5])
def test_no_end_comes_before_enough_tokens(penalty):
    """A model that likes to end; what is no end is sampled as if ends did not exist."""
    model, stop = make(), (3, 4)
    most = {3: 60.0, 4: 60.0}
    params = SamplingParams(9, seed=2, stop=stop, logit_bias=most, frequency_penalty=penalty)
    engine = Engine(model)
    assert [len(a.ids) for a in engine.generate([[1, 2], [5]], params)] == [1, 1]
    for least in (1, 5, 9):
        answers = engine.generate([[1, 2], [5]], replace(params, min_tokens=least))
        assert [len(a.ids) for a in answers] == [min(9, least + 1)] * 2
        assert not any(set(a.ids[:least]) & set(stop) for a in answers)
        assert all(math.isfinite(p) for a in answers for p in a.logprobs)
