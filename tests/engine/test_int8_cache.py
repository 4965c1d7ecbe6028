"""Engines whose keys and values are kept as int8: their own bits in any batch, and close to the exact cache."""

import pytest
import torch
from pyengine.kernels import use_backend

from pyengine.engine import Engine, SamplingParams

from .test_exact import (  # noqa: F401  # fixtures
    PLAIN,
    each,
    isa,
    make,
    model,
    nothing_changes,
    prompts,
    trainers,
)

GREEDY = SamplingParams(max_tokens=20, temperature=0)


def test_batches_chunks_preemption_and_prefixes_change_nothing(isa, model):  # noqa: F811
    nothing_changes(model, each(PLAIN, 14), draft=4, kv_dtype="int8")


def test_close_to_the_trainer(isa, model):  # noqa: F811
    answers = Engine(model, max_batch=8, pages=64, kv_dtype="int8").generate(prompts(7), each(PLAIN, 7))
    off = [
        (torch.tensor(a.logprobs) - truth).abs()
        for a, truth in zip(answers, trainers(model, answers, PLAIN), strict=True)
    ]
    assert 0 < torch.cat(off).mean() < 0.05


def test_captured_steps_equal_python():
    engines = [Engine(make(), max_batch=8, pages=64, kv_dtype="int8") for _ in range(2)]
    engines[1]._runner._can_capture = lambda: False
    captured, python = (engine.generate(prompts(7), each(PLAIN, 7)) for engine in engines)
    assert [a.logprobs for a in captured] == [a.logprobs for a in python]


def test_the_reference_backend_agrees():
    ours = Engine(make(), max_batch=4, pages=64, kv_dtype="int8").generate(prompts(4), GREEDY)
    with use_backend("reference"):
        truth = Engine(make(), max_batch=4, pages=64, kv_dtype="int8").generate(prompts(4), GREEDY)
    for a, b in zip(ours, truth, strict=True):
        assert a.ids == b.ids
        assert torch.allclose(torch.tensor(a.logprobs), torch.tensor(b.logprobs), atol=5e-3)


def test_memory_of_a_token_and_what_fits():
    plain, halved = (Engine(make(torch.bfloat16), max_batch=2, kv_dtype=kept) for kept in ("auto", "int8"))
    assert plain.bytes_per_token == 2 * 2 * 2 * 16 * 2  # layers, keys and values, kv heads, numbers, bytes
    assert halved.bytes_per_token == 2 * 2 * 2 * (16 + 4)
    with pytest.raises(ValueError, match="kv_dtype must be one of auto, int8, got 'fp8'"):
        Engine(make(), kv_dtype="fp8")
