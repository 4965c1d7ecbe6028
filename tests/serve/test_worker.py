"""The engine's thread beside a constraint that takes long: nobody waits for it but who asked, and nobody forever."""

import asyncio
from contextlib import asynccontextmanager

import pytest

from pyengine.engine import Engine, SamplingParams
from pyengine.serve.worker import Worker
from tests.engine.test_constraint import PATIENT, PLAIN, Slow, alone, make, same
from tests.engine.test_sampling import Multiples

HELD, OTHER = [1, 2, 3], [4, 5]


@pytest.fixture(scope="module")
def model():
    return make()


@pytest.fixture
def slow():
    one = Slow(3)
    yield one
    one.opened.set()


@pytest.fixture
def worker(model):
    worker = Worker(Engine(model, max_batch=4, pages=32))
    yield worker
    worker.close()
    assert worker.engine.unfinished == worker.engine.pages_held == worker.unfinished == 0
    assert not worker._thread.is_alive()


def params(matcher) -> SamplingParams:
    return SamplingParams(PLAIN.max_tokens, seed=PLAIN.seed, grammar=matcher)


async def last(answers):
    """The completion of the one answer."""
    return [news.completion async for news in answers][-1]


@asynccontextmanager
async def held(worker, slow, seconds: float = PATIENT):
    """Answers of one request whose mask is being found out."""
    async with worker.answers([HELD], [params(slow)], seconds) as answers:
        assert await asyncio.to_thread(slow.begun.wait, PATIENT)
        yield answers


async def free(engine) -> None:
    while engine.pages_held:
        await asyncio.sleep(0.001)


def run(work) -> None:
    asyncio.run(asyncio.wait_for(work, PATIENT))


def test_others_are_answered_meanwhile(worker, slow, model):
    async def work():
        async with held(worker, slow) as answers:
            told, tell = [], answers.tell
            answers.tell = lambda *news: told.append(tell(*news))
            async with worker.answers([OTHER], [PLAIN]) as others:
                assert same(await last(others), alone(model, OTHER))
            assert await worker.call(lambda: worker.engine.unfinished) == 1
            assert not told, "each is told of its own tokens, not of others' steps"
            slow.opened.set()
            assert same(await last(answers), alone(model, HELD, grammar=Multiples(3)))

    run(work())


def test_who_leaves_frees_its_pages_at_once(worker, slow):
    async def work():
        async with held(worker, slow):
            assert worker.engine.pages_held
        await free(worker.engine)

    run(work())


def test_an_answer_that_takes_too_long_ends(worker, slow):
    async def work():
        with pytest.raises(TimeoutError):
            async with held(worker, slow, seconds=0.3) as answers:
                await last(answers)
        await free(worker.engine)

    run(work())


def test_closing_waits_for_no_constraint(worker, slow):
    async def work():
        async with held(worker, slow) as answers:
            await asyncio.to_thread(worker.close)
            assert (await last(answers)).finish_reason == "cancelled"

    run(work())
    assert not slow.opened.is_set()


def test_one_that_fails_is_told(worker, slow, model):
    class Fails(Slow):
        def allow(self, words):
            super().allow(words)
            if self.accepted:
                raise RuntimeError("a bug")

    async def work():
        fails = Fails(3)
        async with held(worker, fails) as answers:
            fails.opened.set()
            failed = await last(answers)
            assert failed.finish_reason == "error" and "RuntimeError" in failed.error
        async with worker.answers([OTHER], [PLAIN]) as others:
            assert same(await last(others), alone(model, OTHER))

    run(work())
