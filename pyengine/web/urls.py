"""Addresses: one spelling for one page, what a crawl may ask for, and signs of a trap.

`canonical` gives the one spelling under which a page is remembered. `trap` names the reason why an address
looks endless (its path repeats itself, is too deep, or its query has exploded). `is_public` decides whether
an IP address lies on the public internet; the crawler asks it about the very address it connects to.
"""

import ipaddress
import re
from collections import Counter
from functools import lru_cache
from urllib.parse import parse_qsl, urlencode, urljoin, urlsplit, urlunsplit

from w3lib.url import canonicalize_url

_TRACKING = re.compile(r"(?i)^(utm_\w+|fbclid|gclid|dclid|msclkid|mc_[ce]id|igshid|_ga|yclid)$")
_SESSION = re.compile(r"(?i)^(phpsessid|jsessionid|aspsessionid\w*|sid|sessionid|session_id)$")
_DEFAULT_PORT = {"http": 80, "https": 443}


def canonical(link: str, base: str = "") -> str | None:
    """The one spelling of `link` as found on page `base`; None where it is not a web address.

    Lower-case scheme and host, no default port, no user name, dot segments resolved, query sorted and
    without tracking and session parameters, no fragment, unsafe characters percent-encoded.
    """
    link = link.strip()
    if link[:1] == "/" != link[1:2] and "/" in base:
        base = origin(base)  # so that a site's navigation is worked out once
    return _canonical(link, base)


@lru_cache(maxsize=1 << 16)
def _canonical(link: str, base: str) -> str | None:
    try:
        url = urlsplit(urljoin(base, link))
        host = (url.hostname or "").rstrip(".")
        port = url.port
        if url.scheme not in _DEFAULT_PORT or not host or len(link) > 2000:
            return None
        host = host.encode("idna").decode("ascii") if not host.isascii() else host
    except (ValueError, UnicodeError):
        return None
    if ":" in host:
        host = f"[{host}]"
    if port is not None and port != _DEFAULT_PORT[url.scheme]:
        host = f"{host}:{port}"
    path = re.sub(r"(?i);jsessionid=[^/;]*", "", url.path)
    kept = [
        (name, value)
        for name, value in parse_qsl(url.query, keep_blank_values=True)
        if not _TRACKING.match(name) and not (_SESSION.match(name) and len(value) >= 8)
    ]
    clean = urlunsplit((url.scheme, host, _resolve_dots(path), urlencode(kept), ""))
    return canonicalize_url(clean)


def _resolve_dots(path: str) -> str:
    """The path without "." and ".." segments (urljoin leaves those of an absolute link alone)."""
    out: list[str] = []
    segments = path.split("/")[1:]
    for segment in segments:
        if segment == "..":
            del out[-1:]
        elif segment != ".":
            out.append(segment)
    if segments and segments[-1] in (".", ".."):
        out.append("")
    return "/" + "/".join(out)


def origin(url: str) -> str:
    """scheme://host:port: the unit of robots.txt, of politeness and of the limits per host."""
    return url.split("/", 3)[0] + "//" + url.split("/", 3)[2].split("?")[0]


def trap(url: str, max_segments: int = 16, max_parameters: int = 6) -> str | None:
    """Why this address looks like one of endlessly many, or None."""
    parts = urlsplit(url)
    segments = [segment for segment in parts.path.split("/") if segment]
    if len(segments) > max_segments:
        return "path too deep"
    if len(parse_qsl(parts.query, keep_blank_values=True)) > max_parameters:
        return "too many query parameters"
    if segments and max(Counter(segments).values()) > 3:
        return "path repeats itself"
    for size in range(1, len(segments) // 3 + 1):
        tail = segments[-size:]
        if segments[-3 * size :] == tail * 3:
            return "path repeats itself"
    return None


def shape(url: str) -> str:
    """The address with digits and query values blanked: what the pages of one calendar have in common."""
    parts = urlsplit(url)
    names = sorted({name for name, _ in parse_qsl(parts.query, keep_blank_values=True)})
    return re.sub(r"\d+", "#", parts.path) + ("?" + "&".join(names) if names else "")


def is_public(address: str) -> bool:
    """Whether an IP address lies on the public internet (not private, loopback, link-local, reserved ...)."""
    ip = ipaddress.ip_address(address.split("%")[0])
    inner = getattr(ip, "ipv4_mapped", None) or getattr(ip, "sixtofour", None)
    if inner is not None:
        ip = inner
    return ip.is_global and not ip.is_multicast
