"""The looks of the site: HTML templates that wrap the same clean text in very different clutter.

Six looks serve for tuning an extractor; the two of `UNSEEN` are kept for measuring it. A look is a skeleton
(templates/NAME.html) with [[slots]] and a way to write paragraphs. All that a skeleton adds (navigation,
cookie banner, adverts, comments, scripts, related links, footers) is not part of the page's text.
"""

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from html import escape
from importlib import resources

from .text import Block

Link = tuple[str, str]  # address, text


@dataclass(frozen=True)
class Sheet:
    """What goes into a look: the document's content and the links around it."""

    title: str
    date: str
    blocks: Sequence[Block]
    navigation: Sequence[Link]
    related: Sequence[Link]
    previous: Link | None = None
    following: Link | None = None
    lang: str = "en"
    head: str = ""  # more for <head>: charset, robots, canonical


@dataclass(frozen=True, eq=False)
class Look:
    """A skeleton; paragraphs are <p>, <div>, or lines with two <br> ("p", "div", "br")."""

    name: str  # of templates/NAME.html
    paragraph: str = "p"
    upper: bool = False  # tags in capitals, as on old pages
    adverts: bool = False  # adverts between the paragraphs
    pilcrow: bool = False  # a link sign behind headings

    @cached_property
    def skeleton(self) -> str:
        """The template's text."""
        return (resources.files(__package__) / "templates" / f"{self.name}.html").read_text("utf-8")


def render(look: Look, sheet: Sheet, rng: random.Random) -> str:
    """The page as HTML."""
    slots = {
        "title": escape(sheet.title),
        "date": sheet.date,
        "lang": sheet.lang,
        "head": sheet.head,
        "pilcrow": _PILCROW if look.pilcrow else "",
        "body": _body(look, sheet.blocks, rng),
        "nav": _items(sheet.navigation),
        "navbar": " | ".join(_anchor(link) for link in sheet.navigation),
        "related": _items(sheet.related),
        "previous": _anchor(sheet.previous, "Previous: "),
        "next": _anchor(sheet.following, "Next: "),
        "cookies": escape(rng.choice(_COOKIES)),
        "advert": escape(rng.choice(_ADVERTS)),
        "comments": _comments(rng),
        "views": str(rng.randrange(50, 9000)),
        "token": f"{rng.randrange(16**8):08x}",
    }
    html = re.sub(r"\[\[(\w+)\]\]", lambda slot: slots[slot[1]], look.skeleton)
    return _upper(html) if look.upper else html


def damage(html: str, rng: random.Random) -> str:
    """Break the HTML the way hand-written pages are broken; an HTML5 parser still sees the same text."""
    for tag in rng.sample(("</p>", "</li>", "</td>", "</tr>", "</body>", "</html>"), 4):
        html = html.replace(tag, "").replace(tag.upper(), "")
    html = re.sub(r'(class|id)="([\w-]+)"', r"\1=\2", html)
    html = html.replace("&amp;", "&")
    return html.replace("<p>", "</b></span><p>", 2) if rng.random() < 0.5 else html


def _body(look: Look, blocks: Sequence[Block], rng: random.Random) -> str:
    parts = []
    for i, block in enumerate(blocks):
        if look.adverts and i and i % 2 == 0:
            parts.append(
                f'<div class="ad-slot advertisement"><a href="/go/ad">{rng.choice(_ADVERTS)}</a></div>'
            )
        parts.append(_block(look, block))
    return "\n".join(parts)


def _block(look: Look, block: Block) -> str:
    if block.kind == "ul":
        return "<ul>\n" + "\n".join(f"<li>{escape(item)}</li>" for item in block.items) + "\n</ul>"
    if block.kind == "table":
        head, *rows = block.rows
        lines = ["<tr>" + "".join(f"<th>{escape(cell)}</th>" for cell in head) + "</tr>"]
        lines += ["<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows]
        return "<table>\n" + "\n".join(lines) + "\n</table>"
    text = escape(block.text, quote=False).replace("\n", "<br>\n")
    if block.kind == "h2":
        return f"<h2>{text}{_PILCROW if look.pilcrow else ''}</h2>"
    if block.kind == "quote":
        return f"<blockquote>{text}</blockquote>"
    return {"p": f"<p>{text}</p>", "div": f"<div>{text}</div>", "br": f"{text}<br><br>"}[look.paragraph]


def _anchor(link: Link | None, before: str = "") -> str:
    return f'<a href="{escape(link[0])}">{before}{escape(link[1])}</a>' if link else ""


def _items(links: Sequence[Link]) -> str:
    return "".join(f"<li>{_anchor(link)}</li>" for link in links)


def _comments(rng: random.Random) -> str:
    chosen = rng.sample(_COMMENTS, rng.randrange(1, 4))
    return "".join(
        f'<div class="comment"><span class="comment-author">user{rng.randrange(1000)}</span>'
        f'<div class="comment-text">{text}</div><a href="#reply">Reply</a></div>'
        for text in chosen
    )


def _upper(html: str) -> str:
    return re.sub(r"</?[a-z][a-z0-9]*", lambda tag: tag[0].upper(), html)


_PILCROW = '<a class="headerlink" href="#top" title="Permalink">¶</a>'
_COOKIES = (
    "We use cookies to make this site better. Accept all cookies or manage your settings.",
    "This website stores cookies on your device. By going on you agree to our privacy policy.",
    "Your privacy matters to us. We and our 312 partners store information on your device.",
)
_ADVERTS = (
    "Advertisement: the new lamp that never goes out, now half price!",
    "Sponsored: save up to 70% on boots this week only.",
    "Ad: lose weight without giving up cake. Doctors are surprised.",
    "Sponsored: this one trick makes any fence last longer. Click here.",
)
_COMMENTS = (
    "Great article, thanks for sharing!",
    "I do not agree at all, but it was well written.",
    "First!",
    "Can somebody tell me where to buy this?",
    "My grandmother used to say the same.",
    "Please write more about this.",
    "The second paragraph made me laugh.",
)

TUNING = (
    Look("wiki"),
    Look("blog"),
    Look("news", adverts=True),
    Look("old", paragraph="br", upper=True),
    Look("docs", pilcrow=True),
    Look("soup", paragraph="div"),
)
UNSEEN = (Look("magazine"), Look("board", adverts=True))
