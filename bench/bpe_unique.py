"""Words that were never met before, without end: memory stays, and so does the rate.

    python -m bench.bpe_unique RANKS [GIGABYTES]

No piece is in the memory of pieces: most are merged without it, and what is remembered fills it in time. A line a
step: bytes so far, MB/s of processor time, resident memory. Ends with an error where a later step is slower than 0.8
of the first one's rate (that of the miss path alone) or where memory has grown by more than 16 MiB since the second.
"""

import os
import sys
import time
from pathlib import Path

import numpy as np
from pyengine.kernels import bpe

LETTERS = 9
STEP = 2_000_000  # words, of ten bytes


def words(first: int, count: int) -> bytes:
    """Words number `first` and following: a permutation of all words of nine letters, so that none comes twice."""
    numbers = (np.arange(first, first + count, dtype=np.uint64) * np.uint64(1_000_003)) % np.uint64(
        26**LETTERS
    )
    text = np.full((count, LETTERS + 1), ord(" "), np.uint8)
    for place in range(1, LETTERS + 1):
        numbers, letter = np.divmod(numbers, np.uint64(26))
        text[:, place] = letter.astype(np.uint8) + ord("a")
    return text.tobytes()


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def measure(encoder: "bpe.Encoder", steps: int, size: int = STEP, show=lambda *row: None):
    """(MB/s, resident bytes) of each step."""
    rows = []
    for step in range(steps):
        text = words(step * size, size)
        start = time.thread_time()
        ids = encoder.encode(text)
        rate = len(text) / (time.thread_time() - start) / 1e6
        del ids, text
        rows.append((rate, resident()))
        show((step + 1) * size * (LETTERS + 1), *rows[-1])
    return rows


def main() -> None:
    ranks, gigabytes = sys.argv[1], float(sys.argv[2]) if len(sys.argv) > 2 else 10
    encoder = bpe.Encoder.from_ranks(Path(ranks).read_bytes(), bpe.split_pattern("cl100k"))

    def show(total: int, rate: float, memory: int) -> None:
        print(f"{total / 1e9:6.2f} GB {rate:6.1f} MB/s {memory / 2**20:7.1f} MiB", flush=True)

    rows = measure(encoder, max(3, int(gigabytes * 1e9 / STEP / (LETTERS + 1))), show=show)
    if min(rate for rate, _ in rows[1:]) < 0.8 * rows[0][0]:
        raise SystemExit("a step was slower than the first one")
    if max(memory for _, memory in rows[1:]) > rows[1][1] + (16 << 20):
        raise SystemExit("memory has grown")


if __name__ == "__main__":
    main()
