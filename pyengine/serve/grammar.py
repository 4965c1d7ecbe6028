"""JSON by a schema: which ids may come next, from llguidance (`pip install pyengine-llm[grammar]`).

    grammar = Grammars(tokenizer, end).json(schema)      # goes into SamplingParams.grammar

The library reads the vocabulary once; compiling a schema takes milliseconds, a mask tens of microseconds.
"""

import json
from typing import Any

import numpy as np

from ..errors import UserError
from ..text import Tokenizer


class Grammars:
    """Makes grammars for one tokenizer. end: the ids that end an answer."""

    def __init__(self, tokenizer: Tokenizer, end: tuple[int, ...]):
        try:
            import llguidance
        except ImportError:
            raise UserError(
                "response_format needs llguidance; install it with `pip install pyengine-llm[grammar]`"
            ) from None
        self._library = llguidance
        vocabulary: Any = Vocabulary(tokenizer, end[0])
        self._tokenizer = llguidance.LLTokenizer(vocabulary, eos_token=list(end))

    def json(self, schema: dict[str, Any]) -> "JsonGrammar":
        """Answers that are JSON by this schema, without needless white space; UserError if it cannot be kept to."""
        matcher = self._library.LLMatcher
        try:
            text = matcher.grammar_from_json_schema(
                json.dumps(schema), defaults={"whitespace_flexible": False}
            )
        except ValueError as error:
            raise UserError(f"the schema cannot be kept to: {error}") from None
        if problem := matcher.validate_grammar(text, self._tokenizer):
            raise UserError(f"the schema cannot be kept to: {problem.splitlines()[0]}")
        return JsonGrammar(lambda: matcher(self._tokenizer, text))


class JsonGrammar:
    """A compiled schema; each answer starts a matcher of its own."""

    def __init__(self, make):
        self._make = make

    def start(self) -> "JsonMatcher":
        return JsonMatcher(self._make())


class JsonMatcher:
    """Follows one answer (engine.sampling.Matcher)."""

    def __init__(self, matcher):
        self._matcher = matcher

    def allow(self, words: np.ndarray) -> None:
        self._matcher.unsafe_compute_mask_ptr(words.ctypes.data, words.nbytes)

    def accept(self, token: int) -> None:
        if not self._matcher.consume_token(token):
            raise ValueError(self._matcher.get_error() or f"id {token} is not allowed")


class Vocabulary:
    """A tokenizer as llguidance asks for it."""

    bos_token_id = None
    is_tokenizer_wrapper = True

    def __init__(self, tokenizer: Tokenizer, end: int):
        self.eos_token_id = end
        self.special_token_ids = sorted(tokenizer.special_ids.values())
        self.tokens = [tokenizer.token_bytes(i) for i in range(tokenizer.vocab_size)]
        self._encode = tokenizer.encode_bytes

    def __call__(self, text: str | bytes) -> list[int]:
        return self._encode(text.encode() if isinstance(text, str) else text)
