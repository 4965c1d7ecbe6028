"""BPE in plain Python, to be read: the whole of what csrc/text does, a few hundred times slower.

A vocabulary starts as the 256 bytes. Training looks for the pair of neighbouring tokens that occurs most
often, makes it a token, and repeats; what it has learnt is the list of merges, in order. Encoding a text
applies the merges to it in the same order. Merges never cross the borders of pieces: a regular expression
first cuts the text into words, numbers, punctuation and white space, so that "dog." and "dog!" share "dog".

    merges = train(Counter(split(text, PATTERNS["qwen2"])), vocab_size=300)
    ids = encode(text, PATTERNS["qwen2"], merges)
    text = decode(ids, merges)

A token's id: 0..255 are the bytes in BYTE_ORDER, then one for each merge that spells a new token.
"""

from collections import Counter
from collections.abc import Mapping, Sequence

import regex

from .cpu import encode_tensor  # noqa: F401  # a GPU's encoder is compared with the C++ one

# Ids 0..255: the bytes that print, then the rest, as in GPT-2. Ties in training go to lower ids, so this
# order is part of being equal to Hugging Face's trainer.
BYTE_ORDER = bytes([*range(33, 127), *range(161, 173), *range(174, 256)])
BYTE_ORDER += bytes(b for b in range(256) if b not in BYTE_ORDER)

Pair = tuple[int, int]


def split(text: str | bytes, pattern: str) -> list[bytes]:
    """The pieces of a text, in order: what the pattern matches, and what lies between the matches. Any bytes pass."""
    errors = "surrogatepass" if isinstance(text, str) else "surrogateescape"
    if isinstance(text, bytes):
        text = text.decode("utf-8", errors)
    pieces, end = [], 0
    for match in regex.finditer(pattern, text):
        pieces += [text[end : match.start()], match.group()]
        end = match.end()
    pieces.append(text[end:])
    return [piece.encode("utf-8", errors) for piece in pieces if piece]


def spell(merges: Sequence[Pair]) -> list[bytes]:
    """The bytes of each id. A merge whose bytes are already a token adds none."""
    tokens = [bytes([b]) for b in BYTE_ORDER]
    known = set(tokens)
    for left, right in merges:
        token = tokens[left] + tokens[right]
        if token not in known:
            known.add(token)
            tokens.append(token)
    return tokens


def replace(ids: list[int], pair: Pair, new: int) -> list[int]:
    """`ids` with each occurrence of `pair`, from the left, replaced by `new`."""
    result, i = [], 0
    while i < len(ids):
        if tuple(ids[i : i + 2]) == pair:
            result.append(new)
            i += 2
        else:
            result.append(ids[i])
            i += 1
    return result


def train(words: Mapping[bytes, int], vocab_size: int, min_frequency: int = 1) -> list[Pair]:
    """Learn merges from distinct words and their counts until the vocabulary holds `vocab_size` tokens.

    The most frequent pair is merged first; of equally frequent pairs the one with the lower ids.
    """
    tokens = [bytes([b]) for b in BYTE_ORDER]
    ids_of = {token: i for i, token in enumerate(tokens)}
    split_words = [([ids_of[bytes([b])] for b in word], count) for word, count in words.items()]
    merges: list[Pair] = []
    while len(tokens) < vocab_size:
        counts: Counter[Pair] = Counter()
        for ids, count in split_words:
            for pair in zip(ids, ids[1:], strict=False):
                counts[pair] += count
        if not counts:
            break
        best = min(counts, key=lambda pair: (-counts[pair], pair))
        if counts[best] < min_frequency:
            break
        token = tokens[best[0]] + tokens[best[1]]
        if token not in ids_of:
            ids_of[token] = len(tokens)
            tokens.append(token)
        merges.append(best)
        split_words = [(replace(ids, best, ids_of[token]), count) for ids, count in split_words]
    return merges


def encode_piece(piece: bytes, merges: Sequence[Pair]) -> list[int]:
    """The ids of one piece: of all neighbours, merge the pair learnt first, until none is left."""
    tokens = spell(merges)
    ids_of = {token: i for i, token in enumerate(tokens)}
    rank = {pair: i for i, pair in enumerate(merges)}
    ids = [ids_of[bytes([b])] for b in piece]
    while True:
        pairs = [pair for pair in zip(ids, ids[1:], strict=False) if pair in rank]
        if not pairs:
            return ids
        best = min(pairs, key=lambda pair: rank[pair])
        # One occurrence at a time: merging it can make a pair of lower rank with what follows.
        at = next(i for i in range(len(ids)) if tuple(ids[i : i + 2]) == best)
        ids[at : at + 2] = [ids_of[tokens[best[0]] + tokens[best[1]]]]


def encode(text: str, pattern: str, merges: Sequence[Pair]) -> list[int]:
    """The ids of a text."""
    return [i for piece in split(text, pattern) for i in encode_piece(piece, merges)]


def decode(ids: Sequence[int], merges: Sequence[Pair]) -> str:
    """The text of ids; bytes that are no whole character become U+FFFD."""
    tokens = spell(merges)
    return b"".join(tokens[i] for i in ids).decode("utf-8", "replace")
