"""Byte-level BPE: pre-split, encode and train, in C++ (csrc/text), with a plain-Python reference beside.

    counts = WordCounts(); counts.add_texts(texts, split_pattern(PATTERNS["qwen2"]), threads=2)
    merges = train(counts, BYTE_ORDER, vocab_size=4096)           # uint32 rows (left, right, rank, id)
    tokens = spell(BYTE_ORDER, merges)                            # the bytes of each id
    Decoder(tokens).text(ids)                                     # and back; ids: an array or a list; bytes(ids) too
    encoder = Encoder(tokens, merges, split_pattern(PATTERNS["qwen2"]))
    ids = encoder.encode(text)                                    # uint32 array
    encoded = encode_tensor(encoder, text, offsets)               # text that lies on a GPU

Text is str or bytes, any bytes: a byte outside of valid UTF-8 is a character of its own, neither letter,
digit nor space. The ids are those of tiktoken and Hugging Face tokenizers for the same vocabulary. An
encoder holds no lock while it encodes and keeps one memory of pieces, 48 MiB at most, for each thread that
encoded at the same time, and that of one array of ids, 128 MiB at most; neither depends on how much text went by.

A pattern without a hand-written lexer has no `split_pattern`: the caller cuts the text (`split`, by `regex`) and
uses `encode_pieces` and `add_words`. Only `encode_tensor` knows of torch and of backends.
"""

import sys
from types import ModuleType
from typing import Any, NamedTuple

import torch

from .. import _native
from .._library import Example
from .._select import select
from .reference import BYTE_ORDER, split

__all__ = [
    "BYTE_ORDER",
    "PATTERNS",
    "Decoder",
    "Encoded",
    "Encoder",
    "Pattern",
    "WordCounts",
    "encode_tensor",
    "portable",
    "spell",
    "split",
    "split_pattern",
    "train",
]


COMPILED = ("Decoder", "Encoder", "Pattern", "WordCounts", "spell", "train")
_this = sys.modules[__name__]


def load_isa(isa: str) -> ModuleType:
    """The module compiled for an instruction set; ImportError if it was not built or cannot run here."""
    return _native.load_isa(isa, "text")


def __getattr__(name: str) -> Any:
    """What is compiled, from the module that is chosen when the first of it is asked for, as in _native."""
    if name not in COMPILED:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = load_isa(_native.preferred())
    globals().update({compiled: getattr(module, compiled) for compiled in COMPILED})
    return globals()[name]


_TAIL = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_CL100K = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
_CASED = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]%s[\p{Ll}\p{Lm}\p{Lo}\p{M}]%s(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
# The regular expressions by name, as every engine reads them (possessive forms mean different things to them).
# "qwen2", our own default, is Llama 3's with every digit alone; "smollm" is GPT-2's on what lies between single
# digits; in "cl100k" white space at the end of the text is one piece whatever line ends it holds.
PATTERNS = {
    "gpt2": r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    "smollm": r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?![^\s\p{N}])|\s+",
    "llama3": _CL100K + _TAIL,
    "cl100k": _CL100K + r"\s+(?![\s\S])|" + _TAIL,
    "qwen2": _CL100K.replace("{1,3}", "") + _TAIL,
    "o200k": _CASED % ("*", "+") + _CASED % ("+", "*") + r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|" + _TAIL,
}
_LEXERS = {  # family, longest run of digits, white space at the end whole
    "gpt2": ("gpt2", 0, False),
    "smollm": ("gpt2", 1, False),
    "llama3": ("cl100k", 3, False),
    "cl100k": ("cl100k", 3, True),
    "qwen2": ("cl100k", 1, False),
    "o200k": ("o200k", 3, False),
}
_NAMES = {regex: name for name, regex in PATTERNS.items()}
_NAMES |= {  # other spellings of the same: tiktoken's own, with possessive repetitions
    r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s": "gpt2",
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+"
    r"|\s++$|\s*[\r\n]|\s+(?!\S)|\s": "cl100k",
}


def portable(pattern: str) -> str:
    """A pattern's name or spelling -> the spelling in PATTERNS; an unknown one is returned as it is."""
    return PATTERNS[_NAMES[pattern]] if pattern in _NAMES else PATTERNS.get(pattern, pattern)


def split_pattern(pattern: str) -> Any:
    """The hand-written lexer of a pattern (name or regular expression), or None where there is none."""
    name = _NAMES.get(portable(pattern))
    return _this.Pattern(*_LEXERS[name]) if name else None


class Encoded(NamedTuple):
    """The ids of documents: those of document i are ids[offsets[i]:offsets[i + 1]]."""

    ids: torch.Tensor
    """int32"""
    offsets: torch.Tensor
    """int64, one more than documents"""
    handed_over: int
    """Pieces too long for the GPU, which the C++ encoder merged."""


def encode_tensor(encoder: Any, text: torch.Tensor, offsets: torch.Tensor) -> Encoded:
    """The ids of documents in a tensor, where it lies: those of `encoder`, pre-split by its pattern.

    text (N,) uint8: any bytes, below 2 GiB; offsets (D + 1,) int64 on the same device: document i is
    text[offsets[i]:offsets[i + 1]], from 0 to N.

    Raises ValueError for shapes, types or offsets that do not fit.
    """
    size = text.numel()
    if text.dim() != 1 or text.dtype != torch.uint8 or size > 2**31 - 2:
        raise ValueError(
            f"encode_tensor: text must be (N,) uint8 below 2 GiB, got {tuple(text.shape)} {text.dtype}"
        )
    if (
        offsets.dim() != 1
        or offsets.dtype != torch.int64
        or offsets.device != text.device
        or not len(offsets)
    ):
        raise ValueError(
            f"encode_tensor: offsets must be (D + 1,) int64 on {text.device}, got {tuple(offsets.shape)} "
            f"{offsets.dtype} on {offsets.device}"
        )
    backend = select("bpe", text.device)
    encoded = backend.encode_tensor(encoder, text.contiguous(), offsets.contiguous())
    if encoded is None:  # a backend looks at the offsets where they lie
        raise ValueError(f"encode_tensor: offsets must rise from 0 to {size}, the bytes of the text")
    return Encoded(*encoded)


def examples(device: str) -> list[Example]:
    """Small, odd-sized calls for the probe launch: every family of patterns, every way a piece can go."""
    sample = "It's 1234567 o'clock!! at\n\n  McDonald'S, \t\u4e2d\u6587\u5b57 na\u00efve\u0301 \U0001f600\r\n \u00bd "
    documents = [sample.encode(), b"", b"\xff\xc3\x80\xed\xa0\x80 \xe4\xb8", b"ab" * 200, sample.encode() * 9]
    text = torch.frombuffer(bytearray().join(documents), dtype=torch.uint8).to(device)
    offsets = torch.tensor([0, *map(len, documents)], device=device).cumsum(0)
    calls: list[Example] = []
    for name in PATTERNS:
        lexer, counts = split_pattern(name), _this.WordCounts()
        counts.add_texts(documents * 2, lexer)
        merges = _this.train(counts, BYTE_ORDER, 400)
        encoder = _this.Encoder(_this.spell(BYTE_ORDER, merges), merges, lexer)
        calls.append((encode_tensor, (encoder, text, offsets), {}))
    return calls
