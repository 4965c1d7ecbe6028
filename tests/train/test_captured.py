"""A training's steps as one call: the bits of the same steps call by call, and only where they can be replayed."""

import pytest
import torch
from pyengine.kernels import _native, set_threads, use_backend
from pyengine.kernels.rope import table

from pyengine.data.loader import IGNORE
from pyengine.model import ModelConfig, Transformer
from pyengine.train import captured
from pyengine.train.config import OptimizerConfig
from pyengine.train.loop import WeightedBatch, Worker
from pyengine.train.optimizer import Optimizer

from . import tiny

# Document bounds that differ, of one number of tokens.
BOUNDS = [(9, 1, 20), (30,), (1, 1, 1, 27), (15, 15), (9, 1, 20), (29, 1)]
UNTIED = ModelConfig(61, 32, 2, 2, 1, 16, 40, tie_embeddings=False, qk_norm=False, qkv_bias=True)


def worker(config=tiny.MODEL, dtype=torch.float32, micro_tokens=10_000) -> Worker:
    model = Transformer(config, seed=1, dtype=dtype)
    return Worker(model, Optimizer(model, OptimizerConfig(rule="adamw", lr=1e-2)), micro_tokens)


def step(made: Worker, batch: WeightedBatch) -> list[torch.Tensor]:
    """The loss, each token's, and the gradients; then a step on them."""
    loss, losses = made.gradients(batch, batch.total_weight() or 1.0)
    parameters = made.optimizer._parameters.values()
    found = [torch.tensor(loss), losses, *(p.grad.clone() for p in parameters)]
    made.optimizer.step(1.0)
    return found


def both(batches, **more) -> int:
    """Asserts that steps on `batches` have the same bits captured and not; how many were replays."""
    ours, plain = worker(**more), worker(**more)
    plain.captured = None
    for i, batch in enumerate(batches):
        for a, b in zip(step(ours, batch), step(plain, batch), strict=True):
            assert torch.equal(*(t.reshape(-1).view(torch.uint8) for t in (a, b))), f"step {i}"
    return ours.captured.replays


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
@pytest.mark.parametrize("config", [tiny.MODEL, UNTIED], ids=["tied", "untied"])
@pytest.mark.parametrize("isa", _native.runnable())
def test_replayed_steps_have_the_bits_of_steps(isa, config, dtype):
    before = _native.isa
    _native.use_isa(isa)
    try:
        batches = [tiny.batch(i, bounds) for i, bounds in enumerate(BOUNDS)]
        assert both(batches, config=config, dtype=dtype) == len(BOUNDS) - 2
    finally:
        _native.use_isa(before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
@pytest.mark.parametrize("isa", _native.runnable())
def test_batches_of_about_one_size_share_a_recording(isa, dtype):
    """What fills them up, and tokens without a target, change no bit of losses and gradients."""
    before = _native.isa
    _native.use_isa(isa)
    try:
        documents = [
            (16, 17, 20),
            (9, 18, 18),
            (1, 1, 20, 20, 5),
            (20, 20, 20, 3),
            (20, 20, 20, 4),
            (9, 20, 8),
        ]
        batches = [tiny.batch(i, lengths) for i, lengths in enumerate(documents)]
        for i, batch in enumerate(batches[1:]):
            batch.targets[i :: i + 1] = IGNORE
        assert (batches[1].targets == IGNORE).all()
        assert both(batches, config=UNTIED, dtype=dtype) == len(batches) - 2
    finally:
        _native.use_isa(before)


def test_sizes_are_captured_one_by_one():
    documents = [(20, 10), (1,) * 70, (27, 8), (20, 12), (1,) * 69, (8, 27), (10, 20), (1,) * 68, (35,)]
    assert both([tiny.batch(i, d) for i, d in enumerate(documents)]) == 3


def test_what_cannot_be_replayed_is_computed():
    weighted = WeightedBatch(**{**vars(tiny.batch(1)), "weights": torch.rand(30)})
    assert both([weighted] * 3) == 0
    assert both([tiny.batch(2)] * 4, micro_tokens=21) == 2, "the first of a batch's two pieces"
    with use_backend("reference"):
        assert both([tiny.batch(2)] * 3) == 0


def test_a_step_larger_than_its_memory_is_not_kept(monkeypatch):
    monkeypatch.setattr(captured, "BYTES", 1 << 14)
    assert both([tiny.batch(i) for i in range(4)]) == 0


def test_another_setting_captures_anew():
    made = worker()
    for threads in (1, 2, 1):
        set_threads(threads)
        try:
            for i in range(3):
                step(made, tiny.batch(i))
        finally:
            set_threads(None)
    assert made.captured.replays == 3


def test_long_documents_find_their_angles(monkeypatch):
    """A later batch may have a longer document than the table of the rotary embedding knew of."""
    monkeypatch.setattr(table, "SHORTEST", table.CHUNK)
    monkeypatch.setattr(table, "_tables", {})
    batches = [tiny.batch(i, documents) for i, documents in enumerate([(600, 600), (600, 600), (1200,)])]
    for batch in batches:
        for numbers in (batch.ids, batch.targets):
            numbers %= tiny.MODEL.vocab_size
    assert both(batches) == 1


def test_wrong_inputs_stop_a_replay():
    made = worker()
    for i in range(2):
        step(made, tiny.batch(i))
    for wrong in ("ids", "targets"):
        batch = tiny.batch(2)
        getattr(batch, wrong)[3] = 61
        with pytest.raises(ValueError, match="refuses"):
            made.gradients(batch, 30.0)
    batch = tiny.batch(2)
    batch.cu_seqlens[1] = 31
    with pytest.raises(ValueError, match="cu_seqlens must rise"):
        made.gradients(batch, 30.0)
