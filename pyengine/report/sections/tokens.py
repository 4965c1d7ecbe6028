"""What the vocabulary makes of a text."""

from typing import Any

from markupsafe import Markup

from ..data import Data

SHOWN = 700  # characters of the coloured text
SHARDS = {"train_tokens": "tokens to train on", "val_tokens": "tokens held out"}


def tokens(data: Data) -> dict[str, Any] | None:
    """Statistics of the tokenizer, a text coloured by tokens, the longest entries."""
    if not data.finished("tokenizer") or not data.path("tokenizer", "tokenizer.json").exists():
        return None
    tokenizer = data.run.tokenizer
    rows = data.rows("web", "heldout.jsonl")[:50]
    texts = [row["text"] for row in rows if row.get("text")]
    sample = max(texts, key=lambda text: min(len(text), SHOWN), default="")[:SHOWN]
    ids = [i for text in texts for i in tokenizer.encode(text)]
    words = sorted((tokenizer.token_bytes(i) for i in set(ids) if not tokenizer.is_special(i)), key=len)
    shards = data.summary("shards")
    return {
        "vocabulary": tokenizer.vocab_size,
        "bytes_per_token": sum(len(text.encode()) for text in texts) / len(ids) if ids else None,
        "sampled": len(texts),
        "used": len(set(ids)),
        "coloured": Markup(tokenizer.show(sample, "html")) if sample else "",
        "sample_tokens": len(tokenizer.encode(sample)),
        "sample_characters": len(sample),
        "longest": [word.decode("utf-8", "replace") for word in reversed(words[-24:])],
        "shards": [(text, shards[name]) for name, text in SHARDS.items() if name in shards],
    }
