"""The ops: torch tensors in, torch tensors out, each with a reference and one file a backend.

    from pyengine.kernels import rmsnorm, use_backend

Imported as `pyengine.kernels` only. `kernels` is the name of another project, which transformers looks for; run
from a checkout it finds this folder, and must find it empty. Never imports the rest of pyengine.
"""

if __name__ == "pyengine.kernels":
    from ._native import set_threads
    from ._select import use_backend
    from .adamw import adamw_, grad_norm
    from .attention import PAGE_SIZE, attention, attention_append, attention_paged, new_pages, write_pages
    from .cross_entropy import linear_cross_entropy
    from .decoder import decoder_step
    from .embedding import embedding
    from .linear import PackedWeight, linear, norm_linear, pack_weight
    from .muon import muon_
    from .quantized import QuantizedWeight, linear_quantized, pack_quantized, stack_quantized
    from .rmsnorm import rmsnorm
    from .rope import rope, rope_append, rope_pages
    from .sample import adjust_logits, sample, sample_ids, sampled_logprob, top_logprobs, uniform
    from .swiglu import swiglu

__all__ = [
    "PAGE_SIZE",
    "PackedWeight",
    "QuantizedWeight",
    "adamw_",
    "adjust_logits",
    "attention",
    "attention_append",
    "attention_paged",
    "decoder_step",
    "embedding",
    "grad_norm",
    "linear",
    "linear_cross_entropy",
    "linear_quantized",
    "muon_",
    "new_pages",
    "norm_linear",
    "pack_quantized",
    "pack_weight",
    "rmsnorm",
    "rope",
    "rope_append",
    "rope_pages",
    "sample",
    "sample_ids",
    "sampled_logprob",
    "set_threads",
    "stack_quantized",
    "swiglu",
    "top_logprobs",
    "uniform",
    "use_backend",
    "write_pages",
]
