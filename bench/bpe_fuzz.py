"""Ids against tiktoken's and Hugging Face's on real text and on strings made to break an encoder.

    python -m bench.bpe_fuzz VOCABULARY [--pattern NAME] [--peer tiktoken|tokenizers] [--texts FILE ...]
                             [--megabytes 100] [--seed 0] [--kinds edges,bytes,...]

Real text first, each file whole and in documents of many sizes; then batches of random strings of the kinds below,
until so many bytes have been compared. Every batch goes through each instruction set this machine runs, one by one
and as a batch, on one and two threads, into memories that are new, warm and full, and in parts through a stream.
Bytes that are no UTF-8 have no peer; there Python's `regex` cuts (each such byte is one lone surrogate, which is
neither letter, digit nor space) and the peer merges the pieces. A difference is made as short as it stays one and
printed; the exit status says whether there was any.
"""

import itertools
import json
import random
import sys
import tempfile
import time
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import regex
import tiktoken
import tokenizers
import tyro
from pyengine.kernels import bpe
from pyengine.kernels._native import runnable

from pyengine.text import Tokenizer, formats

BATCH = 1 << 18  # bytes compared at a time
WHOLE = 8 << 20
RENEWED = 16  # batches after which the encoders that began empty are made anew

# What the patterns' alternatives are about, and what blocks of bytes and tables of classes may get wrong.
FRAGMENTS = (
    *(" ", "  ", "   ", "\n", "\r", "\r\n", "\n\n", "\t", " \n", "\n ", "\x0b", "\x0c", "\x1c", "\x85", "\u00a0"),
    *("\u1680", "\u2003", "\u2028", "\u202f", "\u3000", "\u200b", "\ufeff", "\x00", "\x7f"),
    *("'", "''", "'s", "'S", "'t", "'m", "'d", "'ll", "'LL", "'lL", "'ve", "'re", "'Re", "'l", "'v", "'x", "'\u017f"),
    *("\u2019s", "' s", "s'", "it", "IT", "It", "iT", "McD", "a", "A", "z", "Z", "ab", " the", " The", "HTTPServer"),
    *("\u01c5", "\u02b0", "\u00aa", "\u017f", "\u0130", "\u0131", "\u212a", "\u00df", "\u00e9", "\u00c9", "\u0436"),
    *("\u0416", "\u05d0", "\u0639", "\u0e01", "\u0e34", "\u0915", "\u093f", "\u094d", "\u4e2d\u6587", "\u3042"),
    *("\u30ab", "\u30fc", "\uac00", "\u1100", "\u10a0", "\u13a0", "\uab70", "\U00010400", "\U00010428", "\U00020000"),
    *("\u0301", "e\u0301", "\u20dd", "\ufe0f", "\U000e0100", "\U0001d7ce", "\U0001f600", "\U0001f468\u200d\U0001f469"),
    *("0", "1", "12", "123", "1234", "12345678", "\u00bd", "\u00b2", "\u0663", "\u0966", "\u2167", "\u3007", "\u4e00"),
    *("!", "...", "/", "//", "/\n", "!\n", "!\r\n/", "-", "--", "_", "#", "\u2014", "\u20ac", "\u3002", "\uff01"),
    *("<|end|>", "<|endoftext|>", "\u0085", "\ufffd", "\ufffe", "\U0010ffff", "\ue000", "\ud7ff", "\uff21", "\uff11"),
)  # fmt: skip
FILLERS = (
    "a",
    "A",
    "aA",
    " ",
    "\n",
    "1",
    "!",
    "'",
    "\u00e9",
    "\u4e2d",
    "\u0915\u093f",
    "\u0301",
    "\U0001f600",
    "ab ",
    ", ",
)
SCRIPTS = (  # ranges of code points
    *((0x20, 0x7F), (0x20, 0x7F), (0x80, 0x250), (0x250, 0x370), (0x370, 0x530), (0x530, 0x700), (0x900, 0xE00)),
    *((0xE00, 0x1000), (0x10A0, 0x1400), (0x1E00, 0x2070), (0x2070, 0x2C00), (0x2C00, 0x3000), (0x3000, 0x3200)),
    *((0x4E00, 0x9FFF), (0xA000, 0xAC00), (0xAC00, 0xD7A4), (0xF900, 0x10000), (0x10000, 0x11000), (0x1D000, 0x1F000)),
    *((0x1F000, 0x20000), (0x20000, 0x20100), (0xE0000, 0xE0200), (0, 0xD800), (0xE000, 0x110000)),
)  # fmt: skip
BREAKING = tuple(
    bytes([b]) for b in (0x80, 0xBF, 0xC0, 0xC2, 0xDF, 0xE0, 0xE4, 0xED, 0xEF, 0xF0, 0xF4, 0xF5, 0xFF)
)
BREAKING += (
    b"\xed\xa0\x80",
    b"\xe0\x80\x80",
    b"\xf4\x90\x80\x80",
    b"\xf0\x8f\xbf\xbf",
    b"\xe4\xb8",
    b"\xf0\x9f\x98",
)

Make = Callable[[random.Random, str], str]


def fragments(rng: random.Random, _: str) -> str:
    """What patterns are about, one behind the other, now and then repeated."""
    return "".join(
        rng.choice(FRAGMENTS) * (1 if rng.random() < 0.8 else rng.randint(2, 40))
        for _ in range(rng.randint(1, 40))
    )


def edges(rng: random.Random, _: str) -> str:
    """Some fragments where a block of 64 bytes ends, behind a run of one kind."""
    filler = rng.choice(FILLERS)
    bytes_before = rng.choice((64, 64, 64, 128, 192, 16)) + rng.randint(-14, 3)
    before = filler * (bytes_before // len(filler.encode()))
    behind = rng.choice(FILLERS) * rng.choice((0, 1, 2, 70))
    return before + "".join(rng.choice(FRAGMENTS) for _ in range(rng.randint(1, 4))) + behind


def characters(rng: random.Random, _: str) -> str:
    """Any characters of a few scripts, with spaces and digits among them."""
    ranges = rng.sample(SCRIPTS, rng.randint(1, 3))
    made = [chr(rng.randrange(*rng.choice(ranges))) for _ in range(rng.randint(1, 120))]
    made += rng.choices(" \n'1", k=rng.randint(0, 20))
    rng.shuffle(made)
    return "".join(made)


def runs(rng: random.Random, _: str) -> str:
    """One to three runs of thousands: windows, and pieces longer than any memory."""
    return "".join(
        rng.choice(FRAGMENTS) * rng.randint(1, rng.choice((20, 200, 3000))) for _ in range(rng.randint(1, 3))
    )


def words(rng: random.Random, _: str) -> str:
    """Words that nobody has met, of few letters, and some of them again: the memory of pieces."""
    letters = rng.choice(
        ("ab", "abcdefgh", "etaoinshrdlu", "aeé中", "中文字符天地玄黄", "あいうえおカキ", "0aF-", "אבגד")
    )
    sizes = rng.choice(((1, 6), (1, 17), (10, 30), (40, 90)))
    made = ["".join(rng.choices(letters, k=rng.randint(*sizes))) for _ in range(rng.randint(1, 40))]
    return rng.choice((" ", "", "\n", ", ")).join(made + rng.choices(made, k=len(made) // 2))


def mutated(rng: random.Random, text: str) -> str:
    """A part of real text, with parts left out, turned about, and put in."""
    start, size = rng.randrange(max(len(text), 1)), rng.choice((80, 300, 2000))
    made = list(text[start : start + size]) or ["a"]
    for _ in range(rng.randint(1, 12)):
        place = rng.randrange(len(made))
        change = rng.randrange(5)
        if change == 0:
            del made[place : place + rng.randint(0, 5)]
        elif change == 1:
            made[place:place] = rng.choice(FRAGMENTS)
        elif change == 2:
            made[place : place + 9] = reversed(made[place : place + 9])
        elif change == 3:
            made[place] = made[place].swapcase()
        else:
            made[place : place + 2] = made[place : place + 2] * rng.randint(1, 30)
        made = made or ["a"]
    return "".join(made)


KINDS: dict[str, Make] = {
    make.__name__: make for make in (fragments, edges, characters, runs, words, mutated)
}


def broken(rng: random.Random, text: str) -> bytes:
    """A string of any kind, as bytes of which some are no UTF-8 any more."""
    made = bytearray(rng.choice(list(KINDS.values()))(rng, text).encode("utf-8", "surrogatepass"))
    for _ in range(rng.randint(0, 8)):
        place, change = rng.randint(0, len(made)), rng.randrange(4)
        if change == 0:
            made[place:place] = rng.choice(BREAKING)
        elif change == 1 and place < len(made):
            made[place] = rng.randrange(256)
        elif change == 2:
            del made[place : place + rng.randint(1, 3)]
        else:
            made[place:place] = rng.choice(BREAKING) * rng.choice((1, 2, 3, 63, 64, 65))
    return bytes(made)


class Peer:
    """The ids that another program gives, for the vocabulary of `tokenizer`."""

    def __init__(self, tokenizer: Tokenizer, name: str):
        self.pattern, self.name = regex.compile(tokenizer.pattern), name
        if name == "tiktoken":
            self.tiktoken: tiktoken.Encoding = tokenizer.to_tiktoken()
        else:
            with tempfile.TemporaryDirectory() as folder:
                tokenizer.save(folder)
                file = json.loads((Path(folder) / "tokenizer.json").read_text("utf-8"))
            file["added_tokens"] = []  # contents are plain text
            self.tokenizers = tokenizers.Tokenizer.from_str(json.dumps(file))

    def encode(self, texts: Sequence[str | bytes]) -> list[list[int]]:
        if any(isinstance(text, bytes) for text in texts):
            return [self.encode_bytes(text) for text in texts]  # type: ignore[arg-type]
        if self.name == "tiktoken":
            return self.tiktoken.encode_ordinary_batch(list(texts), num_threads=1)
        return [encoding.ids for encoding in self.tokenizers.encode_batch_fast(list(texts))]

    def encode_bytes(self, data: bytes) -> list[int]:
        text = data.decode("utf-8", "surrogateescape")
        ids: list[int] = []
        for piece in regex.findall(self.pattern, text):
            spelled = piece.encode("utf-8", "surrogateescape")
            if self.name == "tiktoken":
                ids += self.tiktoken._encode_single_piece(spelled)
            else:
                shown = "".join(formats.PRINTABLE[b] for b in spelled)
                ids += [token.id for token in self.tokenizers.model.tokenize(shown)]
        return ids


def assigned(data: bytes) -> bool:
    """Whether all characters were assigned long ago, so that Python's `regex` knows the classes that we know."""
    text = data.decode("utf-8", "ignore")
    return all(c < "\u0250" or unicodedata.category(c) != "Cn" for c in set(text))


@dataclass
class Fuzz:
    """One vocabulary against one peer."""

    tokenizer: Tokenizer
    peer: Peer
    make: Callable[[str], Any]  # an encoder of an instruction set
    rng: random.Random
    documents: int = 0
    size: int = 0  # bytes compared
    differences: list[str] = field(default_factory=list)
    batches: int = 0

    def __post_init__(self) -> None:
        self.warm = {isa: self.make(isa) for isa in runnable()}
        self.fresh = dict(self.warm)

    def ways(self) -> Iterator[tuple[str, Callable[[Sequence[str | bytes]], list[list[int]]]]]:
        """(name, texts -> ids of each) of every way to encode."""

        def batch(encoder, threads, texts):
            ids, offsets = encoder.encode_batch(texts, threads=threads)
            return [part.tolist() for part in np.split(ids, offsets[1:-1])] if len(texts) else []

        for memory, encoders in (("new", self.fresh), ("warm", self.warm)):
            for isa, encoder in encoders.items():
                yield f"{isa} {memory} batch", lambda texts, e=encoder: batch(e, 1, texts)
                yield f"{isa} {memory} two threads", lambda texts, e=encoder: batch(e, 2, texts)
                yield f"{isa} {memory} one by one", lambda texts, e=encoder: [e.encode_list(t) for t in texts]
        yield "stream", lambda texts: [self.streamed(text) for text in texts]

    def streamed(self, text: str | bytes) -> list[int]:
        if isinstance(text, bytes):
            return self.tokenizer.encode_bytes(text)  # a stream takes str
        stream, ids, done = self.tokenizer.encode_stream(), [], 0
        while done < len(text):
            size = self.rng.choice((1, 7, 60)) + len(text) // 50
            ids += stream.push(text[done : done + size])
            done += size
        return [*ids, *stream.end()]

    def check(self, kind: str, texts: Sequence[str | bytes]) -> None:
        self.batches += 1
        if self.batches % RENEWED == 0:
            self.fresh = {isa: self.make(isa) for isa in self.fresh}
        truth = self.peer.encode(texts)
        self.documents += len(texts)
        self.size += sum(len(t if isinstance(t, bytes) else t.encode()) for t in texts)
        for name, way in self.ways():
            found = way(texts)
            wrong = [i for i, ids in enumerate(truth) if found[i] != ids]
            for i in wrong[:3]:
                text = self.shortest(way, texts[i])
                self.differences.append(
                    f"{name}, {kind}: {text!r} gives {way([text])[0][:20]}, {self.peer.name} "
                    f"{self.peer.encode([text])[0][:20]} ({len(wrong)} of {len(texts)} texts differ)"
                )

    def shortest(self, way, text):
        """The text without the parts that the difference does not need; itself where it does not come again."""
        size = len(text) // 2
        while size > 0:
            for start in range(0, len(text), size):
                less = text[:start] + text[start + size :]
                if way([less]) != self.peer.encode([less]):
                    text = less
                    break
            else:
                size //= 2
        return text

    def files(self, texts: Sequence[str]) -> None:
        """Real text, up to WHOLE characters in one, then all of it in documents of many sizes."""
        for text in texts:
            for start in range(0, len(text), WHOLE):
                self.check("whole", [text[start : start + WHOLE]])
            documents, room, start = [], 4 * BATCH, 0
            while start < len(text):
                size = int(self.rng.expovariate(1 / self.rng.choice((30, 1000, 30000)))) + 1
                documents.append(text[start : start + size])
                start, room = start + size, room - size
                if room <= 0 or start >= len(text):
                    self.check("documents", documents)
                    documents, room = [], 4 * BATCH

    def strings(self, kinds: Sequence[str], text: str, size: int) -> None:
        """Batches of random strings of each kind in turn until `size` bytes more have been compared."""
        limit = self.size + size
        for kind in itertools.cycle(kinds):
            if self.size >= limit:
                return
            made: list[str | bytes] = []
            room = min(BATCH, max(size // len(kinds), 1))
            while room > 0:
                one = broken(self.rng, text) if kind == "broken" else KINDS[kind](self.rng, text)
                room -= len(one) + 16
                if isinstance(one, str) or assigned(one):
                    made.append(one)
            self.check(kind, made)


def encoder_of(arguments: dict) -> Callable[[str], Any]:
    """Makes an encoder of an instruction set from what a vocabulary's file says (formats.load)."""

    def make(isa: str):
        module = bpe.load_isa(isa)
        lexer = module.Pattern(*bpe._LEXERS[bpe._NAMES[bpe.portable(arguments["pattern"])]])
        if arguments.get("rank_file") is not None:
            return module.Encoder.from_ranks(arguments["rank_file"], lexer)
        return module.Encoder(
            arguments["tokens"], arguments["merges"], lexer, bool(arguments.get("whole_pieces"))
        )

    return make


def main(
    vocabulary: Path,
    /,
    pattern: str | None = None,
    peer: str = "tiktoken",
    texts: tuple[Path, ...] = (),
    megabytes: float = 100,
    seed: int = 0,
    kinds: str = ",".join((*KINDS, "broken")),
) -> None:
    """Compare ids with a peer's, on real text and on random strings.

    Args:
        vocabulary: A tiktoken rank file, or what else Tokenizer.load reads.
        pattern: A name in PATTERNS, where the vocabulary is to be used with another one than its own.
        peer: tiktoken, or tokenizers (Hugging Face).
        texts: Files of real text, UTF-8.
        megabytes: Of random strings.
        seed: Of these strings.
        kinds: Which of them.
    """
    # A rank file of a name of its own says nothing of its pattern.
    arguments = formats.load(vocabulary, **({"pattern": pattern} if vocabulary.suffix == ".tiktoken" else {}))
    if pattern:
        arguments["pattern"] = pattern
    tokenizer = Tokenizer(**arguments)
    fuzz = Fuzz(tokenizer, Peer(tokenizer, peer), encoder_of(arguments), random.Random(seed))
    read = [path.read_text("utf-8", errors="ignore") for path in texts]
    begun = time.monotonic()
    fuzz.files(read)
    fuzz.strings(kinds.split(","), "".join(text[: 4 << 20] for text in read), int(megabytes * 1e6))
    for difference in fuzz.differences:
        print(difference)
    print(
        f"{vocabulary.name}, {arguments['pattern'] if pattern else 'its own pattern'}, beside {peer}, seed {seed}: "
        f"{fuzz.documents:,} texts, {fuzz.size:,} bytes, {len(fuzz.differences)} differences, "
        f"{time.monotonic() - begun:.0f} s"
    )
    sys.exit(bool(fuzz.differences))


if __name__ == "__main__":
    tyro.cli(main)
