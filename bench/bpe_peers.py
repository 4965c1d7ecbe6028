"""One encoder, one text, one process: CPU seconds of the first pass over it and of the best of three later ones.

    python -m bench.bpe_peers NAME RANKS TEXT      # NAME: pyengine, or a peer; prints one JSON object

Documents of about 4,000 characters, one thread, ids as each encoder gives them fastest; a call on two documents
comes first, so that what is built once is not counted. A fresh process for each, because caches are what differs
between passes.
"""

import hashlib
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.update(RAYON_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false")

import numpy as np


def pyengine(ranks: str) -> Callable[[list[str]], Any]:
    from pyengine import Tokenizer

    tokenizer = Tokenizer.load(ranks, pattern="cl100k", special_ids={})
    return lambda documents: tokenizer.encode_batch(documents, threads=1)[0]


def tiktoken(ranks: str) -> Callable[[list[str]], Any]:
    import tiktoken as peer
    from pyengine.kernels.bpe import PATTERNS
    from tiktoken.load import load_tiktoken_bpe

    encoding = peer.Encoding(
        "bench", pat_str=PATTERNS["cl100k"], mergeable_ranks=load_tiktoken_bpe(ranks), special_tokens={}
    )
    return lambda documents: [encoding.encode_ordinary(document) for document in documents]


def gigatoken(ranks: str) -> Callable[[list[str]], Any]:
    import gigatoken as peer

    tokenizer = peer.Tokenizer.from_tiktoken(ranks, pretokenizer="gpt4", special_tokens={})
    return lambda documents: tokenizer.encode_batch(documents, parallel=False)


def fastokens(ranks: str) -> Callable[[list[str]], Any]:
    import fastokens as peer

    tokenizer = peer.Tokenizer.from_tiktoken(ranks, encoding="cl100k_base")
    return lambda documents: np.frombuffer(
        tokenizer.encode_batch_flat(documents, split_special_tokens=True)[0], np.uint32
    )


def flat(ids: Any) -> np.ndarray:
    """All ids in a row, whatever they came as."""
    if hasattr(ids, "layout"):  # gigatoken's array of arrays
        ids = ids.layout.content.data
    elif isinstance(ids, list):
        ids = [i for part in ids for i in part]
    return np.asarray(ids, np.uint32)


def main() -> None:
    name, ranks, path = sys.argv[1:]
    text = Path(path).read_text("utf-8", errors="replace")
    documents = [text[i : i + 4000] for i in range(0, len(text), 4000)]
    encode = globals()[name](ranks)
    encode(documents[:2])
    seconds = []
    for _ in range(4):
        start = time.process_time()
        ids = encode(documents)
        seconds.append(time.process_time() - start)
    print(
        json.dumps(
            {
                "first": seconds[0],
                "later": min(seconds[1:]),
                "bytes": len(text.encode()),
                "ids": hashlib.sha256(flat(ids).tobytes()).hexdigest(),
            }
        )
    )


if __name__ == "__main__":
    main()
