"""One HTTP request at a time, with every limit a crawler needs: time, bytes, unfolded bytes, private
addresses.

Built on httpcore (the transport under httpx), which hands over headers and body exactly as they came, as a
WARC file wants them. Redirects are not followed here: each hop goes through the frontier like any link. The
name is resolved and judged in the same step that connects, so that a name cannot turn private in between.
"""

import asyncio
import socket
import ssl
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, field

import httpcore

from .urls import is_public

BOMB_RATIO = 100  # no honest page unfolds to more than this many times its size
FAILURES = (httpcore.TimeoutException, httpcore.NetworkError, httpcore.ProtocolError, OSError, TimeoutError)


class Refused(Exception):
    """A request that must not be made, or an answer that must not be read on; the message is the reason."""


@dataclass
class Answer:
    """An HTTP answer: `body` as it was sent (still compressed), `content` unfolded, both perhaps cut."""

    status: int
    phrase: str
    headers: list[tuple[str, str]]
    request_headers: list[tuple[str, str]]
    ip: str = ""
    body: bytes = b""
    content: bytes = b""
    truncated: str = ""  # "length" where a limit cut it

    def header(self, name: str) -> str:
        """The first header of that name, or ""."""
        return next(iter(self.header_values(name)), "")

    def header_values(self, name: str) -> list[str]:
        """All headers of that name (any case)."""
        return [value for key, value in self.headers if key.lower() == name.lower()]


class _GuardedBackend(httpcore.AnyIOBackend):
    """Connects only to public addresses and to the hosts that were allowed by name."""

    def __init__(self, allowed: Iterable[tuple[str, int]]) -> None:
        self._allowed = set(allowed)

    async def connect_tcp(self, host, port, timeout=None, local_address=None, socket_options=None):
        loop = asyncio.get_running_loop()
        try:
            found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            raise httpcore.ConnectError(f"cannot resolve {host}: {error}") from error
        addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
        if (host, port) not in self._allowed and not all(map(is_public, addresses)):
            raise Refused("private address")
        for address in addresses[:-1]:
            try:
                return await super().connect_tcp(address, port, timeout, local_address, socket_options)
            except httpcore.ConnectError:
                continue
        return await super().connect_tcp(addresses[-1], port, timeout, local_address, socket_options)


@dataclass
class Fetcher:
    """Makes requests; use as an async context manager."""

    user_agent: str
    max_bytes: int  # of one page, as sent and unfolded
    seconds: float  # for one page, all in all
    private_hosts: Iterable[tuple[str, int]] = ()  # (host, port) that may be private
    _pool: httpcore.AsyncConnectionPool = field(init=False)

    def __post_init__(self) -> None:
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=ssl.create_default_context(),
            max_connections=256, max_keepalive_connections=64, keepalive_expiry=15,
            network_backend=_GuardedBackend(self.private_hosts),
        )  # fmt: skip

    async def __aenter__(self) -> "Fetcher":
        return self

    async def __aexit__(self, *_) -> None:
        await self._pool.aclose()

    async def get(self, url: str, types: Iterable[str] = ()) -> Answer:
        """GET one address. The body is read only for status 200 and one of the media `types` (any, if empty).

        Raises Refused (private address, wrong type, decompression bomb) and the errors in FAILURES.
        """
        return await asyncio.wait_for(self._get(url, frozenset(types)), self.seconds)

    async def _get(self, url: str, types: frozenset[str]) -> Answer:
        host = url.split("/", 3)[2]
        sent = [
            ("Host", host), ("User-Agent", self.user_agent),
            ("Accept", "text/html,application/xhtml+xml,text/plain;q=0.9,*/*;q=0.1"),
            ("Accept-Encoding", "gzip, deflate"), ("Connection", "keep-alive"),
        ]  # fmt: skip
        timeout = {"connect": 10.0, "read": self.seconds, "write": 10.0, "pool": self.seconds}
        stream = self._pool.stream("GET", url, headers=sent, extensions={"timeout": timeout})
        async with stream as response:
            answer = Answer(
                response.status,
                response.extensions.get("reason_phrase", b"").decode("latin-1"),
                [(k.decode("latin-1"), v.decode("latin-1")) for k, v in response.headers],
                sent,
            )
            network = response.extensions.get("network_stream")
            address = network.get_extra_info("server_addr") if network else None
            answer.ip = str(address[0]) if address else ""
            if answer.status != 200:
                return answer
            media = answer.header("Content-Type").split(";")[0].strip().lower()
            if types and media and media not in types:
                raise Refused(f"type {media}")
            await self._read(response, answer)
        return answer

    async def _read(self, response: httpcore.Response, answer: Answer) -> None:
        body = bytearray()
        async for block in response.aiter_stream():
            body += block
            if len(body) > self.max_bytes:
                answer.truncated = "length"
                break
        answer.body = bytes(body[: self.max_bytes])
        encoding = answer.header("Content-Encoding")
        answer.content, used = unfold(answer.body, encoding, self.max_bytes)
        if used < len(answer.body):
            if len(answer.content) > BOMB_RATIO * used:
                raise Refused("decompression bomb")
            answer.truncated = "length"


def unfold(body: bytes, encoding: str, limit: int) -> tuple[bytes, int]:
    """Undo Content-Encoding, to at most `limit` bytes; gives the bytes and how many of `body` they took.

    A body that is not what its header says is returned as far as it could be read, or as it stands.
    """
    if encoding.strip().lower() not in ("gzip", "x-gzip", "deflate"):
        return body[:limit], min(len(body), limit)
    for window in (zlib.MAX_WBITS | 32, -zlib.MAX_WBITS):  # gzip or zlib by its header; then raw deflate
        unpack = zlib.decompressobj(window)
        try:
            content = unpack.decompress(body, limit)
            return content, len(body) - len(unpack.unconsumed_tail)
        except zlib.error:
            content = _salvage(body, window, limit)
            if content:
                return content, len(body)
    return body[:limit], min(len(body), limit)


def _salvage(body: bytes, window: int, limit: int) -> bytes:
    """What can be read of a damaged compressed body."""
    unpack, out = zlib.decompressobj(window), bytearray()
    try:
        for start in range(0, len(body), 1024):
            out += unpack.decompress(body[start : start + 1024], limit - len(out) or 1)
            if len(out) >= limit:
                break
    except zlib.error:
        pass
    return bytes(out[:limit])
