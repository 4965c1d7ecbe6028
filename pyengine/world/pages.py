"""The site: every page with its address, its bytes, and the truth about it.

A page's truth: its clean text, its kind and date, which page it is a copy of, what private data was planted
in it, and its `fate`: what a good crawl and cleaning does with it ("keep", or the reason to leave it out).
Pages that only a running server can show (endless calendar, session ids, errors that recover) are in
server.py.

    /                 home, links to all sections        /later/...   only after the cut-off has passed
    /people/ /towns/ /news/ /questions/ /lists/ ...      /private/    closed by robots.txt
    /mirror/...       exact and near copies              /odd/        links to everything difficult
"""

import random
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from . import prose
from .config import WorldConfig
from .looks import TUNING, UNSEEN, Link, Sheet, damage, render
from .strays import FATES
from .text import Block, Document

_SECTIONS = {  # document kind -> section
    "biography": "people", "roundup": "news", "questions": "questions", "list": "lists", "essay": "essays",
    "arithmetic": "school", "letter": "letters", "roll": "letters", "interview": "letters", "lookup": "desk",
    "notice": "notices", "travel": "travel", "foreign": "abroad", "spam": "offers", "stub": "drafts",
    "filler": "drafts", "soft-404": "old", "closed": "private", "noindex": "drafts",
}  # fmt: skip
_PER_INDEX = 60  # links on one index page
_COPIED = ("biography", "roundup", "questions", "letter")  # never essays: copies would add to the quotations

# (charset of the bytes, charset in the header, charset in <meta>, byte order mark)
_CHARSETS = (
    ("utf-8", "utf-8", None, b""),
    ("latin-1", None, "iso-8859-1", b""),
    ("cp1252", "windows-1252", None, b""),
    ("utf-16-le", None, None, b"\xff\xfe"),
    ("utf-8", None, None, b""),
    ("utf-8", "utf-8", "iso-8859-1", b""),  # the header is right, the page is wrong about itself
    ("utf-8", None, None, b"\xef\xbb\xbf"),
    ("latin-1", None, None, b""),  # nobody says anything
)


@dataclass(frozen=True)
class Page:
    """One page of the site and the truth about it."""

    path: str
    kind: str  # a document's kind, or "index", "redirect", "sitemap", "robots", "file"
    fate: str  # "keep", "index", "duplicate", "language", "quality", "soft-404", "closed", "noindex", "none"
    body: bytes
    content_type: str = "text/html; charset=utf-8"
    status: int = 200
    headers: tuple[tuple[str, str], ...] = ()
    title: str = ""
    text: str = ""  # the clean text; empty where there is none to extract
    date: str = ""
    lang: str = "en"
    look: str = ""
    document: str | None = None  # id of the document it shows
    duplicate_of: str | None = None  # path of the page it copies
    near: bool = False  # a copy with some words changed
    private: tuple[str, ...] = ()
    later: bool = False

    @property
    def unseen(self) -> bool:
        """Whether its look is kept for measuring extraction."""
        return self.look in {look.name for look in UNSEEN}


class Site:
    """Lays the documents out as pages."""

    def __init__(
        self, config: WorldConfig, documents: Iterable[Document], strays: Iterable[Document]
    ) -> None:
        self.config = config
        self._sections: dict[str, list[tuple[str, Document]]] = {}
        self._used: set[str] = set()
        for document in (*documents, *strays):
            section = _SECTIONS[document.kind]
            if document.kind == "biography" and document.id.startswith("town"):
                section = "towns"
            section = f"later/{section}" if document.later else section
            path = f"/{section}/{self._slug(section, document.title)}.html"
            self._sections.setdefault(section, []).append((path, document))
        self._navigation: list[Link] = [("/", "Home")] + [
            (f"/{section}/", section.capitalize())
            for section in self._sections
            if not section.startswith(("later", "private"))
        ]

    def pages(self) -> list[Page]:
        """All pages, those after the cut-off included."""
        pages = [page for section in self._sections for page in self._section(section)]
        pages += self._copies(pages)
        pages += self._mirror_index(pages)
        pages += self._fronts()
        pages += self._odds(pages)
        pages += self._machine_files(pages)
        return pages

    # -- one section: its documents, and index pages that link them

    def _section(self, section: str) -> Iterator[Page]:
        members = self._sections[section]
        # every eighth travel page is an orphan: only the sitemap knows it
        linked = [
            (path, document.title)
            for i, (path, document) in enumerate(members)
            if document.kind != "travel" or i % 8
        ]
        for i, (path, document) in enumerate(members):
            rng = self.config.rng("page", path)
            sheet = Sheet(
                document.title, document.date, document.blocks, self._navigation,
                related=rng.sample(linked, min(4, len(linked))),
                previous=linked[i - 1] if 0 < i < len(linked) else None,
                following=linked[i + 1] if i + 1 < len(linked) else None,
                lang=document.lang,
            )  # fmt: skip
            yield self._page(path, document, sheet, rng)
        yield from self._index(f"/{section}/", section.split("/")[-1].capitalize(), linked)

    def _page(self, path: str, document: Document, sheet: Sheet, rng: random.Random) -> Page:
        look = rng.choice(UNSEEN if rng.random() < 0.15 else TUNING)
        varied = document.kind in ("travel", "foreign")
        charset, header, meta, mark = _CHARSETS[self._turn(path) if varied else 0]
        head = f'<meta charset="{meta}">' if meta else ""
        headers: list[tuple[str, str]] = []
        if document.kind == "noindex":
            if rng.random() < 0.5:
                head += '<meta name="robots" content="noindex, follow">'
            else:
                headers.append(("X-Robots-Tag", "noindex"))
        html = render(look, replace(sheet, head=head + sheet.head), rng)
        if rng.random() < 0.15:
            html = damage(html, rng)
        kind = "text/html"
        if look.name == "wiki" and not varied and rng.random() < 0.1:  # served as XHTML, as older manuals are
            html, kind = f'<?xml version="1.0" encoding="utf-8"?>\n{html}', "application/xhtml+xml"
        return Page(
            path, document.kind, FATES.get(document.kind, "keep"),
            body=mark + html.encode(charset, "xmlcharrefreplace"),
            content_type=kind + (f"; charset={header}" if header else ""),
            headers=tuple(headers), title=document.title, text=document.text, date=document.date,
            lang=document.lang, look=look.name, document=document.id, private=document.private,
            later=document.later,
        )  # fmt: skip

    def _turn(self, path: str) -> int:
        """Which charset a page gets: in turn within its section."""
        members = self._sections[path.split("/")[1]]
        return [member for member, _ in members].index(path) % len(_CHARSETS)

    def _index(self, path: str, title: str, links: Sequence[Link]) -> Iterator[Page]:
        for start in range(0, max(1, len(links)), _PER_INDEX):
            number = start // _PER_INDEX
            here = path if not number else f"{path}page-{number + 1}.html"
            following = f"{path}page-{number + 2}.html" if start + _PER_INDEX < len(links) else None
            shown = list(links[start : start + _PER_INDEX])
            yield self._hub(here, title, shown, (following, "Next page") if following else None)

    def _hub(self, path: str, title: str, links: Sequence[Link], following: Link | None = None) -> Page:
        """A page of links."""
        rng = self.config.rng("hub", path)
        items = "".join(f'<li><a href="{_decorate(href, rng)}">{text}</a></li>' for href, text in links)
        more = f'<p><a rel="next" href="{following[0]}">{following[1]}</a></p>' if following else ""
        navigation = "".join(f'<li><a href="{href}">{text}</a></li>' for href, text in self._navigation)
        html = (
            f"<!DOCTYPE html>\n<html><head><title>{title}</title></head>\n"
            f"<body><nav><ul>{navigation}</ul></nav><h1>{title}</h1><ul>{items}</ul>{more}</body></html>\n"
        )
        closed = path.startswith("/private/") and path != "/private/open.html"
        fate = "closed" if closed else "index"
        return Page(path, "index", fate, html.encode(), title=title, later=path.startswith("/later/"))

    def _slug(self, section: str, title: str) -> str:
        plain = unicodedata.normalize("NFKD", title.lower()).encode("ascii", "ignore").decode()
        base = re.sub(r"[^a-z0-9]+", "-", plain).strip("-") or "page"
        slug, number = base, 1
        while f"{section}/{slug}" in self._used:
            number += 1
            slug = f"{base}-{number}"
        self._used.add(f"{section}/{slug}")
        return slug

    # -- copies

    def _copies(self, pages: Sequence[Page]) -> Iterator[Page]:
        """Exact and near copies of some pages in another look under /mirror/."""
        rng = self.config.rng("copies")
        documents = {document.id: document for members in self._sections.values() for _, document in members}
        sources = [page for page in pages if page.kind in _COPIED and page.fate == "keep" and not page.later]
        for i, source in enumerate(rng.sample(sources, min(self.config.copies, len(sources)))):
            original = documents[source.document or ""]
            near = i % 2 == 1
            copy = _reworded(original, rng) if near else original
            path = f"/mirror{source.path}"
            sheet = Sheet(
                copy.title, copy.date, copy.blocks, self._navigation,
                related=[("/mirror/", "All mirrored pages")],
                head=f'<link rel="canonical" href="{source.path}">' if i % 4 == 0 else "",
            )  # fmt: skip
            page = self._page(path, copy, sheet, rng)
            yield replace(page, fate="duplicate", duplicate_of=source.path, near=near)

    def _mirror_index(self, pages: Sequence[Page]) -> Iterator[Page]:
        links = [(page.path, page.title) for page in pages if page.path.startswith("/mirror/")]
        yield from self._index("/mirror/", "Mirrored pages", links)

    # -- front pages and oddities

    def _fronts(self) -> Iterator[Page]:
        sections = [(href, text) for href, text in self._navigation if href != "/"]
        extra = [
            ("/mirror/", "Mirrored pages"),
            ("/odd/", "Odds and ends"),
            ("/private/", "The closed shelf"),
        ]
        yield self._hub("/", "The world", [*sections, *extra])
        # after the cut-off this home page takes the place of the first
        yield replace(self._hub("/", "The world", [*sections, *extra, ("/later/", "New pages")]), later=True)
        later = [(f"/{s}/", s.split("/")[-1].capitalize()) for s in self._sections if s.startswith("later/")]
        yield self._hub("/later/", "New pages", later)

    def _odds(self, pages: Sequence[Page]) -> Iterator[Page]:
        """Redirects and files, and the page that links to everything difficult."""
        targets = [
            page.path for page in pages if page.fate == "keep" and page.kind != "travel" and not page.later
        ]
        rng = self.config.rng("odds")
        chosen = rng.sample(targets, min(12, len(targets)))
        moved: list[tuple[str, str, int]] = [
            (f"/go/{i}", target, (301, 302, 307, 308)[i % 4]) for i, target in enumerate(chosen)
        ]
        moved += [(f"/chain/{i}", f"/chain/{i + 1}", 302) for i in range(3)] + [("/chain/3", chosen[0], 301)]
        moved += [("/loop/a", "/loop/b", 302), ("/loop/b", "/loop/a", 302)]
        moved += [
            ("/inside/metadata", "http://169.254.169.254/latest/meta-data/", 302),
            ("/inside/router", "http://10.0.0.1/admin", 302),
            ("/inside/neighbour", "http://127.0.0.1:1/", 302),
            ("/inside/file", "file:///etc/passwd", 302),
        ]
        for path, target, status in moved:
            yield Page(path, "redirect", "none", b"", status=status, headers=(("Location", target),))
        yield self._hub("/private/open.html", "The open page of the closed shelf", [("/", "Home")])
        yield Page("/files/photo.jpg", "file", "none", b"\xff\xd8\xff\xe0" + bytes(2000), "image/jpeg")
        yield Page("/files/archive.zip", "file", "none", b"PK\x03\x04" + bytes(2000), "application/zip")
        links = [(path, f"Odd thing {path}") for path, _, _ in moved if path not in ("/chain/1", "/chain/2")]
        links += [(path, f"Odd thing {path}") for path in (
            "/files/photo.jpg", "/files/archive.zip", "/missing/page.html", "/calendar/2024/1/",
            "/session/enter", "/busy/page.html", "/flaky/page.html", "/slow/page.html", "/huge/page.html",
            "/bomb/page.html", "mailto:nobody@example.org", "javascript:void(0)", "http://[broken/",
        )]  # fmt: skip
        links += [(page.path, page.title) for page in pages if page.kind in ("soft-404", "closed")]
        links.append(("/private/open.html", "The open page of the closed shelf"))
        yield self._hub("/odd/", "Odds and ends", links)

    def _machine_files(self, pages: Sequence[Page]) -> Iterator[Page]:
        """The sitemaps (before and after the cut-off); robots.txt is the server's, for its crawl-delay."""
        listed = [page for page in pages if page.fate == "keep" and page.status == 200]
        for path, later in (("/sitemap.xml", False), ("/later/sitemap.xml", True)):
            entries = "".join(
                f"<url><loc>{{base}}{page.path}</loc><lastmod>{page.date}</lastmod></url>\n"
                for page in listed
                if page.later == later
            )
            xml = (
                '<?xml version="1.0" encoding="UTF-8"?>\n'
                f'<urlset xmlns="http://www.sitemaps.org/schemas/sitemap/0.9">\n{entries}</urlset>\n'
            )
            yield Page(path, "sitemap", "none", xml.encode(), "application/xml", later=later)


def robots_txt(base: str, crawl_delay: float, later: bool) -> str:
    """robots.txt of the site: a closed folder with one open page, wildcards, a delay, the sitemaps."""
    lines = [
        "User-agent: greedybot", "Disallow: /", "",
        "User-agent: *", "Disallow: /private/", "Allow: /private/open.html", "Disallow: /search",
        "Disallow: /*?action=print$", f"Crawl-delay: {crawl_delay:g}", "",
        f"Sitemap: {base}/sitemap.xml",
    ]  # fmt: skip
    return "\n".join([*lines, *([f"Sitemap: {base}/later/sitemap.xml"] if later else []), ""])


def _decorate(href: str, rng: random.Random) -> str:
    """Some links write the same address in another way."""
    if href.startswith("/") and not href.endswith("/") and rng.random() < 0.1:
        return href + rng.choice(("#top", "?utm_source=index", "?utm_medium=link&amp;utm_campaign=x"))
    if href.startswith("/") and href.count("/") > 1 and rng.random() < 0.05:
        return "/./" + href[1:]
    return href


def _reworded(document: Document, rng: random.Random) -> Document:
    """The document with about one word in eighty changed, at least one, and no name or fact among them."""
    words = sum(len(line.split()) for block in document.blocks for line in block.lines())
    left = max(1, words // 80)
    blocks: list[Block] = []
    for block in document.blocks:
        text = block.text
        while left and block.kind == "p":
            changed = prose.reword(text, rng)
            if changed == text:
                break
            text, left = changed, left - 1
            if rng.random() < 0.7:
                break
        blocks.append(replace(block, text=text))
    if left and blocks:
        blocks.append(Block("p", "This page was copied from another place."))
    return replace(document, blocks=tuple(blocks))
