"""The inference engine: paged KV cache, continuous batching, sampling, tools. See engine.py."""

from .engine import Engine, Stats, Token
from .sampling import Completion, SamplingParams
from .tools import Tools

__all__ = ["Completion", "Engine", "SamplingParams", "Stats", "Token", "Tools"]
