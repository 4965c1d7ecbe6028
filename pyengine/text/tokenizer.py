"""The tokenizer: text to ids and back, on the C++ kernels of pyengine.kernels.bpe.

    tokenizer = Tokenizer.train(texts, vocab_size=4096)      # or Tokenizer.load("runs/demo/tokenizer")
    ids = tokenizer.encode("How many moons has Tavor?")
    assert tokenizer.decode(ids) == "How many moons has Tavor?"
    tokenizer.end                                            # the id of <|end|>

Byte-level BPE: every byte is a token, so any text, and any bytes, can be encoded and come back. A special
token's name inside a text is plain text: only `allowed_special` lets it become the special id, so that no
user, page or file can produce a control token. Ids are equal to those of tiktoken and Hugging Face tokenizers
for the same vocabulary; `save` writes a folder that transformers loads.

Ids of a trained vocabulary: 256 bytes, merged tokens in the order learnt, then the special tokens.
"""

import codecs
import hashlib
import os
import unicodedata
import warnings
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import regex
import torch

from ..devices import available_cpus
from ..errors import UserError
from ..kernels import bpe
from . import chat, formats
from .show import show_html, show_terminal

DEFAULT_PATTERN = bpe.PATTERNS["qwen2"]
TRAIN_BATCH = 16 << 20  # bytes of text counted at a time
DEVICE_BATCH = 256 << 20  # bytes of text encoded at a time on a device, where they need 3 GB
Text = TypeVar("Text", bound=str | bytes)


class Tokenizer:
    """A byte-level BPE vocabulary with its pre-split pattern and special tokens. Immutable, thread-safe."""

    def __init__(
        self,
        tokens: Sequence[bytes] | None,
        merges: np.ndarray | None,
        pattern: str,
        special_ids: dict[str, int],
        *,
        rank_file: bytes | None = None,
        whole_pieces: bool = False,
        normalizer: Literal["NFC"] | None = None,
        chat_template: str | None = None,
    ):
        """tokens: the bytes of each id (b"" where an id is special or unused); merges: uint32 (M, 4), rows
        (left, right, rank, id); pattern: a regular expression or a name in PATTERNS; special_ids: name -> id.
        rank_file: a tiktoken file's content, in the place of tokens and merges.
        whole_pieces: a piece that is a token stays whole even if its merges lead elsewhere (as in tiktoken).
        normalizer: None or "NFC", applied to str before encoding (decoding gives the normalised text).
        """
        self.pattern = _portable(pattern)
        self.special_ids = dict(special_ids)
        self.whole_pieces = whole_pieces
        self.normalizer = normalizer
        lexer = bpe.split_pattern(self.pattern)
        self.has_lexer = lexer is not None
        if lexer is None:
            warnings.warn(
                f"no hand-written lexer for the pattern {self.pattern!r}: the slower `regex` splits texts",
                stacklevel=2,
            )
        lexer = lexer or bpe.Pattern()
        if rank_file is not None:
            self._encoder = bpe.Encoder.from_ranks(rank_file, lexer)
        else:
            self._encoder = bpe.Encoder(tokens, merges, lexer, whole_pieces)
        self._merges = merges
        direct = self.has_lexer and self.normalizer is None
        plain = self._encoder.encode_list if direct else lambda t: self._encode_to_array(t).tolist()
        special = partial(_encode_special, plain, self.special_ids)
        # Of a plain text straight into C++: of short ones a Python function before it takes a third of the time.
        self.encode = self._encoder.encode_list_or(special) if direct else special
        self.vocab_size = max([self._encoder.size, *(i + 1 for i in special_ids.values())])
        """Number of ids, special tokens included."""
        self._attributes = {name.strip("<|>"): i for name, i in self.special_ids.items()}
        has_chat = all(name in self.special_ids for name in chat.SPECIAL_TOKENS)
        self.chat_template = chat_template or (chat.TEMPLATE if has_chat else None)

    # Making, loading, saving

    @classmethod
    def train(
        cls,
        texts: str | os.PathLike | Iterable[str | bytes | os.PathLike],
        vocab_size: int,
        pattern: str = DEFAULT_PATTERN,
        special_tokens: Sequence[str] = chat.SPECIAL_TOKENS,
        min_frequency: int = 2,
        threads: int | None = None,
        byte_order: Literal["gpt2", "value"] = "gpt2",
    ) -> "Tokenizer":
        """Learn a vocabulary of `vocab_size` ids, special tokens included (fewer if the pairs run out).

        texts: an iterable of texts (str or bytes) and of paths (pathlib.Path: text files, or JSONL whose rows
        hold "text"), or one path. byte_order: the ids of the bytes, which decide ties between equally frequent
        pairs (lower ids first). In GPT-2's order the merges are those that Hugging Face's BpeTrainer finds on the
        same texts, in the order of their values those of rustbpe.
        """
        smallest = 256 + len(special_tokens)
        if vocab_size < smallest:
            raise UserError(
                f"vocab_size is {vocab_size}, but 256 bytes and {len(special_tokens)} special tokens need "
                f"{smallest}; ask for at least {smallest}"
            )
        if len(set(special_tokens)) != len(special_tokens) or not all(special_tokens):
            raise UserError(f"special tokens must be distinct and not empty: {list(special_tokens)}")
        pattern = _portable(pattern)
        lexer, counts = bpe.split_pattern(pattern), bpe.WordCounts()
        for batch in _batches(formats.read_texts(texts), TRAIN_BATCH):
            if lexer is not None:
                counts.add_texts(batch, lexer, threads=threads or available_cpus())
            else:
                counts.add_words(dict(Counter(p for text in batch for p in bpe.split(text, pattern))))
        order = bpe.BYTE_ORDER if byte_order == "gpt2" else bytes(range(256))
        merges = bpe.train(counts, order, vocab_size - len(special_tokens), min_frequency)
        tokens = bpe.spell(order, merges)
        return cls(tokens, merges, pattern, {name: len(tokens) + i for i, name in enumerate(special_tokens)})

    @classmethod
    def load(cls, path: str | os.PathLike, **options) -> "Tokenizer":
        """Read a folder or file: tokenizer.json (byte-level BPE), a tiktoken rank file, or GGUF.

        For a tiktoken file, `pattern` and `special_ids` say what the file does not (OpenAI's are known).
        Raises UserError naming the file and what was expected.
        """
        arguments = formats.load(Path(path), **options)
        try:
            return cls(**arguments)
        except ValueError as error:  # of a rank file the message begins with the line
            raise UserError(f"{path}:{error}") from None

    def save(self, path: str | os.PathLike) -> None:
        """Write a folder with tokenizer.json, tokenizer_config.json, special_tokens_map.json and
        chat_template.jinja; or, where the name ends in .gguf, a GGUF file that holds the vocabulary alone."""
        formats.save(self, Path(path))

    # Encoding

    encode: Callable[..., list[int]]
    """encode(text, allowed_special=()): the ids of a text. Names of special tokens are plain text unless allowed
    (some, or "all")."""

    def encode_array(self, text: str | bytes) -> np.ndarray:
        """The ids of a text as a uint32 array (no list is made on the way)."""
        return self._encode_to_array(text)

    def encode_bytes(self, data: bytes) -> list[int]:
        """The ids of any bytes; decode_bytes gives them back."""
        return self._encode_to_array(data).tolist()

    def encode_batch(
        self, texts: Sequence[str | bytes], threads: int | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """(ids uint32, offsets int64): text i has ids[offsets[i]:offsets[i + 1]], as encoded alone."""
        if self.has_lexer:
            texts = [self._normalize(text) for text in texts] if self.normalizer else texts
            return self._encoder.encode_batch(texts, threads=threads or available_cpus())
        parts = [self._encode_to_array(text) for text in texts]
        offsets = np.cumsum([0, *(len(part) for part in parts)], dtype=np.int64)
        return np.concatenate([np.empty(0, np.uint32), *parts]), offsets

    def encode_on(
        self,
        device: torch.device | str,
        texts: Sequence[str | bytes],
        allowed_special: Literal["all"] | Collection[str] = (),
    ) -> bpe.Encoded:
        """(ids int32, offsets int64, handed_over) made and left on a device, "cuda" for instance: the ids of
        encode_batch. handed_over: of how many pieces, too long for a GPU, the host made the ids.

        Names of special tokens are plain text unless allowed, in texts that are str.
        """
        device = torch.device(device)
        if device.type == "cuda" and not torch.cuda.is_available():
            raise UserError(f"there is no {device} here: encode_batch encodes on the processor")
        parts: list[bytes] = []
        specials: list[tuple[int, int]] = []  # how many parts stand before it, its id
        bounds = [0]
        for text in texts:
            cut = (
                _split_special(self.special_ids, text, allowed_special)
                if isinstance(text, str)
                else [(text, None)]
            )
            for part, special in cut:
                part = self._normalize(part)
                parts.append(part if isinstance(part, bytes) else part.encode("utf-8", "surrogatepass"))
                if special is not None:
                    specials.append((len(parts), special))
            bounds.append(len(parts))
        encoded = self._encode_parts(device, parts)
        last = torch.tensor(bounds, device=device)
        if not specials:
            return encoded._replace(offsets=encoded.offsets[last])
        after, ids = torch.tensor(specials, device=device).T.contiguous()
        number = torch.arange(len(specials), device=device)
        joined = encoded.ids.new_empty(len(encoded.ids) + len(specials))
        plain = torch.ones_like(joined, dtype=torch.bool)
        places = encoded.offsets[after] + number
        plain[places] = False
        joined[places] = ids.to(joined.dtype)
        joined[plain] = encoded.ids
        return encoded._replace(ids=joined, offsets=encoded.offsets[last] + torch.searchsorted(after, last))

    def encode_tensor(self, text: torch.Tensor, offsets: torch.Tensor) -> bpe.Encoded:
        """The same of UTF-8 text that lies on the device already: document i is text[offsets[i]:offsets[i + 1]],
        uint8 and int64. Names of special tokens are plain text."""
        if self.normalizer:
            raise UserError(
                f"this tokenizer normalizes text ({self.normalizer}), which needs str: see encode_on"
            )
        return self._encode_tensor(text, offsets)

    def _encode_parts(self, device: torch.device, parts: list[bytes]) -> bpe.Encoded:
        """Each text alone, DEVICE_BATCH bytes at a time, so that memory on the device has a bound."""
        made = []
        for batch in _batches(parts, DEVICE_BATCH) if parts else [[]]:
            data = torch.from_numpy(np.frombuffer(bytearray().join(batch), np.uint8)).to(device)
            offsets = torch.tensor([0, *map(len, batch)], device=device).cumsum(0)
            made.append(self._encode_tensor(data, offsets))
        sizes = [torch.zeros(1, dtype=torch.int64, device=device), *(e.offsets.diff() for e in made)]
        ids, handed_over = torch.cat([e.ids for e in made]), sum(e.handed_over for e in made)
        return bpe.Encoded(ids, torch.cat(sizes).cumsum(0), handed_over)

    def _encode_tensor(self, text: torch.Tensor, offsets: torch.Tensor) -> bpe.Encoded:
        if not self.has_lexer:
            raise UserError(
                f"a device encodes patterns that have a hand-written lexer, and {self.pattern!r} has none: "
                "encode_batch encodes on the processor"
            )
        return bpe.encode_tensor(self._encoder, text, offsets)

    def count(self, text: str | bytes) -> int:
        """How many ids the text has."""
        return len(self._encode_to_array(text))

    def truncate(self, text: str | bytes, tokens: int) -> list[int]:
        """The first `tokens` ids of a text (all, if it has fewer); no more than needed is encoded."""
        if tokens < 0:
            raise ValueError(f"tokens must be 0 or more, got {tokens}")
        if self.has_lexer:
            return self._encoder.encode(self._normalize(text), tokens)[:tokens].tolist()
        return self._encode_to_array(text)[:tokens].tolist()

    def encode_with_offsets(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        """(ids, spans): text[spans[i, 0] : spans[i, 1]] holds the characters that id i has bytes of, int64 (n, 2).
        Of a normalizing tokenizer the spans are those of the normalized text."""
        if self.normalizer:
            text = unicodedata.normalize(self.normalizer, text)
        data = text.encode("utf-8", "surrogatepass")
        ids = self._encode_to_array(data)
        ends = np.cumsum(self._sizes[ids], dtype=np.int64)
        # The character each byte belongs to, counted from 1: first bytes are those that are no continuation.
        bytes_of_text = np.frombuffer(data, np.uint8)
        character = np.cumsum((bytes_of_text & 0xC0) != 0x80)
        if not self._is_token.all():  # such bytes are dropped
            character = character[self._is_token[bytes_of_text]]
        return ids, np.stack([character[ends - self._sizes[ids]] - 1, character[ends - 1]], axis=1)

    @cached_property
    def _sizes(self) -> np.ndarray:
        return np.array([len(token) for token in self._tokens], np.int64)

    @cached_property
    def _is_token(self) -> np.ndarray:
        known = set(self._tokens)
        return np.array([bytes([byte]) in known for byte in range(256)])

    def encode_stream(self) -> "EncodeStream":
        """An encoder for a text that arrives in parts: the same ids as for the whole."""
        return EncodeStream(self)

    def to_tiktoken(self, name: str = "pyengine") -> Any:
        """The same vocabulary as a tiktoken.Encoding (needs tiktoken installed), for which the order of ids must
        be that of merges, as in every vocabulary trained here or loaded from a rank file."""
        import tiktoken

        ranks = {token: i for i, token in enumerate(self._tokens) if token}
        order = self.merges[np.argsort(self.merges[:, 2], kind="stable"), 3].astype(np.int64)
        if (np.diff(order) <= 0).any():
            raise UserError(
                "this vocabulary's ids are not in the order of its merges, as tiktoken needs them"
            )
        return tiktoken.Encoding(
            name, pat_str=self.pattern, mergeable_ranks=ranks, special_tokens=self.special_ids
        )

    def split(self, text: str) -> list[str]:
        """The pieces inside which BPE merges."""
        lexer, normal = bpe.split_pattern(self.pattern), self._normalize(text)
        pieces = lexer.split(normal) if lexer else bpe.split(normal, self.pattern)
        return [piece.decode("utf-8", "surrogatepass") for piece in pieces]

    def _normalize(self, text: str | bytes) -> str | bytes:
        return unicodedata.normalize("NFC", text) if self.normalizer and isinstance(text, str) else text

    def _encode_to_array(self, text: str | bytes) -> np.ndarray:
        text = self._normalize(text)
        if self.has_lexer:
            return self._encoder.encode(text)
        return self._encoder.encode_pieces(bpe.split(text, self.pattern))

    # Decoding

    def decode(self, ids: Iterable[int], *, skip_special: bool = False, errors: str = "replace") -> str:
        """The text of ids (list, array or tensor). Bytes that are no UTF-8 become U+FFFD, so the result can
        always be written to a file; errors="surrogatepass" gives lone surrogates of the input back too."""
        ids, decoder = _as_sequence(ids), self._plain_decoder if skip_special else self._decoder
        try:
            return decoder.text(ids, errors)
        except IndexError:
            raise self._no_such_id(ids) from None

    def decode_bytes(self, ids: Iterable[int], *, skip_special: bool = False) -> bytes:
        """The bytes of ids; special tokens are spelled by name, or left out."""
        ids, decoder = _as_sequence(ids), self._plain_decoder if skip_special else self._decoder
        try:
            return decoder.bytes(ids)
        except IndexError:
            raise self._no_such_id(ids) from None

    def _no_such_id(self, ids: Sequence[int] | np.ndarray) -> ValueError:
        return ValueError(f"ids must be from 0 to {self.vocab_size - 1}, got {min(ids)} to {max(ids)}")

    def decode_stream(self, *, skip_special: bool = False) -> "DecodeStream":
        """A decoder for ids that arrive one by one; it never emits half a character."""
        return DecodeStream(self, skip_special)

    def token_bytes(self, i: int) -> bytes:
        """The bytes of one id (a special token's name)."""
        return self.decode_bytes([i])

    def is_special(self, i: int) -> bool:
        return i in self._special_set

    @cached_property
    def _special_set(self) -> frozenset[int]:
        return frozenset(self.special_ids.values())

    # What it is

    @cached_property
    def _tokens(self) -> list[bytes]:
        """The bytes of each id; b"" for special tokens."""
        return [*self._encoder.tokens, *[b""] * (self.vocab_size - self._encoder.size)]

    @cached_property
    def _decoder(self) -> bpe.Decoder:
        """Spells special tokens by name."""
        spelled = list(self._tokens)
        for name, i in self.special_ids.items():
            spelled[i] = name.encode()
        return bpe.Decoder(spelled)

    @cached_property
    def _plain_decoder(self) -> bpe.Decoder:
        """Leaves special tokens out."""
        return bpe.Decoder(self._tokens)

    @cached_property
    def merges(self) -> np.ndarray:
        """uint32 (M, 4), rows (left, right, rank, id), as given; of a rank file, those that are ever reached."""
        given = self._encoder.merges if self._merges is None else self._merges
        return np.ascontiguousarray(given, np.uint32).reshape(-1, 4)

    @cached_property
    def hash(self) -> str:
        """SHA-256 over all that decides ids; token shards carry it, so that they meet no other vocabulary."""
        digest = hashlib.sha256(repr((self.pattern, self.whole_pieces, self.normalizer)).encode())
        digest.update(repr(sorted(self.special_ids.items())).encode())
        digest.update(repr(self._tokens).encode())
        digest.update(self.merges.tobytes())
        return digest.hexdigest()

    def __getattr__(self, name: str) -> int:
        """Special tokens by name: `tokenizer.end` is the id of <|end|>."""
        attributes = self.__dict__.get("_attributes", {})
        if name in attributes:
            return attributes[name]
        raise AttributeError(
            f"Tokenizer has no attribute or special token {name!r}; special: {list(attributes)}"
        )

    def __repr__(self) -> str:
        return f"Tokenizer({self.vocab_size} ids, {len(self.special_ids)} special, {len(self.merges)} merges)"

    def show(self, text: str | Sequence[int], format: Literal["terminal", "html"] = "terminal") -> str:
        """A text (or ids) coloured by token: escape codes for a terminal, or an HTML fragment."""
        ids = self.encode(text) if isinstance(text, str) else [int(i) for i in text]
        return (show_html if format == "html" else show_terminal)(self, ids)


class EncodeStream:
    """Ids of a text that arrives in parts. Pieces that later text can still change are held back: those that end
    the text so far, four at most, since no pattern looks further ahead than a run of white space or 're."""

    def __init__(self, tokenizer: Tokenizer):
        if tokenizer.normalizer:
            raise UserError("a text cannot be encoded in parts where it is normalized as a whole")
        self._tokenizer, self._held = tokenizer, ""

    def push(self, text: str) -> list[int]:
        """The ids that this text makes certain; may be empty."""
        self._held += text
        lexer = bpe.split_pattern(self._tokenizer.pattern)
        pieces = lexer.split(self._held)[:-4] if lexer else []  # of an unknown pattern nothing is certain
        if not pieces:
            return []
        self._held = self._held[len(b"".join(pieces).decode("utf-8", "surrogatepass")) :]
        return self._tokenizer._encoder.encode_pieces(pieces).tolist()

    def end(self) -> list[int]:
        """The ids of what is left."""
        held, self._held = self._held, ""
        return self._tokenizer.encode(held)


class DecodeStream:
    """Text of ids as they arrive: a character cut between tokens waits until it is whole."""

    def __init__(self, tokenizer: Tokenizer, skip_special: bool = False):
        self._tokenizer, self._skip_special = tokenizer, skip_special
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, *ids: int) -> str:
        """The text that these ids complete; may be empty."""
        return self._decoder.decode(self._tokenizer.decode_bytes(ids, skip_special=self._skip_special))

    def end(self) -> str:
        """What is left at the end: U+FFFD for a character that never became whole."""
        return self._decoder.decode(b"", True)


def _as_sequence(ids: Iterable[int]) -> Sequence[int] | np.ndarray:
    """What the decoder reads: an array where it lies, else a list or tuple."""
    if isinstance(ids, list | tuple | np.ndarray):
        return ids
    return ids.cpu().numpy() if isinstance(ids, torch.Tensor) else list(ids)


def _encode_special(
    plain: Callable[[str], list[int]],
    special_ids: dict[str, int],
    text: str,
    allowed_special: Literal["all"] | Collection[str] = (),
) -> list[int]:
    """What Tokenizer.encode gives; `plain` encodes what lies between the special tokens."""
    if not allowed_special:
        return plain(text)
    ids: list[int] = []
    for part, special in _split_special(special_ids, text, allowed_special):
        ids += plain(part)
        if special is not None:
            ids.append(special)
    return ids


def _split_special(special_ids: dict[str, int], text: str, allowed) -> Iterator[tuple[str, int | None]]:
    names = special_ids if allowed == "all" else set(allowed)
    if unknown := set(names) - set(special_ids):
        raise UserError(f"no such special token: {', '.join(sorted(unknown))}; there are {list(special_ids)}")
    end = 0
    for match in _any_of(tuple(names)).finditer(text) if names else ():
        yield text[end : match.start()], special_ids[match.group()]
        end = match.end()
    yield text[end:], None


@lru_cache(maxsize=8)
def _any_of(names: tuple[str, ...]) -> regex.Pattern[str]:
    """What finds names in a text; the longest first, so that of two that begin alike the whole one is taken."""
    return regex.compile("|".join(map(regex.escape, sorted(names, key=len, reverse=True))))


def _portable(pattern: str) -> str:
    """The plain spelling of a pattern or of a name in PATTERNS; UserError for what is no regular expression."""
    plain = bpe.portable(pattern)
    if bpe.split_pattern(plain) is None:
        try:
            regex.compile(plain)
        except regex.error as error:
            raise UserError(f"the pattern {pattern!r} is no regular expression: {error}") from None
    return plain


def _batches(texts: Iterable[Text], least: int) -> Iterator[list[Text]]:
    """Lists of texts of about `least` bytes."""
    batch: list[Text] = []
    size = 0
    for text in texts:
        batch.append(text)
        size += len(text)
        if size >= least:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
