"""The inference engine: paged KV cache, continuous batching, sampling, tools. See engine.py."""

from .constraint import Grammar, Matcher
from .engine import Engine, Stats, Token
from .sampling import Completion, Detail, SamplingParams
from .tools import Tools

__all__ = [
    "Completion",
    "Detail",
    "Engine",
    "Grammar",
    "Matcher",
    "SamplingParams",
    "Stats",
    "Token",
    "Tools",
]
