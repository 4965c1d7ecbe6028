"""How good a cleaning was, where the truth about every page is known.

    measure(crawl_folder, clean_folder, world.pages)  ->  {name: number}

Extraction is judged by the F1 of word tokens against the page's true text, before any filter; beside it
stands plain resiliparse (main content, defaults). `unseen` are page looks that were not used in tuning.
A planted duplicate counts as found if it or the page it copies was removed as a duplicate, not by a filter;
planted private data counts as masked if no document holds it. A share of nothing is no number (NaN).
"""

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

from resiliparse.extract.html2text import extract_plain_text

from .clean import CleanConfig, extract_page, read_jsonl, site_of
from .extract import SiteLines, decode
from .sources import read_documents


class Truth(Protocol):
    """What is known of a page; `pyengine.world.pages.Page` is one."""

    @property
    def path(self) -> str: ...
    @property
    def fate(self) -> str: ...  # "keep", "duplicate", or why it should go
    @property
    def text(self) -> str: ...
    @property
    def duplicate_of(self) -> str | None: ...
    @property
    def private(self) -> Sequence[str]: ...
    @property
    def unseen(self) -> bool: ...


def token_f1(found: str, truth: str) -> float:
    """F1 of the multisets of word tokens."""
    a, b = (Counter(re.findall(r"\w+", text)) for text in (found, truth))
    total = sum(a.values()) + sum(b.values())
    return 2 * sum((a & b).values()) / total if total else 1.0


def plain_text(data: bytes, content_type: str) -> str:
    """What resiliparse alone gives for a page."""
    return extract_plain_text(decode(data, content_type)[0], main_content=True)


def measure(crawled: str | Path, cleaned: str | Path, truth: Iterable[Truth]) -> dict[str, Any]:
    """The numbers of the gates, each beside how many pages it rests on."""
    pages = {page.path: page for page in truth}
    read, scores = _extraction(crawled, pages)
    kept: dict[str, str] = {}
    for name in ("documents", "heldout"):
        for document in read_jsonl(Path(cleaned) / f"{name}.jsonl"):
            kept[urlsplit(document["url"]).path] = document["text"]
    copies = [page for page in pages.values() if page.duplicate_of and page.path in read]
    gone = read_jsonl(Path(cleaned) / "removed.jsonl")
    as_copies = {urlsplit(row["url"]).path for row in gone if row["step"] == "duplicate"}
    found = [page for page in copies if page.path in as_copies or page.duplicate_of in as_copies]
    stand_ins = {page.duplicate_of for page in copies if page.path in kept}
    wanted = [page.path for page in pages.values() if page.fate == "keep" and page.text]
    lost = [path for path in wanted if path not in kept and path not in stand_ins]
    unwanted = [path for path in kept if path in pages and pages[path].fate not in ("keep", "duplicate")]
    private = [item for page in pages.values() if page.path in kept for item in page.private]
    text = "\n".join(kept.values())
    shown = [item for item in private if item in text]
    emails, shown_emails = ([item for item in items if "@" in item] for items in (private, shown))
    return scores | {
        "duplicates_found": _share(len(found), len(copies)), "duplicates": len(copies),
        "private_masked": _share(len(private) - len(shown), len(private)), "private": len(private),
        "emails_masked": _share(len(emails) - len(shown_emails), len(emails)), "emails": len(emails),
        "good_pages_kept": _share(len(wanted) - len(lost), len(wanted)), "good_pages": len(wanted),
        "bad_pages_kept": len(unwanted), "lost": sorted(lost)[:20], "unwanted": sorted(unwanted)[:20],
    }  # fmt: skip


def _share(part: int, whole: int) -> float:
    return part / whole if whole else math.nan


def _extraction(crawled: str | Path, pages: Mapping[str, Truth]) -> tuple[set[str], dict[str, Any]]:
    """Paths that were read; token F1 of the pages to be kept, ours and plain, all looks and those unseen."""
    config, lines = CleanConfig(noindex=False), SiteLines()
    rows = []
    read: set[str] = set()
    for raw in read_documents(crawled):
        read.add(urlsplit(raw.url).path)
        row = extract_page(raw, config)
        if "page" in row:
            lines.add(site_of(raw.url), row["page"]["lines"])
            page = pages.get(urlsplit(raw.url).path)
            if page is not None and page.text and page.fate in ("keep", "duplicate"):
                plain = token_f1(plain_text(raw.data, raw.content_type), page.text)
                rows.append((raw.url, row["page"], page, plain))
    scores: dict[str, list[float]] = {"f1": [], "f1_unseen": [], "plain_f1": [], "plain_f1_unseen": []}
    for url, extracted, page, plain in rows:
        own, _ = lines.strip(site_of(url), extracted["lines"])
        score = token_f1("\n".join([extracted["title"], *own]), page.text)
        for suffix in ("", "_unseen") if page.unseen else ("",):
            scores[f"f1{suffix}"].append(score)
            scores[f"plain_f1{suffix}"].append(plain)
    means = {name: sum(values) / max(1, len(values)) for name, values in scores.items()}
    return read, means | {"pages": len(scores["f1"]), "pages_unseen": len(scores["f1_unseen"])}
