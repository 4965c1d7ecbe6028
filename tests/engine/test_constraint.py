"""A constraint that takes long holds up its own answer alone, and no answer is another for it."""

import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pyengine.engine import Engine, SamplingParams, Tools, constraint
from pyengine.engine.constraint import Constraint

from .fake import FakeRunner, expected
from .test_exact import make, prompts
from .test_sampling import Multiples
from .test_tools import ASSISTANT, CONTROLS, END, RESULT, SEARCH, USER, Script

PLAIN = SamplingParams(max_tokens=12, seed=5)
PATIENT = 60  # seconds, far beyond what anything here takes


class Slow(Multiples):
    """Spends more of a processor on its first mask than it may, then waits in its second for `opened`."""

    def __init__(self, number):
        super().__init__(number)
        self.begun, self.opened, self.callers = threading.Event(), threading.Event(), []

    def start(self):
        return self

    def allow(self, words):
        self.callers.append(threading.current_thread())
        end = time.thread_time() + 2 * constraint.QUICK
        while not self.accepted and time.thread_time() < end:
            pass
        if len(self.accepted) == 1:
            self.begun.set()
            assert self.opened.wait(PATIENT)
        super().allow(words)


@pytest.fixture(scope="module")
def model():
    return make()


@pytest.fixture
def slow():
    """Two of them; whatever comes of the test, no thread is left waiting."""
    both = Slow(3), Slow(5)
    yield both
    for one in both:
        one.opened.set()


def engine_on(model, pages=32) -> Engine:
    return Engine(model, max_batch=4, pages=pages)


def alone(model, prompt, params=PLAIN, **more):
    return engine_on(model).generate([prompt], replace(params, **more))[0]


def finish(engine, *requests) -> None:
    end = time.monotonic() + PATIENT
    while not all(request.done for request in requests):
        assert time.monotonic() < end, "an answer hangs"
        engine.step()
    engine._scheduler.pool.check([request.pages for request in engine._scheduler.running])


def hold(engine, prompt, slow, **more):
    """A request whose second mask is being found out."""
    request = engine.add(prompt, replace(PLAIN, grammar=slow, **more))
    while not slow.begun.is_set():
        assert not request.done
        engine.step()
    return request


def same(answer, truth) -> bool:
    return (answer.ids, answer.logprobs, answer.finish_reason) == (
        truth.ids,
        truth.logprobs,
        truth.finish_reason,
    )


def test_others_go_on_while_it_takes_long(model, slow):
    engine, (first, second) = engine_on(model), prompts(2)
    held = hold(engine, first, slow[0], logprobs=1)
    plain = engine.add(second, PLAIN)
    finish(engine, plain)
    assert same(plain.completion, alone(model, second)) and len(held.completion.ids) == 1
    slow[0].opened.set()
    finish(engine, held)
    truth = alone(model, first, grammar=Multiples(3), logprobs=1)
    assert same(held.completion, truth) and held.completion.details == truth.details
    here = threading.current_thread()
    assert slow[0].callers[0] is here is not slow[0].callers[1]
    assert here in slow[0].callers[2:], "who is quick again pays what it owes and needs no thread"
    assert engine.pages_held == 0


def test_where_all_are_held_a_step_computes_nothing(model, slow):
    engine = engine_on(model)
    held = hold(engine, prompts(1)[0], slow[0])
    steps = engine.stats.steps
    assert engine.step() == engine.step() == [] and engine.stats.steps == steps
    slow[0].opened.set()
    finish(engine, held)


def test_it_joins_the_next_step(model, slow):
    """Many steps follow each other without a look only where nobody waits to join them."""
    engine, (first, second) = engine_on(model), prompts(2)
    held = hold(engine, first, slow[0])
    plain = engine.add(second, replace(PLAIN, max_tokens=200))
    for _ in range(3):
        said = len(plain.completion.ids)
        engine.step(64)
    assert len(plain.completion.ids) == said + 1
    slow[0].opened.set()
    constraint.await_any([held.constraint], PATIENT)
    engine.step(64)
    assert len(held.completion.ids) == 2


def test_cancelled_while_held(model, slow):
    """Its pages are free at once, though its thread is busy; who waits for a thread will not need one."""
    workers = 2
    constraint._threads = ThreadPoolExecutor(workers)
    engine = engine_on(model)
    held = [hold(engine, prompts(1)[0], slow[0])]
    for _ in range(workers - 1):
        other = Slow(7)
        other.opened = slow[0].opened
        held.append(hold(engine, prompts(1)[0], other))
    queued = engine.add(prompts(2)[1], replace(PLAIN, grammar=slow[1]))
    while not queued.held:
        engine.step()
    for request in (*held, queued):
        engine.cancel(request)
        assert request.completion.finish_reason == "cancelled"
    assert engine.unfinished == engine.pages_held == 0 and not slow[0].opened.is_set()
    slow[0].opened.set()
    constraint._threads.shutdown()  # ends what it has begun
    constraint._start_threads()
    assert not slow[1].begun.is_set()
    assert same(engine.generate(prompts(1), PLAIN)[0], alone(model, prompts(1)[0]))


def test_weights_that_change_while_it_is_held(model, slow):
    """All begin again, but for what is known of their constraints; a held one takes no place before it can go on."""
    engine, (first, second) = engine_on(model), prompts(2)
    held = hold(engine, first, slow[0])
    with torch.no_grad():
        model.embedding.add_(0)
    plain = engine.add(second, PLAIN)
    finish(engine, plain)
    assert not held.running and held.preemptions == 1 and slow[0].callers[2:] == []
    slow[0].opened.set()
    finish(engine, held)
    assert same(held.completion, alone(model, first, grammar=Multiples(3)))
    assert same(plain.completion, alone(model, second))


def test_one_that_fails_beside_the_step_fails_the_step(model, slow):
    class Fails(Slow):
        def allow(self, words):
            super().allow(words)
            if self.accepted:
                raise RuntimeError("a bug")

    engine, fails = engine_on(model), Fails(3)
    fails.opened.set()
    request = engine.add(prompts(1)[0], replace(PLAIN, grammar=fails))
    with pytest.raises(RuntimeError, match="a bug"):
        finish(engine, request)
    engine.fail_all("the engine failed")
    assert request.completion.finish_reason == "error" and engine.pages_held == engine.unfinished == 0
    assert same(engine.generate(prompts(1), PLAIN)[0], alone(model, prompts(1)[0]))


@pytest.mark.parametrize("quick", [0.0, 1e9])
def test_answers_are_the_same_whichever_thread_follows_them(model, monkeypatch, quick):
    asked = [replace(PLAIN, grammar=Multiples(3), top_p=0.9), PLAIN, replace(PLAIN, grammar=Multiples(7))] * 3
    truth = [alone(model, prompt, params) for prompt, params in zip(prompts(9), asked, strict=True)]
    monkeypatch.setattr(constraint, "QUICK", quick)
    for pages in (32, 5):
        answers = engine_on(model, pages).generate(prompts(9), asked)
        assert all(map(same, answers, truth))


class Sometimes:
    """A constraint that allows all, and is held for so many looks, by the number of the token."""

    def __init__(self, looks, vocabulary):
        self.looks, self.token, self._found = looks, 0, None
        self.left = looks[0]

    @property
    def held(self):
        self.left -= 1
        return self.left >= 0

    def accept(self, token):
        self.token += 1
        self.left = self.looks[self.token % len(self.looks)]

    def drop(self):
        self.left = 0


class Checked(FakeRunner):
    def run(self, plan, ready):
        assert not any(request.choices and request.constraint.left > 0 for request in ready)
        return super().run(plan, ready)


class Looks(tuple):
    def start(self):
        return self


@settings(max_examples=60, deadline=None)
@given(
    work=st.lists(
        st.tuples(
            st.integers(1, 140),
            st.integers(1, 70),
            st.lists(st.integers(0, 9), max_size=4),
            st.integers(0, 9),
        ),
        min_size=1,
        max_size=8,
    ),
    pages=st.integers(4, 12),
    max_batch=st.integers(1, 5),
    step_tokens=st.integers(1, 100),
    most=st.sampled_from([1, 50]),
)
def test_held_or_not_each_gets_the_answer_it_would_get_alone(work, pages, max_batch, step_tokens, most):
    """Over preemptions, chunks, shared pages and a place in the batch that comes late."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pyengine.engine.sampling.Constraint", Sometimes)
        engine = Engine(
            None, max_batch=max_batch, step_tokens=step_tokens, runner=Checked(pages, max_context=1000)
        )
        requests, steps = [], 0
        while len(requests) < len(work) or engine.unfinished:
            for length, count, looks, arrival in work[len(requests) :]:
                if arrival > steps:
                    break
                params = SamplingParams(count, seed=len(requests), grammar=Looks(looks) if looks else None)
                requests.append(engine.add([i % 7 for i in range(length)], params))
            engine.step(most)
            steps += 1
            assert steps < 20_000, "no progress"
    for request in requests:
        assert request.completion.ids == expected(request.prompt, request.params, 50, engine.max_context)
    engine._scheduler.pool.check()
    assert engine.pages_held == 0


@pytest.mark.parametrize("step_tokens", [2, 3, 64])
def test_what_a_tool_put_in_is_computed_while_it_is_held(monkeypatch, step_tokens):
    """All but the last token, from whose logits one is sampled."""
    monkeypatch.setattr("pyengine.engine.sampling.Constraint", Sometimes)
    tools = Tools(lambda query: [10 + i for i in query], SEARCH, END, RESULT, ASSISTANT, CONTROLS)
    runner = Script([SEARCH, 5, 6, END, 7, END])
    engine = Engine(None, tools=tools, runner=runner, max_batch=2, step_tokens=step_tokens)
    params = SamplingParams(50, seed=0, stop=(END,), grammar=Looks([9]))
    request, left = engine.add([USER, 1, END, ASSISTANT], params), set()
    while not request.done:
        engine.step()
        if request.constraint.left > 0:
            left.add(request.pending)
    assert 1 in left and runner.widest <= step_tokens
    assert request.completion.ids == [SEARCH, 5, 6, END, RESULT, 15, 16, END, ASSISTANT, 7, END]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_has_threads_of_its_own(slow):
    """An answer that its parent's thread was at ends with an error there, not never."""

    def beside(matcher) -> Constraint:
        one = Constraint(matcher, 301)
        one.allow(np.empty(10, np.int32))
        one.accept(3)
        one.held  # noqa: B018  # begins
        return one

    lost = beside(slow[0])
    child = os.fork()
    if not child:
        try:
            slow[1].opened.set()
            own = beside(slow[1])
            constraint.await_any([own], PATIENT)
            try:
                lost.held  # noqa: B018
            except RuntimeError:
                os._exit(own.held)
        finally:
            os._exit(2)
    assert os.waitpid(child, 0)[1] == 0
    assert lost.held
    slow[0].opened.set()
    constraint.await_any([lost], PATIENT)
    assert not lost.held
