"""Texts made to be slow: one kind of character a megabyte, met for the first time, as one piece or as pieces that are
all new.

    python -m bench.bpe_worst NAME RANKS MEGABYTES REPEATS KIND ...   # NAME: pyengine, or a peer of bench/bpe_peers.py

Prints one JSON object for each kind: the least CPU seconds of a first pass by a fresh encoder, and a hash of the ids.
A kind that takes a minute ends the process, as one does that an encoder does not survive; `stood` goes on behind it.
"""

import hashlib
import json
import signal
import string
import subprocess
import sys
import time
from collections.abc import Iterator

import numpy as np
from numpy.random import Generator, default_rng

from bench import bpe_peers

MINUTE = 60


def points(*parts: str | tuple[int, int]) -> np.ndarray:
    """Code points: of the characters of strings, and of ranges, both ends included."""
    all_of = np.concatenate(
        [np.array(list(map(ord, p))) if isinstance(p, str) else np.arange(p[0], p[1] + 1) for p in parts]
    )
    return all_of[(all_of < 0xD800) | (all_of >= 0xE000)].astype(np.uint32)


LOWER, UPPER, DIGITS = string.ascii_lowercase, string.ascii_uppercase, string.digits
LATIN, CJK = (0x61, 0x7A), (0x4E00, 0x9FFF)
ALPHABETS = {
    "one letter": points("a"), "letters": points(LOWER), "capitals": points(UPPER), "both cases": points(LOWER + UPPER),
    "spaces": points(" "), "newlines": points("\n"), "spaces and tabs": points(" \t"), "three white": points(" \t\n"),
    "six white": points(" \t\n\r\xa0\u2003"), "punctuation": points(string.punctuation),
    "printable": points((0x20, 0x7E)), "base64": points(LOWER + UPPER + DIGITS + "+/"),
    "hexadecimal": points(DIGITS + "abcdef"), "digits": points(DIGITS), "zeros": points("\0"),
    "control": points((0, 31)), "apostrophes": points(LOWER + "''''''"), "contractions": points("'st"),
    "letters and digits": points(LOWER + DIGITS), "letters and punctuation": points(LOWER + string.punctuation),
    "capitals in words": points(UPPER * 5 + " " * 26), "Latin-1": points((0x20, 0x7E), (0xA0, 0xFF)),
    "two bytes": points((0x80, 0x7FF)), "three bytes": points((0x800, 0xFFFF)),
    "four bytes": points((0x10000, 0x10FFFF)), "basic plane": points((0, 0xFFFF)),
    "two planes": points((0, 0x1FFFF)), "all of Unicode": points((0, 0x10FFFF)),
    "marks": points((0x300, 0x36F)), "letters and marks": points(LATIN, (0x300, 0x36F)),
    "Cyrillic": points((0x410, 0x44F)), "Thai": points((0xE01, 0xE3A), (0xE40, 0xE4E)),
    "Arabic": points((0x621, 0x64A), " "), "Hindi": points((0x900, 0x97F)), "Hangul": points((0xAC00, 0xD7A3)),
    "CJK": points(CJK), "CJK and its punctuation": points(CJK, (0x3000, 0x303F)),
    "CJK and Latin": points(*[CJK] * 3, *[LOWER + " "] * 2327), "emoji": points((0x1F300, 0x1F64F)),
    "five scripts": points(LATIN, (0x430, 0x44F), (0x3B1, 0x3C9), (0x5D0, 0x5EA), (0x905, 0x939)),
}  # fmt: skip
BYTES = {
    "bytes": np.arange(256, dtype=np.uint8), "bytes from 128 on": np.arange(128, 256, dtype=np.uint8),
    "continuations": np.arange(128, 192, dtype=np.uint8), "bytes of 255": np.array([255], np.uint8),
}  # fmt: skip


def words(random: Generator, size: int, longest: int) -> bytes:
    """A space and two to `longest` letters, again and again; nine where that is 9."""
    text = random.choice(points(LOWER).astype(np.uint8), size)
    sizes = np.full(size, 9) if longest == 9 else random.integers(2, longest, size, endpoint=True)
    starts = np.cumsum(sizes + 1) - sizes[0] - 1
    text[starts[starts < size]] = ord(" ")
    return text.tobytes()


def text_of(kind: str, size: int) -> bytes:
    """`size` bytes at most, and four fewer at least; the same in each call."""
    random = default_rng(7)
    if kind in BYTES:
        return random.choice(BYTES[kind], size).tobytes()
    if kind.startswith("words"):
        return words(random, size, int(kind.split()[-1]))
    text = random.choice(ALPHABETS[kind], size)
    ends = np.cumsum(1 + sum((text >= first).astype(np.int64) for first in (0x80, 0x800, 0x10000)))
    return text[: np.searchsorted(ends, size, "right")].astype("<u4").tobytes().decode("utf-32-le").encode()


KINDS = [*ALPHABETS, *BYTES, "words of up to 10", "words of 9"]
QUICK = ["letters", "three white", "basic plane", "words of 9"]


def measure(name: str, ranks: str, size: int, repeats: int, kinds: list[str]) -> Iterator[dict]:
    """One after the other, what the process prints."""
    for kind in kinds:
        text = text_of(kind, size)
        document = text if kind in BYTES else text.decode()
        seconds = []
        for _ in range(repeats):
            encode = getattr(bpe_peers, name)(ranks)
            encode(["a b", "c"])
            signal.alarm(MINUTE)
            start = time.process_time()
            ids = encode([document])
            seconds.append(time.process_time() - start)
            signal.alarm(0)
        digest = hashlib.sha256(bpe_peers.flat(ids).tobytes()).hexdigest()
        yield {"kind": kind, "seconds": min(seconds), "ids": digest}


def stood(name: str, ranks: str, megabytes: float, repeats: int, kinds: list[str]) -> dict[str, dict]:
    """What `measure` says of each kind that encoder stands, by processes of their own. Peers take text alone."""
    found: dict[str, dict] = {}
    left = [kind for kind in kinds if name == "pyengine" or kind not in BYTES]
    while left:
        command = [sys.executable, "-m", "bench.bpe_worst", name, ranks, str(megabytes), str(repeats), *left]
        done = subprocess.run(command, capture_output=True, text=True)
        rows = [json.loads(line) for line in done.stdout.splitlines()]
        found |= {row["kind"]: row for row in rows}
        if done.returncode == 0:
            break
        reached = left.index(rows[-1]["kind"]) + 1 if rows else 0
        left = left[reached + 1 :]  # behind the one that ended it
    return found


def main() -> None:
    name, ranks, megabytes, repeats, *kinds = sys.argv[1:]
    for row in measure(name, ranks, int(float(megabytes) * 2**20), int(repeats), kinds):
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
