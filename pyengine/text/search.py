"""The text side of the search tool: from the query's ids to the ids of what was found.

The engine stops at <|search|> query<|end|>, calls the tool, and puts <|result|> + its ids + <|end|> into the
context. The ids are plain text whatever the pages say, so that a page can inject no control token; they are
capped; and a search that fails says so in words, which the model can read, instead of ending the run.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from .chat import spaced
from .tokenizer import Tokenizer

MAX_QUERY_TOKENS = 64
NOTHING = "No result."
EMPTY = "The query is empty."
FAILED = "The search failed."


class Index(Protocol):
    """Anything to search in. A result is a mapping or an object with text, and perhaps title and url."""

    def search(self, query: str, k: int) -> Sequence[Any]: ...


@dataclass(frozen=True)
class Found:
    """What one search gave: the text the model reads, and the results it is made of (to show sources)."""

    query: str
    text: str
    results: tuple[Any, ...] = ()
    error: str = ""


class SearchTool:
    """Callable from query ids to result ids, without <|result|> and <|end|>, which the engine adds."""

    def __init__(self, index: Index, tokenizer: Tokenizer, k: int = 3, max_tokens: int = 256):
        """k: results asked for; max_tokens: cap of the ids returned (each result gets an equal share of it,
        and what a short one leaves goes to the next)."""
        self.index, self.tokenizer, self.k, self.max_tokens = index, tokenizer, k, max_tokens

    def __call__(self, query_ids: Sequence[int]) -> list[int]:
        query = self.tokenizer.decode(list(query_ids)[:MAX_QUERY_TOKENS], skip_special=True)
        return self.ids_of(self.run(query))

    def run(self, query: str) -> Found:
        """Search, and never raise: what went wrong is told in the text, and kept in `error`."""
        query = " ".join(query.split())
        if not query:
            return Found(query, EMPTY)
        try:
            results = tuple(self.index.search(query, self.k))[: self.k]
            texts = [passage_of(result) for result in results]
        except Exception as error:  # an index is other people's code: any failure of it is an answer
            return Found(query, FAILED, error=f"{type(error).__name__}: {error}")
        return Found(query, "\n".join(texts) if texts else NOTHING, results)

    def ids_of(self, found: Found) -> list[int]:
        """The plain ids of what was found, at most max_tokens."""
        if not found.results:
            return spaced(found.text, self.tokenizer)[: self.max_tokens]
        ids: list[int] = []
        newline = self.tokenizer.encode("\n")
        for n, result in enumerate(found.results):
            share = (self.max_tokens - len(ids)) // (len(found.results) - n)
            passage = passage_of(result)
            ids += (newline + self.tokenizer.encode(passage) if n else spaced(passage, self.tokenizer))[
                :share
            ]
        return ids


def passage_of(result: Any) -> str:
    """One result as one line of text: "title: text"."""
    get = result.get if hasattr(result, "get") else lambda name, default=None: getattr(result, name, default)
    text = " ".join(str(get("text") or get("snippet") or "").split())
    title = " ".join(str(get("title") or "").split())
    return f"{title}: {text}" if title and not text.startswith(title) else text
