"""CTranslate2 as a peer: our weights in its format, and its generator asked with ids."""

from collections.abc import Sequence
from pathlib import Path

import ctranslate2
import numpy as np

from pyengine.model import Transformer
from pyengine.model.hf import parts


def convert(model: Transformer, folder: Path) -> Path:
    """Write a Llama-shaped model as CTranslate2 reads it; token i is called "i"."""
    c = model.config
    assert not c.qk_norm and not c.qkv_bias and not c.rope_scaling
    spec = ctranslate2.specs.TransformerDecoderModelSpec.from_config(
        c.layers, c.heads, activation=ctranslate2.specs.Activation.SWISH, ffn_glu=True, rms_norm=True,
        rotary_dim=0, rotary_interleave=False, rotary_base=c.rope_theta, num_heads_kv=c.kv_heads, head_dim=c.head_dim,
    )  # fmt: skip
    tensors = {name: part.float().contiguous().numpy() for name, part in parts(model)}
    decoder = spec.decoder
    decoder.scale_embeddings = False
    decoder.embeddings.weight = tensors["model.embed_tokens.weight"]
    decoder.projection.weight = tensors.get("lm_head.weight", tensors["model.embed_tokens.weight"])
    decoder.layer_norm.gamma = tensors["model.norm.weight"]
    for i, layer in enumerate(decoder.layer):

        def find(name: str, layer: int = i) -> np.ndarray:
            return tensors[f"model.layers.{layer}.{name}.weight"]

        attention, mlp = layer.self_attention, layer.ffn
        attention.layer_norm.gamma = find("input_layernorm")
        attention.linear[0].weight = np.concatenate([find(f"self_attn.{x}_proj") for x in "qkv"])
        attention.linear[1].weight = find("self_attn.o_proj")
        mlp.layer_norm.gamma = find("post_attention_layernorm")
        mlp.linear_0.weight, mlp.linear_0_noact.weight = find("mlp.gate_proj"), find("mlp.up_proj")
        mlp.linear_1.weight = find("mlp.down_proj")
    names = [str(i) for i in range(c.vocab_size)]
    spec.register_vocabulary(names)
    spec.config.bos_token = spec.config.eos_token = spec.config.unk_token = names[0]
    spec.config.layer_norm_epsilon = c.eps
    spec.validate()
    spec.optimize()
    folder.mkdir()
    spec.save(str(folder))
    return folder


class Generator:
    """A converted model on `threads` threads, its weights in int8, bfloat16 or float32."""

    def __init__(self, folder: Path, kind: str, threads: int):
        self._generator = ctranslate2.Generator(str(folder), compute_type=kind, intra_threads=threads)

    def generate(self, prompts: Sequence[Sequence[int]], new: int) -> None:
        """Exactly `new` ids after each prompt, greedily, all at once."""
        names = [[str(i) for i in ids] for ids in prompts]
        self._generator.generate_batch(names, max_length=new, min_length=new, include_prompt_in_result=False)

    def logits(self, ids: Sequence[int]) -> np.ndarray:
        """(len(ids), V)."""
        found = self._generator.forward_batch([list(ids)])
        return np.array(found.to(ctranslate2.DataType.float32))[0]
