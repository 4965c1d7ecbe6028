"""Byte-level BPE: pre-split, encode and train, in C++ (csrc/text), with a plain-Python reference beside.

    counts = WordCounts(); counts.add_texts(texts, split_pattern(PATTERNS["qwen2"]), threads=2)
    merges = train(counts, BYTE_ORDER, vocab_size=4096)           # uint32 rows (left, right, rank, id)
    encoder = Encoder(tokens, merges, split_pattern(PATTERNS["qwen2"]))
    ids = encoder.encode(text)                                    # uint32 array

Text is str or bytes, any bytes: a byte outside of valid UTF-8 is a character of its own, neither letter,
digit nor space. The ids are those of tiktoken and Hugging Face tokenizers for the same vocabulary. An
encoder holds no lock while it encodes and keeps one cache of 2 MiB for each thread that encoded at the same
time; neither depends on how much text went by.

A pattern without a hand-written lexer has no `split_pattern`: the caller cuts the text (Python's `regex`) and
uses `encode_pieces` and `add_words`. There is no torch here: ids are made before tensors are.
"""

try:
    from .._text import Encoder, Pattern, WordCounts, train
except ImportError as error:
    raise ImportError(
        "pyengine's text kernels are not built; run `make build` in the checkout, or `pip install .`"
    ) from error
from .reference import BYTE_ORDER

__all__ = ["BYTE_ORDER", "PATTERNS", "Encoder", "Pattern", "WordCounts", "split_pattern", "train"]

_TAIL = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_CL100K = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|" + _TAIL
)
_O200K = "|".join(
    [
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n/]*",
        _TAIL,
    ]
)
# The regular expressions by name. "qwen2" is our own default: cl100k's with every digit alone.
PATTERNS = {
    "gpt2": r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    "r50k": r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s",
    "llama3": _CL100K,
    "cl100k": r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+"
    r"|\s++$|\s*[\r\n]|\s+(?!\S)|\s",
    "qwen2": _CL100K.replace("{1,3}", ""),
    "o200k": _O200K,
}
_LEXERS = {
    "gpt2": ("gpt2", 0, False),
    "r50k": ("gpt2", 0, False),
    "llama3": ("cl100k", 3, False),
    "cl100k": ("cl100k", 3, True),
    "qwen2": ("cl100k", 1, False),
    "o200k": ("o200k", 3, False),
}


def split_pattern(regex: str) -> Pattern | None:
    """The hand-written lexer that does what this regular expression does, or None where there is none."""
    for name, known in PATTERNS.items():
        if regex == known:
            return Pattern(*_LEXERS[name])
    return None
