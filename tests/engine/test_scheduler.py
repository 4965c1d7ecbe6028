"""Whatever the pages, batch, chunks and arrivals, each request gets the answer it would get alone."""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyengine.engine import Engine, SamplingParams
from pyengine.engine.cache import PAGE
from pyengine.engine.engine import STEPS

from .fake import FakeRunner, expected

VOCABULARY = 50


def make(pages=8, max_batch=4, step_tokens=32, max_context=1000, sees=None, **options) -> Engine:
    runner = FakeRunner(pages, VOCABULARY, max_context, sees)
    return Engine(None, max_batch=max_batch, step_tokens=step_tokens, runner=runner, **options)


def check(engine: Engine, running=()) -> None:
    scheduler = engine._scheduler
    scheduler.pool.check([request.pages for request in scheduler.running])
    assert [r.number for r in scheduler.running] == sorted(r.number for r in scheduler.running)


prompts = st.builds(
    lambda shared, own: [i % 7 for i in range(shared)] + own,
    st.sampled_from([0, 3, 63, 64, 65, 127, 128, 140]),
    st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=3),
)
requests = st.tuples(prompts, st.integers(1, 90), st.integers(0, 2), st.integers(0, 12))


@settings(max_examples=120, deadline=None)
@given(
    work=st.lists(requests, min_size=1, max_size=10),
    pages=st.integers(4, 12),
    max_batch=st.integers(1, 6),
    step_tokens=st.integers(1, 200),
    cancelled=st.sets(st.integers(0, 9), max_size=2),
    sees=st.sampled_from([None, 2]),
    draft=st.sampled_from([0, 0, 1, 7]),
    most=st.sampled_from([1, 1, 3, 100]),
)
def test_answers_do_not_depend_on_the_company(
    work, pages, max_batch, step_tokens, cancelled, sees, draft, most
):
    engine = make(pages, max_batch, step_tokens, sees=sees, draft=draft)
    pending = sorted(enumerate(work), key=lambda pair: pair[1][3])  # by the step of arrival
    running, step = {}, 0
    while pending or engine.unfinished:
        while pending and pending[0][1][3] <= step:
            index, (prompt, length, seed, _) = pending.pop(0)
            params = SamplingParams(max_tokens=length, seed=seed, stop=(13,))
            running[index] = engine.add(prompt, params)
        if step == 9:
            for index in cancelled & running.keys():
                engine.cancel(running[index])
        engine.step(most)
        check(engine)
        step += 1
        assert step < 20_000, "no progress"
    assert engine._runner.widest <= max(step_tokens, max_batch) and engine._runner.most <= max_batch
    for request in running.values():
        answer = request.completion
        truth = expected(request.prompt, request.params, VOCABULARY, engine.max_context, sees=sees)
        if answer.finish_reason == "cancelled":
            assert answer.ids == truth[: len(answer.ids)]
        else:
            assert answer.ids == truth
            assert answer.finish_reason == ("stop" if answer.ids[-1] == 13 else "length")
            assert len(answer.logprobs) == len(answer.forced) == len(answer.ids)


def test_guesses_that_come_true_save_steps():
    params = SamplingParams(max_tokens=80, seed=0)
    plain, guessing = make(sees=2), make(sees=2, draft=7)
    truth = plain.generate([[1, 2, 3]], params)[0]
    answer = guessing.generate([[1, 2, 3]], params)[0]
    assert answer.ids == truth.ids and answer.logprobs == truth.logprobs
    stats = guessing.stats
    assert stats.sampled == plain.stats.sampled == 80
    assert stats.steps + stats.confirmed == 80 and stats.steps < 60
    assert stats.computed == 3 + (stats.steps - 1) + stats.guessed
    check(guessing)


def test_guesses_take_no_page_from_a_request():
    params = [SamplingParams(max_tokens=100, seed=i) for i in range(4)]
    prompts = [[i] * 50 for i in range(4)]
    plain, guessing = (make(pages=9, sees=2, draft=draft, step_tokens=64) for draft in (0, 7))
    assert [a.ids for a in guessing.generate(prompts, params)] == [
        a.ids for a in plain.generate(prompts, params)
    ]
    assert guessing.stats.confirmed and guessing.stats.preemptions <= plain.stats.preemptions


def test_samples_of_one_prompt_compute_it_once():
    for length in (1, 2, PAGE - 1, PAGE, PAGE + 1, 2 * PAGE, 2 * PAGE + 1, 150):
        engine = make(pages=40, max_batch=8, step_tokens=512)
        prompt = [i % VOCABULARY for i in range(length)]
        answers = engine.generate([prompt] * 8, [SamplingParams(max_tokens=3, seed=s) for s in range(8)])
        for seed, answer in enumerate(answers):
            assert answer.ids == expected(prompt, SamplingParams(max_tokens=3, seed=seed), VOCABULARY, 1000)
        reusable = length - 1 if (length - 1) % PAGE else (length - 1) // PAGE * PAGE
        assert engine.stats.cached == 7 * reusable
        assert engine.stats.computed == length + 7 * (length - reusable) + 8 * 2


def test_several_steps_at_once_are_these_steps():
    """Over ends of pages, stops and requests that wait for a place, which they get at the same step."""
    counts, found = [], []
    for most in (1, 7, 64):
        engine = make(pages=40, max_batch=4)
        requests = [
            engine.add([i] * (5 * i + 1), SamplingParams(max_tokens=150 - 9 * i, seed=i, stop=(13, 40 + i)))
            for i in range(9)
        ]
        calls = 0
        while engine.unfinished:
            engine.step(most)
            calls += 1
            check(engine)
        counts.append(calls)
        stats = engine.stats
        answers = [(r.completion.ids, r.completion.finish_reason) for r in requests]
        found.append((answers, stats.steps, stats.sampled, stats.computed))
    assert found[0] == found[1] == found[2]
    assert counts[0] > 2 * counts[1] > 2 * counts[2]


def test_a_stream_is_never_stalled_by_a_long_prompt():
    engine = make(pages=40, max_batch=4, step_tokens=16)
    short = engine.add([1, 2], SamplingParams(max_tokens=50, seed=0))
    engine.step()
    long = engine.add(list(range(50)) * 6, SamplingParams(max_tokens=2, seed=0))
    for _ in range(20):
        before = short.sampled
        engine.step()
        assert short.sampled == before + 1
    assert long.sampled >= 1


def test_the_oldest_is_served_first_when_pages_are_short():
    engine = make(pages=4, max_batch=4, step_tokens=64)
    requests = [engine.add([i] * 60, SamplingParams(max_tokens=100, seed=0)) for i in range(4)]
    order = []
    while engine.unfinished:
        order += [r.number for r in engine.step() if r.done]
        check(engine)
    assert order == [0, 1, 2, 3] and requests[-1].preemptions > 0
    assert engine.stats.preemptions == sum(r.preemptions for r in requests)


def test_changed_weights_drop_the_cache_of_running_requests():
    engine = make(pages=10)
    prompt = [1] * 70
    engine.generate([prompt], SamplingParams(max_tokens=2, seed=0))
    engine._runner.salt, engine._runner.changed = 1, True
    answer = engine.generate([prompt], SamplingParams(max_tokens=20, seed=0))[0]
    assert answer.ids == expected(prompt, SamplingParams(max_tokens=20, seed=0), VOCABULARY, 1000, salt=1)
    request = engine.add(prompt, SamplingParams(max_tokens=20, seed=0))
    for _ in range(5):
        engine.step()
    engine._runner.salt, engine._runner.changed = 2, True
    while not request.done:
        engine.step()  # the fake asserts that no old page is read
        check(engine)


def test_a_bad_request_ends_alone():
    engine = make(pages=4, max_context=300)
    good = SamplingParams(max_tokens=4, seed=0)
    engine._runner.poison = {3}
    answers = engine.generate([[1], [], [2] * 256, [3], [VOCABULARY], [-1], [4]], good)
    assert [a.finish_reason for a in answers] == [
        "length",
        "refused",
        "refused",
        "error",
        "refused",
        "refused",
        "length",
    ]
    assert "empty" in answers[1].error and "256" in answers[2].error and "numbers" in answers[3].error
    assert "vocabulary" in answers[4].error and "vocabulary" in answers[5].error
    assert answers[0].ids == expected([1], good, VOCABULARY, 256)
    check(engine)


def test_the_context_ends_an_answer():
    engine = make(pages=1)
    answer = engine.generate([[1] * 60], SamplingParams(max_tokens=100, seed=0))[0]
    assert answer.finish_reason == "length" and len(answer.ids) == 4


def test_stream_equals_generate_and_cancels_when_closed():
    engine = make()
    params = SamplingParams(max_tokens=30, seed=5)
    stream = engine.stream([1, 2, 3], params)
    assert [token.id for token in stream] == engine.generate([[1, 2, 3]], params)[0].ids
    stream = engine.stream([1, 2, 3], params)
    next(stream)
    stream.close()
    assert engine.unfinished == 0
    check(engine)


def test_steps_at_once_are_as_many_as_pages_are_free():
    """Two requests of 73 more tokens each, both at 54, and one page left: 73, 36 and 18 need two, 9 none."""
    engine = make(pages=3, max_batch=2, step_tokens=2 * PAGE)
    requests = [engine.add([i] * 54, SamplingParams(max_tokens=74)) for i in (1, 2)]
    engine.step()
    engine.step(100)
    assert [request.sampled for request in requests] == [1 + 9] * 2
    check(engine)


@pytest.mark.parametrize("pause, most", [(0.0, STEPS), (0.03, 3)])
def test_steps_that_nobody_looks_into_end_soon(pause, most):
    """However long one takes: an interrupt waits for them all."""
    engine, asked = make(pages=40, max_batch=1), []
    run = engine._runner.run

    def slowly(plan, ready):
        asked.append(plan.steps)
        time.sleep(pause * plan.steps)
        return run(plan, ready)

    engine._runner.run = slowly
    engine.generate([[1, 2, 3]], SamplingParams(max_tokens=20 if pause else 3 * STEPS))
    assert max(asked) <= most
    if not pause:
        assert STEPS in asked
