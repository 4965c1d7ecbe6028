"""The rollout's log-probabilities are the trainer's: largest difference 0, however either side is computed.

Engine side: batches of 1 to 32, chunks, preemption, prefix hits, captured or not, 1 and 2 threads. Trainer
side: documents packed or padded, through the loss, or through logits where temperature, top-k or top-p
filter. On every instruction set, in float32 and bfloat16, before and after a step of the optimiser.
"""

from dataclasses import replace

import pytest
import torch
from pyengine.kernels import _capture, _native, sampled_logprob, set_threads, use_backend

from pyengine.engine import Engine, SamplingParams, step
from pyengine.model import ModelConfig, Transformer, over_documents
from pyengine.train.config import OptimizerConfig
from pyengine.train.optimizer import Optimizer

CONFIG = ModelConfig(
    vocab_size=301, hidden_size=64, layers=2, heads=4, kv_heads=2, head_dim=16, intermediate_size=96,
    max_position_embeddings=256,
)  # fmt: skip
PLAIN = SamplingParams(max_tokens=20)
FILTERED = [
    SamplingParams(max_tokens=20, temperature=0.0),
    SamplingParams(max_tokens=20, temperature=0.7),
    SamplingParams(max_tokens=20, temperature=1.3, top_k=5),
    SamplingParams(max_tokens=20, top_p=0.6),
    SamplingParams(max_tokens=20, temperature=0.8, top_k=40, top_p=0.9),
]


def make(dtype=torch.float32, seed=0) -> Transformer:
    model = Transformer(CONFIG, seed=seed)
    with torch.no_grad():
        for parameter in model.parameters():  # peaked enough that filters bite
            parameter.mul_(1.5)
        model.embedding.mul_(6)
    return model.to(dtype)


def prompts(count: int) -> list[list[int]]:
    lengths = [1, 5, 63, 64, 65, 30, 128]
    return [[(7 * i + j * j) % 301 for j in range(lengths[i % 7])] for i in range(count)]


def each(params: SamplingParams, count: int) -> list[SamplingParams]:
    return [replace(params, seed=100 + i) for i in range(count)]


@torch.no_grad()
def trainers(model, answers, params, padding=0) -> list[torch.Tensor]:
    """The trainer's log-probabilities of each answer, its documents packed, each padded to `padding`."""
    documents = [[*answer.prompt, *answer.ids] for answer in answers]
    padded = [ids + [3] * (padding - len(ids)) for ids in documents]
    ids = torch.tensor([i for document in padded for i in document])
    positions = torch.cat([torch.arange(len(d), dtype=torch.int32) for d in padded])
    bounds = torch.tensor([0, *(len(d) for d in padded)]).cumsum(0).int()
    places = [
        torch.arange(len(a.prompt) - 1, len(d) - 1) + start
        for a, d, start in zip(answers, documents, bounds[:-1].tolist(), strict=True)
    ]
    if params.temperature == 1 and not params.top_k and params.top_p == 1:
        targets = torch.full_like(ids, -100)
        for answer, place in zip(answers, places, strict=True):
            targets[place] = torch.tensor(answer.ids)
        logprobs = -model.loss(ids, targets, bounds, positions)
        return [logprobs[place] for place in places]
    hidden = model(ids, positions, over_documents(bounds))
    return [
        sampled_logprob(
            model.logits(hidden[place]), torch.tensor(a.ids), params.temperature, params.top_k, params.top_p
        )
        for a, place in zip(answers, places, strict=True)
    ]


def assert_equal(answers, truth) -> None:
    for answer, logprobs in zip(answers, truth, strict=True):
        assert torch.equal(torch.tensor(answer.logprobs), logprobs)
        assert (logprobs <= 0).all()


@pytest.fixture(params=_native.runnable())
def isa(request):
    before = _native.isa
    _native.use_isa(request.param)
    yield request.param
    _native.use_isa(before)
    set_threads(None)


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=["f32", "bf16"])
def model(request):
    return make(request.param)


def test_every_batch_equals_the_trainer(isa, model):
    seen = {}
    for threads in (1, 2):
        set_threads(threads)
        engine = Engine(model, max_batch=32, pages=200)
        for count in (1, 2, 7, 32):
            answers = engine.generate(prompts(count), each(PLAIN, count))
            assert_equal(answers, trainers(model, answers, PLAIN))
            assert_equal(answers, trainers(model, answers, PLAIN, padding=160))
            for index, answer in enumerate(answers):
                assert seen.setdefault(index, answer.ids) == answer.ids


def test_every_way_of_sampling_equals_the_trainer(isa, model):
    engine = Engine(model, max_batch=8, pages=64)
    for params in FILTERED:
        answers = engine.generate(prompts(7), each(params, 7))
        assert_equal(answers, trainers(model, answers, params))
    greedy = engine.generate(prompts(7), SamplingParams(max_tokens=20, temperature=0))
    assert [a.ids for a in greedy] == [a.ids for a in engine.generate(prompts(7), each(FILTERED[0], 7))]


def nothing_changes(model, params, draft=0, **options):
    """The answers to two rounds of seven prompts are those of one request at a time, however they are computed."""
    asked = prompts(7) * 2
    truth = Engine(model, max_batch=1, pages=4, step_tokens=256, **options).generate(asked, params)
    for ways in (
        dict(max_batch=14, pages=100, step_tokens=512),
        dict(max_batch=3, pages=100, step_tokens=5, draft=draft),
        dict(max_batch=14, pages=5, step_tokens=64),
    ):
        engine = Engine(model, **ways, **options)
        for _ in range(2):  # the second time with everything in the prefix cache
            answers = engine.generate(asked, params)
            assert [a.ids for a in answers] == [a.ids for a in truth]
            assert [a.logprobs for a in answers] == [a.logprobs for a in truth]
        assert engine.stats.cached > 0
        assert (engine.stats.preemptions > 0) == (ways["pages"] == 5)


def test_chunks_preemption_and_prefixes_change_nothing(isa, model):
    nothing_changes(model, each(PLAIN, 7) + each(replace(PLAIN, temperature=0.5), 7))


@pytest.mark.parametrize("rule", ["adamw", "muon"])
def test_an_optimiser_step_is_followed(isa, model, rule):
    engine = Engine(model, max_batch=8, pages=64)
    before = engine.generate(prompts(7), each(PLAIN, 7))
    optimizer = Optimizer(model, OptimizerConfig(rule=rule))
    ids = torch.tensor(before[6].prompt)
    bounds = torch.tensor([0, len(ids) - 1], dtype=torch.int32)
    model.loss(ids[:-1], ids[1:], bounds, torch.arange(len(ids) - 1, dtype=torch.int32)).mean().backward()
    optimizer.step(1.0)
    after = engine.generate(prompts(7), each(PLAIN, 7))
    assert [a.logprobs for a in after] != [a.logprobs for a in before]
    assert_equal(after, trainers(model, after, PLAIN))


def test_captured_steps_equal_python():
    model = make()
    captured = Engine(model, max_batch=32, pages=200).generate(prompts(21), each(PLAIN, 21))
    engine = Engine(model, max_batch=32, pages=200)
    engine._runner._can_capture = lambda: False
    python = engine.generate(prompts(21), each(PLAIN, 21))
    assert [a.logprobs for a in captured] == [a.logprobs for a in python]


@pytest.mark.parametrize("kv_dtype, threads", [("auto", 1), ("auto", 3), ("int8", 2)])
def test_steps_without_python_in_between_equal_single_ones(kv_dtype, threads, request):
    """17 requests as 20 rows, which threads share, over ends of pages; each that ends leaves the others with new rows.
    The answers are those of each alone."""
    set_threads(threads)
    request.addfinalizer(lambda: set_threads(None))
    model, asked = make(), [[i, *ids][:100] for i, ids in enumerate(prompts(17))]
    flat = SamplingParams(max_tokens=70, temperature=3.0, scored=False, stop=(3, 50, 51))
    for params in (PLAIN, flat):
        params = [replace(one, max_tokens=params.max_tokens + i) for i, one in enumerate(each(params, 17))]
        singly, together = (Engine(model, max_batch=32, kv_dtype=kv_dtype) for _ in range(2))
        answers = [singly.add(*one) for one in zip(asked, params, strict=True)]
        while singly.unfinished:
            singly.step()
        found = together.generate(asked, params)
        for one, other in zip(answers, found, strict=True):
            assert one.completion.ids == other.ids and one.completion.finish_reason == other.finish_reason
            assert str(one.completion.logprobs) == str(other.logprobs)  # NaN where not scored
        assert together.stats.steps == singly.stats.steps
        alone = [
            Engine(model, kv_dtype=kv_dtype).generate([ids], one)[0]
            for ids, one in zip(asked, params, strict=True)
        ]
        assert [str((answer.ids, answer.logprobs)) for answer in alone] == [
            str((answer.ids, answer.logprobs)) for answer in found
        ]


def test_steps_with_prompts_are_captured_when_their_sizes_come_again():
    """Five prompts in chunks of 24 tokens, then one of several chunks: other ids, other boundaries, the same sizes."""
    model, params = make(), SamplingParams(max_tokens=6, seed=1)
    engine = Engine(model, max_batch=8, step_tokens=24)
    for turn in range(4):
        asked = [[(31 * turn + 7 * i + j * j) % 301 for j in range(10 + (9 + turn) * i)] for i in range(5)]
        for work in (asked, [asked[3] * 3]):
            answers, truth = engine.generate(work, params), Engine(model).generate(work, params)
            assert [(a.ids, a.logprobs) for a in answers] == [(a.ids, a.logprobs) for a in truth]
    sizes = engine._runner._captured
    assert any(tokens > ready for tokens, _, ready, _ in sizes) and any(
        ready == 0 for _, _, ready, _ in sizes
    )


def test_captured_steps_hold_no_logits():
    """Logits that are sampled from behind the step leave their place to the next step, whatever its size."""
    model = make()
    params = SamplingParams(max_tokens=6, seed=1, frequency_penalty=0.5, logprobs=2, scored=False)
    engine = Engine(model, max_batch=8, step_tokens=24)
    for turn in range(2):
        for count in range(1, 9):
            asked = [[(31 * turn + 7 * i + j * j) % 301 for j in range(3 + i)] for i in range(count)]
            answers, alone = engine.generate(asked, params), Engine(model).generate(asked, params)
            assert [(a.ids, a.details) for a in answers] == [(a.ids, a.details) for a in alone]
    assert len(engine._runner._captured) > 10
    ((_, room),) = engine._runner._arenas[0]._free
    assert room >= (1 << 28) - 64, "nothing is held between steps"


def test_recordings_are_bounded_and_the_latest_used_are_kept(monkeypatch):
    """Room for some steps only: others take their places, and answers stay."""
    model, params = make(), SamplingParams(max_tokens=5, seed=1, frequency_penalty=0.5)
    engine = Engine(model, max_batch=8, step_tokens=24)
    captured = engine._runner._captured
    engine.generate([[1, 2]], params)
    ((_, (one, _)),) = captured.items()
    monkeypatch.setattr(step, "CAPTURED_BYTES", 4 * one.nbytes)
    asked = [[(7 * i + j * j) % 301 for j in range(3 + i)] for i in range(8)]
    for count in (8, 3, 8, 1):
        answers, alone = engine.generate(asked[:count], params), Engine(model).generate(asked[:count], params)
        assert [a.ids for a in answers] == [a.ids for a in alone]
        sizes = sum(recording.nbytes for recording, _ in captured.values())
        assert sizes == engine._runner._captured_bytes <= step.CAPTURED_BYTES
    assert (1, 1, 1, "logits") == list(captured)[-1]


def test_large_tensors_of_steps_leave_the_allocator_alone(monkeypatch):
    """A step without a capture, and what is sampled behind a step, take them from memory that is kept."""
    model, params = make(), SamplingParams(max_tokens=4, seed=1, frequency_penalty=0.5)
    asked = [[(7 * i + j * j) % 301 for j in range(30 + i)] for i in range(4)]
    truth = Engine(model).generate(asked, params)
    monkeypatch.setattr(step, "LARGE_STEP", 1)
    for module in (step, _capture):
        monkeypatch.setattr(module, "LENT", 1)
    engine = Engine(model)
    scratch, made = engine._runner._scratch, []
    like = scratch.like
    monkeypatch.setattr(scratch, "like", lambda wish: made.append(tuple(wish.shape)) or like(wish))
    answers = engine.generate(asked, params)
    assert [(a.ids, a.logprobs) for a in answers] == [(a.ids, a.logprobs) for a in truth]
    assert made.count((4, 301)) >= 4, "logits, and what penalties make of them"
    ((_, room),) = scratch._free
    assert room >= (1 << 28) - 64, "nothing is held between steps"


def test_logits_that_are_no_numbers_end_a_request_among_steps():
    model = make()
    with torch.no_grad():
        model.layers[0].down[:] = 0
        model.embedding[7] = float("nan")  # tied: the head's row as well
    answers = Engine(model).generate([[1, 2], [7]], SamplingParams(max_tokens=40, seed=1))
    assert [answer.finish_reason for answer in answers] == ["error"] * 2
    assert all(len(answer.ids) == 0 for answer in answers)


def test_the_reference_backend_agrees():
    model = make()
    ours = Engine(model, max_batch=4, pages=64).generate(prompts(4), each(FILTERED[0], 4))
    with use_backend("reference"):
        truth = Engine(model, max_batch=4, pages=64).generate(prompts(4), each(FILTERED[0], 4))
    for a, b in zip(ours, truth, strict=True):
        assert a.ids == b.ids
        assert torch.allclose(torch.tensor(a.logprobs), torch.tensor(b.logprobs), atol=1e-4)
