"""A few seconds of the load test (bench/crowd.py), and that it notices what it is there to notice."""

from dataclasses import replace

import pytest

pytest.importorskip("uvicorn")

from bench.crowd import Crowd, questions
from pyengine.serve.api import Limits

from .live import served_model, serving

CLIENTS = 64
LIMITS = Limits(body=100_000, waiting=4 * CLIENTS)


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    return questions(served_model(tmp_path_factory.mktemp("alone"), max_batch=1))


def test_a_crowd(tmp_path, asked):
    served = served_model(tmp_path, max_batch=16, pages=12)  # too few pages for all: some are preempted
    with serving(served, LIMITS) as url:
        crowd = Crowd(url, asked, seconds=4, clients=CLIENTS, growth=60)  # the process is the clients', too
        crowd.run()
    for kind in ("_reads", "_is_slow", "_waits", "_leaves", "_leaves_early", "_errs"):
        assert crowd.count[kind], kind
    assert served.engine.stats.errors == 0 and served.engine.stats.preemptions > 0
    print(f"\n{crowd}")


def test_a_wrong_answer_is_noticed(tmp_path, asked):
    wrong = [replace(one, answer=one.answer + "!") for one in asked]
    with serving(served_model(tmp_path), LIMITS) as url:
        with pytest.raises(AssertionError, match="wrong or mixed"):
            Crowd(url, wrong, seconds=0.2, clients=8).run()


def test_what_is_left_over_is_noticed(tmp_path, asked):
    served = served_model(tmp_path)
    with serving(served, LIMITS) as url:
        kept = served.engine._scheduler.pool.take()
        with pytest.raises(AssertionError, match="left over"):
            Crowd(url, asked, seconds=0.2, clients=2).run()
        served.engine._scheduler.pool.release(kept)
