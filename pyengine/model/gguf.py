"""GGUF files as models: the Llama, Qwen2 and Qwen3 architectures, from one file that also holds the tokenizer.

    model = load("SmolLM2-135M-Instruct.Q4_1.gguf")

Names and sizes are translated to ours. The file format orders the rows of Llama's query and key matrices for
rotary pairs that are neighbours; they are put back into halves here, as Hugging Face has them. What a file asks
for and this model does not do is refused by name.
"""

import os
from typing import Any

import numpy as np
import torch

from .. import gguf
from ..errors import UserError
from .config import ModelConfig
from .hf import fill, parts
from .transformer import Transformer

ARCHITECTURES = ("llama", "qwen2", "qwen3")
# The file's name of each Hugging Face name; "blk.N." stands for "model.layers.N.".
NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
FREQUENCIES = "rope_freqs.weight"


def load(
    path: str | os.PathLike, dtype: torch.dtype | None = None, device: torch.device | str = "cpu"
) -> Transformer:
    """Read a model, every block decoded; dtype defaults to bfloat16 where all matrices are, else float32.

    Raises UserError naming the file for what is damaged, missing, or of another architecture.
    """
    file = gguf.read(path)
    config = config_of(file)
    kinds = {tensor.kind.name for tensor in file.tensors.values() if len(tensor.shape) == 2}
    dtype = dtype or (torch.bfloat16 if kinds == {"BF16"} else torch.float32)
    model = Transformer(config, seed=None, dtype=dtype, device=device)
    left = set(file.tensors) - {FREQUENCIES}
    for name, part in parts(model):
        tensor = tensor_of(file, name)
        numbers = np.ascontiguousarray(in_halves(file, config, tensor, tensor.numbers()))
        fill(part, torch.from_numpy(numbers), tensor.name, file.path)
        left.discard(tensor.name)
    refuse_left(file, left)
    return model


def tensor_of(file: gguf.File, name: str) -> gguf.Tensor:
    """The tensor that Hugging Face calls `name`."""
    theirs = name_of(name)
    if theirs not in file.tensors:
        raise UserError(f"{file.path}: the tensor {theirs} is missing; fetch or write the file again")
    return file.tensors[theirs]


def name_of(name: str) -> str:
    """The file's name of a tensor that Hugging Face calls `name`."""
    stem, kind = name.rsplit(".", 1)
    layer = ""
    if stem.startswith("model.layers."):
        number, stem = stem.removeprefix("model.layers.").split(".", 1)
        layer = f"blk.{number}."
    return f"{layer}{NAMES[stem]}.{kind}"


def in_halves(file: gguf.File, config: ModelConfig, tensor: gguf.Tensor, rows: np.ndarray) -> np.ndarray:
    """`rows` of a tensor, whose first dimension is its outputs, in Hugging Face's order."""
    heads = {"attn_q": config.heads, "attn_k": config.kv_heads}.get(tensor.name.split(".")[-2])
    if heads is None or file.values["general.architecture"] != "llama" or len(rows) % (2 * heads):
        return rows
    pairs = rows.reshape(heads, -1, 2, *rows.shape[1:])
    return pairs.swapaxes(1, 2).reshape(rows.shape)


def in_pairs(config: ModelConfig, rows: np.ndarray, heads: int) -> np.ndarray:
    """The inverse of in_halves for a matrix of `heads` heads."""
    return rows.reshape(heads, 2, -1, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def refuse_left(file: gguf.File, left: set[str]) -> None:
    """UserError for tensors that the model has no place for."""
    if left:
        raise UserError(
            f"{file.path}: the tensor {min(left)} (of {len(left)}) has no place in this architecture here; it "
            "would be ignored, so the model is refused"
        )


def config_of(file: gguf.File) -> ModelConfig:
    """The sizes in a file's values."""
    architecture = file.values.get("general.architecture")
    if architecture not in ARCHITECTURES:
        raise UserError(f"{file.path}: architecture {architecture!r} is none of {', '.join(ARCHITECTURES)}")

    def value(name: str, default: Any = None) -> Any:
        found = file.values.get(f"{architecture}.{name}", default)
        if found is None:
            raise UserError(f"{file.path}: the value {architecture}.{name} is missing")
        return found

    scaling = value("rope.scaling.type", "none")
    unsupported = {
        "rope.scaling.type": scaling if scaling != "none" else None,
        "expert_count": value("expert_count", 0) or None,
        "attention.sliding_window": value("attention.sliding_window", 0) or None,
    }
    for name, asked in unsupported.items():
        if asked is not None:
            raise UserError(f"{file.path}: {architecture}.{name} = {asked} is not supported by this model")
    try:
        hidden, heads = value("embedding_length"), value("attention.head_count")
        head_dim = value("attention.key_length", hidden // heads)
        if value("rope.dimension_count", head_dim) != head_dim:
            raise ValueError(f"rotary embedding of {value('rope.dimension_count')} of {head_dim} channels")
        divisors = file.tensors.get(FREQUENCIES)
        return ModelConfig(
            vocab_size=tensor_of(file, "model.embed_tokens.weight").shape[0],
            hidden_size=hidden,
            layers=value("block_count"),
            heads=heads,
            kv_heads=value("attention.head_count_kv", heads),
            head_dim=head_dim,
            intermediate_size=value("feed_forward_length"),
            rope_theta=float(value("rope.freq_base", 10_000.0)),
            rope_scaling=tuple(divisors.numbers().tolist()) if divisors else None,
            eps=float(value("attention.layer_norm_rms_epsilon")),
            qk_norm=architecture == "qwen3",
            qkv_bias="blk.0.attn_q.bias" in file.tensors,
            tie_embeddings="output.weight" not in file.tensors,
            max_position_embeddings=value("context_length"),
        )
    except (TypeError, ValueError, ZeroDivisionError) as error:
        raise UserError(f"{file.path}: its sizes do not fit together: {error}") from None
