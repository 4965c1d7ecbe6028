"""What an answer must keep to (JSON by a schema, a regular expression, one of some texts, a grammar, calls of tools):
which ids may come next, from llguidance (`pip install pyengine-llm[grammar]`).

    grammar = Grammars(tokenizer, end).json(schema)      # goes into SamplingParams.grammar

The library reads the vocabulary once; compiling takes milliseconds, a mask tens of microseconds. What it would die of,
or take long for, is refused by a worker process that compiles each constraint first (vetting.py). A later mask that
takes long is computed beside the engine's steps (engine/constraint.py); where it takes far too long, the answer ends.
"""

import json
import time
import weakref
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..errors import UserError
from ..sandbox import Sandbox
from ..text import Tokenizer
from ..vetting import Words, compiled, compiler

SLOWEST = 0.5  # seconds that compiling, or one mask, may take a processor
NO_SPACING: Mapping[str, Any] = {}
# What the library says in its own terms, by words that tell it.
MEANINGS = {
    "NoExtensionBias": "no text fits it; it leads back to itself before it describes anything",
    "ff_tokens": "no text that fits it ends; it requires itself within itself",
}
MOST_CHOICES = 1500  # texts, at 40 us each; the library has room for 2,000


class Grammars:
    """Makes grammars for one tokenizer. end: the ids that end an answer."""

    def __init__(self, tokenizer: Tokenizer, end: tuple[int, ...]):
        try:
            import llguidance  # noqa: F401  # what vetting.py needs
        except ImportError:
            raise UserError(
                "constrained answers need llguidance; install it with `pip install pyengine-llm[grammar]`"
            ) from None
        words = Words(
            [tokenizer.token_bytes(i) for i in range(tokenizer.vocab_size)],
            sorted(tokenizer.special_ids.values()),
            list(end),
        )
        self._tokenizer = compiler(words, tokenizer.encode_bytes)
        self._sandbox = Sandbox(words, workers=1, cpu_seconds=SLOWEST)
        weakref.finalize(self, self._sandbox.__exit__)

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
        return self._compiled(
            "schema", "json", json.dumps(schema), {"whitespace_flexible": False, **separators}
        )

    def regex(self, pattern: str) -> "Compiled":
        """Answers that a regular expression matches as a whole (Rust's syntax); UserError if it cannot be kept to."""
        return self._compiled("expression", "regex", pattern)

    def choice(self, texts: Sequence[str]) -> "Compiled":
        """Answers that are one of these texts; UserError for more than MOST_CHOICES."""
        if len(texts) > MOST_CHOICES:
            raise UserError(f"the choice cannot be kept to: expected at most {MOST_CHOICES} texts")
        return self._compiled("choice", "choice", json.dumps(list(texts)))

    def grammar(self, text: str) -> "Compiled":
        """Answers by a grammar, in llama.cpp's notation (GBNF) or Lark's; UserError if it cannot be kept to."""
        return self._compiled("grammar", "grammar", text)

    def _compiled(
        self, what: str, kind: str, text: str, spacing: Mapping[str, Any] = NO_SPACING
    ) -> "Compiled":
        (vetted,) = self._sandbox.map("pyengine.vetting:vet", [(kind, text, dict(spacing))])
        problem, grammar = (f"its compiler {vetted.reason}", "") if vetted.reason else vetted.value
        if not problem:
            made = Compiled(self._tokenizer, grammar)
            problem = made.problem
        if problem:
            raise UserError(f"the {what} cannot be kept to: {_told(problem)}")
        return made


class Compiled:
    """A compiled constraint; each answer starts a matcher of its own."""

    def __init__(self, tokenizer: Any, grammar: str):
        start = time.thread_time()
        self._matcher, self._words = compiled(tokenizer, grammar), -(-tokenizer.vocab_size // 32)
        slow = time.thread_time() - start > SLOWEST
        self.problem: str = self._matcher.get_error() or "it is too large" * slow

    def start(self) -> "Follower":
        return Follower(self._matcher.deep_copy(), self._words)


class Follower:
    """Follows one answer (engine.constraint.Matcher). words: of the tokenizer's mask; a model's vocabulary is often
    padded beyond it, with ids that no text has."""

    def __init__(self, matcher: Any, words: int):
        self._matcher, self._slow, self._mask = matcher, False, np.empty(words, np.int32)

    def allow(self, words: np.ndarray) -> None:
        start = time.thread_time()
        self._matcher.unsafe_compute_mask_ptr(self._mask.ctypes.data, self._mask.nbytes)
        self._slow |= time.thread_time() - start > SLOWEST
        shared = min(len(words), len(self._mask))
        words[:shared], words[shared:] = self._mask[:shared], 0

    def accept(self, token: int) -> None:
        if self._slow:
            raise ValueError("it is too large")
        if not self._matcher.consume_token(token):
            raise ValueError((self._matcher.get_error() or f"id {token} is not allowed").splitlines()[0])


def _told(problem: str) -> str:
    """The compiler's account of a problem in one line."""
    for words, meaning in MEANINGS.items():
        if words in problem:
            return meaning
    lines = problem.splitlines()
    causes = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return (causes or lines)[0]


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
