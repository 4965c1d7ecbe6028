"""The search index: passages of documents in SQLite FTS5, ranked by BM25.

    SearchIndex.build("index.sqlite", documents)
    SearchIndex("index.sqlite").search("Who plays the oboe?", k=3)  ->  [Hit(url, title, text), ...]

A passage is a run of lines of one document, some 80 words long; its title counts along. A query is cut into
words, each quoted: whatever a user or a model types is data to it and never syntax. A few words, a name say, must
all be found, or there is no result; of a longer question any word may.
"""

import os
import re
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

from ..errors import UserError
from ..files import naming_database, sync_folder

_COMMON = frozenset(
    "a an and are as at be been by can did do does for from had has have he her his how i in is it its me my"
    " of on or she that the their them they this to was we were what when where which who whom whose why will"
    " with you your"
    .split()
)  # fmt: skip

ALL_OF = 3  # queries of at most this many words must be found whole


@dataclass(frozen=True)
class Hit:
    """One passage found."""

    url: str
    title: str
    text: str
    score: float  # BM25, higher is better


class SearchIndex:
    """A finished index, read only; may be used from several threads."""

    def __init__(self, path: str | os.PathLike) -> None:
        if not Path(path).is_file():
            raise UserError(f"{path}: no search index there; build one with python -m pyengine.web clean")
        uri = f"{Path(path).resolve().as_uri()}?mode=ro&immutable=1"
        try:
            self._db = sqlite3.connect(uri, uri=True, check_same_thread=False)
            self._db.execute("SELECT 1 FROM passages LIMIT 1")
        except sqlite3.DatabaseError as error:
            raise UserError(f"{path}: not a search index ({error}); build it again") from None
        self._lock = Lock()

    @staticmethod
    def build(path: str | os.PathLike, documents: Iterable[Mapping[str, str]], words: int = 80) -> int:
        """Write the index of documents with "url", "title" and "text"; gives the number of passages.

        The file appears under its name only when it is whole. words: the length a passage is cut at.
        """
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
        temporary.unlink(missing_ok=True)
        try:
            with naming_database(path), closing(sqlite3.connect(temporary)) as db:
                count = _fill(db, documents, words)
            with open(temporary, "rb") as file:
                os.fsync(file.fileno())
            os.replace(temporary, path)
            sync_folder(path.parent)
        finally:
            temporary.unlink(missing_ok=True)
        return count

    def search(self, query: str, k: int = 3, max_chars: int = 1000) -> list[Hit]:
        """The k best passages, each at most `max_chars` long and cut around the query's words."""
        terms = _terms(query)
        if not terms or k < 1:
            return []
        joint = " " if len(terms) <= ALL_OF else " OR "
        match = joint.join(f'"{term}"' for term in terms)
        sql = (
            "SELECT url, title, text, bm25(passages, 0, 2, 1) AS rank FROM passages"
            " WHERE passages MATCH ? ORDER BY rank, rowid LIMIT ?"
        )
        with self._lock:
            rows = self._db.execute(sql, (match, k)).fetchall()
        return [Hit(url, title, _cut(text, terms, max_chars), -rank) for url, title, text, rank in rows]

    def close(self) -> None:
        """Release the file."""
        self._db.close()


def _fill(db: sqlite3.Connection, documents: Iterable[Mapping[str, str]], words: int) -> int:
    db.execute("PRAGMA journal_mode=OFF")
    db.execute(
        "CREATE VIRTUAL TABLE passages USING fts5"
        "(url UNINDEXED, title, text, tokenize='porter unicode61 remove_diacritics 2')"
    )
    count = 0
    for document in documents:
        rows = [
            (document.get("url", ""), document.get("title", ""), passage)
            for passage in passages(document["text"], document.get("title", ""), words)
        ]
        db.executemany("INSERT INTO passages VALUES (?, ?, ?)", rows)
        count += len(rows)
    db.execute("INSERT INTO passages(passages) VALUES ('optimize')")
    db.commit()
    return count


def passages(text: str, title: str = "", words: int = 80) -> Iterator[str]:
    """A document's text in runs of lines of about `words` words; longer lines are cut between sentences."""
    lines = text.split("\n")
    if title and lines and lines[0] == title:
        lines = lines[1:]
    pieces = (piece for line in lines for piece in _pieces(line, words))
    run: list[str] = []
    length = 0
    for piece in pieces:
        size = len(piece.split())
        if run and length + size > words:
            yield "\n".join(run)
            run, length = [], 0
        if size:
            run.append(piece)
            length += size
    if run or title:
        yield "\n".join(run)


def _pieces(line: str, words: int) -> Iterator[str]:
    if len(line.split()) <= words:
        yield line
        return
    for sentence in re.split(r"(?<=[.!?])\s+", line):
        tokens = sentence.split(" ")
        for start in range(0, len(tokens), words):
            yield " ".join(tokens[start : start + words])


def _terms(query: str) -> list[str]:
    """The query's words, common ones only if there are no others; at most 32."""
    found = list(dict.fromkeys(word.lower() for word in re.findall(r"[^\W_]+", query[:10_000])))
    return ([word for word in found if word not in _COMMON] or found)[:32]


def _cut(text: str, terms: Sequence[str], max_chars: int) -> str:
    if len(text) <= max_chars:
        return text
    places = [place for term in terms if (place := text.lower().find(term)) >= 0]
    start = max(0, min(min(places, default=0) - max_chars // 4, len(text) - max_chars))
    if start:  # begin with a whole word
        space = text.find(" ", start, start + max_chars // 2)
        start = space + 1 if space >= 0 else start
    return text[start : start + max_chars]
