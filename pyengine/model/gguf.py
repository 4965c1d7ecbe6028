"""GGUF files as models: the Llama, Qwen2 and Qwen3 architectures, from one file that also holds the tokenizer.

    model = load("SmolLM2-135M-Instruct.Q4_1.gguf")
    save(model, "mine.gguf", "Q8_0", tokenizer)            # for ourselves, llama.cpp and its relatives

Names and sizes are translated to ours. The file format orders the rows of Llama's query and key matrices for
rotary pairs that are neighbours; they are put back into halves here, as Hugging Face has them. What a file asks
for and this model does not do is refused by name.
"""

import os
from typing import Any

import numpy as np
import torch

from .. import gguf, kernels
from ..errors import UserError
from ..text import Tokenizer
from ..text.formats import gguf_values
from .config import ModelConfig
from .hf import fill, parts
from .quantized import COMPUTED, QuantizedTransformer
from .transformer import LayerWeights, Transformer, Weights

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
FILE_TYPES = {"F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q8_0": 7, "BF16": 32}


def load(
    path: str | os.PathLike, dtype: torch.dtype | None = None, device: torch.device | str = "cpu"
) -> Transformer:
    """Read a model. Without a dtype quantised matrices stay so (a QuantizedTransformer).

    With one every block is decoded. For files that quantise nothing it defaults to bfloat16 where all matrices
    are, else to float32. Raises UserError naming the file for what is damaged, missing, or of another
    architecture.
    """
    file = gguf.read(path)
    config = config_of(file)
    kinds = {tensor.kind.name for tensor in file.tensors.values() if len(tensor.shape) == 2}
    if dtype is None and not kinds <= {"F32", "F16", "BF16"}:
        return _quantized(file, config, device)
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


def _quantized(file: gguf.File, config: ModelConfig, device: torch.device | str) -> QuantizedTransformer:
    """The model with each quantised matrix as it is stored, everything else in COMPUTED."""
    left = set(file.tensors) - {FREQUENCIES}

    def find(name: str) -> gguf.Tensor:
        tensor = tensor_of(file, name)
        left.discard(tensor.name)
        return tensor

    def vector(name: str, size: int) -> torch.Tensor:
        tensor = find(name)
        numbers = in_halves(file, config, tensor, tensor.numbers())
        return _expect(file, name, torch.from_numpy(np.array(numbers)), (size,)).to(device, COMPUTED)

    def matrix(name: str, rows: int, columns: int) -> gguf.Blocks | torch.Tensor:
        tensor = find(name)
        _expect(file, name, tensor, (rows, columns))
        if tensor.kind.decode is None:
            wide = torch.from_numpy(np.array(in_halves(file, config, tensor, tensor.numbers())))
            return wide.to(device, COMPUTED)
        found = tensor.blocks()
        minimum = None if found.minimum is None else in_halves(file, config, tensor, found.minimum)
        codes, scale = (in_halves(file, config, tensor, part) for part in (found.codes, found.scale))
        return gguf.Blocks(codes, found.zero, scale, minimum)

    c, d = config, config.head_dim
    layers = []
    for i in range(c.layers):
        at = f"model.layers.{i}."
        sizes = {"q": c.heads * d, "k": c.kv_heads * d, "v": c.kv_heads * d}
        attention = at + "self_attn."
        qkv = [matrix(f"{attention}{x}_proj.weight", size, c.hidden_size) for x, size in sizes.items()]
        biases = (
            [vector(f"{attention}{x}_proj.bias", size) for x, size in sizes.items()] if c.qkv_bias else []
        )
        pair = [
            matrix(f"{at}mlp.{x}_proj.weight", c.intermediate_size, c.hidden_size) for x in ("gate", "up")
        ]
        layers.append(
            LayerWeights(
                attention_norm=vector(at + "input_layernorm.weight", c.hidden_size),
                qkv=_joined(qkv, device),
                qkv_bias=torch.cat(biases) if biases else None,
                q_norm=vector(attention + "q_norm.weight", d) if c.qk_norm else None,
                k_norm=vector(attention + "k_norm.weight", d) if c.qk_norm else None,
                out=_joined([matrix(attention + "o_proj.weight", c.hidden_size, c.heads * d)], device),
                mlp_norm=vector(at + "post_attention_layernorm.weight", c.hidden_size),
                gate_up=_joined(pair, device),
                down=_joined(
                    [matrix(at + "mlp.down_proj.weight", c.hidden_size, c.intermediate_size)], device
                ),
            )
        )
    shape = c.vocab_size, c.hidden_size
    table = matrix("model.embed_tokens.weight", *shape)
    head = _joined([table if c.tie_embeddings else matrix("lm_head.weight", *shape)], device)
    embedding: Any = table
    if isinstance(table, gguf.Blocks):
        embedding = head if c.tie_embeddings else _joined([table], device)
    assert not isinstance(embedding, kernels.PackedWeight)
    norm = vector("model.norm.weight", c.hidden_size)
    refuse_left(file, left)
    return QuantizedTransformer(config, Weights(embedding, layers, norm, head))


def _expect(file: gguf.File, name: str, tensor: Any, shape: tuple[int, ...]) -> Any:
    if tuple(tensor.shape) != shape:
        told = f"{name_of(name)} is {tuple(tensor.shape)}, its sizes ask for {shape}"
        raise UserError(f"{file.path}: {told}")
    return tensor


def _joined(
    parts: list[gguf.Blocks | torch.Tensor], device: torch.device | str
) -> kernels.QuantizedWeight | kernels.PackedWeight:
    """The rows of all parts as one weight: quantised, unless one of them is not."""
    blocks = [part for part in parts if isinstance(part, gguf.Blocks)]
    if len(blocks) < len(parts):
        wide = [p if isinstance(p, torch.Tensor) else torch.from_numpy(p.numbers()) for p in parts]
        return kernels.pack_weight(torch.cat([part.to(device, COMPUTED) for part in wide]))
    stored = {(b.zero, b.group, b.scale.dtype, b.minimum is None) for b in blocks}
    if len(stored) > 1:
        return kernels.stack_quantized([_packed(b.codes, b.zero, b.scale, b.minimum, device) for b in blocks])
    codes, scale = (np.concatenate([getattr(b, name) for b in blocks]) for name in ("codes", "scale"))
    minima = [b.minimum for b in blocks if b.minimum is not None]
    return _packed(codes, blocks[0].zero, scale, np.concatenate(minima) if minima else None, device)


def _packed(
    codes: np.ndarray,
    zero: int,
    scale: np.ndarray,
    minimum: np.ndarray | None,
    device: torch.device | str,
) -> kernels.QuantizedWeight:
    codes_there, scale_there, minimum_there = (
        None if part is None else torch.from_numpy(np.ascontiguousarray(part)).to(device)
        for part in (codes, scale, minimum)
    )
    assert codes_there is not None and scale_there is not None
    return kernels.pack_quantized(codes_there, zero, scale_there, minimum_there)


def save(
    model: Transformer,
    path: str | os.PathLike,
    kind: str,
    tokenizer: Tokenizer | None = None,
    head_kind: str | None = None,
    name: str = "pyengine",
) -> None:
    """Write a model with its matrices as `kind`: F32, F16, BF16, Q8_0, Q4_0 or Q4_1.

    The embedding and the output layer are stored as head_kind, by default Q8_0 under 4 bits; norms and biases as
    F32; a matrix whose rows are no whole number of blocks as F16. Raises UserError for a model that none of the
    architectures describes.
    """
    c = model.config
    if isinstance(model, QuantizedTransformer):
        raise UserError("a quantised model is not quantised again; load it with dtype=torch.float32")
    if c.qk_norm and c.qkv_bias:
        raise UserError("no architecture here has both q/k norms and q/k/v biases; drop one")
    architecture = "qwen3" if c.qk_norm else "qwen2" if c.qkv_bias else "llama"
    head_kind = head_kind or ("Q8_0" if kind.startswith("Q4") else kind)
    sizes = {
        "context_length": c.max_position_embeddings,
        "embedding_length": c.hidden_size,
        "block_count": c.layers,
        "feed_forward_length": c.intermediate_size,
        "attention.head_count": c.heads,
        "attention.head_count_kv": c.kv_heads,
        "attention.key_length": c.head_dim,
        "attention.value_length": c.head_dim,
        "attention.layer_norm_rms_epsilon": c.eps,
        "rope.dimension_count": c.head_dim,
        "rope.freq_base": c.rope_theta,
        "vocab_size": c.vocab_size,
    }
    values = {
        "general.architecture": architecture,
        "general.name": name,
        "general.file_type": FILE_TYPES[kind],
        "general.quantization_version": 2,
        **{f"{architecture}.{key}": value for key, value in sizes.items()},
        **(gguf_values(tokenizer, c.vocab_size) if tokenizer else {"tokenizer.ggml.model": "no_vocab"}),
    }
    tensors = []
    for theirs, part in parts(model):
        numbers, stem = part.float().numpy(), theirs.split(".")[-2]
        heads = {"q_proj": c.heads, "k_proj": c.kv_heads}.get(stem)
        if heads and architecture == "llama":
            numbers = in_pairs(numbers, heads)
        wanted = head_kind if stem in ("embed_tokens", "lm_head") else kind
        if numbers.ndim == 1:
            wanted = "F32"
        elif numbers.shape[1] % gguf.KINDS[wanted].numbers:
            wanted = "F16"
        tensors.append((name_of(theirs), gguf.KINDS[wanted], numbers))
    if c.rope_divisors:
        tensors.append((FREQUENCIES, gguf.KINDS["F32"], np.array(c.rope_divisors, np.float32)))
    gguf.write(path, values, tensors)


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


def in_pairs(rows: np.ndarray, heads: int) -> np.ndarray:
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
