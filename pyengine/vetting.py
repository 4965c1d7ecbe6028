"""Whether an answer can keep to a constraint, found out in a worker process (sandbox.py).

The compiler of constraints (llguidance) is a library that goes as deep as a grammar's rules lead it: a schema of 2,000
definitions that refer to the next ends the process, rules in a row take seconds. So each is compiled by a worker first,
with little time and less stack than the server's threads have.
"""

import resource
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

STACK = 2 << 20  # bytes that a worker may use; a thread has 8 MB
# Expressions that a grammar may come to when it is read, at 2.5 million a second: of (a{1000}){1000} they are counted
# before its first mask, which nothing else holds up. A schema of 1,000 properties with names of 20 letters fits.
FUEL = 100_000
TRIED = 4  # tokens of an answer: a repetition of repetitions fails the library behind the first


class Words(NamedTuple):
    """A vocabulary: the bytes of each id, the special ones, and those that end an answer."""

    tokens: list[bytes]
    special: list[int]
    ends: list[int]


class Vocabulary:
    """Words as llguidance asks for them; encode: from bytes to ids."""

    bos_token_id = None
    is_tokenizer_wrapper = True

    def __init__(self, words: Words, encode: Any):
        self.eos_token_id, self.special_token_ids, self.tokens = words.ends[0], words.special, words.tokens
        self._encode = encode

    def __call__(self, text: str | bytes) -> list[int]:
        return self._encode(text.encode() if isinstance(text, str) else text)


def compiler(words: Words, encode: Any) -> Any:
    """What compiled() takes; reading the words takes a second for 50,000."""
    import llguidance

    vocabulary: Any = Vocabulary(words, encode)
    return llguidance.LLTokenizer(vocabulary, eos_token=words.ends)


def compiled(tokenizer: Any, grammar: str) -> Any:
    """A matcher of the library, with its first mask computed; its get_error() says what is wrong, if anything."""
    import llguidance

    limits = llguidance.LLParserLimits(initial_lexer_fuel=FUEL, verbose_errors=False)
    matcher = llguidance.LLMatcher(tokenizer, grammar, log_level=0, limits=limits)
    if not matcher.is_error():
        matcher.compute_bitmask()
    return matcher


# -- what the worker process does

_tokenizer: Any = None


def prepare(words: Words) -> None:
    """Read the vocabulary before the clock of the first constraint runs."""
    global _tokenizer
    resource.setrlimit(resource.RLIMIT_STACK, (STACK, resource.getrlimit(resource.RLIMIT_STACK)[1]))
    single = {word[0]: i for i, word in enumerate(words.tokens) if len(word) == 1}
    _tokenizer = compiler(words, lambda data: _by_bytes(data, single))


def vet(constraint: tuple[Any, str, Any], words: Words) -> tuple[str, str]:
    """(what is wrong with a constraint, "" if nothing; its grammar in the library's notation), from its kind, its text
    and how JSON is spaced."""
    import llguidance

    kind, text, spacing = constraint
    try:
        if kind == "json":
            grammar = llguidance.LLMatcher.grammar_from_json_schema(text, defaults=spacing)
        elif kind == "regex":
            grammar = llguidance.LLMatcher.grammar_from_regex(text)
        else:
            grammar = llguidance.grammar_from(kind, text)
    except ValueError as error:
        return str(error) or "it cannot be read", ""
    matcher = compiled(_tokenizer, grammar)
    _try(matcher)
    return matcher.get_error(), grammar


def _try(matcher: Any) -> None:
    """Follow the beginning of an answer, the first token that is allowed each time."""
    for _ in range(TRIED):
        if matcher.is_error() or matcher.is_stopped():
            return
        words = np.frombuffer(matcher.compute_bitmask(), np.uint8)
        allowed = np.flatnonzero(np.unpackbits(words, bitorder="little"))
        if not len(allowed):
            return
        matcher.consume_token(int(allowed[0]))


def _by_bytes(data: Sequence[int], single: dict[int, int]) -> list[int]:
    """Ids of single bytes: how a text is spelled decides nothing about what can be kept to."""
    return [single[byte] for byte in data if byte in single]
