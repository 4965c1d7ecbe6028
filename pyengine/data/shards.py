"""Token shards: a corpus as flat files of ids, memory-mapped, so that it may be larger than memory.

    folder/tokens-00000.bin      ids of whole documents, one after the other; uint16, or uint32 for big vocabularies
           documents-00000.bin   uint64: where each document begins in it, and where the last one ends
           manifest.json         format, dtype, vocabulary size and hash, document start id; each file's size and hash

Little-endian. A document begins with <|endoftext|>. The manifest is written last: a folder without it is
unfinished, and one whose files, vocabulary or sizes differ from it is refused by name.
"""

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import Progress

from ..errors import UserError
from ..files import atomic_write, file_hash, write_json
from ..text import Tokenizer
from ..text.formats import read_texts

FORMAT = "pyengine token shards 1"
SHARD_TOKENS = 64 << 20  # about; a shard ends with the document that fills it
BATCH_DOCUMENTS = 4096


class ShardWriter:
    """Writes documents of ids into shards; `close` makes the folder complete.

    with ShardWriter(folder, tokenizer) as writer:
        writer.add(ids)
    """

    def __init__(self, folder: str | os.PathLike, tokenizer: Tokenizer, shard_tokens: int = SHARD_TOKENS):
        self.folder, self.shard_tokens = Path(folder), shard_tokens
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "manifest.json").unlink(missing_ok=True)
        self._dtype = np.dtype("<u2" if tokenizer.vocab_size <= 1 << 16 else "<u4")
        self._manifest: dict[str, Any] = {
            "format": FORMAT,
            "dtype": self._dtype.name,
            "vocab_size": tokenizer.vocab_size,
            "tokenizer": tokenizer.hash,
            "start": tokenizer.special_ids.get("<|endoftext|>"),
            "shards": [],
        }
        self._parts: list[np.ndarray] = []
        self._ends = [0]

    def add(self, ids: Sequence[int] | np.ndarray) -> None:
        """Append one document (its <|endoftext|> included); an empty one is left out."""
        part = np.asarray(ids)
        if part.size == 0:
            return
        if part.min() < 0 or part.max() >= self._manifest["vocab_size"]:
            raise ValueError(
                f"a document holds an id outside of the vocabulary of {self._manifest['vocab_size']}"
            )
        self._parts.append(part.astype(self._dtype))
        self._ends.append(self._ends[-1] + part.size)
        if self._ends[-1] >= self.shard_tokens:
            self._flush()

    def _flush(self) -> None:
        if not self._parts:
            return
        number = len(self._manifest["shards"])
        entry: dict[str, Any] = {"documents": len(self._parts), "tokens": self._ends[-1], "files": {}}
        contents = {"tokens": self._parts, "documents": [np.array(self._ends, "<u8")]}
        for kind, arrays in contents.items():
            name = f"{kind}-{number:05d}.bin"
            with atomic_write(self.folder / name, "wb") as file:
                for array in arrays:
                    file.write(array.tobytes())
            entry["files"][kind] = {"name": name, "sha256": file_hash(self.folder / name)}
        self._manifest["shards"].append(entry)
        self._parts, self._ends = [], [0]

    def close(self) -> dict[str, Any]:
        """Write what is left and the manifest; returns the manifest."""
        self._flush()
        for name in ("documents", "tokens"):
            self._manifest[name] = sum(shard[name] for shard in self._manifest["shards"])
        write_json(self.folder / "manifest.json", self._manifest)
        return self._manifest

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(self, kind, *_) -> None:
        if kind is None:
            self.close()


def write_shards(
    folder: str | os.PathLike,
    texts: Iterable[str | bytes],
    tokenizer: Tokenizer,
    threads: int | None = None,
    shard_tokens: int = SHARD_TOKENS,
) -> dict[str, Any]:
    """Encode texts, one document each, as <|endoftext|> + ids; returns the manifest."""
    start = np.array([tokenizer.special_ids["<|endoftext|>"]], np.uint32)
    remaining: Iterator[str | bytes] = iter(texts)
    with ShardWriter(folder, tokenizer, shard_tokens) as writer:
        while batch := list(islice(remaining, BATCH_DOCUMENTS)):
            ids, offsets = tokenizer.encode_batch(batch, threads=threads)
            for first, last in zip(offsets, offsets[1:], strict=False):
                if last > first:
                    writer.add(np.concatenate([start, ids[first:last]]))
    return json.loads((Path(folder) / "manifest.json").read_text("utf-8"))


def encode_files(
    paths: str | os.PathLike | Iterable[str | os.PathLike],
    folder: str | os.PathLike,
    tokenizer: Tokenizer,
    threads: int | None = None,
    progress: bool = False,
) -> dict[str, Any]:
    """Encode text and JSONL files (as Tokenizer.train reads them) into token shards, each text a document; returns
    the manifest. The files may be larger than memory.

    progress: a bar on standard error. Raises UserError where the vocabulary has no <|endoftext|>.
    """
    if "<|endoftext|>" not in tokenizer.special_ids:
        raise UserError("token shards begin each document with <|endoftext|>, which this vocabulary lacks")
    files = [Path(p) for p in ([paths] if isinstance(paths, str | os.PathLike) else paths)]
    texts: Iterable[str | bytes] = read_texts(files)
    if not progress:
        return write_shards(folder, texts, tokenizer, threads=threads)
    with Progress(console=Console(stderr=True)) as bar:
        task = bar.add_task("encoding", total=sum(p.stat().st_size for p in files if p.is_file()))

        def counted() -> Iterator[str | bytes]:
            for text in texts:
                yield text
                bar.advance(task, len(text))

        return write_shards(folder, counted(), tokenizer, threads=threads)


class TokenShards:
    """A folder of shards, read-only: a sequence of documents (uint16 or uint32 arrays, mapped from disk)."""

    def __init__(self, folder: str | os.PathLike, tokenizer: Tokenizer | None = None, verify: bool = False):
        """tokenizer: the vocabulary that must have made the shards; verify: read all files and check their
        hashes (sizes are always checked). Raises UserError naming the file that does not fit."""
        self.folder = Path(folder)
        path = self.folder / "manifest.json"
        if not path.is_file():
            raise UserError(f"{path}: no such file; the shards are unfinished, write them again")
        try:
            self.manifest = json.loads(path.read_text("utf-8"))
            if self.manifest["format"] != FORMAT:
                raise UserError(f"{path}: format is {self.manifest['format']!r}, expected {FORMAT!r}")
            self.dtype = np.dtype(self.manifest["dtype"]).newbyteorder("<")
            shards, made_by = self.manifest["shards"], self.manifest["tokenizer"]
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path}: not a manifest of token shards ({error!r}); write them again") from None
        if tokenizer is not None and tokenizer.hash != made_by:
            raise UserError(
                f"{path}: the shards were encoded with another vocabulary ({made_by[:12]}) than the one given "
                f"({tokenizer.hash[:12]}, {tokenizer.vocab_size} ids); encode the corpus again with this one"
            )
        self._tokens = [self._map(s, "tokens", self.dtype, s["tokens"], verify) for s in shards]
        self._starts = [
            self._map(s, "documents", np.dtype("<u8"), s["documents"] + 1, verify) for s in shards
        ]
        self._first = np.cumsum([0, *(s["documents"] for s in shards)])

    def _map(self, shard: dict, kind: str, dtype: np.dtype, size: int, verify: bool) -> np.ndarray:
        entry = shard["files"][kind]
        path = self.folder / entry["name"]
        have = path.stat().st_size if path.is_file() else -1
        if have != size * dtype.itemsize:
            state = "is missing" if have < 0 else f"has {have} bytes, not {size * dtype.itemsize}"
            raise UserError(f"{path}: the shard {state}; encode the corpus again")
        if verify and file_hash(path) != entry["sha256"]:
            raise UserError(f"{path}: the shard's content has changed (wrong hash); encode the corpus again")
        return np.memmap(path, dtype, "r")

    @property
    def tokens(self) -> int:
        """How many ids all documents have together."""
        return self.manifest["tokens"]

    @property
    def vocab_size(self) -> int:
        return self.manifest["vocab_size"]

    def __len__(self) -> int:
        return int(self._first[-1])

    def __getitem__(self, index: int) -> np.ndarray:
        if not 0 <= index < len(self):
            raise IndexError(index)
        shard = int(np.searchsorted(self._first, index, side="right")) - 1
        starts, i = self._starts[shard], index - int(self._first[shard])
        return self._tokens[shard][int(starts[i]) : int(starts[i + 1])]

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self[i] for i in range(len(self)))
