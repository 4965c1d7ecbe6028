"""The crawler: from seed addresses to WARC files, politely, and safe against kills at any moment.

    result = crawl(["https://example.org/"], "out", CrawlConfig(contact="me@example.org"))

out/ then holds crawl-00000.warc.gz (one new file a run), frontier.sqlite and manifest.json. The same call on
the same folder goes on where the last one stopped.

One task a host makes one request at a time, in a fixed order (depth, then spelling), with the pause that
robots.txt and the settings ask for; hosts run side by side. With a steady server the set of pages is
therefore the same in every run. Redirects are links of their own: each hop is judged like any address.
"""

import asyncio
import email.utils
import fcntl
import hashlib
import html
import re
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import urlsplit

from resiliparse.parse.html import HTMLTree

from .. import __version__
from ..errors import UserError
from ..files import file_hash, naming_database, write_json
from . import urls, warc
from .extract import decode, select
from .fetch import FAILURES, Answer, Fetcher, Refused, unfold
from .frontier import Entry, Frontier
from .robots import Robots, page_directives

PAGE_TYPES = ("text/html", "application/xhtml+xml", "text/plain")
_REDIRECTS = (301, 302, 303, 307, 308)
_RETRY = (408, 429, 500, 502, 503, 504)
_COMMIT_PAGES, _COMMIT_SECONDS = 64, 1.0
_ROBOTS_AGE = 24 * 3600.0
_KNOWN = 1 << 20  # addresses kept in memory


@dataclass(frozen=True)
class CrawlConfig:
    """Manners and limits of a crawl. A limit of 0 means none."""

    agent: str = "pyengine"  # the name that robots.txt rules are looked up under
    contact: str = ""  # URL or e-mail address that site owners can turn to; part of the User-Agent
    delay: float = 1.0  # seconds between two requests to a host; robots.txt may ask for more
    max_delay: float = 60.0  # longest pause that robots.txt or Retry-After can ask for
    concurrency: int = 16  # requests under way at a time, over all hosts
    scope: str = "host"  # "host": the seeds' hosts (and `hosts`); "any": every host
    hosts: tuple[str, ...] = ()  # more hosts in scope, as scheme://host:port
    allow_private: bool = False  # whether the hosts in scope may have private or loopback addresses
    sitemaps: bool = True  # whether to read the sitemaps that robots.txt names
    max_pages: int = 10_000  # read in all
    max_pages_per_host: int = 0  # read from one host
    max_depth: int = 20  # links from a seed
    max_bytes: int = 0  # of all pages together
    max_page_bytes: int = 5 << 20  # longer pages are cut
    max_seconds: float = 0.0  # for this run
    page_seconds: float = 30.0  # for one page
    max_redirects: int = 5  # one after the other
    max_links: int = 5_000  # of one page
    max_sitemaps: int = 50  # named by one robots.txt or one index of sitemaps
    retries: int = 3  # of a request that failed for a while
    backoff: float = 0.5  # seconds before the first retry; doubles with each
    max_queries: int = 30  # combinations of query parameters of one path
    trap_pages: int = 12  # so many pages of one shape of address with (nearly) one text are a trap

    def user_agent(self) -> str:
        """The User-Agent header: name, version, contact."""
        return f"{self.agent}/{__version__}" + (f" (+{self.contact})" if self.contact else "")


@dataclass(frozen=True)
class CrawlResult:
    """What a crawl holds after this run."""

    pages: int
    bytes: int
    warcs: list[Path]
    complete: bool  # nothing is queued any more
    stopped: str  # the limit that ended the run, or ""
    counts: list[dict]  # addresses by state, reason and status


UNREACHABLE = "robots.txt unreachable"
PRIVATE = "private address"  # as fetch.py refuses it, too


def check_read(result: CrawlResult, seed: str, allow: str) -> None:
    """Raise UserError, with the commonest reason, if a crawl holds no page. allow: what lets in private addresses."""
    if result.pages:
        return
    tried = [row for row in result.counts if row["reason"] or row["status"]]
    if not tried:
        raise UserError(f"{seed}: not one page was read; stopped by {result.stopped or 'nothing to read'}")
    met = max(tried, key=lambda row: row["count"])
    hint = f"; {allow} lets in addresses of your own network" if met["reason"] == PRIVATE else ""
    why = met["reason"] or f"HTTP {met['status']}"
    raise UserError(f"{seed}: not one page could be read: {why}{hint}")


Progress = Callable[[int, int, str], None]  # pages, bytes, the address just read


def crawl(
    seeds: Sequence[str], out: str | Path, config: CrawlConfig | None = None, progress: Progress | None = None
) -> CrawlResult:
    """Crawl from `seeds` into folder `out`, or go on with the crawl that is there.

    Raises UserError for seeds that are no web addresses and for a folder in use by another crawl.
    """
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    config = config or CrawlConfig()
    good = [urls.canonical(seed) for seed in seeds]
    for seed, url in zip(seeds, good, strict=True):
        if url is None:
            raise UserError(f"{seed}: not a web address; expected something like https://example.org/")
    if config.scope not in ("host", "any"):
        raise UserError(f"scope must be 'host' or 'any', not {config.scope!r}")
    with _locked(out), naming_database(out / "frontier.sqlite"):
        return asyncio.run(_Crawl([url for url in good if url], out, config, progress).run())


@contextmanager
def _locked(out: Path) -> Iterator[None]:
    with open(out / "crawl.lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(
                f"{out}: another crawl is writing here; wait for it or choose another folder"
            ) from None
        yield


class _Crawl:
    def __init__(self, seeds: list[str], out: Path, config: CrawlConfig, progress: Progress | None) -> None:
        self.seeds, self.out, self.config, self.progress = seeds, out, config, progress
        self.frontier = Frontier(out / "frontier.sqlite")
        self.scope = {urls.origin(url) for url in [*seeds, *config.hosts]}
        self.warc = self._open_warc()
        self.done, self.bytes, self.per_host = self.frontier.totals()
        self.slots = asyncio.Semaphore(config.concurrency)
        self.ready: dict[str, float] = {}  # host -> monotonic time of the next request
        self.full: set[str] = set()  # hosts that reached their number of pages
        self.closed: set[tuple[str, str]] = set()  # (host, shape) found to be traps
        self.known: dict[str, int] = {}  # address -> depth, of links met lately: spares asking the database
        self.queries: dict[tuple[str, str], set[str]] = {}  # (host, path) -> its combinations of parameters
        for host, shape in self.frontier.query_shapes():
            self.queries.setdefault((host, shape.partition("?")[0]), set()).add(shape)
        self.stopped = ""
        self.uncommitted, self.committed_at = 0, time.monotonic()

    # -- the run

    async def run(self) -> CrawlResult:
        config = self.config
        private = [(part.hostname or "", part.port or (443 if part.scheme == "https" else 80))
                   for part in map(urlsplit, self.scope)] if config.allow_private else []  # fmt: skip
        started = time.time()
        self.deadline = time.monotonic() + config.max_seconds if config.max_seconds else float("inf")
        try:
            for seed in self.seeds:
                self._add(seed, 0)
            for host in self.scope:  # another run may find a host up, or let in
                self.frontier.take_back(host, UNREACHABLE)
                if config.allow_private:
                    self.frontier.take_back(host, PRIVATE)
            self.frontier.commit()
            async with Fetcher(
                config.user_agent(), config.max_page_bytes, config.page_seconds, private
            ) as self.fetcher:
                await self._all_hosts()
        except (OSError, sqlite3.Error):  # the disk takes no more; the next run finds all as after a kill
            self.warc.abandon()
            self.frontier.abandon()
            raise
        except BaseException:  # interrupted: what was read stays read
            self._finish(started)
            raise
        return self._finish(started)

    def _finish(self, started: float) -> CrawlResult:
        """Close the WARC file, the manifest and the frontier."""
        self._commit()
        self.warc.close()
        if self.warc.pages:
            self.frontier.set_warc(self.warc.path.name, self.warc.path.stat().st_size, closed=True)
        else:
            self.frontier.forget_warc(self.warc.path.name)
        self.frontier.commit()
        result = self._result()
        self._write_manifest(result, started)
        self.frontier.close()
        return result

    async def _all_hosts(self) -> None:
        running: dict[str, asyncio.Task] = {}
        try:
            while True:
                for host in [] if self.stopped else self.frontier.hosts_waiting():
                    if host not in running and host not in self.full:
                        running[host] = asyncio.create_task(self._host(host))
                if not running:
                    return
                await asyncio.wait(running.values(), timeout=0.5, return_when=asyncio.FIRST_COMPLETED)
                for host in [host for host, task in running.items() if task.done()]:
                    running.pop(host).result()
        finally:
            for task in running.values():
                task.cancel()
            await asyncio.gather(*running.values(), return_exceptions=True)

    async def _host(self, host: str) -> None:
        """Read all queued pages of one host."""
        rules = await self._robots(host)
        if rules is None:
            return self.frontier.drop_queued(host, UNREACHABLE)
        pause = max(self.config.delay, min(rules.crawl_delay, self.config.max_delay))
        while not self._limit(host):
            entry = self.frontier.next(host, time.time())
            if entry is None:
                return
            wait = max(entry.next_time - time.time(), self.ready.get(host, 0.0) - time.monotonic())
            if wait > 0:
                await asyncio.sleep(min(wait, 0.5))
            elif not rules.allows(entry.url):
                self.frontier.finish(entry.url, "skipped", "robots.txt")
            else:
                async with self.slots:
                    self.ready[host] = time.monotonic() + pause
                    await self._visit(entry)
                self._commit_now_and_then()

    def _limit(self, host: str) -> bool:
        config = self.config
        if config.max_pages and self.done >= config.max_pages:
            self.stopped = "max_pages"
        elif config.max_bytes and self.bytes >= config.max_bytes:
            self.stopped = "max_bytes"
        elif time.monotonic() >= self.deadline:
            self.stopped = "max_seconds"
        elif config.max_pages_per_host and self.per_host.get(host, 0) >= config.max_pages_per_host:
            self.full.add(host)
        return bool(self.stopped) or host in self.full

    # -- one page

    async def _visit(self, entry: Entry) -> None:
        types = PAGE_TYPES if entry.kind == "page" else ()
        try:
            answer = await self.fetcher.get(entry.url, types)
        except Refused as refusal:
            return self.frontier.finish(entry.url, "skipped", str(refusal))
        except FAILURES as error:
            return self._retry(entry, type(error).__name__, None, 0.0)
        if answer.status in _RETRY:
            asked = _retry_after(answer.header("Retry-After"))
            if answer.status in (429, 503):  # the whole host is busy
                pause = min(max(asked, self._backoff(entry)), self.config.max_delay)
                self.ready[entry.host] = time.monotonic() + pause
            return self._retry(entry, f"HTTP {answer.status}", answer.status, asked)
        location = answer.header("Location")
        if answer.status in _REDIRECTS and location:
            return self._redirect(entry, answer, location)
        if answer.status != 200:
            return self.frontier.finish(
                entry.url,
                "failed",
                f"HTTP {answer.status}",
                status=answer.status,
                attempts=entry.attempts + 1,
            )
        if entry.kind == "sitemap":
            return self._sitemap(entry, answer)
        self._page(entry, answer)

    def _page(self, entry: Entry, answer: Answer) -> None:
        try:
            links, fingerprint = self._links(entry, answer)
        except Exception as error:  # a page that breaks the parser is still a page
            links, fingerprint = [], f"unreadable: {type(error).__name__}"
        offset = self.warc.write(entry.url, answer)
        self.frontier.finish(
            entry.url, "done", answer.truncated and "cut at the size limit", status=200,
            bytes=len(answer.body), attempts=entry.attempts + 1, print=fingerprint,
            warc=self.warc.path.name, offset=offset,
        )  # fmt: skip
        self.done += 1
        self.bytes += len(answer.body)
        self.per_host[entry.host] = self.per_host.get(entry.host, 0) + 1
        self._watch_shape(entry)
        for link in links:
            self._add(link, entry.depth + 1, found_on=entry.url)
        if self.progress:
            self.progress(self.done, self.bytes, entry.url)

    def _links(self, entry: Entry, answer: Answer) -> tuple[list[str], str]:
        """Where a page leads, and the fingerprint of its text with all digits blanked."""
        text, _ = decode(answer.content, answer.header("Content-Type"))
        if answer.header("Content-Type").startswith("text/plain"):
            return [], ""
        tree = HTMLTree.parse(text)
        document = tree.document
        plain = re.sub(r"\d+", "#", " ".join((tree.body.text or "").split())) if tree.body else ""
        fingerprint = hashlib.sha1(plain.encode("utf-8", "replace")).hexdigest()[:16]
        named = select(document, f'meta[name="robots" i], meta[name="{self.config.agent}" i]')
        metas = [meta.getattr("content", "") for meta in named]
        tags = answer.header_values("X-Robots-Tag")
        if "nofollow" in page_directives(tags, metas, self.config.agent):
            return [], fingerprint
        bases = select(document, "base[href]")[:1]
        root = urls.canonical(bases[0].getattr("href", ""), entry.url) if bases else None
        links: dict[str, None] = {}
        for anchor in select(document, "a[href], area[href]"):
            if "nofollow" not in anchor.getattr("rel", "").lower():
                link = urls.canonical(anchor.getattr("href", ""), root or entry.url)
                if link:
                    links[link] = None
                    if len(links) >= self.config.max_links:
                        break
        return list(links), fingerprint

    def _redirect(self, entry: Entry, answer: Answer, location: str) -> None:
        target = urls.canonical(location, entry.url)
        reason = "redirect"
        if target is None:
            reason = "redirect to no web address"
        elif entry.hops >= self.config.max_redirects:
            reason = "too many redirects"
        elif entry.kind == "page":
            self._add(target, entry.depth, hops=entry.hops + 1, found_on=entry.url)
        self.frontier.finish(entry.url, "skipped", reason, status=answer.status, location=target or location)

    def _sitemap(self, entry: Entry, answer: Answer) -> None:
        content = answer.content
        if content[:2] == b"\x1f\x8b":  # sitemap.xml.gz, served as a file
            content, _ = unfold(content, "gzip", 10 * self.config.max_page_bytes)
        text = content.decode("utf-8", "replace")
        found = [urls.canonical(html.unescape(loc)) for loc in re.findall(r"<loc>\s*([^<]+?)\s*</loc>", text)]
        kind = "sitemap" if "<sitemapindex" in text else "page"
        for url in found[: self.config.max_sitemaps if kind == "sitemap" else 50_000]:
            if url:
                self._add(url, 1, kind=kind, found_on=entry.url)
        self.frontier.finish(entry.url, "skipped", "sitemap read", status=200)

    def _retry(self, entry: Entry, reason: str, status: int | None, asked: float) -> None:
        if entry.attempts >= self.config.retries:
            return self.frontier.finish(
                entry.url, "failed", reason, status=status, attempts=entry.attempts + 1
            )
        wait = max(min(asked, self.config.max_delay), self._backoff(entry))
        self.frontier.postpone(entry.url, time.time() + wait)

    def _backoff(self, entry: Entry) -> float:
        """Seconds to wait: doubling, spread by up to a quarter in a way that depends on the address alone."""
        spread = int(hashlib.sha1(entry.url.encode()).hexdigest()[:4], 16) / 0x10000
        return min(self.config.backoff * 2**entry.attempts * (1 + spread / 4), self.config.max_delay)

    # -- addresses

    def _add(self, url: str, depth: int, *, kind: str = "page", hops: int = 0, found_on: str = "") -> None:
        if self.known.get(url, depth + 1) <= depth:
            return
        if len(self.known) >= _KNOWN:
            self.known.clear()
        self.known[url] = depth
        host, shape = urls.origin(url), urls.shape(url)
        reason = self._out_of_scope(host)
        if not reason and depth > self.config.max_depth:
            reason = "too deep"
        if not reason and kind == "page":
            reason = urls.trap(url) or ("trap" if (host, shape) in self.closed else "")
            reason = reason or self._query_explosion(host, shape)
        self.frontier.add(
            url, host, depth, kind=kind, hops=hops, found_on=found_on, shape=shape, skipped=reason or ""
        )

    def _query_explosion(self, host: str, shape: str) -> str:
        """A path asked with ever new combinations of parameters (sorting, filters) is a trap."""
        path, mark, _ = shape.partition("?")
        if not mark:
            return ""
        known = self.queries.setdefault((host, path), set())
        if shape not in known and len(known) >= self.config.max_queries:
            return "query explosion"
        known.add(shape)
        return ""

    def _out_of_scope(self, host: str) -> str:
        known = host in self.scope
        name = (urlsplit(host).hostname or "").strip("[]")
        try:
            if not urls.is_public(name) and not (known and self.config.allow_private):
                return PRIVATE
        except ValueError:  # a name, judged when it is resolved
            pass
        return "" if known or self.config.scope == "any" else "out of scope"

    def _watch_shape(self, entry: Entry) -> None:
        """Close a shape of address whose pages all say the same but for numbers."""
        shape = urls.shape(entry.url)
        if "#" not in shape and "?" not in shape or (entry.host, shape) in self.closed:
            return
        read, different = self.frontier.shape_counts(entry.host, shape)
        if read >= self.config.trap_pages and different * 6 <= read:
            self.closed.add((entry.host, shape))
            self.frontier.drop_queued(entry.host, "trap", shape)

    async def _robots(self, host: str) -> Robots | None:
        """The host's rules, fetched at most once a day; None where the host does not answer."""
        text = self.frontier.robots(host, time.time() - _ROBOTS_AGE)
        if text is None:
            text = await self._fetch_robots(host)
            if text is None:
                return None
            self.frontier.set_robots(host, text, time.time())
        rules = Robots(text, self.config.agent)
        if self.config.sitemaps:
            for url in rules.sitemaps[: self.config.max_sitemaps]:
                target = urls.canonical(url, host)
                if target:
                    self._add(target, 0, kind="sitemap", found_on=host + "/robots.txt")
        return rules

    async def _fetch_robots(self, host: str) -> str | None:
        for attempt in range(self.config.retries + 1):
            url: str | None = host + "/robots.txt"
            try:
                for _ in range(self.config.max_redirects + 1):
                    answer = await self.fetcher.get(url or "")
                    if answer.status not in _REDIRECTS:
                        break
                    url = urls.canonical(answer.header("Location"), url or "")
                    if url is None:
                        return ""
                if answer.status == 200:
                    return answer.content.decode("utf-8-sig", "replace")
                if answer.status < 500 and answer.status != 429:  # also endless redirects: no rules to be had
                    return ""
            except Refused as refusal:
                if "private" in str(refusal):
                    self.frontier.drop_queued(host, str(refusal))
                return "" if "bomb" in str(refusal) else None
            except FAILURES:
                pass
            await asyncio.sleep(min(self.config.backoff * 2**attempt, self.config.max_delay))
        return None

    # -- what is on disk

    def _open_warc(self) -> warc.WarcFile:
        known = self.frontier.warcs()
        for name, size, closed in known:
            if not closed and warc.recover(self.out / name, size):
                self.frontier.set_warc(name, size, closed=True)
            elif not closed:
                self.frontier.forget_warc(name)
        number = 1 + max((int(re.sub(r"\D", "", name)) for name, _, _ in self.frontier.warcs()), default=-1)
        path = self.out / f"crawl-{number:05d}.warc.gz"
        self.frontier.set_warc(path.name, 0)
        self.frontier.commit()
        agent = self.config.user_agent()
        return warc.WarcFile(path, {"robots": "obey", "http-header-user-agent": agent})

    def _commit_now_and_then(self) -> None:
        self.uncommitted += 1
        if self.uncommitted >= _COMMIT_PAGES or time.monotonic() - self.committed_at >= _COMMIT_SECONDS:
            self._commit()

    def _commit(self) -> None:
        """First the records on disk, then the transaction that counts them."""
        if self.warc.pages:
            self.frontier.set_warc(self.warc.path.name, self.warc.sync())
        self.frontier.commit()
        self.uncommitted, self.committed_at = 0, time.monotonic()

    def _result(self) -> CrawlResult:
        files = [self.out / name for name, _, _ in self.frontier.warcs()]
        waiting = self.frontier.hosts_waiting()
        return CrawlResult(self.done, self.bytes, files, not waiting, self.stopped, self.frontier.counts())

    def _write_manifest(self, result: CrawlResult, started: float) -> None:
        files = [
            {"name": path.name, "bytes": path.stat().st_size, "sha256": file_hash(path)}
            for path in result.warcs
        ]
        write_json(self.out / "manifest.json", {
            "seeds": self.seeds, "settings": asdict(self.config), "user_agent": self.config.user_agent(),
            "started": started, "ended": time.time(), "complete": result.complete, "stopped": result.stopped,
            "pages": result.pages, "bytes": result.bytes, "files": files, "addresses": result.counts,
        })  # fmt: skip


def _retry_after(value: str) -> float:
    """Seconds that a Retry-After header asks for (a number or a date); 0 where it says nothing."""
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, TypeError):
        return 0.0
