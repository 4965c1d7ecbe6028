"""The world's web site on the loopback interface, with what only a running server can show.

    with serve(World(), published="cutoff") as base:      # base is "http://127.0.0.1:PORT"
        ...

Before the cut-off (`published="cutoff"`) the later pages do not exist. Beside the pages the server has
an endless calendar, links with session ids, a page that answers 429 with Retry-After at first, one that
fails with 500 at first, a slow one, a huge one, and one whose few compressed bytes unfold to very many. Every
request is appended to `log` with its time, so that a crawler's manners can be checked.
"""

import gzip
import time
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from email.utils import format_datetime
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock, Thread
from urllib.parse import parse_qs, urlsplit

from . import prose
from .config import WorldConfig
from .pages import Page, robots_txt
from .world import World

HUGE_BYTES = 24 << 20
BOMB_BYTES = 64 << 20
SLOW_SECONDS = 1.0
_CHUNK = b"<p>" + b"This page goes on and on, and nobody has ever read it to the end. " * 60 + b"</p>\n"


@dataclass(frozen=True)
class Request:
    """One request as the server saw it; `time` is time.monotonic() at its arrival."""

    time: float
    path: str  # with the query
    agent: str
    status: int


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, port: int, pages: dict[str, Page], config: WorldConfig, log: list[Request]) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.base = f"http://127.0.0.1:{self.server_port}"
        self.pages, self.config, self.log = pages, config, log
        self.robots = ""
        self.seen: Counter[str] = Counter()
        self.lock = Lock()

    def handle_error(self, request, client_address) -> None:
        """A client that hangs up in the middle (a huge page cut off) is no error."""


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1  # headers and body leave in one packet

    def do_GET(self) -> None:
        arrived = time.monotonic()
        url = urlsplit(self.path)
        with self.server.lock:
            self.server.seen[url.path] += 1
            times = self.server.seen[url.path]
        status = self._answer(url.path, url.query, times)
        self.server.log.append(Request(arrived, self.path, self.headers.get("User-Agent", ""), status))

    do_HEAD = do_GET

    def _answer(self, path: str, query: str, times: int) -> int:
        while "/./" in path:
            path = path.replace("/./", "/")
        if path == "/robots.txt":
            return self._send(200, self.server.robots.encode(), "text/plain")
        page = self.server.pages.get(path)
        if page is not None:
            return self._page(page)
        folder = path.split("/")[1]
        special = {
            "calendar": self._calendar, "session": self._session, "busy": self._busy, "flaky": self._flaky,
            "slow": self._slow, "huge": self._huge, "bomb": self._bomb,
        }.get(folder)  # fmt: skip
        if special is None:
            return self._send(404, b"<html><body><h1>404 Not Found</h1></body></html>")
        return special(path, query, times)

    def _page(self, page: Page) -> int:
        tag = f'"{zlib.crc32(page.body):08x}"'
        if self.headers.get("If-None-Match") == tag:
            return self._send(304, b"")
        body = page.body
        if page.kind == "sitemap":
            body = body.replace(b"{base}", self.server.base.encode())
        headers = dict(page.headers)
        if page.status == 200:
            headers["ETag"] = tag
        if page.date:
            headers["Last-Modified"] = format_datetime(
                datetime.fromisoformat(page.date + "T12:00:00+00:00"), True
            )
        return self._send(page.status, body, page.content_type, headers)

    def _calendar(self, path: str, query: str, times: int) -> int:
        """Every month links to the next and the one before, without end."""
        try:
            year, month = (int(part) for part in path.split("/")[2:4])
        except ValueError:
            return self._send(404, b"no such month")
        after = f"/calendar/{year + month // 12}/{month % 12 + 1}/"
        before = f"/calendar/{year - (month == 1)}/{(month - 2) % 12 + 1}/"
        links = f'<a href="{before}">Before</a> <a href="{after}">After</a>'
        days = "".join(f'<a href="{path}?day={day}">{day}</a> ' for day in range(1, 29))
        return self._html(f"Calendar {year}-{month}", f"<p>{days}</p><p>{links}</p>")

    def _session(self, path: str, query: str, times: int) -> int:
        """The same page under a new session id in every link."""
        trail = parse_qs(query).get("sid", ["0"])[0]
        fresh = [f"{zlib.crc32(f'{trail}/{i}'.encode()):08x}" for i in range(3)]
        links = " ".join(f'<a href="/session/enter?sid={sid}">Go on</a>' for sid in fresh)
        return self._html("Your session", f"<p>Welcome back. Your visit has been counted.</p><p>{links}</p>")

    def _busy(self, path: str, query: str, times: int) -> int:
        if times <= 2:
            return self._send(429, b"Too many requests", headers={"Retry-After": "1"})
        return self._story(path)

    def _flaky(self, path: str, query: str, times: int) -> int:
        return self._send(500, b"Internal error") if times <= 1 else self._story(path)

    def _slow(self, path: str, query: str, times: int) -> int:
        time.sleep(SLOW_SECONDS)
        return self._story(path)

    def _huge(self, path: str, query: str, times: int) -> int:
        self._head(200, "text/html; charset=utf-8", HUGE_BYTES, {})
        if self.command != "HEAD":
            for start in range(0, HUGE_BYTES, len(_CHUNK)):
                self.wfile.write(_CHUNK[: HUGE_BYTES - start])
        return 200

    def _bomb(self, path: str, query: str, times: int) -> int:
        return self._send(200, _bomb(), headers={"Content-Encoding": "gzip"})

    def _story(self, path: str) -> int:
        rng = self.server.config.rng("story", path)
        return self._html(
            prose.heading(rng), f"<p>{prose.paragraph(rng, 5)}</p><p>{prose.paragraph(rng, 5)}</p>"
        )

    def _html(self, title: str, body: str) -> int:
        head = f"<!DOCTYPE html>\n<html><head><title>{title}</title></head>"
        return self._send(200, f"{head}<body><h1>{title}</h1>{body}</body></html>".encode())

    def _send(
        self, status: int, body: bytes, content_type: str = "text/html; charset=utf-8",
        headers: dict[str, str] | None = None,
    ) -> int:  # fmt: skip
        self._head(status, content_type, len(body), headers or {})
        if self.command != "HEAD" and status != 304:
            self.wfile.write(body)
        return status

    def _head(self, status: int, content_type: str, length: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(length))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, format: str, *args) -> None:
        """Quiet: `log` keeps the requests."""


@cache
def _bomb() -> bytes:
    """A gzip file of some 100 KB that unfolds to BOMB_BYTES."""
    return gzip.compress(_CHUNK * (BOMB_BYTES // len(_CHUNK)), compresslevel=1, mtime=0)


@contextmanager
def serve(
    world: World, published: str = "cutoff", *, port: int = 0, crawl_delay: float = 0.0,
    log: list[Request] | None = None,
) -> Iterator[str]:  # fmt: skip
    """Serve the world's site while the context is open; gives its base URL, "http://127.0.0.1:PORT".

    published: "cutoff" serves the pages dated up to the cut-off, "later" all of them.
    port: 0 takes a free one. crawl_delay: seconds that robots.txt asks for. log: gets every request.
    """
    if published not in ("cutoff", "later"):
        raise ValueError(f"serve: published must be 'cutoff' or 'later', not {published!r}")
    later = published == "later"
    pages = {page.path: page for page in world.pages if later or not page.later}
    server = _Server(port, pages, world.config, [] if log is None else log)
    server.robots = robots_txt(server.base, crawl_delay, later)
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield server.base
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
