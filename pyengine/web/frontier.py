"""The frontier: every address a crawl knows, what became of it, and how far the WARC file counts.

One SQLite file (WAL). A page's new state, the links found on it and the committed length of the WARC file
change in one transaction, after the records are on disk. So at any moment of a kill the database tells which
bytes of the WARC are good: `crawl.py` cuts off the rest, and the pages whose transaction was lost are still
queued. Nothing is lost and nothing doubled.

    urls   url, host, kind (page | sitemap), state (queued | done | skipped | failed), reason, depth, hops,
    ... hosts  host, robots.txt as fetched, and when          warcs  name, bytes committed, whether closed
"""

import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_SCHEMA = """
CREATE TABLE IF NOT EXISTS urls (
    url TEXT PRIMARY KEY, host TEXT NOT NULL, kind TEXT NOT NULL DEFAULT 'page',
    state TEXT NOT NULL DEFAULT 'queued', reason TEXT NOT NULL DEFAULT '',
    depth INTEGER NOT NULL, hops INTEGER NOT NULL DEFAULT 0, found_on TEXT NOT NULL DEFAULT '',
    attempts INTEGER NOT NULL DEFAULT 0, next_time REAL NOT NULL DEFAULT 0,
    status INTEGER, bytes INTEGER, location TEXT, shape TEXT NOT NULL DEFAULT '', print TEXT,
    warc TEXT, offset INTEGER
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS queue ON urls (host, state, kind DESC, depth, url);
CREATE INDEX IF NOT EXISTS shapes ON urls (host, shape, print);
CREATE TABLE IF NOT EXISTS hosts (host TEXT PRIMARY KEY, robots TEXT, fetched REAL);
CREATE TABLE IF NOT EXISTS warcs (name TEXT PRIMARY KEY, bytes INTEGER NOT NULL, closed INTEGER NOT NULL);
"""


@dataclass(frozen=True)
class Entry:
    """A queued address: `depth` links from a seed, reached over `hops` redirects, tried `attempts` times."""

    url: str
    host: str
    kind: str
    depth: int
    hops: int
    attempts: int
    next_time: float


class Frontier:
    """All states of a crawl. Changes count only once `commit` has returned."""

    def __init__(self, path: Path) -> None:
        self.db = sqlite3.connect(path, isolation_level=None)
        self.db.execute("PRAGMA journal_mode=WAL")
        self.db.execute("PRAGMA synchronous=NORMAL")
        self.db.executescript(_SCHEMA)
        self.db.execute("BEGIN")

    def commit(self) -> None:
        """Make all changes so far permanent, and begin the next transaction."""
        self.db.execute("COMMIT")
        self.db.execute("BEGIN")

    def close(self) -> None:
        """Commit and close."""
        self.db.execute("COMMIT")
        self.db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        self.db.close()

    def abandon(self) -> None:
        """Close without the changes since the last commit."""
        self.db.close()

    # -- addresses

    def add(
        self, url: str, host: str, depth: int, *, kind: str = "page", hops: int = 0, found_on: str = "",
        shape: str = "", skipped: str = "",
    ) -> bool:  # fmt: skip
        """Remember an address, as queued or as skipped with a reason. Known ones keep their state; a shorter
        way to a queued one lowers its depth. Gives whether it was new."""
        row = self.db.execute("SELECT state, depth FROM urls WHERE url = ?", (url,)).fetchone()
        if row is None:
            self.db.execute(
                "INSERT INTO urls (url, host, kind, state, reason, depth, hops, found_on, shape)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (url, host, kind, "skipped" if skipped else "queued", skipped, depth, hops, found_on, shape),
            )
            return True
        if row[0] == "queued" and depth < row[1]:
            self.db.execute("UPDATE urls SET depth = ?, hops = ? WHERE url = ?", (depth, hops, url))
        return False

    def finish(self, url: str, state: str, reason: str = "", **columns: object) -> None:
        """What became of an address, with further columns of its row."""
        names = "".join(f", {name} = ?" for name in columns)
        self.db.execute(
            f"UPDATE urls SET state = ?, reason = ?{names} WHERE url = ?",
            (state, reason, *columns.values(), url),
        )

    def postpone(self, url: str, until: float) -> None:
        """Count a failed attempt; the address stays queued and is not due before `until` (Unix time)."""
        self.db.execute("UPDATE urls SET attempts = attempts + 1, next_time = ? WHERE url = ?", (until, url))

    def next(self, host: str, now: float) -> Entry | None:
        """The host's next address that is due, in the fixed order (sitemaps, depth, spelling); else the one
        that will be due first."""
        columns = "url, host, kind, depth, hops, attempts, next_time"
        queued = f"SELECT {columns} FROM urls WHERE host = ? AND state = 'queued'"
        row = (
            self.db.execute(
                f"{queued} AND next_time <= ? ORDER BY kind DESC, depth, url LIMIT 1", (host, now)
            ).fetchone()
            or self.db.execute(f"{queued} ORDER BY next_time, url LIMIT 1", (host,)).fetchone()
        )
        return Entry(*row) if row else None

    def drop_queued(self, host: str, reason: str, shape: str | None = None) -> None:
        """Skip all queued pages of a host (of one shape of address), with the reason."""
        condition, values = ("", ()) if shape is None else (" AND shape = ?", (shape,))
        self.db.execute(
            f"UPDATE urls SET state = 'skipped', reason = ? WHERE host = ? AND state = 'queued'{condition}",
            (reason, host, *values),
        )

    def take_back(self, host: str, reason: str) -> None:
        """Queue again what was skipped at a host for this reason."""
        self.db.execute(
            "UPDATE urls SET state = 'queued', reason = '' WHERE host = ? AND state = 'skipped' AND reason = ?",
            (host, reason),
        )

    def hosts_waiting(self) -> list[str]:
        """Hosts that have queued addresses."""
        return [row[0] for row in self.db.execute("SELECT DISTINCT host FROM urls WHERE state = 'queued'")]

    def shape_counts(self, host: str, shape: str) -> tuple[int, int]:
        """Of the pages of one shape of address: how many were read, and how many different texts they had."""
        return self.db.execute(
            "SELECT COUNT(print), COUNT(DISTINCT print) FROM urls WHERE host = ? AND shape = ?",
            (host, shape),
        ).fetchone()

    def query_shapes(self) -> list[tuple[str, str]]:
        """(host, shape) of the addresses with a query that were let in."""
        return self.db.execute(
            "SELECT DISTINCT host, shape FROM urls WHERE shape LIKE '%?%' AND reason != 'query explosion'"
        ).fetchall()

    def totals(self) -> tuple[int, int, dict[str, int]]:
        """Pages done, their bytes, and pages done per host, over all runs of this crawl."""
        per_host = dict(
            self.db.execute("SELECT host, COUNT(*) FROM urls WHERE state = 'done' GROUP BY host").fetchall()
        )
        size = self.db.execute("SELECT COALESCE(SUM(bytes), 0) FROM urls WHERE state = 'done'").fetchone()[0]
        return sum(per_host.values()), size, per_host

    def counts(self) -> list[dict]:
        """How many addresses in each state, by reason and status."""
        rows = self.db.execute(
            "SELECT state, reason, status, COUNT(*), MIN(url) FROM urls"
            " GROUP BY state, reason, status ORDER BY state, reason, status"
        )
        return [
            dict(zip(("state", "reason", "status", "count", "example"), row, strict=True)) for row in rows
        ]

    # -- robots.txt

    def robots(self, host: str, not_before: float) -> str | None:
        """robots.txt of a host if it was fetched at or after `not_before`."""
        row = self.db.execute(
            "SELECT robots FROM hosts WHERE host = ? AND fetched >= ?", (host, not_before)
        ).fetchone()
        return row[0] if row else None

    def set_robots(self, host: str, text: str, fetched: float) -> None:
        """Remember a host's robots.txt."""
        self.db.execute("INSERT OR REPLACE INTO hosts VALUES (?, ?, ?)", (host, text, fetched))

    # -- WARC files

    def set_warc(self, name: str, size: int, closed: bool = False) -> None:
        """The length up to which a WARC file's records belong to committed pages."""
        self.db.execute("INSERT OR REPLACE INTO warcs VALUES (?, ?, ?)", (name, size, int(closed)))

    def forget_warc(self, name: str) -> None:
        """Drop a WARC file that holds nothing."""
        self.db.execute("DELETE FROM warcs WHERE name = ?", (name,))

    def warcs(self) -> Iterable[tuple[str, int, bool]]:
        """Name, committed length, whether closed; in the order of names."""
        return [(n, b, bool(c)) for n, b, c in self.db.execute("SELECT * FROM warcs ORDER BY name")]


@contextmanager
def opened(path: Path) -> Iterator[Frontier]:
    """The frontier of a finished or stopped crawl."""
    frontier = Frontier(path)
    try:
        yield frontier
    finally:
        frontier.close()
