"""What an answer must keep to (JSON by a schema, a regular expression, one of some texts, a grammar, calls of tools):
which ids may come next, from llguidance (`pip install pyengine-llm[grammar]`).

    grammar = Grammars(tokenizer, end).json(schema)      # goes into SamplingParams.grammar

The library reads the vocabulary once; compiling takes milliseconds, a mask tens of microseconds. Where a mask takes
so long that others would notice (some expressions with large counts), the constraint is refused, or the answer ends.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ..errors import UserError
from ..text import Tokenizer

SLOWEST = 0.5  # seconds that one mask may take a processor
# Expressions that a grammar may come to when it is read, at 2.5 million a second: of (a{1000}){1000} they are counted
# before its first mask, which nothing else holds up. A schema of 1,000 properties with names of 20 letters fits.
FUEL = 100_000
MOST_CHOICES = 1500  # texts, at 40 us each; the library has room for 2,000


class Grammars:
    """Makes grammars for one tokenizer. end: the ids that end an answer."""

    def __init__(self, tokenizer: Tokenizer, end: tuple[int, ...]):
        try:
            import llguidance
        except ImportError:
            raise UserError(
                "constrained answers need llguidance; install it with `pip install pyengine-llm[grammar]`"
            ) from None
        self._library = llguidance
        vocabulary: Any = Vocabulary(tokenizer, end[0])
        self._limits = llguidance.LLParserLimits(initial_lexer_fuel=FUEL, verbose_errors=False)
        self._tokenizer = llguidance.LLTokenizer(vocabulary, eos_token=list(end))

    def call(self, functions: Sequence[Mapping[str, Any]]) -> "Compiled":
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

    def json(self, schema: Mapping[str, Any], **separators: str) -> "Compiled":
        """Answers that are JSON by this schema, without needless white space; UserError if it cannot be kept to.

        separators: item_separator and key_separator, if not the shortest.
        """
        spacing: Any = {"whitespace_flexible": False, **separators}
        from_schema = self._library.LLMatcher.grammar_from_json_schema
        return self._compiled("schema", lambda: from_schema(json.dumps(schema), defaults=spacing))

    def regex(self, pattern: str) -> "Compiled":
        """Answers that a regular expression matches as a whole (Rust's syntax); UserError if it cannot be kept to."""
        return self._compiled("expression", lambda: self._library.LLMatcher.grammar_from_regex(pattern))

    def choice(self, texts: Sequence[str]) -> "Compiled":
        """Answers that are one of these texts; UserError for more than MOST_CHOICES."""
        if len(texts) > MOST_CHOICES:
            raise UserError(f"the choice cannot be kept to: expected at most {MOST_CHOICES} texts")
        return self._compiled("choice", lambda: self._library.grammar_from("choice", json.dumps(list(texts))))

    def grammar(self, text: str) -> "Compiled":
        """Answers by a grammar, in llama.cpp's notation (GBNF) or Lark's; UserError if it cannot be kept to."""
        return self._compiled("grammar", lambda: self._library.grammar_from("grammar", text))

    def _compiled(self, what: str, make: Callable[[], str]) -> "Compiled":
        try:
            made = Compiled(
                self._library.LLMatcher(self._tokenizer, make(), log_level=0, limits=self._limits)
            )
            problem = made.problem()
        except ValueError as error:
            problem = str(error)
        if problem:
            lines = problem.splitlines()
            causes = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
            raise UserError(f"the {what} cannot be kept to: {(causes or lines)[0]}")
        return made


class Compiled:
    """A compiled constraint; each answer starts a matcher of its own."""

    def __init__(self, matcher):
        self._matcher = matcher

    def start(self) -> "Follower":
        return Follower(self._matcher.deep_copy())

    def problem(self) -> str:
        """Why it cannot be kept to, as far as its first mask tells."""
        start = time.thread_time()
        if not self._matcher.is_error():
            self._matcher.compute_bitmask()
        return self._matcher.get_error() or "it is too large" * (time.thread_time() - start > SLOWEST)


class Follower:
    """Follows one answer (engine.sampling.Matcher)."""

    def __init__(self, matcher):
        self._matcher, self._slow = matcher, False

    def allow(self, words: np.ndarray) -> None:
        start = time.thread_time()
        self._matcher.unsafe_compute_mask_ptr(words.ctypes.data, words.nbytes)
        self._slow |= time.thread_time() - start > SLOWEST

    def accept(self, token: int) -> None:
        if self._slow:
            raise ValueError("it is too large")
        if not self._matcher.consume_token(token):
            raise ValueError((self._matcher.get_error() or f"id {token} is not allowed").splitlines()[0])


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
