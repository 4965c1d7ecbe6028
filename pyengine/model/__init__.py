"""The language model: the Llama / Qwen3 family, written once on the ops, kept as Hugging Face directories.

config.py sizes | transformer.py the model | hf.py load and save
"""

from .config import ModelConfig
from .hf import load, save
from .transformer import Transformer, Weights

__all__ = ["ModelConfig", "Transformer", "Weights", "load", "save"]
