"""Checkpoints as Hugging Face directories: config.json, model.safetensors, generation_config.json, tokenizer.

    save(model, "runs/default/base", tokenizer="runs/default/tokenizer")
    model = load("runs/default/base")

Written as LlamaForCausalLM, Qwen3ForCausalLM (q/k norm) or Qwen2ForCausalLM (q/k/v biases), a reward model as
...ForSequenceClassification with one label; read from the same, from one safetensors file or shards with an index. The
fused matrices of the model are cut into Hugging Face's parts (q, k, v; gate, up) and joined again. Files are written
atomically, config.json last, so a directory with a config.json is whole. Nothing is unpickled.
"""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes

from ..errors import UserError
from ..files import atomic_write, read_json, write_json
from .config import Llama3Scaling, ModelConfig
from .reward import RewardModel
from .transformer import Transformer

SHARD_BYTES = 2 << 30
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
)
SIZES = (  # integers of config.json
    "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim",
    "intermediate_size", "max_position_embeddings",
)  # fmt: skip
NUMBERS = ("rms_norm_eps", "rope_theta")
SWITCHES = ("tie_word_embeddings",)
ROPE_SIZES = ("original_max_position_embeddings",)
ROPE_NUMBERS = ("rope_theta", "factor", "low_freq_factor", "high_freq_factor")
DERIVED = "rotary_emb.inv_freq"  # kept by old checkpoints, computed from config.json
FAMILIES = {"llama": "Llama", "qwen2": "Qwen2", "qwen3": "Qwen3"}
WRITES, SCORES = "ForCausalLM", "ForSequenceClassification"  # behind a family's name: what its models do
# Hugging Face's name of each of our names, "model.layers.N." before those of a layer.
LAYER_NAMES = {
    "attention_norm": "input_layernorm.weight",
    "q_norm": "self_attn.q_norm.weight",
    "k_norm": "self_attn.k_norm.weight",
    "out": "self_attn.o_proj.weight",
    "mlp_norm": "post_attention_layernorm.weight",
    "down": "mlp.down_proj.weight",
}
MODEL_NAMES = {
    "embedding": "model.embed_tokens.weight",
    "norm": "model.norm.weight",
    "head": "lm_head.weight",
}
SCORE_HEAD = "score.weight"  # a reward model's head

Kind = TypeVar("Kind", bound=Transformer)


def save(
    model: Transformer,
    folder: str | os.PathLike,
    tokenizer: str | os.PathLike | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write the model to `folder`, with the files of the tokenizer folder beside it.

    Above `shard_bytes` the weights become model-00001-of-0000N.safetensors with an index.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    shards = list(_shards(model, shard_bytes))
    names = [f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
    names = ["model.safetensors"] if len(shards) == 1 else names
    for stale in set(folder.glob("model*.safetensors*")) - {folder / name for name in names}:
        stale.unlink()
    for name, shard in zip(names, shards, strict=True):
        with atomic_write(folder / name, "wb") as file:
            file.write(to_bytes(shard, metadata={"format": "pt"}))
    if len(shards) > 1:
        total = sum(t.nbytes for shard in shards for t in shard.values())
        where = {key: name for name, shard in zip(names, shards, strict=True) for key in shard}
        index = {"metadata": {"total_size": total}, "weight_map": where}
        write_json(folder / "model.safetensors.index.json", index)
    if tokenizer is not None:
        for name in TOKENIZER_FILES:
            if (Path(tokenizer) / name).exists():
                shutil.copyfile(Path(tokenizer) / name, folder / name)
    special = _special_ids(folder / "tokenizer.json")
    write_json(folder / "generation_config.json", {"do_sample": True, "temperature": 1.0, **special})
    write_json(folder / "config.json", _to_hf(model) | special)


def load(
    folder: str | os.PathLike, dtype: torch.dtype | None = None, device: torch.device | str = "cpu"
) -> Transformer:
    """Read a language model; dtype defaults to what is stored (float16 is read as float32).

    Raises UserError naming the file for what is missing, damaged, or of another architecture.
    """
    return load_kind(Transformer, folder, dtype, device)


def load_kind(
    kind: type[Kind],
    folder: str | os.PathLike,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
) -> Kind:
    """Read a model of a kind, Transformer or RewardModel, as `load` does; UserError where it is of the other."""
    folder = Path(folder)
    if not (folder / "config.json").exists():
        raise UserError(f"{folder / 'config.json'} does not exist; expected a Hugging Face model directory")
    config, stored = _from_hf(folder / "config.json", kind)
    model = kind(config, seed=None, dtype=dtype or stored, device=device)
    wanted = dict(parts(model))
    for path, names in _weight_files(folder):
        try:
            with safe_open(path, framework="pt") as file:
                for name in names or file.keys():
                    if (part := wanted.pop(name, None)) is not None:
                        fill(part, file.get_tensor(name), name, path)
                    elif name.startswith("model.layers.") and not name.endswith(DERIVED):
                        raise UserError(f"{path}: the model that config.json asks for has no {name}")
        except (SafetensorError, OSError) as error:
            raise UserError(
                f"{path}: damaged or unreadable weights ({error}); fetch or save it again"
            ) from None
    if wanted:
        raise UserError(f"{folder}: the weights lack {next(iter(wanted))} and {len(wanted) - 1} more tensors")
    return model


def parts(model: Transformer) -> Iterator[tuple[str, torch.Tensor]]:
    """(Hugging Face name, view of our parameter) for every tensor on disk."""
    c = model.config
    for name, theirs in MODEL_NAMES.items():
        if (parameter := getattr(model, name)) is not None:
            scores = name == "head" and isinstance(model, RewardModel)
            yield SCORE_HEAD if scores else theirs, parameter.detach()
    for i, layer in enumerate(model.layers):
        prefix = f"model.layers.{i}."
        for name, theirs in LAYER_NAMES.items():
            if (parameter := getattr(layer, name)) is not None:
                yield prefix + theirs, parameter.detach()
        sizes = [n * c.head_dim for n in (c.heads, c.kv_heads, c.kv_heads)]
        for kind, fused in (("weight", layer.qkv), ("bias", layer.qkv_bias)):
            if fused is not None:
                for letter, part in zip("qkv", fused.detach().split(sizes), strict=True):  # type: ignore
                    yield f"{prefix}self_attn.{letter}_proj.{kind}", part
        for side, part in zip(("gate", "up"), layer.gate_up.detach().chunk(2), strict=True):  # type: ignore
            yield f"{prefix}mlp.{side}_proj.weight", part


def fill(part: torch.Tensor, tensor: torch.Tensor, name: str, path: Path) -> None:
    """Copy a tensor of a file into its place; UserError where the shapes differ."""
    if tensor.shape != part.shape:
        asks = "config.json asks for" if path.suffix == ".safetensors" else "its sizes ask for"
        told = f"{name} is {tuple(tensor.shape)}, {asks} {tuple(part.shape)}"
        raise UserError(f"{path}: {told}")
    part.copy_(tensor)


def _shards(model: Transformer, limit: int) -> Iterator[dict[str, torch.Tensor]]:
    shard: dict[str, torch.Tensor] = {}
    size = 0
    for name, part in parts(model):
        if shard and size + part.nbytes > limit:
            yield shard
            shard, size = {}, 0
        shard[name] = part.cpu().contiguous()
        size += part.nbytes
    yield shard


def _weight_files(folder: Path) -> Iterator[tuple[Path, list[str] | None]]:
    """(file, the tensors the index expects there, or None for all)."""
    index = folder / "model.safetensors.index.json"
    if not index.exists():
        if not (folder / "model.safetensors").exists():
            raise UserError(f"{folder}: no model.safetensors there; expected a Hugging Face model directory")
        yield folder / "model.safetensors", None
        return
    files: dict[str, list[str]] = {}
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(file, str) for file in places.values()):
        raise UserError(f"{index}: expected a weight_map from tensors to files; fetch or save it again")
    for name, file in places.items():
        files.setdefault(file, []).append(name)
    for file, names in files.items():
        if not (folder / file).exists():
            raise UserError(f"{folder / file} is missing; the index beside it names it")
        yield folder / file, names


def _to_hf(model: Transformer) -> dict[str, Any]:
    c = model.config
    family = "qwen3" if c.qk_norm else "qwen2" if c.qkv_bias else "llama"
    if c.qk_norm and c.qkv_bias:
        raise UserError("no Hugging Face architecture here has both q/k norms and q/k/v biases; drop one")
    scores = isinstance(model, RewardModel)
    labels = {"id2label": {"0": "reward"}, "label2id": {"reward": 0}} if scores else {}
    return {
        "architectures": [FAMILIES[family] + (SCORES if scores else WRITES)],
        "model_type": family,
        **labels,
        "vocab_size": c.vocab_size,
        "hidden_size": c.hidden_size,
        "intermediate_size": c.intermediate_size,
        "num_hidden_layers": c.layers,
        "num_attention_heads": c.heads,
        "num_key_value_heads": c.kv_heads,
        "head_dim": c.head_dim,
        "hidden_act": "silu",
        "rms_norm_eps": c.eps,
        "rope_theta": c.rope_theta,
        "rope_parameters": _rope_to_hf(c),
        "max_position_embeddings": c.max_position_embeddings,
        "tie_word_embeddings": c.tie_embeddings,
        "attention_bias": False,
        "use_cache": True,
        "dtype": str(model.dtype).removeprefix("torch."),
    }


def _rope_to_hf(c: ModelConfig) -> dict[str, Any]:
    if c.rope_scaling is None:
        return {"rope_type": "default", "rope_theta": c.rope_theta}
    if not isinstance(c.rope_scaling, Llama3Scaling):
        raise UserError("rotary frequencies with divisors of their own (from a GGUF file) have no name here")
    return {
        "rope_type": "llama3",
        "rope_theta": c.rope_theta,
        "factor": c.rope_scaling.factor,
        "low_freq_factor": c.rope_scaling.low_frequency,
        "high_freq_factor": c.rope_scaling.high_frequency,
        "original_max_position_embeddings": c.rope_scaling.original_context,
    }


def _rope_scaling(rope: dict[str, Any]) -> Llama3Scaling | None:
    if rope.get("rope_type", rope.get("type")) != "llama3":
        return None
    return Llama3Scaling(
        float(rope["factor"]),
        float(rope["low_freq_factor"]),
        float(rope["high_freq_factor"]),
        rope["original_max_position_embeddings"],
    )


def _from_hf(path: Path, kind: type[Transformer]) -> tuple[ModelConfig, torch.dtype]:
    table = _told(read_json(path))
    named = table.get("architectures")
    scores = isinstance(named, list) and any(str(name).endswith(SCORES) for name in named)
    if scores != issubclass(kind, RewardModel):
        told = "reward model, which scores answers and writes none" if scores else "language model"
        wanted = "a language model" if scores else f"a reward model, whose architecture is ...{SCORES}"
        raise UserError(f"{path.parent} is a {told}; expected {wanted}")
    family = table.get("model_type")
    if family not in tuple(FAMILIES):
        raise UserError(f"{path}: model_type {family!r} is none of {', '.join(FAMILIES)}")
    # where both are there, transformers reads the older name
    rope = table.get("rope_scaling") or table.get("rope_parameters") or {}
    if not isinstance(rope, dict):
        raise UserError(f"{path}: rope_parameters = {rope!r}: expected an object")
    rope = _told(rope)
    for values, keys, types, expected in (
        (table, SIZES, (int,), "an integer"),
        (table, NUMBERS, (int, float), "a number"),
        (table, SWITCHES, (bool,), "true or false"),
        (rope, ROPE_SIZES, (int,), "an integer"),
        (rope, ROPE_NUMBERS, (int, float), "a number"),
    ):
        for key in keys:
            if key in values and type(values[key]) not in types:
                raise UserError(f"{path}: {key} = {values[key]!r}: expected {expected}")
    _only_plain(table, rope, path)
    try:
        hidden, heads = table["hidden_size"], table["num_attention_heads"]
        config = ModelConfig(
            vocab_size=table["vocab_size"],
            hidden_size=hidden,
            layers=table["num_hidden_layers"],
            heads=heads,
            kv_heads=table.get("num_key_value_heads", heads),
            head_dim=table.get("head_dim", hidden // max(heads, 1)),
            intermediate_size=table["intermediate_size"],
            rope_theta=float(rope.get("rope_theta", table.get("rope_theta", 10_000.0))),
            rope_scaling=_rope_scaling(rope),
            eps=float(table.get("rms_norm_eps", 1e-6)),
            qk_norm=family == "qwen3",
            qkv_bias=family == "qwen2",
            tie_embeddings=table.get("tie_word_embeddings", False),
            max_position_embeddings=table.get("max_position_embeddings", 2048),
        )
    except KeyError as error:
        raise UserError(f"{path}: the key {error} is missing") from None
    except (OverflowError, ValueError) as error:
        raise UserError(f"{path}: {error}") from None
    stored = table.get("dtype") or table.get("torch_dtype") or "float32"
    return config, torch.bfloat16 if stored == "bfloat16" else torch.float32


def _told(table: dict[str, Any]) -> dict[str, Any]:
    """A null says as much as a key that is not there."""
    return {key: value for key, value in table.items() if value is not None}


def _only_plain(table: dict[str, Any], rope: dict[str, Any], path: Path) -> None:
    """Refuse what the family's variants may ask for and this model does not do."""
    full = ["full_attention"] * table.get("num_hidden_layers", 0)
    asked = {
        "hidden_act": table.get("hidden_act", "silu") != "silu",
        "rope_scaling": rope.get("rope_type", rope.get("type", "default")) not in ("default", "llama3"),
        "attention_bias": table.get("attention_bias", False),
        "mlp_bias": table.get("mlp_bias", False),
        "use_sliding_window": table.get("use_sliding_window", False),
        "layer_types": table.get("layer_types", full) != full,
        "quantization_config": table.get("quantization_config"),
    }
    for key, unsupported in asked.items():
        if unsupported:
            raise UserError(f"{path}: {key} = {table.get(key, rope)} is not supported by this model")


def _special_ids(path: Path) -> dict[str, Any]:
    """bos, eos and pad ids of the tokenizer beside the model, for whoever generates with the checkpoint."""
    if not path.exists():
        return {}
    ids = {token["content"]: token["id"] for token in read_json(path).get("added_tokens", [])}
    ends = [ids[name] for name in ("<|end|>", "<|endoftext|>") if name in ids]
    found = {"bos": ids.get("<|endoftext|>"), "eos": ends, "pad": ids.get("<|pad|>")}
    return {f"{key}_token_id": value for key, value in found.items() if value not in (None, [])}
