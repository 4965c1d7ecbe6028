"""Text and tokens: tokenizer, chat template, the text side of the search tool. The engine sees ids only."""

from .chat import SPECIAL_TOKENS, render
from .search import SearchTool
from .tokenizer import Tokenizer

__all__ = ["SPECIAL_TOKENS", "SearchTool", "Tokenizer", "render"]
