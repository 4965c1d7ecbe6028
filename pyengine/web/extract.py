"""From the bytes of a page to its main text: charset, main content, tidy lines, title first.

resiliparse finds the main content. It drops every bulleted list, so lists that are text rather than links
are first turned into plain blocks; and where what it kept is short against the page's text outside links,
trafilatura reads the page too and the longer text wins. `SiteLines` then knows the lines that a site
repeats on its pages (mottos, "Similar topics", cookie notes), which no look at a single page can tell.

A page of plain text passes through unchanged.
"""

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

from resiliparse.extract.html2text import extract_plain_text
from resiliparse.parse.encoding import detect_encoding, map_encoding_to_html5
from resiliparse.parse.html import HTMLTree

from .fetch import unfold
from .robots import page_directives

_PRE = "\ue000"  # marks a line of preformatted text while lines are tidied (a private-use character)
_MARKS = (
    (b"\xef\xbb\xbf", "utf-8"), (b"\xff\xfe\x00\x00", "utf-32-le"), (b"\x00\x00\xfe\xff", "utf-32-be"),
    (b"\xff\xfe", "utf-16-le"), (b"\xfe\xff", "utf-16-be"),
)  # fmt: skip
_META = re.compile(rb"""(?i)<meta[^>]*?charset\s*=\s*["']?\s*([\w.:-]+)""")
_XML = re.compile(rb"""(?i)^\s*<\?xml[^>]*?encoding\s*=\s*["']([\w.:-]+)""")
_ODD = re.compile("[\x00-\x08\x0b\x0e-\x19\x1b-\x1f\ufffd]")
_TRAFILATURA_CHARS = 400_000  # it takes seconds for more
_CHROME = "nav, header nav, footer, aside, script, style, template, noscript"


class NotAPage(Exception):
    """Bytes that hold no text to extract; the message is the reason."""


@dataclass
class Page:
    """What was read from one page. `lines` are the main text's lines, the title not among them; only plain text
    has empty ones."""

    title: str = ""
    lines: list[str] = field(default_factory=list)
    date: str = ""  # the page's own statement, ISO
    lang: str = ""  # likewise
    canonical: str = ""  # <link rel=canonical>
    noindex: bool = False
    charset: str = ""
    extractor: str = ""

    @property
    def text(self) -> str:
        """Title and main text."""
        return "\n".join([self.title, *self.lines] if self.title else self.lines)


# -- charset


def decode(data: bytes, content_type: str = "") -> tuple[str, str]:
    """Text of a page, and the charset it was read with.

    Order: byte order mark; Content-Type header; <meta> or XML declaration; strict UTF-8; a detector. A
    declared charset must fit: bytes that it cannot read, or that are valid UTF-8 with letters beyond ASCII
    under a single-byte name, are taken for a mistake of the page and the next source is asked.
    """
    for mark, name in _MARKS:
        if data.startswith(mark):
            return data[len(mark) :].decode(name, "replace"), name
    header = re.search(r"(?i)charset\s*=\s*[\"']?\s*([\w.:-]+)", content_type)
    declared = [header[1]] if header else []
    declared += [
        m[1].decode("ascii", "replace") for m in (_XML.search(data[:200]), _META.search(data[:4096])) if m
    ]
    try:
        utf8 = data.decode("utf-8")
        if not utf8.isascii() or not any(map(_is_wide, declared)):
            if not _looks_utf16(data):
                return utf8, "utf-8"
    except UnicodeDecodeError as error:
        utf8 = ""
        # one stray byte in a long page does not make it another charset
        damaged = data.decode("utf-8", "replace") if error.start > 0 or declared else ""
    for name in declared:
        name = map_encoding_to_html5(name, False) or ""
        if name.lower().startswith("utf-16") and not _looks_utf16(data):
            continue  # a page that could name its charset in ASCII bytes is not UTF-16
        try:
            return data.decode(name), name
        except (UnicodeDecodeError, LookupError):
            continue
    if _looks_utf16(data):
        name = "utf-16-le" if data[1::2].count(0) > data[::2].count(0) else "utf-16-be"
        return data.decode(name, "replace"), name
    if utf8:
        return utf8, "utf-8"
    letters = sum(byte > 127 for byte in data[:200_000])
    if damaged and damaged[:200_000].count("\ufffd") * 20 < letters:
        return damaged, "utf-8"
    name = detect_encoding(data, html5_compatible=True) or "windows-1252"
    if name == "utf-8":
        name = "windows-1252"
    try:
        return data.decode(name, "replace"), name
    except LookupError:
        return data.decode("windows-1252", "replace"), "windows-1252"


def _is_wide(name: str) -> bool:
    """Charsets whose ASCII-looking bytes mean something else."""
    return re.match(r"(?i)utf-?(16|32)|iso-2022|hz", name) is not None


def _looks_utf16(data: bytes) -> bool:
    head = data[:2000]
    return len(head) >= 8 and max(head[::2].count(0), head[1::2].count(0)) * 4 > len(head)


# -- one page


def select(node, css: str) -> tuple:
    """All elements that match. (A slice takes linear time; iterating a resiliparse list takes quadratic.)"""
    return node.query_selector_all(css)[:]


def extract(
    data: bytes, content_type: str = "", *, agent: str = "pyengine", robots_tags: Iterable[str] = ()
) -> Page:
    """Read one page. Raises NotAPage for empty and binary content."""
    if data.startswith(b"\x1f\x8b"):  # a file x.html.gz, served as it is
        data, _ = unfold(data, "gzip", 10 * len(data))
    if not data.strip():
        raise NotAPage("empty")
    text, charset = decode(data, content_type)
    sample = text[:4096]
    if len(_ODD.findall(sample)) * 50 > len(sample):
        raise NotAPage("binary")
    if content_type.startswith("text/plain") or not re.search(r"<[a-zA-Z!?/]", sample):
        lines = [line.rstrip() for line in text.replace("\f", "\n").strip().splitlines()]
        return Page(lines=lines, charset=charset, extractor="plain")
    tree = HTMLTree.parse(text.replace(_PRE, ""))
    if tree.body is None:
        raise NotAPage("no body")
    page = Page(charset=charset, extractor="resiliparse")
    _read_head(tree, page, agent, robots_tags)
    heading = _heading(tree)
    _prepare(tree)
    links = _links(tree)
    main = extract_plain_text(
        tree, preserve_formatting=True, main_content=True, list_bullets=False, alt_texts=False, links=False,
        comments=False, post_meta=False,
    )  # fmt: skip
    page.title, page.lines = _own_lines(main, heading, page.title, links)
    if _is_short(page.lines, tree):
        title, lines = _own_lines(_trafilatura(text), heading, page.title, links)
        if _words(lines) > _words(page.lines):
            page.title, page.lines, page.extractor = title, lines, "trafilatura"
    return page


def _own_lines(text: str, heading: str, title: str, links: dict[str, bool]) -> tuple[str, list[str]]:
    """What an extractor gave, as title and tidy lines without navigation."""
    title, lines = _title_first(heading, title, tidy(text.split("\n")))
    return title, _trim_links(lines, links)


def _read_head(tree: HTMLTree, page: Page, agent: str, robots_tags: Iterable[str]) -> None:
    document = tree.document
    metas: dict[str, str] = {}
    robots: list[str] = []
    for meta in select(document, "meta[content]"):
        name = (
            meta.getattr("name", "") or meta.getattr("property", "") or meta.getattr("itemprop", "")
        ).lower()
        content = meta.getattr("content", "")
        metas.setdefault(name, content)
        if name in ("robots", agent.lower()):
            robots.append(content)
    page.noindex = "noindex" in page_directives(robots_tags, robots, agent)
    page.title = " ".join((metas.get("og:title") or tree.title or "").split())
    for html in select(document, "html[lang]")[:1]:
        page.lang = html.getattr("lang", "").split("-")[0].lower()
    for link in select(document, 'link[rel="canonical" i][href]')[:1]:
        page.canonical = link.getattr("href", "")
    page.date = _date(document, metas)


_DATE_NAMES = (
    "article:published_time", "datepublished", "date", "dc.date", "dc.date.issued", "dcterms.date", "pubdate",
    "citation_publication_date", "article:modified_time", "last-modified",
)  # fmt: skip


def _date(document, metas: dict[str, str]) -> str:
    """The day a page says it was published: meta names, then JSON-LD, then <time>."""
    said = [metas[name] for name in _DATE_NAMES if name in metas]
    for script in select(document, 'script[type="application/ld+json"]'):
        found = re.search(r'"datePublished"\s*:\s*("[^"]*")', script.text or "")
        if found:
            said.append(json.loads(found[1]))
    said += [time.getattr("datetime", "") for time in select(document, "time[datetime]")[:1]]
    for value in said:
        day = re.match(r"\s*((?:1[89]|20|21)\d\d-(?:0[1-9]|1[0-2])-(?:0[1-9]|[12]\d|3[01]))", value)
        if day:
            return day[1]
    return ""


def _heading(tree: HTMLTree) -> str:
    """The text of the page's only <h1>, or of the first one that stands in its main part."""
    found = select(tree.document, "main h1, article h1, [role=main] h1") or select(tree.document, "h1")
    heading = found[0].text if found else ""
    return _strip_marks(" ".join((heading or "").split()))


def _prepare(tree: HTMLTree) -> None:
    """Make the tree ready: lists of text become plain blocks, preformatted lines get a mark."""
    for pre in select(tree.document, "pre, textarea, listing, xmp"):
        text = pre.text or ""
        pre.text = "\n".join(_PRE + line.rstrip() for line in text.strip("\n").split("\n"))
    for ul in select(tree.document, "ul"):
        length = len(ul.text or "")
        linked = sum(len(a.text or "") for a in select(ul, "a[href]"))
        if length and linked * 2 <= length and ul.parent is not None:
            block: Any = tree.create_element("ol")
            ul.parent.replace_child(block, ul)
            for child in ul.child_nodes[:]:
                block.append_child(child)


def _is_short(lines: Sequence[str], tree: HTMLTree) -> bool:
    """Whether the main text misses much of the page's text outside links and navigation."""
    for node in select(tree.document, _CHROME + ", a[href]"):
        node.decompose()
    rest = len((tree.body.text or "").split()) if tree.body else 0
    return rest >= 60 and _words(lines) < 0.6 * rest


def _trafilatura(text: str) -> str:
    import trafilatura  # slow to import, and most pages do without

    if len(text) > _TRAFILATURA_CHARS:
        return ""
    found = trafilatura.extract(text, include_comments=False, fast=True) or ""
    found = re.sub(r"(?m)^[|\s:-]+$", "", found)  # the rules of its tables, and then their walls
    return re.sub(r"(?m)^\|(.*)\|$", lambda row: " ".join(row[1].replace("|", " ").split()), found)


def _words(lines: Iterable[str]) -> int:
    return sum(len(line.split()) for line in lines)


# -- lines


def tidy(lines: Iterable[str]) -> list[str]:
    """Lines without needless white space (kept inside preformatted text), empty lines and link marks."""
    out = []
    for line in lines:
        if line.startswith(_PRE) or (_PRE in line and not line.partition(_PRE)[0].strip()):
            line = line.replace(_PRE, "").rstrip()
        else:
            line = _strip_marks(" ".join(line.replace(_PRE, "").split()))
        if line.strip():
            out.append(unicodedata.normalize("NFC", line))
    return out


def _strip_marks(line: str) -> str:
    """Without the sign that links a heading to itself."""
    return re.sub(r"\s*[¶§]$|\s*\u00b6", "", line) if line.endswith(("¶", "§")) or "¶" in line else line


_NAVIGATION = frozenset("prev previous next up home top back contents index".split())


def _links(tree: HTMLTree) -> dict[str, bool]:
    """The text of every link, and whether it leads around the site rather than to something."""
    links: dict[str, bool] = {}
    for a in select(tree.document, "a[href]"):
        text = " ".join((a.text or "").split())
        around = text.lower().strip("\u00ab\u00bb<> ") in _NAVIGATION or a.hasattr("accesskey")
        if text:
            links[text] = links.get(text, False) or around
    return links


def _trim_links(lines: list[str], links: dict[str, bool]) -> list[str]:
    """Without lines at the start and the end that are (nearly) all link text; without a bar like "Prev ... Next"
    near the start or the end and what stands outside it; and without runs of four and more lines of one link each."""
    longest = sorted(links, key=len, reverse=True)

    def linked(line: str) -> tuple[float, int]:
        """The share of a line's letters inside links, and how many of these lead around the site."""
        rest, around = line, 0
        for link in longest if len(line) <= 300 else ():
            if len(link) > 1 and link in rest:
                rest = rest.replace(link, " ", 1)
                around += links[link]
        return 1 - sum(map(str.isalnum, rest)) / max(1, sum(map(str.isalnum, line))), around

    def is_bar(line: str) -> bool:
        return len(line.split()) <= 20 and linked(line)[1] >= 2

    def is_links(line: str) -> bool:
        return line in links or linked(line)[0] > 0.8

    start, end = 0, len(lines)
    start = max((i + 1 for i in range(min(4, end)) if is_bar(lines[i])), default=0)
    end = min((i for i in range(max(start, end - 4), end) if is_bar(lines[i])), default=end)
    while start < end and is_links(lines[start]):
        start += 1
    while end > start and is_links(lines[end - 1]):
        end -= 1
    kept: list[str] = []
    for single, run in groupby(lines[start:end], key=lambda line: line in links):
        together = list(run)
        if not single or len(together) < 4:
            kept += together
    return kept


def _title_first(heading: str, title: str, lines: list[str]) -> tuple[str, list[str]]:
    """The page's title, and its lines without it: the heading where there is one, else <title>.

    Lines before the heading are left to `SiteLines`; a line that repeats the title is taken out.
    """
    if not heading and lines and title.startswith(lines[0]) and len(lines[0]) > 3:
        heading = lines[0]
    best = heading or re.split(r"\s+[|\u2014\u2013\u00b7\u00bb-]\s+", title)[0].strip()
    return best, [line for i, line in enumerate(lines) if i >= 8 or line != best]


def _edge_key(line: str) -> str:
    """The line, with digits blanked if it is more than a name and a number."""
    return re.sub(r"\d+", "#", line) if len(re.findall(r"[^\W\d_]{2,}", line)) >= 4 else line


class SiteLines:
    """Counts the lines that a site's pages share, and removes them.

    A line is the site's and not the page's if it stands on `anywhere` of the site's pages, or at the start or
    end of `edge` of them (what stands outside it being the site's as well). Long lines at the edge must be as
    frequent as lines anywhere: they may be quotations. Lines of several words that differ in digits only ("Last
    modified on ...") count as one at the edge.
    """

    def __init__(self, anywhere: float = 0.3, edge: float = 0.03, least: int = 5, short: int = 12) -> None:
        self.anywhere, self.edge, self.least, self.short = anywhere, edge, least, short
        self.pages: Counter[str] = Counter()
        self._lines: dict[str, Counter[str]] = {}
        self._edges: dict[str, Counter[str]] = {}

    def add(self, site: str, lines: Sequence[str]) -> None:
        """Count one page."""
        self.pages[site] += 1
        lines = [line for line in lines if line.strip()]
        self._lines.setdefault(site, Counter()).update(set(lines))
        self._edges.setdefault(site, Counter()).update(map(_edge_key, {*lines[:4], *lines[-4:]}))

    def strip(self, site: str, lines: Sequence[str]) -> tuple[list[str], list[str]]:
        """The page's own lines, and those taken out as the site's."""
        everywhere = self._repeated(self._lines, site, self.anywhere)
        edges = self._repeated(self._edges, site, self.edge)

        def is_chrome(line: str) -> bool:
            return line in everywhere or (_edge_key(line) in edges and len(line.split()) <= self.short)

        start, end = 0, len(lines)
        while start < end and is_chrome(lines[start]):
            start += 1
        while end > start and is_chrome(lines[end - 1]):
            end -= 1
        kept = [line for line in lines[start:end] if line not in everywhere]
        removed = [*lines[:start], *lines[end:], *(line for line in lines[start:end] if line in everywhere)]
        return kept, removed

    def _repeated(self, counts: dict[str, Counter[str]], site: str, share: float) -> set[str]:
        key = (id(counts), site)
        if key not in self._cache:
            bound = max(self.least, share * self.pages[site])
            self._cache[key] = {line for line, n in counts.get(site, Counter()).items() if n >= bound}
        return self._cache[key]

    @property
    def _cache(self) -> dict:
        return self.__dict__.setdefault("_found", {})
