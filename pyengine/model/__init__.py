"""The language model: the Llama / Qwen family, written once on the ops, kept as Hugging Face directories.

config.py sizes | transformer.py the model | reward.py one that scores texts | hf.py load and save directories |
gguf.py load GGUF files | quantized.py a model whose matrices stay quantised
"""

import os
from pathlib import Path

import torch

from . import gguf, hf
from .config import ModelConfig
from .hf import load_kind, save
from .quantized import QuantizedTransformer
from .reward import RewardModel
from .transformer import Transformer, Weights, over_documents

__all__ = [
    "ModelConfig",
    "QuantizedTransformer",
    "RewardModel",
    "Transformer",
    "Weights",
    "load",
    "load_kind",
    "over_documents",
    "save",
]


def load(
    path: str | os.PathLike, dtype: torch.dtype | None = None, device: torch.device | str = "cpu"
) -> Transformer:
    """Read a Hugging Face directory or a .gguf file; see hf.load and gguf.load for dtype and errors."""
    return (gguf if Path(path).suffix == ".gguf" else hf).load(path, dtype, device)
