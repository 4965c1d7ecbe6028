"""The engine on quantised weights: the bits of a row never depend on batch, chunks, paging, capture or threads."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from pyengine.kernels import set_threads

from pyengine import gguf
from pyengine.engine import Engine
from pyengine.model import ModelConfig, QuantizedTransformer, Transformer, load
from pyengine.model.gguf import save

from .test_exact import FILTERED, PLAIN, assert_equal, each, isa, prompts, trainers  # noqa: F401

CONFIG = ModelConfig(
    vocab_size=301, hidden_size=64, layers=2, heads=4, kv_heads=2, head_dim=16, intermediate_size=96,
    max_position_embeddings=256,
)  # fmt: skip


def written(path, kind: str, **more) -> QuantizedTransformer:
    """A random model in a file of one kind, as the engine loads it."""
    model = Transformer(replace(CONFIG, **more), seed=3)
    with torch.no_grad():
        for parameter in model.parameters():  # peaked enough that filters bite
            parameter.mul_(1.5)
        model.embedding.mul_(6)
    save(model, path, kind)
    quantized = load(path)
    assert isinstance(quantized, QuantizedTransformer)
    return quantized


SHAPES = {
    "Q8_0": {},
    "Q4_1": {"qk_norm": False, "qkv_bias": True},
    "Q4_0": {"qk_norm": False, "tie_embeddings": False, "intermediate_size": 100},  # 100: no whole blocks
}


@pytest.fixture(params=SHAPES)
def model(request, tmp_path):
    return written(tmp_path / "m.gguf", request.param, **SHAPES[request.param])


def test_every_batch_is_the_whole_forward_pass(isa, model, tmp_path):  # noqa: F811
    model = load(tmp_path / "m.gguf")  # packed for this instruction set
    for threads in (1, 2):
        set_threads(threads)
        engine = Engine(model, max_batch=32, pages=200)
        for count in (1, 2, 7, 32):
            answers = engine.generate(prompts(count), each(FILTERED[1], count))
            assert_equal(answers, trainers(model, answers, FILTERED[1]))


@pytest.mark.parametrize("kind", ["f32", "bf16", "Q8_0", "Q4_0"])
def test_members_of_a_team_compute_what_one_thread_does(isa, kind, tmp_path):  # noqa: F811
    """Products large enough to be shared, as many members as key heads, or more; a request over the end of a page."""
    sizes = {"hidden_size": 256, "intermediate_size": 544, "vocab_size": 1031, "head_dim": 64}
    if kind[0] == "Q":
        model = written(tmp_path / "m.gguf", kind, **sizes)
    else:
        model = Transformer(replace(CONFIG, **sizes), seed=3)
        model.to({"f32": torch.float32, "bf16": torch.bfloat16}[kind])
    params = [replace(FILTERED[2], seed=1), replace(PLAIN, max_tokens=8, seed=2), replace(PLAIN, seed=3)]
    told = []
    for threads in (1, 2, 5):
        set_threads(threads)
        engine = Engine(model, max_batch=3)
        answers = engine.generate(prompts(3), params) + engine.generate(prompts(1), params[:1])
        told.append([(answer.ids, answer.logprobs) for answer in answers])
        for decoder, *_ in engine._runner._decoders.values():
            (((_, step, *_), *others),) = (decoder._parts,)
            assert step.in_team and not others and sum("norm_linear" in name for name in step.names) == 4
    assert told[0] == told[1] == told[2]


def test_keys_and_values_are_kept_in_16_bits(model):
    """They are the model's type, which is that of all it does not quantise; logits stay float32."""
    engine = Engine(model, max_batch=2, pages=8)
    assert {model.dtype, *(part.dtype for part in engine._runner._cache[0])} == {torch.bfloat16}
    assert model.logits(torch.zeros(1, 64, dtype=torch.bfloat16)).dtype == torch.float32


def test_a_step_reads_its_weights(tmp_path):
    """Codes of 8 bits and a scale of 16 for each 32, and little beside them: norms, and outputs that fill a panel."""
    numbers = 2 * (128 * 64 + 64 * 64 + 3 * 96 * 64) + 301 * 64
    engine = Engine(written(tmp_path / "m.gguf", "Q8_0"), max_batch=1, pages=4)
    assert numbers * 34 / 32 <= engine.weight_bytes <= 1.05 * numbers * 34 / 32


def test_chunks_preemption_and_prefixes_change_nothing(model):
    params, asked = each(PLAIN, 7) + each(FILTERED[4], 7), prompts(7) * 2
    truth = Engine(model, max_batch=1, pages=4, step_tokens=256).generate(asked, params)
    for options in (
        dict(max_batch=14, pages=100, step_tokens=512),
        dict(max_batch=3, pages=100, step_tokens=5),
        dict(max_batch=14, pages=5, step_tokens=64),
    ):
        engine = Engine(model, **options)
        for _ in range(2):
            answers = engine.generate(asked, params)
            assert [a.ids for a in answers] == [a.ids for a in truth]
            assert [a.logprobs for a in answers] == [a.logprobs for a in truth]
        assert engine.stats.cached > 0


def test_captured_steps_equal_python(model):
    captured = Engine(model, max_batch=32, pages=200)
    ours = captured.generate(prompts(21), each(PLAIN, 21))
    assert captured._runner._decoders
    engine = Engine(model, max_batch=32, pages=200)
    engine._runner._can_capture = lambda: False
    assert [a.logprobs for a in ours] == [a.logprobs for a in engine.generate(prompts(21), each(PLAIN, 21))]


def test_matrices_stored_in_several_ways_are_one_product(tmp_path):
    """Files mix kinds, even among the three matrices that are one here."""
    written(tmp_path / "a.gguf", "Q4_1"), written(tmp_path / "b.gguf", "Q8_0")
    mixed = gguf.read(tmp_path / "a.gguf")
    other = gguf.read(tmp_path / "b.gguf").tensors
    for name in ("blk.0.attn_v.weight", "blk.1.ffn_up.weight", "blk.1.attn_q.weight"):
        mixed.tensors[name] = other[name]
    tensors = [(t.name, t.kind, t.numbers()) for t in mixed.tensors.values()]
    gguf.write(tmp_path / "m.gguf", mixed.values, tensors)
    for name, tensor in gguf.read(tmp_path / "m.gguf").tensors.items():
        np.testing.assert_allclose(tensor.numbers(), mixed.tensors[name].numbers(), atol=2e-3)
    model = load(tmp_path / "m.gguf")
    assert len(model.weights().layers[0].qkv.parts) == 3 and len(model.weights().layers[1].gate_up.parts) == 2
    answers = Engine(model, max_batch=8, pages=64).generate(prompts(7), each(FILTERED[1], 7))
    assert_equal(answers, trainers(model, answers, FILTERED[1]))
