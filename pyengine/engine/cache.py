"""Pages of the KV cache: who holds them, and which of them hold a prefix that somebody else can use.

A page is room for the keys and values of 64 tokens in every layer; a request's block table is its list of
pages. This file counts pages and never touches a tensor. A page is in one of three states:

    free        nothing of worth in it
    held        one or more requests refer to it
    idle        nobody refers to it, but its content is known and may be asked for again: the oldest idle page
                is given away when no free one is left

Content is known by exact keys, not by hashes that could collide: a full page is found under (serial of the
page before it, its 64 ids), and gets a serial of its own. The last, partly filled page of a prompt is known
under (serial before it, its ids) too; whoever finds it takes a *copy*, because its owner goes on writing
behind these ids. Only tokens before the last one are ever looked up: the last must be computed, for its
logits.
"""

from collections.abc import Sequence
from dataclasses import dataclass

PAGE = 64
ROOT = 0  # the serial before the first page


@dataclass(frozen=True)
class Prefix:
    """What the cache knows of a request's ids: shared full pages, then a page to copy, then nothing."""

    pages: tuple[int, ...] = ()
    serial: int = ROOT
    tail: int | None = None
    tokens: int = 0

    def without_tail(self) -> "Prefix":
        return Prefix(self.pages, self.serial, None, len(self.pages) * PAGE)


class PagePool:
    """Reference counts, free list and content index over `pages` pages."""

    def __init__(self, pages: int):
        if pages < 1:
            raise ValueError(f"PagePool: expected at least one page, got {pages}")
        self.pages = pages
        self.references = [0] * pages
        self._free = list(range(pages - 1, -1, -1))
        self._idle: dict[int, None] = {}  # in order of becoming idle
        self._known: dict[tuple, tuple[int, int]] = {}  # content -> page, serial
        self._keys: dict[int, list[tuple]] = {}  # page -> the contents it is known under
        self._serials = ROOT

    @property
    def available(self) -> int:
        """Pages that take() can still give."""
        return len(self._free) + len(self._idle)

    def take(self) -> int:
        """A page for one holder, its content undefined; IndexError when none is available."""
        if self._free:
            page = self._free.pop()
        elif self._idle:
            page = next(iter(self._idle))
            del self._idle[page]
            self._forget_page(page)
        else:
            raise IndexError("PagePool: no page is available")
        self.references[page] = 1
        return page

    def share(self, page: int) -> None:
        """One more holder of a held or idle page."""
        self._idle.pop(page, None)
        self.references[page] += 1

    def release(self, page: int) -> None:
        """One holder less; the last one leaves the page idle if its content is known, free if not."""
        self.references[page] -= 1
        if self.references[page] == 0:
            if page in self._keys:
                self._idle[page] = None
            else:
                self._free.append(page)

    def lookup(self, ids: Sequence[int]) -> Prefix:
        """The longest known prefix of ids[:-1]; nothing is taken yet."""
        pages: list[int] = []
        serial, end = ROOT, len(ids) - 1
        for start in range(0, end - PAGE + 1, PAGE):
            found = self._known.get((serial, tuple(ids[start : start + PAGE])))
            if found is None:
                return Prefix(tuple(pages), serial, None, start)
            pages.append(found[0])
            serial = found[1]
        full = len(pages) * PAGE
        if end > full and (found := self._known.get((serial, tuple(ids[full:end])))):
            return Prefix(tuple(pages), serial, found[0], end)
        return Prefix(tuple(pages), serial, None, full)

    def publish(self, page: int, serial: int, ids: Sequence[int]) -> int:
        """Make a computed page known by its ids after the page `serial`; returns the serial after it.

        A content that is known already keeps its page.
        """
        key = (serial, tuple(ids))
        if key not in self._known:
            self._serials += 1
            self._known[key] = (page, self._serials)
            self._keys.setdefault(page, []).append(key)
        return self._known[key][1]

    def forget(self) -> None:
        """Drop all known content: the weights have changed."""
        self._known.clear()
        self._keys.clear()
        self._free.extend(self._idle)
        self._idle.clear()

    def _forget_page(self, page: int) -> None:
        for key in self._keys.pop(page):
            del self._known[key]

    def check(self, holders: Sequence[Sequence[int]] = ()) -> None:
        """AssertionError unless every page is in exactly one state and held by exactly these block tables."""
        counts = [0] * self.pages
        for table in holders:
            for page in table:
                counts[page] += 1
        assert counts == self.references, "reference counts differ from the block tables"
        held = {page for page in range(self.pages) if counts[page]}
        free, idle = set(self._free), set(self._idle)
        assert len(free) == len(self._free), "a page is free twice"
        assert not (held & free or held & idle or free & idle), "a page is in two states"
        assert held | free | idle == set(range(self.pages)), "a page is lost"
        assert not free & set(self._keys), "a free page is known by content"
        assert all(page in self._keys for page in idle), "an idle page is not known by content"
        assert {k: p for k, (p, _) in self._known.items()} == {
            k: p for p, ks in self._keys.items() for k in ks
        }
