"""Checkpoints are Hugging Face directories: transformers loads ours with equal logits, and we load its."""

import json
from dataclasses import replace

import pytest
import torch

from pyengine.errors import UserError
from pyengine.model import Transformer, load, over_documents, save
from pyengine.model.config import Llama3Scaling

from .test_transformer import CONFIGS, batch, model  # noqa: F401  (the fixture)

transformers = pytest.importorskip("transformers")


@torch.no_grad()
def logits(model, ids):  # noqa: F811
    bounds = torch.tensor([0, len(ids)], dtype=torch.int32)
    positions = torch.arange(len(ids), dtype=torch.int32)
    return model.logits(model(ids, positions, over_documents(bounds)))


@pytest.mark.parametrize("shard_bytes", [1 << 30, 10_000], ids=["one file", "shards"])
def test_transformers_gives_the_same_logits(model, tmp_path, shard_bytes):  # noqa: F811
    save(model, tmp_path, shard_bytes=shard_bytes)
    assert (tmp_path / "model.safetensors").exists() == (shard_bytes > 10_000)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    ids = batch()[0]
    with torch.no_grad():
        expected = theirs(ids[None]).logits[0]
    assert (logits(model, ids) - expected).abs().max() <= 1e-4
    again = load(tmp_path)
    assert again.config == model.config
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


@pytest.mark.parametrize("family", ["Llama", "Qwen3", "Qwen2"])
def test_a_model_of_transformers_loads(tmp_path, family):
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(
        vocab_size=97, hidden_size=32, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, rope_parameters={"rope_type": "default", "rope_theta": 5000.0},
        tie_word_embeddings=False, initializer_range=0.2,
    )  # fmt: skip
    theirs = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    theirs.save_pretrained(tmp_path)
    ids = batch()[0]
    with torch.no_grad():
        expected = theirs(ids[None]).logits[0]
    assert (logits(load(tmp_path), ids) - expected).abs().max() <= 1e-4


@pytest.mark.parametrize(
    "told",
    [
        {"rope_theta": 1234.0},  # beside rope_parameters, which count
        {"rope_theta": 5000.0, "rope_parameters": None},  # as written before there were any
        {"rope_scaling": {"type": "default", "rope_theta": 77.0}},
        {"head_dim": None, "num_key_value_heads": None, "layer_types": None, "quantization_config": None},
        {"layer_types": ["full_attention"] * 2},
    ],
)
def test_a_config_means_what_transformers_reads_in_it(tmp_path, told):
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=97, hidden_size=32, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4,
        rope_parameters={"rope_type": "default", "rope_theta": 5000.0}, initializer_range=0.2,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | told))
    ids = batch()[0]
    with torch.no_grad():
        theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
        expected = theirs(ids[None]).logits[0]
    assert (logits(load(tmp_path), ids) - expected).abs().max() <= 1e-4


LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip


@pytest.mark.parametrize(
    "told, sentence",
    [
        ({"model_type": ["llama"]}, "['llama'] is none of"),
        ({"vocab_size": None}, "the key 'vocab_size' is missing"),
        ({"num_attention_heads": 0, "head_dim": None}, "heads = 0: expected at least 1"),
        ({"rope_parameters": [1]}, "expected an object"),
        ({"rope_parameters": {"rope_theta": -3}}, "rope_theta = -3.0: expected a number above 0"),
        ({"rope_parameters": {"rope_theta": "x"}}, "rope_theta = 'x': expected a number"),
        ({"rope_parameters": {"rope_theta": 10**400}}, "too large"),
        ({"rope_parameters": LLAMA3 | {"factor": 0}}, "expected a factor"),
        ({"rope_parameters": LLAMA3 | {"high_freq_factor": 1}}, "0 <= low < high"),
        ({"rope_parameters": LLAMA3 | {"low_freq_factor": None}}, "'low_freq_factor' is missing"),
        ({"rms_norm_eps": -1.0}, "eps = -1.0: expected"),
        ({"rms_norm_eps": float("nan")}, "eps = nan: expected"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "layer_types = "),
        ({"layer_types": 5}, "layer_types = 5 is not supported"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantization_config = "),
    ],
)
def test_what_a_config_cannot_mean_is_refused(tmp_path, told, sentence):
    save(Transformer(CONFIGS["llama"]), tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | told))
    with pytest.raises(UserError) as caught:
        load(tmp_path)
    assert sentence in str(caught.value) and str(path) in str(caught.value)


def test_llama3_scaling_survives(tmp_path):
    scaling = Llama3Scaling(8.0, 1.0, 4.0, 32)
    ours = Transformer(replace(CONFIGS["llama"], rope_scaling=scaling, head_dim=16), seed=1)
    save(ours, tmp_path)
    assert load(tmp_path).config == ours.config
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    ids = torch.arange(90)
    with torch.no_grad():
        expected = theirs(ids[None]).logits[0]
    assert (logits(ours, ids) - expected).abs().max() <= 1e-4
    plain = Transformer(replace(CONFIGS["llama"], head_dim=16), seed=1)
    assert (logits(plain, ids) - expected).abs().max() > 1e-3


def test_bf16_weights_stay_bf16(tmp_path):
    ours = Transformer(CONFIGS["qwen3"], dtype=torch.bfloat16)
    save(ours, tmp_path)
    again = load(tmp_path)
    assert again.dtype == torch.bfloat16 and torch.equal(again.embedding, ours.embedding)
    assert load(tmp_path, torch.float32).dtype == torch.float32


@pytest.mark.parametrize("told, kept", [(0, 0.0), (1e-5, 1e-5), (None, 1e-6)])
def test_the_norms_epsilon_is_the_one_told(tmp_path, told, kept):
    save(Transformer(CONFIGS["llama"]), tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"rms_norm_eps": told}))
    assert load(tmp_path).config.eps == kept


def test_special_ids_come_from_the_tokenizer(tmp_path):
    names = ["<|endoftext|>", "<|end|>", "<|pad|>"]
    tokens = [{"id": 90 + i, "content": name} for i, name in enumerate(names)]
    (tmp_path / "tok").mkdir()
    (tmp_path / "tok" / "tokenizer.json").write_text(json.dumps({"added_tokens": tokens}))
    save(Transformer(CONFIGS["qwen3"]), tmp_path / "m", tokenizer=tmp_path / "tok")
    assert json.loads((tmp_path / "m" / "generation_config.json").read_text())["eos_token_id"] == [91, 90]
    assert json.loads((tmp_path / "m" / "config.json").read_text())["pad_token_id"] == 92


def test_saving_smaller_removes_the_old_shards(tmp_path):
    ours = Transformer(CONFIGS["qwen3"])
    save(ours, tmp_path, shard_bytes=10_000)
    save(ours, tmp_path)
    assert sorted(p.name for p in tmp_path.glob("model*")) == ["model.safetensors"]


def damage(name, change):
    def apply(folder):
        path = folder / name
        path.write_bytes(change(path.read_bytes()))

    return apply


@pytest.mark.parametrize(
    "harm, told",
    [
        (lambda folder: (folder / "config.json").unlink(), "does not exist"),
        (lambda folder: (folder / "model.safetensors").unlink(), "no model.safetensors"),
        (damage("model.safetensors", lambda b: b[:1000]), "damaged"),
        (damage("model.safetensors", lambda b: b[: len(b) // 2]), "damaged"),
        (damage("config.json", lambda b: b[:40]), "not valid JSON"),
        (damage("config.json", lambda b: b"[" + b + b"]"), "expected a JSON object, got list"),
        (damage("config.json", lambda b: b.replace(b'"qwen3"', b'"gpt2"')), "'gpt2' is none of"),
        (damage("config.json", lambda b: b.replace(b'"default"', b'"yarn"')), "rope_scaling"),
        (
            damage("config.json", lambda b: b.replace(b'"hidden_size"', b'"hidden"')),
            "'hidden_size' is missing",
        ),
        (
            damage("config.json", lambda b: b.replace(b'_size": 56', b'_size": "56"')),
            "= '56': expected an integer",
        ),
        (
            damage("config.json", lambda b: b.replace(b'_size": 56', b'_size": 64')),
            "config.json asks for (48, 64)",
        ),
        (damage("config.json", lambda b: b.replace(b'layers": 2', b'layers": 3')), "lack model.layers.2"),
        (damage("config.json", lambda b: b.replace(b'layers": 2', b'layers": 1')), "has no model.layers.1"),
        (
            damage("config.json", lambda b: b.replace(b'eps": 1e-06', b'eps": "no"')),
            "'no': expected a number",
        ),
        (
            damage("config.json", lambda b: b.replace(b'embeddings": true', b'embeddings": "no"')),
            "true or false",
        ),
        (
            lambda folder: (folder / "model.safetensors.index.json").write_text('{"weight_map": 3}'),
            "weight_map",
        ),
    ],
)
def test_damage_is_named(tmp_path, harm, told):
    save(Transformer(CONFIGS["qwen3"]), tmp_path)
    harm(tmp_path)
    with pytest.raises(UserError, match=".*") as caught:
        load(tmp_path)
    assert told in str(caught.value) and str(tmp_path) in str(caught.value)
