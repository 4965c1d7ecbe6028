"""Exact and near duplicates, the earliest of which is kept.

A text is the set of its 5-word shingles; MinHash signatures of 14 x 8 numbers estimate how much two sets
overlap (Jaccard). Two texts are candidates if one of the 14 bands of 8 numbers agrees, which at an overlap
of 0.8 happens in 92 % of cases and at 0.9 in nearly all; a candidate counts as duplicate if the whole
signatures agree in `similarity` of their numbers. A text is compared with kept texts only, so that chains
of small changes do not join what is different.
"""

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from rensa import RMinHash


@dataclass(frozen=True)
class DedupConfig:
    """How alike is too alike."""

    exact: bool = True
    near: bool = True
    shingle: int = 5  # words
    bands: int = 14
    rows: int = 8
    similarity: float = 0.7


def exact_key(text: str) -> str:
    """The same for texts that differ only in white space and case."""
    return hashlib.sha256(" ".join(text.lower().split()).encode()).hexdigest()[:32]


def signature(text: str, config: DedupConfig) -> list[int]:
    """MinHash signature, bands * rows numbers of 32 bits."""
    words = re.findall(r"\w+", text.lower())
    n = config.shingle
    shingles = [" ".join(words[i : i + n]) for i in range(max(1, len(words) - n + 1))]
    sketch = RMinHash(num_perm=config.bands * config.rows, seed=1)
    sketch.update(shingles)
    return sketch.digest()


def duplicates(
    keys: Sequence[str], signatures: Iterable[Sequence[int]], config: DedupConfig
) -> list[tuple[int, str] | None]:
    """For each text, in order of precedence: None if it is kept, else (index of the kept text, reason)."""
    out: list[tuple[int, str] | None] = []
    by_key: dict[str, int] = {}
    buckets: dict[tuple[int, bytes], list[int]] = {}
    kept: dict[int, np.ndarray] = {}
    for i, (key, numbers) in enumerate(zip(keys, signatures, strict=True)):
        if config.exact and key in by_key:
            out.append((by_key[key], "exact"))
            continue
        by_key.setdefault(key, i)
        if not config.near:
            out.append(None)
            continue
        sketch = np.asarray(numbers, dtype=np.uint32)
        bands = [(b, row.tobytes()) for b, row in enumerate(sketch.reshape(config.bands, config.rows))]
        candidates = sorted({j for band in bands for j in buckets.get(band, ())})
        like = [(float((kept[j] == sketch).mean()), -j) for j in candidates]
        best = max(like, default=(0.0, 0))
        if best[0] >= config.similarity:
            out.append((-best[1], "near"))
            continue
        kept[i] = sketch
        for band in bands:
            buckets.setdefault(band, []).append(i)
        out.append(None)
    return out
