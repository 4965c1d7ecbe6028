"""JSON by a schema, and calls of tools: which ids may come next, from llguidance (`pip install pyengine-llm[grammar]`).

    grammar = Grammars(tokenizer, end).json(schema)      # goes into SamplingParams.grammar

The library reads the vocabulary once; compiling a schema takes milliseconds, a mask tens of microseconds.
"""

import json
from collections.abc import Mapping, Sequence
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
                "JSON by a schema needs llguidance; install it with `pip install pyengine-llm[grammar]`"
            ) from None
        self._library = llguidance
        vocabulary: Any = Vocabulary(tokenizer, end[0])
        self._tokenizer = llguidance.LLTokenizer(vocabulary, eos_token=list(end))

    def call(self, functions: Sequence[Mapping[str, Any]]) -> "JsonGrammar":
        """Answers that call one of OpenAI's functions: {"name": ..., "arguments": ...}, by its `parameters`, spaced as
        models are taught to write calls; UserError if these cannot be kept to."""
        calls = [
            {
                "type": "object",
                "properties": {
                    "name": {"const": function["name"]},
                    "arguments": {"$ref": f"#/$defs/{i}"},
                },
                "required": ["name", "arguments"],
                "additionalProperties": False,
            }
            for i, function in enumerate(functions)
        ]
        given = {
            str(i): _moved(function.get("parameters") or {"type": "object"}, f"#/$defs/{i}")
            for i, function in enumerate(functions)
        }
        return self.json({"anyOf": calls, "$defs": given}, item_separator=", ", key_separator=": ")

    def json(self, schema: Mapping[str, Any], **separators: str) -> "JsonGrammar":
        """Answers that are JSON by this schema, without needless white space; UserError if it cannot be kept to.

        separators: item_separator and key_separator, if not the shortest.
        """
        matcher = self._library.LLMatcher
        spacing: Any = {"whitespace_flexible": False, **separators}
        try:
            text = matcher.grammar_from_json_schema(json.dumps(schema), defaults=spacing)
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


def _moved(schema: Any, to: str) -> Any:
    """A schema as it is when it stands at the pointer `to` of another: its references to itself begin there."""
    if isinstance(schema, list):
        return [_moved(part, to) for part in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        key: to + part[1:]
        if key == "$ref" and isinstance(part, str) and part.startswith("#")
        else _moved(part, to)
        for key, part in schema.items()
    }


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
